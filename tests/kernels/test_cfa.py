"""Cells, phases and lattices of colour filter arrays."""

from __future__ import annotations

import numpy as np
import pytest

from exposures import BAYER, XTRANS
from safelight.kernels.cfa import Tile, cell_origin, cell_side, moved, nearest_lattice_shift, phase_between, tile_of

TILES = [*(tile_of(pattern) for pattern in BAYER.values()), tile_of(XTRANS)]


def phases(tile: Tile) -> list[tuple[int, int]]:
    return [(y, x) for y in range(len(tile)) for x in range(len(tile))]


@pytest.mark.parametrize("tile", TILES)
def test_a_lattice_shift_keeps_every_colour_and_none_is_nearer(tile: Tile) -> None:
    plain = tile_of(np.where(np.array(tile) == 3, 1, tile))
    kept = [shift for shift in [(y, x) for y in range(-12, 13) for x in range(-12, 13)] if moved(plain, shift) == plain]
    for shift in ((0.4, -0.7), (1.9, 2.2), (-3.6, 4.4), (4.49, 4.51), (-5.0, 1.0)):
        found, residual = nearest_lattice_shift(shift, "bayer" if len(tile) == 2 else "x-trans")
        distances = [np.hypot(dy - shift[0], dx - shift[1]) for dy, dx in kept]
        assert found in kept
        assert residual == pytest.approx(min(distances))
        assert residual == pytest.approx(np.hypot(found[0] - shift[0], found[1] - shift[1]))


@pytest.mark.parametrize("tile", TILES)
def test_every_cell_holds_its_colours_from_the_origin_on(tile: Tile) -> None:
    for phase in phases(tile):
        began = moved(tile, phase)
        origin, side = cell_origin(began), cell_side(began)
        sites = np.tile(moved(began, origin), (2, 2))
        cells = sites.reshape(len(sites) // side, side, -1, side).swapaxes(1, 2).reshape(-1, side * side)
        counts = {tuple(np.bincount(np.where(cell == 3, 1, cell), minlength=3)) for cell in cells}
        assert counts == {(1, 2, 1) if side == 2 else (2, 5, 2)}


@pytest.mark.parametrize("tile", TILES)
def test_phases_of_one_array_are_found(tile: Tile) -> None:
    for phase in phases(tile):
        second = moved(tile, phase)
        offset = phase_between(tile, second)
        assert offset is not None
        assert moved(second, offset) == tile


def test_another_array_has_no_common_phase() -> None:
    assert phase_between(tile_of(BAYER["RGGB"]), tile_of(XTRANS)) is None
    assert phase_between(tile_of(BAYER["RGGB"]), ((0, 1), (2, 3))) is None
