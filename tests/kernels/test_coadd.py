"""Stacks are blended with all that is known about their pixels."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from safelight.core.dry_run import predict_cost
from safelight.core.kernel import Kernel
from safelight.core.memory import Ledger
from safelight.core.stream import TensorSource
from safelight.kernels.coadd import LAYERS, coadd
from safelight.kernels.rejection import Rejection

NONE = Rejection("none")
CLIP = Rejection("winsorized_sigma_clip")


def layers(stacks: int, rows: int = 3, width: int = 40, seed: int = 0) -> Tensor:
    """Stacks of one channel with gaps, (rows, layers, 1, width, stacks) float64."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand((rows, len(LAYERS), 1, width, stacks), generator=generator, dtype=torch.float64)
    image, weight, variance, n_eff, count, low, high = values.unbind(1)
    image.add_(1000)
    weight.add_(0.1)
    variance.add_(1)
    n_eff.mul_(5).add_(1)
    count.mul_(5).add_(1).ceil_()
    low.mul_(3).floor_()
    high.mul_(3).floor_()
    gaps = torch.rand(image.shape, generator=generator) < 0.3
    for layer, blank in zip(values.unbind(1), (torch.nan, 0, torch.nan, 0, 0, 0, 0), strict=True):
        layer[gaps] = blank
    return values


def planes(blended: Tensor) -> dict[str, Tensor]:
    return dict(zip(LAYERS, blended.unbind(1), strict=True))


def test_one_stack_stays_what_it_is() -> None:
    stack = layers(1)
    torch.testing.assert_close(coadd(stack, NONE), stack[..., 0], equal_nan=True)


def test_one_after_the_other_is_all_at_once() -> None:
    stacks = layers(6)
    blended = stacks[..., 0]
    for number in range(1, 6):
        blended = coadd(torch.stack([blended, stacks[..., number]], dim=-1), NONE)
    torch.testing.assert_close(blended, coadd(stacks, NONE), equal_nan=True)


def test_any_order_gives_the_same_bits() -> None:
    stacks = layers(5).float()
    order = torch.randperm(5, generator=torch.Generator().manual_seed(3))
    for rejection in (NONE, CLIP):
        assert torch.equal(coadd(stacks, rejection).nan_to_num(), coadd(stacks[..., order], rejection).nan_to_num())


def test_where_nothing_is_there_is_nothing() -> None:
    stacks = layers(3)
    image, weight, *_ = stacks.unbind(1)
    image[1, 0, 7], weight[2, 0, 9] = torch.nan, 0
    blended = planes(coadd(stacks, NONE))
    for row, column in ((1, 7), (2, 9)):
        assert blended["image"][row, 0, column].isnan()
        assert blended["variance"][row, 0, column].isnan()
        assert all(blended[name][row, 0, column] == 0 for name in ("weight", "n_eff", "count", "low", "high"))
    assert (blended["image"].isnan() == (blended["weight"] == 0)).all()
    assert blended["image"].nan_to_num(1000).ge(1000).all(), "a gap never counts as 0"


@pytest.mark.parametrize(("a", "b"), [(1 / 65535, 0.0), (1e4, -3.0)])
@pytest.mark.parametrize("rejection", [NONE, CLIP], ids=["none", "clip"])
def test_the_unit_changes_nothing(a: float, b: float, rejection: Rejection) -> None:
    stacks = layers(7)
    scaled = stacks.clone()
    scaled[:, 0] = a * stacks[:, 0] + b
    scaled[:, 2] = a**2 * stacks[:, 2]
    before, after = (planes(coadd(values, rejection)) for values in (stacks, scaled))
    torch.testing.assert_close(after["image"], a * before["image"] + b, equal_nan=True, rtol=1e-12, atol=1e-12 * a)
    torch.testing.assert_close(after["variance"], a**2 * before["variance"], equal_nan=True)
    assert torch.equal(after["count"], before["count"])


def test_equal_stacks_count_for_all_their_frames() -> None:
    """Two stacks of 8 equal frames are a stack of 16."""
    image, weight, variance, n_eff, count, low, high = 100.0, 2.0, 3.0, 8.0, 8.0, 1.0, 0.0
    stack = torch.tensor([image, weight, variance, n_eff, count, low, high], dtype=torch.float64)[None, :, None, None]
    blended = coadd(torch.stack([stack, stack], dim=-1), NONE)
    assert blended.flatten().tolist() == pytest.approx([100, 4, 1.5, 16, 16, 2, 0], rel=1e-12)


def test_a_stack_unlike_the_others_is_rejected_with_its_frames() -> None:
    generator = torch.Generator().manual_seed(1)
    stacks = torch.ones((1, len(LAYERS), 1, 50, 6), dtype=torch.float64)
    stacks[:, 0] = 100 + torch.randn((1, 1, 50, 6), generator=generator, dtype=torch.float64)
    stacks[:, 0, :, 10, 2] = 500
    kept, rejected = (planes(coadd(stacks, rejection)) for rejection in (NONE, CLIP))
    assert kept["image"][0, 0, 10] > 160
    assert rejected["image"][0, 0, 10] < 102
    assert rejected["count"][0, 0, 10] == 5
    assert rejected["count"].mean() > 5.5, "the others are kept"


@pytest.mark.parametrize(("stacks", "slack"), [(1, 1.001), (2, 1.001), (4, 1.25)])
def test_how_much_stacks_overlap_changes_little_of_the_memory(stacks: int, slack: float) -> None:
    kernel = Kernel("coadd", partial(coadd, rejection=CLIP))
    everywhere = layers(stacks, rows=128, width=2500).float()
    nowhere = everywhere.clone()
    nowhere[:, 0, ..., 1:] = torch.nan
    taken = []
    for rows in (everywhere, nowhere):
        planned = predict_cost(kernel, TensorSource(rows), shared=True).peak(len(rows))
        ledger = Ledger(rows.nbytes)
        with torch.no_grad(), ledger:
            kernel(rows)
        taken.append(ledger.peak / planned)
    assert max(taken) <= 1.001
    assert max(taken) <= slack * min(taken)
