"""The network: N2V2's switches, independent channels, true 3-D, and how far it looks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from safelight.pipelines.denoise.network import Architecture, MaxBlurPool, UNet


def network(**switches: object) -> UNet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNet(Architecture(features=4, **switches)).eval()


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("blur_pool", [False, True])
def test_receptive_radius_is_how_far_a_nan_spreads(depth: int, blur_pool: bool) -> None:
    net = network(depth=depth, blur_pool=blur_pool, top_skip=True)
    radius, unit = net.architecture.receptive_radius, net.architecture.alignment
    width = 2 * (radius + 2 * unit) // unit * unit
    reach = 0
    for phase in range(unit):
        x = torch.zeros(1, 1, unit * 4, width)
        at = width // 2 // unit * unit + phase
        x[..., at] = torch.nan
        with torch.no_grad():
            touched = net(x)[0, 0].isnan().any(0).nonzero().flatten()
        reach = max(reach, at - int(touched.min()), int(touched.max()) - at)
    assert reach == radius


def test_paper_networks_have_the_published_reach() -> None:
    # Two convolutions per level of 3 pixels each; blurring adds 2^depth - 1.
    assert [Architecture(depth=d, blur_pool=False).receptive_radius for d in (2, 3)] == [23, 51]
    assert [Architecture(depth=d).receptive_radius for d in (2, 3)] == [26, 58]


@pytest.mark.parametrize("dims", [2, 3])
def test_max_blur_pool_takes_the_maximum_and_then_blurs(dims: int) -> None:
    x = torch.randn((1, 3) + (8,) * dims, generator=torch.Generator().manual_seed(1))
    pooled = MaxBlurPool(dims, 3)(x)[0].numpy()
    peaks = x[0].numpy()
    for axis in range(1, dims + 1):
        peaks = np.maximum(np.take(peaks, range(7), axis), np.take(peaks, range(1, 8), axis))
    expected = np.pad(peaks, [(0, 0)] + [(1, 1)] * dims, mode="edge")
    for axis in range(1, dims + 1):
        first, middle, last = (np.take(expected, range(at, at + 7, 2), axis) for at in (0, 1, 2))
        expected = (first + 2 * middle + last) / 4
    np.testing.assert_allclose(pooled, expected, atol=1e-6)


def test_the_blur_is_fixed_and_keeps_a_constant() -> None:
    pool = MaxBlurPool(2, 2)
    assert not list(pool.parameters())
    torch.testing.assert_close(pool(torch.full((1, 2, 8, 8), 3.0)), torch.full((1, 2, 4, 4), 3.0))


@pytest.mark.parametrize(("joint", "sees"), [(False, False), (True, True)])
def test_a_channel_sees_the_others_only_in_a_joint_network(joint: bool, sees: bool) -> None:
    net = network(channels=3, joint=joint)
    x = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(2), requires_grad=True)
    (gradient,) = torch.autograd.grad(net(x)[:, 1].sum(), x)
    assert bool(gradient[:, 1].any())
    assert bool(gradient[:, 0].any() or gradient[:, 2].any()) is sees


def test_independent_channels_are_as_many_networks_side_by_side() -> None:
    one = sum(p.numel() for p in network().parameters())
    assert sum(p.numel() for p in network(channels=3).parameters()) == 3 * one


def test_three_dimensions_see_as_far_along_z_as_along_y_and_x() -> None:
    # A slice-wise network sees other planes too, through its pooling, but not as far.
    net = network(dims=3, depth=1)
    side = 2 * (net.architecture.receptive_radius + 2)
    x = torch.zeros(1, 1, side, side, side)
    x[..., side // 2, side // 2, side // 2] = torch.nan
    with torch.no_grad():
        touched = net(x)[0, 0].isnan().nonzero()
    lowest, highest = touched.amin(0).tolist(), touched.amax(0).tolist()
    assert len(set(lowest)) == len(set(highest)) == 1
    assert highest[0] - lowest[0] > net.architecture.receptive_radius


def test_residual_adds_the_input() -> None:
    plain, residual = network(), network(residual=True)
    x = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        torch.testing.assert_close(residual(x), plain(x) + x)


def test_without_top_skip_nothing_passes_at_full_resolution() -> None:
    # A 2-pixel checkerboard that is constant under max pooling can only pass by the skip connection.
    assert network(top_skip=True).up[0][0].in_channels == 2 * network(top_skip=False).up[0][0].in_channels


@pytest.mark.parametrize(("dims", "size"), [(2, (12, 20)), (3, (4, 12, 20))])
def test_shape_is_kept(dims: int, size: tuple[int, ...]) -> None:
    x = torch.zeros(2, 2, *size)
    assert network(dims=dims, channels=2)(x).shape == x.shape
