"""Blind spots: where they are, what the network sees there, and that nothing of the hidden value leaks."""

from __future__ import annotations

from itertools import product
from math import prod

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from safelight.pipelines.denoise.masking import BlindSpots, Masker, MaskingSettings, box_side
from safelight.pipelines.denoise.structure import line

CPU = torch.device("cpu")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def hide(patches: Tensor, seed: int = 0, **settings: object) -> BlindSpots:
    masker = Masker(MaskingSettings(**settings), patches.shape[2:], CPU)
    generator = torch.Generator().manual_seed(seed)
    return masker.hide(patches, masker.draw(*patches.shape[:2], generator))


def test_one_blind_spot_per_box_of_the_exact_side() -> None:
    assert box_side(0.198, 2) == 22
    assert box_side(0.198, 3) == 8  # the cubic root; the square root would hide seven times too few
    spots = hide(noise(50, 1, 66, 66), percent=0.198)
    rows, columns = spots.positions // 66 // 22, spots.positions % 66 // 22
    assert torch.equal(rows * 3 + columns, torch.arange(9).expand(50, 1, 9))
    assert bool(spots.weights.all())


@pytest.mark.parametrize("shape", [(64, 64), (45, 70), (16, 32, 32)])
@pytest.mark.parametrize("percent", [0.198, 1.0, 3.0])
def test_density_is_as_asked_for_whatever_the_patch(shape: tuple[int, ...], percent: float) -> None:
    spots = hide(noise(1, 2_000_000 // prod(shape), *shape), percent=percent)
    density = float(spots.weights.sum()) / spots.visible.numel()
    assert density == pytest.approx(1 / box_side(percent, len(shape)) ** len(shape), rel=0.05)


def test_every_pixel_is_hidden_equally_often_also_at_borders() -> None:
    spots = hide(torch.zeros(1, 60_000, 10, 13), percent=6.25)
    hits = torch.zeros(130).index_add_(0, spots.positions.flatten(), spots.weights.flatten())
    expected = 60_000 / 16
    assert float((hits - expected).abs().max()) < 5 * expected**0.5


@pytest.mark.parametrize("replacement", ["median", "mean"])
@pytest.mark.parametrize("shape", [(9, 11), (5, 6, 7)])
def test_replacement_is_the_true_median_or_mean_without_the_centre(replacement: str, shape: tuple[int, ...]) -> None:
    patches = noise(6, 2, *shape)
    spots = hide(patches, percent=12.5, radius=2, replacement=replacement)
    reduce = np.median if replacement == "median" else np.mean
    checked = 0
    for b, c, k in product(range(6), range(2), range(spots.positions.shape[2])):
        if not spots.weights[b, c, k]:
            continue
        centre = np.unravel_index(int(spots.positions[b, c, k]), shape)
        # At borders the window shrinks: neither zeros nor mirrored pixels.
        low = [max(0, x - 2) for x in centre]
        window = patches[b, c].numpy()[tuple(slice(a, x + 3) for a, x in zip(low, centre, strict=True))].astype(float)
        own = np.ravel_multi_index([x - a for a, x in zip(low, centre, strict=True)], window.shape)
        expected = reduce(np.delete(window.ravel(), own))
        seen = float(spots.visible[b, c].flatten()[spots.positions[b, c, k]])
        assert seen == pytest.approx(expected, abs=1e-6)
        checked += 1
    assert checked > 50


def test_uniform_replacement_is_any_neighbour_equally_often_and_never_the_pixel() -> None:
    size = 15
    patches = torch.arange(size * size, dtype=torch.float32).view(1, 1, size, size).expand(1, 20_000, size, size)
    spots = hide(patches.contiguous(), percent=0.198, radius=2, replacement="uniform")
    kept = spots.weights.flatten().bool()
    own = spots.positions.flatten()[kept]
    seen = spots.visible.flatten(2).gather(2, spots.positions).flatten()[kept].long()
    inner = (own // size - 7).abs().le(5) & (own % size - 7).abs().le(5)
    dy, dx = (seen // size - own // size)[inner], (seen % size - own % size)[inner]
    assert int(torch.maximum(dy.abs(), dx.abs()).max()) == 2
    assert not bool((seen == own).any())
    counts = torch.bincount((dy + 2) * 5 + dx + 2, minlength=25).float()
    expected = float(inner.sum()) / 24
    others = torch.cat((counts[:12], counts[13:]))
    assert counts[12] == 0
    assert float((others - expected).abs().max()) < 5 * expected**0.5


@pytest.mark.parametrize("structure", [(), line(1, "horizontal")], ids=["points", "lines"])
@pytest.mark.parametrize("replacement", ["median", "mean", "uniform"])
def test_nothing_of_the_hidden_value_leaks(replacement: str, structure: tuple[tuple[int, ...], ...]) -> None:
    pairs = []
    for seed in range(8):
        spots = hide(noise(40, 1, 64, 64, seed=seed), seed, percent=6, replacement=replacement, structure=structure)
        kept = spots.weights.bool()
        pairs.append(torch.stack((spots.visible.flatten(2).gather(2, spots.positions)[kept], spots.targets[kept])))
    pairs_all = torch.cat(pairs, 1)
    assert pairs_all.shape[1] > 60_000
    # 0.005 is the bar; the error of a correlation of n pairs is 1/sqrt(n).
    assert abs(float(torch.corrcoef(pairs_all)[0, 1])) <= 0.005 + 2 / pairs_all.shape[1] ** 0.5


def test_the_mask_is_the_chosen_positions_even_where_the_value_stays_the_same() -> None:
    # Photon counts: a hidden 0 among zeros is still a blind spot.
    spots = hide(torch.zeros(4, 1, 44, 44), percent=0.198)
    assert float(spots.weights.sum()) == 16
    assert float(spots.loss_sum(torch.ones(4, 1, 44, 44))) == 16


def test_only_blind_spots_are_changed() -> None:
    patches = noise(8, 2, 64, 64)
    spots = hide(patches, percent=1.0)
    changed = (spots.visible != patches).flatten(2)
    chosen = torch.zeros_like(changed).scatter_(2, spots.positions, spots.weights.bool())
    assert torch.equal(changed, chosen)
    torch.testing.assert_close(spots.targets, patches.flatten(2).gather(2, spots.positions))


def test_structural_sites_are_overwritten_and_left_out_of_the_median() -> None:
    row = torch.zeros(1, 300, 22, 22)
    row[..., 11, :] = 100.0
    structure = line(2, "horizontal")
    spots = hide(row, percent=0.198, structure=structure)
    y, x = spots.positions[0, :, 0] // 22, spots.positions[0, :, 0] % 22
    on_row = (y == 11) & (x >= 2) & (x <= 19)
    assert int(on_row.sum()) > 5
    for patch in on_row.nonzero().flatten().tolist():
        sites = spots.visible[0, patch, 11, int(x[patch]) - 2 : int(x[patch]) + 3]
        assert float(sites[2]) == 0.0  # the median of rows without this one
        others = torch.cat((sites[:2], sites[3:]))
        assert float(others.abs().max()) <= 2.0
    sites = hide(torch.full((1, 5000, 22, 22), 9.0), percent=0.198, structure=structure).visible
    random = sites[sites != 9.0]
    assert float(random.std()) == pytest.approx(4 / 12**0.5, rel=0.02)


def test_gaps_are_neither_targets_nor_neighbours() -> None:
    patches = noise(4, 1, 40, 40)
    patches[..., ::2] = torch.nan
    for replacement in ("median", "mean", "uniform"):
        spots = hide(patches, percent=4, replacement=replacement)
        assert bool(spots.visible.isfinite().all())
        assert bool((spots.weights[patches.flatten(2).gather(2, spots.positions).isnan()] == 0).all())
        assert float(spots.weights.sum()) > 50


def test_the_loss_of_the_parts_adds_up_to_the_loss_of_the_batch() -> None:
    spots, prediction = hide(noise(6, 1, 32, 32), percent=2), noise(6, 1, 32, 32, seed=1)
    parts = spots.loss_sum(prediction[:2], 0, 2) + spots.loss_sum(prediction[2:], 2, 6)
    torch.testing.assert_close(parts, spots.loss_sum(prediction))


@pytest.mark.parametrize("structure", [((1, 1),), ((1, 0, 1), (1, 1)), ((0, 2, 0),)])
def test_a_structural_mask_without_a_centre_or_shape_is_refused(structure: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(ValidationError, match="structural mask"):
        MaskingSettings(structure=structure)


def test_lines_and_crosses() -> None:
    assert line(1, "horizontal") == ((1, 1, 1),)
    assert line(1, "vertical") == ((1,), (1,), (1,))
    assert line(1, "cross") == ((0, 1, 0), (1, 1, 1), (0, 1, 0))
