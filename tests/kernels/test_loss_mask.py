"""What counts as moved, on differences that are known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from safelight.kernels.loss_mask import box_sum, moved_pixels, opened

SHAPE = (3, 120, 140)
PLACE = (slice(40, 70), slice(50, 80))


def noise(seed: int = 0) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def find(deviation: Tensor, missed: float = 0.0) -> Tensor:
    every = torch.ones(SHAPE[1:], dtype=torch.bool)
    return moved_pixels(deviation, torch.full(SHAPE[1:], missed), every)


def test_noise_is_not_movement() -> None:
    assert float(find(noise()).float().mean()) < 0.01


@pytest.mark.parametrize("height", [1.0, 2.0, 10.0, 1000.0])
def test_a_difference_is_found_where_it_is_however_strong(height: float) -> None:
    deviation = noise()
    deviation[:, *PLACE] += height
    found, truth = find(deviation), torch.zeros(SHAPE[1:], dtype=torch.bool)
    truth[PLACE] = True
    assert float((found & truth).sum() / (found | truth).sum()) > 0.7


def test_what_interpolation_may_miss_is_not_movement() -> None:
    deviation = noise()
    deviation[:, *PLACE] += 3
    assert find(deviation)[PLACE].float().mean() > 0.9
    assert not find(deviation, missed=3.0)[PLACE].any()


def test_unusable_pixels_neither_count_nor_are_found() -> None:
    deviation, usable = noise(), torch.ones(SHAPE[1:], dtype=torch.bool)
    deviation[:, *PLACE] = 1000
    usable[PLACE] = False
    assert float(moved_pixels(deviation, torch.zeros(SHAPE[1:]), usable).float().mean()) < 0.01


def test_sums_in_windows() -> None:
    image = torch.zeros(20, 21)
    image[10, 11] = 1
    for side in (1, 3, 9):
        expected = torch.zeros(20, 21)
        expected[10 - side // 2 : 11 + side // 2, 11 - side // 2 : 12 + side // 2] = 1
        torch.testing.assert_close(box_sum(image, side), expected)


def test_opening_removes_what_holds_no_cross() -> None:
    mask = torch.ones(9, 9, dtype=torch.bool)
    mask[:, 3:6] = False
    mask[2, 4] = True
    expected = mask.clone()
    expected[2, 4] = False
    assert bool((opened(mask) == expected).all())
