"""Tiles that were planted apart come together, whatever lies on them and in whatever order they come."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from torch import Tensor

from safelight.kernels.matching import Matching, Overlap, gains_of_light, match_tiles, match_values, overlap_of

SIGMA = 20.0
SIDE = 260


class Field:
    """A grid of overlapping tiles of one sky, each with a gain, an offset and a plane of its own.

    ``truth`` is what was planted: tile = (sky + noise) · gain + offset + plane.
    """

    def __init__(
        self, columns: int = 3, rows: int = 2, step: int = 200, noise: float = SIGMA, outliers: float = 0.02
    ) -> None:
        chance = torch.Generator().manual_seed(3)

        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, generator=chance, dtype=torch.float64)

        size = (step * (rows - 1) + SIDE, step * (columns - 1) + SIDE)
        y, x = torch.meshgrid(torch.arange(size[0]).double(), torch.arange(size[1]).double(), indexing="ij")
        self.nebula = 1000 + 400 * torch.exp(-((y - 200) ** 2 + (x - 330) ** 2) / (2 * 120**2))
        self.sky = self.nebula.clone()
        for sy, sx, bright in (uniform(150, 3) * torch.tensor([*size, 1])).tolist():
            ys, xs = slice(max(int(sy) - 8, 0), int(sy) + 9), slice(max(int(sx) - 8, 0), int(sx) + 9)
            self.sky[ys, xs] += 4000 * bright**3 * torch.exp(-((y[ys, xs] - sy) ** 2 + (x[ys, xs] - sx) ** 2) / 4)
        self.corners = [(row * step, column * step) for row in range(rows) for column in range(columns)]
        tiles = len(self.corners)
        self.truth = torch.stack(
            [
                0.9 + 0.2 * uniform(tiles),
                200 * uniform(tiles),
                0.2 * (uniform(tiles) - 0.5),
                0.2 * (uniform(tiles) - 0.5),
            ],
            -1,
        )
        self.tiles = []
        for (top, left), (gain, offset, slope_y, slope_x) in zip(self.corners, self.truth, strict=True):
            window = slice(top, top + SIDE), slice(left, left + SIDE)
            seen = self.sky[window] + noise * torch.randn((SIDE, SIDE), generator=chance, dtype=torch.float64)
            seen = torch.where(uniform(SIDE, SIDE) < outliers, seen + 3000 * uniform(SIDE, SIDE), seen)
            self.tiles.append(gain * seen + offset + slope_y * y[window] + slope_x * x[window])
        self.size = size

    def overlap(self, first: int, second: int, block: int) -> Overlap | None:
        (top1, left1), (top2, left2) = self.corners[first], self.corners[second]
        top, left, bottom, right = max(top1, top2), max(left1, left2), min(top1, top2) + SIDE, min(left1, left2) + SIDE
        if bottom <= top or right <= left:
            return None
        parts = [
            self.tiles[tile][top - y0 : bottom - y0, left - x0 : right - x0]
            for tile, (y0, x0) in ((first, self.corners[first]), (second, self.corners[second]))
        ]
        return overlap_of((first, second), *parts, (top, left), block)

    def overlaps(self, block: int = 8) -> list[Overlap]:
        pairs = (self.overlap(*pair, block) for pair in combinations(range(len(self.tiles)), 2))
        return [overlap for overlap in pairs if overlap is not None]

    def seam(self, matching: Matching, overlap: Overlap) -> Tensor:
        """Return what is left between two matched tiles where they overlap, but for noise and stars."""
        rows, columns = overlap.y.long(), overlap.x.long()
        window = slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
        y, x = (torch.arange(part.start, part.stop).double() for part in window)
        one, other = (
            match_values(match_values(self.nebula[window], self.truth[tile], y, x), matching.coefficients[tile], y, x)
            for tile in (overlap.first, overlap.second)
        )
        return one - other


@pytest.fixture(scope="module")
def field() -> Field:
    return Field()


def test_seams_of_matched_tiles_are_invisible(field: Field) -> None:
    matching = match_tiles(field.overlaps(), len(field.tiles))
    for overlap in field.overlaps():
        seam = field.seam(matching, overlap)
        assert abs(float(seam.mean())) < 0.05 * SIGMA
        assert float(seam.abs().max()) < 0.1 * SIGMA
    assert matching.step.abs().max() < 0.05 * SIGMA
    assert (matching.noise / (SIGMA * 2**0.5 * 1.25 / 8) - 1).abs().max() < 0.3  # medians of 8 × 8


def test_planted_coefficients_come_back_without_noise() -> None:
    field = Field(noise=0, outliers=0.05)
    found = match_tiles(field.overlaps(block=1), 6, reference=2).coefficients
    # Relative to the reference: gain₂ (v − …) / gain, so that every tile looks like tile 2.
    gain, plane = field.truth[:, :1], field.truth[:, 1:]
    expected = torch.cat([gain[2] / gain, plane[2] - plane * gain[2] / gain], dim=1)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-3)


def test_the_gauge_is_the_mean_or_the_reference(field: Field) -> None:
    overlaps = field.overlaps()
    found = match_tiles(overlaps, 6).coefficients.mean(0)
    torch.testing.assert_close(found, torch.tensor([1, 0, 0, 0], dtype=torch.float64), rtol=0, atol=1e-9)
    referred = match_tiles(overlaps, 6, reference=4)
    torch.testing.assert_close(
        referred.coefficients[4], torch.tensor([1, 0, 0, 0], dtype=torch.float64), rtol=0, atol=1e-9
    )
    assert referred.step.abs().max() < 0.05 * SIGMA


def test_order_changes_nothing(field: Field) -> None:
    overlaps = field.overlaps()
    expected = match_tiles(overlaps, 6).coefficients
    order = [4, 2, 0, 5, 3, 1]  # tile t is called order[t]
    renamed = [
        replace(
            o, first=order[o.second], second=order[o.first], first_values=o.second_values, second_values=o.first_values
        )
        for o in reversed(overlaps)
    ]
    found = match_tiles(renamed, 6).coefficients[order]
    scale = torch.tensor([1, 1000, 1, 1])
    assert ((found - expected) / scale).abs().max() < 1e-9
    assert torch.equal(match_tiles(overlaps, 6).coefficients, expected)


def test_units_change_nothing(field: Field) -> None:
    def in_units(overlap: Overlap) -> Overlap:
        return replace(overlap, first_values=overlap.first_values / 65535, second_values=overlap.second_values / 65535)

    expected = match_tiles(field.overlaps(), 6).coefficients
    found = match_tiles([in_units(overlap) for overlap in field.overlaps()], 6).coefficients
    torch.testing.assert_close(found * torch.tensor([1, 65535, 65535, 65535]), expected, rtol=1e-7, atol=1e-7)


def test_separate_fields_are_matched_apart_and_said(field: Field) -> None:
    apart = [replace(o, first=o.first + 6, second=o.second + 6) for o in field.overlaps()]
    matching = match_tiles([*field.overlaps(), *apart], 13)
    assert matching.component == (0,) * 6 + (6,) * 6 + (12,)
    alone = match_tiles(field.overlaps(), 6).coefficients
    torch.testing.assert_close(matching.coefficients[:6], alone, rtol=1e-8, atol=1e-6)
    torch.testing.assert_close(matching.coefficients[6:12], alone, rtol=1e-8, atol=1e-6)
    assert matching.coefficients[12].tolist() == [1, 0, 0, 0]


def test_too_few_valid_samples_are_not_used_and_said(field: Field) -> None:
    overlap = field.overlaps()[0]
    values = overlap.first_values.clone()
    values[10:] = torch.nan
    matching = match_tiles([replace(overlap, first_values=values)], 2)
    assert matching.component == (0, 1)
    assert matching.noise.isnan().all()
    assert matching.step.isnan().all()
    assert matching.coefficients.tolist() == [[1, 0, 0, 0]] * 2


def test_invalid_samples_and_weights_of_0_do_not_count(field: Field) -> None:
    overlap = field.overlaps()[0]
    spoilt, weights = overlap.second_values.clone(), torch.ones(len(overlap.y))
    spoilt[::5] = torch.nan
    weights[1::5] = 0
    kept = torch.ones(len(overlap.y), dtype=torch.bool)
    kept[::5] = kept[1::5] = False
    parts = {name: getattr(overlap, name)[kept] for name in ("first_values", "second_values", "y", "x")}
    expected = match_tiles([replace(overlap, **parts)], 2).coefficients
    found = match_tiles([replace(overlap, second_values=spoilt, weights=weights)], 2).coefficients
    assert torch.equal(found, expected)


def test_flat_overlaps_decide_on_no_gain() -> None:
    chance = np.random.default_rng(0)
    y, x = (torch.from_numpy(chance.uniform(0, 300, 2000)) for _ in range(2))
    a, b = (torch.from_numpy(1000 + SIGMA * chance.standard_normal(2000)) for _ in range(2))
    coefficients = match_tiles([Overlap(0, 1, a, b + 80, y, x)], 2).coefficients
    assert (coefficients[:, 0] - 1).abs().max() < 0.05
    middle = match_values(
        torch.full((1, 1), 1000.0).double(), coefficients[0], torch.tensor([150.0]), torch.tensor([150.0])
    )
    other = match_values(
        torch.full((1, 1), 1080.0).double(), coefficients[1], torch.tensor([150.0]), torch.tensor([150.0])
    )
    assert float(middle - other) == pytest.approx(0, abs=0.1 * SIGMA)


def test_identical_constant_tiles_stay_as_they_are() -> None:
    values, place = torch.full((100,), 7.0), torch.arange(100)
    matching = match_tiles([Overlap(0, 1, values, values, place, place)], 2)
    torch.testing.assert_close(matching.coefficients, torch.tensor([[1.0, 0, 0, 0]] * 2).double())
    assert matching.noise.tolist() == [0]


def test_gains_of_light_agree_over_chains_and_rings() -> None:
    true = torch.tensor([1.2, 0.8, 1.5, 0.7], dtype=torch.float64)
    pairs = [(0, 1), (1, 2), (2, 3), (3, 0)]
    light = 1 / true  # of one star, in each tile
    found = gains_of_light([(a, b, float(light[a] / light[b]), 10.0) for a, b in pairs], 5)
    torch.testing.assert_close(found[:4], true / true.log().mean().exp())
    assert found[4] == 1, "a tile that shares no star stays as it is"
    noisy = gains_of_light([(0, 1, 2.0, 99.0), (0, 1, 4.0, 1.0)], 2)
    assert float(noisy[1] / noisy[0]) == pytest.approx(2, rel=0.01)


def test_with_known_gains_a_bent_sky_does_not_pass_for_a_gain() -> None:
    generator = torch.Generator().manual_seed(5)
    y, x = (part.flatten() for part in torch.meshgrid(torch.arange(60.0), torch.arange(80.0), indexing="ij"))
    bend = ((x - 40) / 40).square()
    first = 1000 + 5 * bend + torch.randn(x.shape, generator=generator)
    second = 1300 + 40 * bend + torch.randn(x.shape, generator=generator)
    overlap = Overlap(0, 1, first, second, y, x)
    misled = match_tiles([overlap], 2).coefficients[:, 0]
    assert float(misled[0] / misled[1]) > 2
    known = torch.tensor([1.1, 0.9], dtype=torch.float64)
    matched = match_tiles([overlap], 2, gains=known)
    torch.testing.assert_close(matched.coefficients[:, 0], known)
    assert abs(float(matched.step[0])) < 3
