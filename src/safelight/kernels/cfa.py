"""Colour filter arrays by cells: 2 × 2 pixels of a Bayer sensor, 3 × 3 of an X-Trans sensor.

A cell holds every colour in fixed numbers (Bayer 1 red, 2 green, 1 blue; X-Trans 2, 5, 2), so a mean over cells is an
image without a mosaic. A tile is the period of the array: one Bayer cell, or 2 × 2 X-Trans cells. Colours are numbers:
0 red, 1 green, 2 blue, 3 the second green of a Bayer array.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from safelight.core.kernel import KernelInfo, Sample
from safelight.kernels.gaussian import weigh_neighbours

Sensor = Literal["bayer", "x-trans"]
Tile = tuple[tuple[int, ...], ...]
"""The colours of a tile, row by row; a plain tuple, so that no kernel must read it from a device."""
Offset = tuple[int, int]
"""Rows down, columns right."""

_PER_CELL = {2: (1, 2, 1), 3: (2, 5, 2)}
_RGB = (0, 1, 2)
_NEAR = {2: (0.5, 1.0, 0.5), 6: (1 / 3, 2 / 3, 1.0, 2 / 3, 1 / 3)}
"""Weights along each axis that reach every colour from every site."""


def tile_of(pattern: Sequence[Sequence[int]] | np.ndarray) -> Tile:
    """Return a tile from any 2 × 2 or 6 × 6 table of colours."""
    return tuple(tuple(int(colour) for colour in row) for row in pattern)


def cell_side(tile: Tile) -> int:
    """Return the side of a cell in pixels: 2 for Bayer, 3 for X-Trans."""
    return 2 if len(tile) == 2 else 3


def moved(tile: Tile, offset: Offset) -> Tile:
    """Return the tile of an image that begins so many rows and columns into the array."""
    n = len(tile)
    return tuple(tuple(tile[(y + offset[0]) % n][(x + offset[1]) % n] for x in range(n)) for y in range(n))


def cell_origin(tile: Tile) -> Offset:
    """Return the first pixel from which on every cell holds each colour in its fixed number."""
    side = cell_side(tile)
    return next(offset for offset in _square(side) if _has_whole_cells(moved(tile, offset)))


def phase_between(first: Tile, second: Tile) -> Offset | None:
    """Return where the second array looks like the first: ``moved(second, offset)`` has its colours.

    Returns
    -------
    tuple of int or None
        The smallest offset; None where there is none, as between a Bayer and an X-Trans or a turned X-Trans array.
    """
    if len(first) != len(second):
        return None
    wanted = _plain(first)
    offsets = sorted(_square(len(first)), key=lambda offset: (sum(offset), offset))
    return next((offset for offset in offsets if _plain(moved(second, offset)) == wanted), None)


def nearest_lattice_shift(shift: tuple[float, float], sensor: Sensor) -> tuple[Offset, float]:
    """Return the shift nearest to a given one that brings every colour onto itself.

    Bayer: both even. X-Trans: both multiples of 3 with an even sum of the multiples.

    Returns
    -------
    shift : tuple of int
    residual : float
        Distance to the given shift in pixels.
    """
    side = 2 if sensor == "bayer" else 3
    centre = [round(value / side) for value in shift]
    near = product(*(range(c - 1, c + 2) for c in centre))
    lattice = [(side * i, side * j) for i, j in near if sensor == "bayer" or (i + j) % 2 == 0]
    best = min(lattice, key=lambda at: (_distance(at, shift), at))
    return best, _distance(best, shift)


def normalise(rows: Tensor, tile: Tile, black: Sequence[float], white: float) -> Tensor:
    """Return raw values as 0 at the black of their colour and 1 at white.

    Parameters
    ----------
    rows : Tensor
        (n, period, width): rows of tiles; raw values of any dtype.
    tile : Tile
    black : sequence of float
        Of the four colours.
    white : float

    Returns
    -------
    Tensor
        Same shape, float32 or the input's floating dtype.
    """
    dtype = rows.dtype if rows.is_floating_point() else torch.float32
    offset = [[black[colour] for colour in row] for row in tile]
    scale = [[1 / (white - black[colour]) for colour in row] for row in tile]
    values = rows.to(dtype) - along(offset, rows)
    return values.mul_(along(scale, rows))


def along(table: Sequence[Sequence[float]], rows: Tensor) -> Tensor:
    """Return a table with one value per site of a tile, repeated along rows of tiles: (period, width)."""
    dtype = rows.dtype if rows.is_floating_point() else torch.float32
    values = torch.tensor(table, dtype=dtype, device=rows.device)
    return values.repeat(1, -(-rows.shape[-1] // values.shape[1]))[:, : rows.shape[-1]]


def grey(rows: Tensor, side: int) -> Tensor:
    """Return the mean of every cell.

    Parameters
    ----------
    rows : Tensor
        (…, height, width), floating point; what is beyond the last whole cell is left out.
    side : int
        Of a cell.

    Returns
    -------
    Tensor
        (…, height // side, width // side).
    """
    height, width = (size // side * side for size in rows.shape[-2:])
    sites = _square(side)
    total = _sum(rows[..., y:height:side, x:width:side] for y, x in sites)
    return total.div_(side * side)


def colour_cells(rows: Tensor, tile: Tile) -> Tensor:
    """Return the mean of each colour in every cell.

    Parameters
    ----------
    rows : Tensor
        (n, period, width): rows of tiles, floating point; the width is a multiple of the period.
    tile : Tile
        From a cell's first pixel on, see ``cell_origin``.

    Returns
    -------
    Tensor
        (3, n · period / side, width / side): red, green, blue.
    """
    period, side = len(tile), cell_side(tile)
    cells = period // side
    shape = (3, rows.shape[0] * cells, rows.shape[2] // side)
    result = rows.new_empty(shape)
    for cell in _square(cells):
        for colour, sites in enumerate(_sites(tile, cell)):
            mean = _sum(rows[:, y, x::period] for y, x in sites).div_(len(sites))
            result[colour, cell[0] :: cells, cell[1] :: cells] = mean
    return result


def pack(rows: Tensor, tile: Tile) -> Tensor:
    """Return a mosaic as planes of one colour each.

    Parameters
    ----------
    rows : Tensor
        (n, period, width): rows of tiles; the width is a multiple of the period.
    tile : Tile
        From a cell's first pixel on.

    Returns
    -------
    Tensor
        (planes, n · period / side, width / side). Bayer: red, green of the red rows, green of the blue rows, blue.
        X-Trans: 2 red, 5 green, 2 blue; within a colour in the order in which a cell is read.
    """
    period, side = len(tile), cell_side(tile)
    cells = period // side
    result = rows.new_empty((side * side, rows.shape[0] * cells, rows.shape[2] // side))
    for cell in _square(cells):
        for plane, (y, x) in enumerate(_packed(tile, cell)):
            result[plane, cell[0] :: cells, cell[1] :: cells] = rows[:, y, x::period]
    return result


def interpolate_colours(rows: Tensor, tile: Tile) -> Tensor:
    """Return red, green and blue at every site: what was measured, between sites the weighted mean of the near ones.

    As ``demosaic.demosaic`` for Bayer; for X-Trans over 5 × 5 sites, which hold every colour.

    Parameters
    ----------
    rows : Tensor
        (n, period, width): rows of tiles, floating point; one row of tiles is the halo of another.
    tile : Tile

    Returns
    -------
    Tensor
        (3, n · period, width).
    """
    weights = _NEAR[len(tile)]
    mosaic = rows.flatten(0, 1)
    result = rows.new_empty((3, *mosaic.shape))
    for colour in _RGB:
        measured = along([[float(own == colour) for own in row] for row in _plain(tile)], rows)
        mask = measured.repeat(rows.shape[0], 1)
        near = _weigh(mosaic * mask, weights) / _weigh(mask, weights)
        result[colour] = torch.where(mask > 0, mosaic, near)
    return result


def _square(side: int) -> list[Offset]:
    """Return the places of a square, row by row."""
    return list(product(range(side), range(side)))


def _weigh(values: Tensor, weights: Sequence[float]) -> Tensor:
    """Return the weighted sum around every pixel; beyond the edge is 0."""
    padded = nn.functional.pad(values, (len(weights) // 2,) * 4)
    return weigh_neighbours(weigh_neighbours(padded, weights, -2), weights, -1)


def _sum(parts: Iterator[Tensor]) -> Tensor:
    total = next(parts).clone()
    for part in parts:
        total += part
    return total


def _distance(lattice: Offset, shift: tuple[float, float]) -> float:
    return float(np.hypot(lattice[0] - shift[0], lattice[1] - shift[1]))


def _plain(tile: Tile) -> Tile:
    """Return a tile in which both greens are 1."""
    return tuple(tuple(1 if colour == 3 else colour for colour in row) for row in tile)


def _sites(tile: Tile, cell: Offset) -> list[list[Offset]]:
    """Return where in the tile a cell measures red, green and blue, in reading order."""
    side, plain = cell_side(tile), _plain(tile)
    inside = [(cell[0] * side + y, cell[1] * side + x) for y, x in _square(side)]
    return [[(y, x) for y, x in inside if plain[y][x] == colour] for colour in _RGB]


def _packed(tile: Tile, cell: Offset) -> list[Offset]:
    """Return the sites of a cell in the order of their planes."""
    red, green, blue = _sites(tile, cell)
    if len(tile) == 2:  # the green beside red comes first, wherever red is
        green.sort(key=lambda site: site[0] != red[0][0])
    return red + green + blue


def _has_whole_cells(tile: Tile) -> bool:
    side = cell_side(tile)
    cells = _square(len(tile) // side)
    return all(tuple(len(sites) for sites in _sites(tile, cell)) == _PER_CELL[side] for cell in cells)


_RGGB: Tile = ((0, 1), (3, 2))
_XTRANS: Tile = (
    (1, 2, 1, 1, 0, 1),
    (0, 1, 0, 2, 1, 2),
    (1, 2, 1, 1, 0, 1),
    (1, 0, 1, 1, 2, 1),
    (2, 1, 2, 0, 1, 0),
    (1, 0, 1, 1, 2, 1),
)


def _rows(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tile]]:
    generator = torch.Generator().manual_seed(0)
    for tile in (_RGGB, moved(_RGGB, (1, 0)), _XTRANS):
        rows = torch.rand((4, len(tile), 3 * len(tile)), generator=generator, dtype=torch.float64)
        yield (1000 * rows).to(device, dtype), tile


def _samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for rows, tile in _rows(device, dtype):
        yield Sample((rows, tile))


def _normalise_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for rows, tile in _rows(device, dtype):
        yield Sample((rows, tile, (64.0, 65.0, 66.0, 67.0), 1023.0))


def _grey_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for rows, tile in _rows(device, dtype):
        yield Sample((rows.flatten(0, 1)[:-1], cell_side(tile)))


def _colours_oracle(rows: np.ndarray, tile: Tile) -> np.ndarray:
    """Return which colour every site of the mosaic has, both greens 1."""
    height, width = rows.shape[0] * rows.shape[1], rows.shape[2]
    plain = np.where(np.array(tile) == 3, 1, tile)
    return np.asarray(plain[np.ix_(np.arange(height) % len(tile), np.arange(width) % len(tile))])


def _normalise_oracle(rows: np.ndarray, tile: Tile, black: Sequence[float], white: float) -> np.ndarray:
    result = np.empty_like(rows)
    for index in np.ndindex(*rows.shape):
        low = black[tile[index[1]][index[2] % len(tile)]]
        result[index] = (rows[index] - low) / (white - low)
    return result


def _grey_oracle(rows: np.ndarray, side: int) -> np.ndarray:
    height, width = (size // side for size in rows.shape)
    return np.asarray(rows[: height * side, : width * side].reshape(height, side, width, side).mean((1, 3)))


def _cells_oracle(rows: np.ndarray, tile: Tile) -> np.ndarray:
    mosaic, colours, side = rows.reshape(-1, rows.shape[2]), _colours_oracle(rows, tile), 2 if len(tile) == 2 else 3
    result = np.empty((3, mosaic.shape[0] // side, mosaic.shape[1] // side))
    for colour, y, x in np.ndindex(*result.shape):
        cell = (slice(y * side, (y + 1) * side), slice(x * side, (x + 1) * side))
        result[colour, y, x] = mosaic[cell][colours[cell] == colour].mean()
    return result


def _pack_oracle(rows: np.ndarray, tile: Tile) -> np.ndarray:
    mosaic, colours, side = rows.reshape(-1, rows.shape[2]), _colours_oracle(rows, tile), 2 if len(tile) == 2 else 3
    result = np.empty((side * side, mosaic.shape[0] // side, mosaic.shape[1] // side))
    for y, x in np.ndindex(*result.shape[1:]):
        cell = (slice(y * side, (y + 1) * side), slice(x * side, (x + 1) * side))
        red, green, blue = (mosaic[cell][colours[cell] == colour] for colour in range(3))
        green_first = np.argwhere(colours[cell] == 1)[0][0] == np.argwhere(colours[cell] == 0)[0][0]
        result[:, y, x] = np.concatenate([red, green if side == 3 or green_first else green[::-1], blue])
    return result


def _interpolate_oracle(rows: np.ndarray, tile: Tile) -> np.ndarray:
    mosaic, colours = rows.reshape(-1, rows.shape[2]), _colours_oracle(rows, tile)
    reach = 2 if len(tile) == 2 else 3
    result = np.empty((3, *mosaic.shape))
    for colour, y, x in np.ndindex(*result.shape):
        top, left = max(y - reach + 1, 0), max(x - reach + 1, 0)
        near = (slice(top, y + reach), slice(left, x + reach))
        at_y, at_x = np.mgrid[near][:, : mosaic.shape[0] - top, : mosaic.shape[1] - left]
        weights = (1 - abs(at_y - y) / reach) * (1 - abs(at_x - x) / reach) * (colours[near] == colour)
        measured = colours[y, x] == colour
        result[colour, y, x] = mosaic[y, x] if measured else (weights * mosaic[near]).sum() / weights.sum()
    return result


KERNELS = (
    KernelInfo("cfa_normalise", normalise, _normalise_samples, _normalise_oracle),
    KernelInfo("cfa_grey", grey, _grey_samples, _grey_oracle),
    KernelInfo("cfa_colour_cells", colour_cells, _samples, _cells_oracle),
    KernelInfo("cfa_pack", pack, _samples, _pack_oracle),
    KernelInfo("cfa_interpolate_colours", interpolate_colours, _samples, _interpolate_oracle),
)
