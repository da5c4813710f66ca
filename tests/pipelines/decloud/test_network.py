"""The network: any size, one result however it is cut, gradients, mixed precision, and the details of the spec."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from safelight.pipelines.decloud import network as module
from safelight.pipelines.decloud.network import (
    GLFCR,
    Architecture,
    JointWindowAttention,
    attention_mask,
    from_windows,
    relative_position_index,
    to_windows,
    window_regions,
)

SMALL = Architecture(features=16, growth=8, stages=2, layers=2)


def lively(architecture: Architecture = SMALL, seed: int = 0) -> GLFCR:
    """A network with weights so large that nothing in it is negligible."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = GLFCR(architecture)
        for name, parameter in net.named_parameters():
            fan = max(parameter[0].numel(), 1)
            spread = 0.1 if "fac_warp.3" in name else 0.3 if "LFF" in name else 0.6 if "fac_warp" in name else 1.0
            nn.init.normal_(parameter, std=spread / fan**0.5)
    return net.eval()


def images(height: int = 32, width: int = 32, batch: int = 1, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.rand((batch, 13, height, width), generator=generator),
        torch.rand((batch, 2, height, width), generator=generator),
    )


@pytest.mark.parametrize("size", [(16, 16), (16, 48), (32, 16), (48, 80)])
@torch.no_grad()
def test_any_size_divisible_by_16_and_rectangles(size: tuple[int, int]) -> None:
    result = lively()(*images(*size))
    assert result.shape == (1, 13, *size)
    assert result.isfinite().all()


def test_other_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="16"):
        lively()(*images(40, 32))


@torch.no_grad()
def test_a_turned_image_gives_the_turned_result_of_turned_weights() -> None:
    """Rows and columns are treated alike: transposing images and weights transposes the result."""
    net, (cloudy, sar) = lively(), images(32, 48)
    turned = GLFCR(SMALL).eval()
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    for name, tensor in state.items():
        if tensor.ndim == 4 and tensor.shape[-1] > 1:
            state[name] = tensor.mT.contiguous()
        if name.endswith("bias_table"):
            state[name] = tensor.view(15, 15, -1).transpose(0, 1).flatten(0, 1)
    for name in ("SFENet1.weight", "SFENet1_SAR.weight"):  # the four pixels of a cell are channels
        state[name] = state[name].unflatten(1, (-1, 2, 2)).transpose(2, 3).flatten(1, 3)
    for name in ("UPNet.0.weight", "UPNet.0.bias"):
        state[name] = state[name].unflatten(0, (-1, 2, 2)).transpose(1, 2).flatten(0, 2)
    for i in range(SMALL.stages):
        for part in ("weight", "bias"):
            name = f"DF.{i}.fac_warp.3.0.{part}"
            state[name] = state[name].unflatten(0, (-1, 5, 5)).transpose(1, 2).flatten(0, 2)
    turned.load_state_dict(state)
    torch.testing.assert_close(turned(cloudy.mT, sar.mT).mT, net(cloudy, sar), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_batch_gives_what_its_images_give_alone() -> None:
    net, (cloudy, sar) = lively(), images(32, 32, batch=3)
    alone = torch.cat([net(cloudy[n : n + 1], sar[n : n + 1]) for n in range(3)])
    torch.testing.assert_close(net(cloudy, sar), alone, rtol=0, atol=1e-5)


@torch.no_grad()
def test_how_many_windows_and_rows_at_a_time_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    net, pair = lively(), images(48, 64, batch=2)
    usual = net(*pair)
    monkeypatch.setattr(module, "_WINDOWS_AT_A_TIME", {"cpu": 5})
    monkeypatch.setattr(module, "_PIXELS_AT_A_TIME", {"cpu": 70})
    torch.testing.assert_close(net(*pair), usual, rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_mask_of_the_checkpoint_is_not_used() -> None:
    net, pair = lively(), images()
    before = net(*pair)
    net.RDBs[0].convs[1].attn_mask.fill_(5.0)
    assert torch.equal(net(*pair), before)


def test_windows_go_there_and_back() -> None:
    x = torch.arange(2 * 3 * 16 * 24.0).view(2, 3, 16, 24)
    for shift in (0, 4):
        tokens = to_windows(x, shift)
        assert tokens.shape == (2 * 2 * 3, 64, 3)
        assert torch.equal(from_windows(tokens, x.shape[-2:], shift), x)
    assert torch.equal(to_windows(x, 0)[1, :, 2], x[0, 2, :8, 8:16].flatten())
    assert torch.equal(to_windows(x, 4)[0, :, 0], x[0, 0, 4:12, 4:12].flatten())


def test_only_pixels_that_were_neighbours_attend_to_each_other() -> None:
    height, width = 16, 24
    place = torch.arange(height * width).view(1, 1, height, width).float()
    rolled = to_windows(place, 4)[..., 0].long()
    y, x = rolled // width, rolled % width
    apart = ((y[:, :, None] - y[:, None]).abs() >= 8) | ((x[:, :, None] - x[:, None]).abs() >= 8)
    mask = attention_mask(window_regions(height, width))
    assert torch.equal(mask, torch.where(apart, -100.0, 0.0))


def test_position_indices_count_rows_then_columns_of_the_offset() -> None:
    index = relative_position_index()
    for q, k in ((0, 0), (0, 63), (63, 0), (9, 2), (5, 40)):
        assert index[q, k] == (q // 8 - k // 8 + 7) * 15 + (q % 8 - k % 8 + 7)


def plain_attention(attention: JointWindowAttention, x: Tensor, x_sar: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The attention as the paper writes it, the mask before the gate."""
    windows, tokens, channels = x.shape
    heads = 8

    def split(qkv: Tensor) -> Tensor:
        return qkv.view(windows, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4)

    (q, k, v), (q_sar, k_sar, v_sar) = split(attention.qkv(x)), split(attention.qkv_SAR(x_sar))
    table = attention.relative_position_bias_table[attention.relative_position_index.flatten()]
    bias = table.view(tokens, tokens, heads).permute(2, 0, 1) + mask[:, None]
    scale = (channels // heads) ** -0.5
    logits, logits_sar = (q * scale) @ k.mT + bias, (q_sar * scale) @ k_sar.mT + bias
    logits = logits + (logits_sar - logits) * torch.sigmoid(attention.attn_fuse_1x1conv(logits_sar - logits))
    out, out_sar = logits.softmax(-1) @ v, logits_sar.softmax(-1) @ v_sar
    return (
        attention.proj(out.transpose(1, 2).reshape(windows, tokens, channels)),
        attention.proj_SAR(out_sar.transpose(1, 2).reshape(windows, tokens, channels)),
    )


def test_attention_and_its_gradients_are_those_of_the_plain_formula() -> None:
    attention = lively().double().RDBs[0].convs[1].attn
    generator = torch.Generator().manual_seed(3)
    regions = window_regions(24, 32)
    x, x_sar, weight = torch.randn((3, len(regions), 64, 8), generator=generator, dtype=torch.float64)
    found, expected = [], []
    for results, function, mask in (
        (found, attention, regions),
        (expected, lambda *a: plain_attention(attention, *a), attention_mask(regions).double()),
    ):
        attention.zero_grad()
        inputs = x.clone().requires_grad_(), x_sar.clone().requires_grad_()
        out, out_sar = function(*inputs, mask)
        ((out + 2 * out_sar) * weight).sum().backward()
        results += [out, out_sar, *(tensor.grad for tensor in (*inputs, *attention.parameters()))]
    for ours, plain in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-9)


def test_normalisation_has_the_published_epsilon() -> None:
    norms = [part for part in lively().modules() if isinstance(part, nn.LayerNorm)]
    assert len(norms) == 8
    assert {norm.eps for norm in norms} == {1e-5}


def test_the_first_biases_by_position_are_small() -> None:
    """A normal distribution of 0.02, cut off; all else begins as PyTorch does."""
    tables = torch.cat([t.flatten() for n, t in GLFCR(SMALL).state_dict().items() if n.endswith("bias_table")])
    assert tables.std().item() == pytest.approx(0.02, rel=0.05)


def test_every_weight_gets_a_gradient_but_those_that_cannot() -> None:
    net = lively().train()
    net(*images()).square().mean().backward()
    without = {name for name, parameter in net.named_parameters() if parameter.grad is None}
    assert without == {f"opt_distribute_1x1conv.{SMALL.stages - 1}.{part}" for part in ("weight", "bias")}
    assert not any(net.get_parameter(name).requires_grad for name in without)
    assert all(parameter.grad.abs().sum() > 0 for parameter in net.parameters() if parameter.grad is not None)


@torch.no_grad()
def test_mixed_precision_is_near_and_fusion_stays_in_full_precision() -> None:
    net, pair = lively(), images(64, 64)
    exact = net(*pair)
    seen = []
    net.sar_fuse_1x1conv[0].register_forward_hook(lambda _, inputs, output: seen.append(output.dtype))
    net.RDBs[0].LFF.register_forward_hook(lambda _, inputs, output: seen.append(output.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = net(*pair).float()
    assert set(seen) == {torch.float32, torch.bfloat16}
    assert mixed.isfinite().all()
    change = (exact - pair[0]).square().mean()
    assert 10 * torch.log10(change / (mixed - exact).square().mean()) > 25


def test_stochastic_depth_passes_over_later_layers_more_often() -> None:
    net = GLFCR(Architecture(features=8, growth=8, stages=2, layers=5))
    kept = net.draw_kept(4000, torch.Generator().manual_seed(0))
    assert kept.shape == (10, 4, 4000)
    rates = (kept == 0).float().mean((1, 2))
    torch.testing.assert_close(rates, torch.linspace(0, 0.2, 10), rtol=0, atol=0.015)
    torch.testing.assert_close(kept.mean((1, 2)), torch.ones(10), rtol=0, atol=0.02)


@torch.no_grad()
def test_a_branch_that_is_passed_over_in_one_image_is_kept_in_the_other() -> None:
    net, (cloudy, sar) = lively(), images(32, 32, batch=2)
    ones = torch.ones(4, 4, 2)
    everything = net(cloudy, sar)
    torch.testing.assert_close(net(cloudy, sar, ones), everything, rtol=0, atol=1e-5)
    for branch in range(4):
        kept = ones.clone()
        kept[1, branch, 0] = 0
        result = net(cloudy, sar, kept)
        assert (result[0] - everything[0]).abs().max() > 1e-3, f"branch {branch} counts"
        torch.testing.assert_close(result[1], everything[1], rtol=0, atol=1e-5)


def test_it_runs_without_data() -> None:
    with torch.device("meta"):
        net = GLFCR(SMALL)
        result = net(torch.empty(2, 13, 32, 48), torch.empty(2, 2, 32, 48))
    assert result.shape == (2, 13, 32, 48)
