"""Colour filter arrays by cells: 2 × 2 pixels of a Bayer sensor, 3 × 3 of an X-Trans sensor.

A cell holds every colour in fixed numbers (Bayer 1 red, 2 green, 1 blue; X-Trans 2, 5, 2), so a mean over cells is an
image without a mosaic. A tile is the period of the array: one Bayer cell, or 2 × 2 X-Trans cells. Colours are numbers:
0 red, 1 green, 2 blue, 3 the second green of a Bayer array.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
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


def normalise(rows: Tensor, tile: Tile, black: Tensor, white: Tensor) -> Tensor:
    """Return raw values as 0 at the black of their colour and 1 at white.

    Parameters
    ----------
    rows : Tensor
        (n, period, width): rows of tiles; raw values of any dtype.
    tile : Tile
    black, white : Tensor
        (4,), floating point: of the four colours.

    Returns
    -------
    Tensor
        Same shape, of the levels' dtype.
    """
    values = rows.to(black.dtype) - at_sites(black, tile, rows.shape[-1])
    return values.mul_(at_sites(1 / (white - black), tile, rows.shape[-1]))


def at_sites(by_colour: Tensor, tile: Tile, width: int) -> Tensor:
    """Return what belongs to each colour, (4,), at the sites of a row of tiles: (period, width)."""
    table = by_colour[torch.tensor(tile, device=by_colour.device)]
    return table.repeat(1, -(-width // len(tile)))[:, :width]


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
    return _cell_sums((rows[..., y:height:side, :width] for y in range(side)), side).div_(side * side)


def light_cells(rows: Tensor, tile: Tile, black: Tensor, white: Tensor, most: Tensor | None = None) -> Tensor:
    """Return the mean of every cell, all colours together: ``grey`` of ``normalise``, without a copy of the mosaic.

    Parameters
    ----------
    rows : Tensor
        (n, period, width): rows of tiles, raw values of any dtype; the width is a multiple of the period.
    tile : Tile
    black, white : Tensor
        (4,), floating point: of the four colours.
    most : Tensor, optional
        (4,): where the raw values of each colour are cut.

    Returns
    -------
    Tensor
        (n · period / side, width / side).
    """
    side, width = cell_side(tile), rows.shape[-1]
    by_cell = (len(tile) // side, side, width)
    share = 1 / (side * side * (white - black))
    scale, at_zero = (at_sites(values, tile, width).view(by_cell) for values in (share, -black * share))
    highest = None if most is None else at_sites(most, tile, width).view(by_cell)
    lines = rows.view(-1, *by_cell)

    def light(y: int) -> Tensor:
        values = lines[:, :, y].to(black.dtype)
        cut = values if highest is None else torch.minimum(values, highest[:, y])
        return torch.addcmul(at_zero[:, y], cut, scale[:, y])

    return _cell_sums(map(light, range(side)), side).flatten(0, 1)


def colour_cells(rows: Tensor, tile: Tile, black: Tensor, white: Tensor) -> Tensor:
    """Return the mean of each colour in every cell, 0 at black and 1 at white.

    Parameters
    ----------
    rows : Tensor
        (n, period, width): rows of tiles, raw values of any dtype; the width is a multiple of the period.
    tile : Tile
        From a cell's first pixel on, see ``cell_origin``.
    black, white : Tensor
        (4,), floating point: of the four colours.

    Returns
    -------
    Tensor
        (3, n · period / side, width / side): red, green, blue.
    """
    period, cells = len(tile), len(tile) // cell_side(tile)
    scale = 1 / (white - black)
    offset = black * scale
    shape = (len(_RGB), rows.shape[0] * cells, rows.shape[2] // cell_side(tile))
    result = torch.empty(shape, dtype=black.dtype, device=rows.device)
    for cell in _square(cells):
        for colour, sites in enumerate(_sites(tile, cell)):
            total = result[colour, cell[0] :: cells, cell[1] :: cells]
            # Of what is linear the constant part comes once, and the mosaic is never copied.
            total.copy_(-_sum(offset[tile[y][x]] for y, x in sites) / len(sites))
            for y, x in sites:
                total.addcmul_(rows[:, y, x::period].to(black.dtype), scale[tile[y][x]], value=1 / len(sites))
    return result


def any_in_cells(flags: Tensor, tile: Tile) -> Tensor:
    """Return whether any site of a colour is marked, in every cell.

    Parameters
    ----------
    flags : Tensor
        (n, period, width), bool: rows of tiles; the width is a multiple of the period.
    tile : Tile
        From a cell's first pixel on.

    Returns
    -------
    Tensor
        (3, n · period / side, width / side), bool: red, green, blue.
    """
    cells = len(tile) // cell_side(tile)
    result = flags.new_empty((3, flags.shape[0] * cells, flags.shape[2] // cell_side(tile)))
    for cell in _square(cells):
        for colour, sites in enumerate(_sites(tile, cell)):
            found = _sum(flags[:, y, x :: len(tile)] for y, x in sites)  # of truths, which is whether there is any
            result[colour, cell[0] :: cells, cell[1] :: cells] = found
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
        measured = torch.tensor([own == colour for own in (0, 1, 2, 1)], dtype=rows.dtype, device=rows.device)
        mask = at_sites(measured, tile, rows.shape[-1]).repeat(rows.shape[0], 1)
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


def _cell_sums(lines: Iterable[Tensor], side: int) -> Tensor:
    """Return sums over cells from the lines of cells, (…, width) each: down first, where memory is in order."""
    total = _sum(lines)
    return _sum(total[..., x::side] for x in range(side))


def _sum(parts: Iterable[Tensor]) -> Tensor:
    return reduce(torch.add, parts)


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


def _level_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    black, white = torch.arange(64.0, 68.0), torch.arange(1023.0, 1027.0)
    for rows, tile in _rows(device, dtype):
        yield Sample((rows, tile, black.to(device, dtype), white.to(device, dtype)))


def _cut_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    yield from _level_samples(device, dtype)
    for sample in _level_samples(device, dtype):
        yield Sample((*sample.arguments, torch.arange(700.0, 704.0).to(device, dtype)))


def _flag_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for rows, tile in _rows(device, dtype):
        yield Sample((rows > 900, tile))


def _grey_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for rows, tile in _rows(device, dtype):
        yield Sample((rows.flatten(0, 1)[:-1], cell_side(tile)))


def _colours_oracle(rows: np.ndarray, tile: Tile) -> np.ndarray:
    """Return which colour every site of the mosaic has, both greens 1."""
    height, width = rows.shape[0] * rows.shape[1], rows.shape[2]
    plain = np.where(np.array(tile) == 3, 1, tile)
    return np.asarray(plain[np.ix_(np.arange(height) % len(tile), np.arange(width) % len(tile))])


def _normalise_oracle(rows: np.ndarray, tile: Tile, black: np.ndarray, white: np.ndarray) -> np.ndarray:
    result = np.empty_like(rows)
    for index in np.ndindex(*rows.shape):
        colour = tile[index[1]][index[2] % len(tile)]
        result[index] = (rows[index] - black[colour]) / (white[colour] - black[colour])
    return result


def _light_oracle(
    rows: np.ndarray, tile: Tile, black: np.ndarray, white: np.ndarray, most: np.ndarray | None = None
) -> np.ndarray:
    if most is not None:
        columns = np.arange(rows.shape[2]) % len(tile)
        rows = np.minimum(rows, np.array(most)[np.array(tile)[:, columns]])
    levels = _normalise_oracle(rows, tile, black, white)
    return _grey_oracle(levels.reshape(-1, rows.shape[2]), cell_side(tile))


def _any_oracle(flags: np.ndarray, tile: Tile) -> np.ndarray:
    return np.asarray(_cells_oracle(flags.astype(float), tile, np.zeros(4), np.ones(4)) > 0)


def _grey_oracle(rows: np.ndarray, side: int) -> np.ndarray:
    height, width = (size // side for size in rows.shape)
    return np.asarray(rows[: height * side, : width * side].reshape(height, side, width, side).mean((1, 3)))


def _cells_oracle(rows: np.ndarray, tile: Tile, black: np.ndarray, white: np.ndarray) -> np.ndarray:
    rows = _normalise_oracle(rows, tile, black, white)
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
    KernelInfo("cfa_normalise", normalise, _level_samples, _normalise_oracle),
    KernelInfo("cfa_grey", grey, _grey_samples, _grey_oracle),
    KernelInfo("cfa_light_cells", light_cells, _cut_samples, _light_oracle),
    KernelInfo("cfa_colour_cells", colour_cells, _level_samples, _cells_oracle),
    KernelInfo("cfa_any_in_cells", any_in_cells, _flag_samples, _any_oracle),
    KernelInfo("cfa_pack", pack, _samples, _pack_oracle),
    KernelInfo("cfa_interpolate_colours", interpolate_colours, _samples, _interpolate_oracle),
)
