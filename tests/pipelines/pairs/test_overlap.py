"""Cells of two frames, brought to one place."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from exposures import BAYER, LOW, WHITE, XTRANS, Pattern, pair, texture
from safelight.kernels.cfa import tile_of
from safelight.kernels.loss_mask import shift_weights
from safelight.pipelines.pairs.overlap import Overlap, PairRows, levels_of, pair_cells


@pytest.mark.parametrize(
    ("pattern", "shift"), [(BAYER["RGGB"], (1, 1)), (XTRANS, (1.5, -1.5))], ids=["bayer", "x-trans"]
)
def test_the_clean_frame_is_interpolated_to_where_the_noisy_one_is(
    pattern: Pattern, shift: tuple[float, float]
) -> None:
    side = 2 if len(pattern) == 2 else 3
    clean, noisy = pair(texture(184, 304, 0), pattern, shift, full_well=LOW, light=1.0)
    clean.mosaic[60, 120] = int(WHITE)
    residual = (shift[0] / side, shift[1] / side)
    overlap = Overlap(tile_of(pattern), (0, 0), (0, 0), (120, 240), residual)
    rows = PairRows.of(clean, noisy, overlap)
    values, levels = rows.read(0, rows.extent), levels_of(clean, noisy)
    differences = []
    for weights in (overlap.weights, shift_weights((0, 0), 1)):
        anchor, target, usable = pair_cells(values, levels, weights, overlap.tile)
        differences.append(float((anchor - target)[:, 2:-2, 2:-2].abs().mean()))
        marked = np.argwhere(~usable.all(0).numpy()).tolist()
    assert differences[0] < 0.6 * differences[1]
    assert marked == [[60 // side, 120 // side]], "unmoved, a clipped site is in one cell"
    _, _, usable = pair_cells(values, levels, overlap.weights, overlap.tile)
    y, x = 60 // side, 120 // side
    other = x - 1 if shift[1] > 0 else x + 1
    expected = sorted([row, column] for row in (y - 1, y) for column in (x, other))
    assert np.argwhere(~usable.all(0).numpy()).tolist() == expected, "and in all that are interpolated from it"


def test_levels_are_those_of_each_frame() -> None:
    clean, _ = pair(texture(184, 304, 0), BAYER["RGGB"], (0, 0))
    other = replace(clean, black=(1.0, 2.0, 3.0, 4.0), white=99.0, clipping=(5.0, 6.0, 7.0, 8.0))
    assert levels_of(clean, other)[1].tolist() == [[1, 2, 3, 4], [99] * 4, [5, 6, 7, 8]]
