"""Assemble the stacks of all groups into one mosaic: match them where they overlap, then blend them row by row.

The stacks lie on windows of one canvas, pixel on pixel, so nothing is resampled here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from safelight.core.kernel import Kernel
from safelight.kernels.coadd import LAYERS, coadd
from safelight.kernels.feather import block_of, feather_weights, reach_of_rows
from safelight.kernels.matching import Overlap, joined, match_tiles, match_values, overlap_of
from safelight.kernels.rejection import Rejection
from safelight.pipelines.mosaic.stack_file import BAND_ROWS, StackFile, bands

_ROWS_OF_LAYERS = 64
"""Rows of a tile that are matched at a time, in double precision."""

Window = tuple[int, int, int, int]
"""Rows and columns y0, y1, x0, x1 of the canvas."""


@dataclass(frozen=True, eq=False)
class Tile:
    """The stack of a group within the mosaic.

    Parameters
    ----------
    name : str
    file : StackFile
    window : Window
    """

    name: str
    file: StackFile
    window: Window


def find_overlaps(tiles: Sequence[Tile]) -> list[list[Overlap]]:
    """Return what every two overlapping tiles have in common, for each channel."""
    pairs = combinations(range(len(tiles)), 2)
    return [_overlaps(tiles, a, b) for a, b in pairs if common_window(tiles[a].window, tiles[b].window)]


def match(overlaps: Sequence[Sequence[Overlap]], gains: Tensor) -> Tensor:
    """Return the coefficients (channels, tiles, 4) that make tiles of known gains (channels, tiles) agree."""
    return torch.stack(
        [
            match_tiles([pair[channel] for pair in overlaps], len(known), gains=known).coefficients
            for channel, known in enumerate(gains)
        ]
    )


def seam_step(overlap: Overlap, coefficients: Tensor) -> float:
    """Return the median difference of two tiles where they overlap, matched by coefficients (tiles, 4)."""
    first, second = (
        values.double() * gain + offset + slope_y * overlap.y + slope_x * overlap.x
        for values, (gain, offset, slope_y, slope_x) in (
            (overlap.first_values, coefficients[overlap.first]),
            (overlap.second_values, coefficients[overlap.second]),
        )
    )
    return float((first - second).nanmedian())


def unmatched(channels: int, tiles: int) -> Tensor:
    """Return the coefficients (channels, tiles, 4) that change nothing."""
    return torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64).repeat(channels, tiles, 1)


class Feather:
    """The feather weights of a tile, computed a band of rows at a time: the same for any rows that are asked for.

    Parameters
    ----------
    tile : Tile
    width : int
        Of the feather, in pixels.
    """

    def __init__(self, tile: Tile, width: int) -> None:
        self._tile = tile
        self._width = width
        self._known: tuple[int, Tensor] | None = None

    def read(self, rows: slice) -> Tensor:
        """Return rows of the tile, (rows, width) float32."""
        bands = range(rows.start // BAND_ROWS, -(-rows.stop // BAND_ROWS))
        first = bands.start * BAND_ROWS
        return torch.cat([self._band(band) for band in bands])[rows.start - first : rows.stop - first]

    def _band(self, band: int) -> Tensor:
        if self._known is None or self._known[0] != band:
            self._known = band, self._computed(band * BAND_ROWS)
        return self._known[1]

    def _computed(self, start: int) -> Tensor:
        y0, y1, *_ = self._tile.window
        stop = min(start + BAND_ROWS, y1 - y0)
        around, block = reach_of_rows(self._width), block_of(self._width)
        first = max(start - around, 0) // block * block
        last = min(-(-(stop + around) // block) * block, y1 - y0)
        valid = torch.from_numpy(_coverage(self._tile, slice(first, last)) > 0)
        return feather_weights(valid, self._width)[start - first : stop - first]


@dataclass
class TilesSource:
    """Rows of the mosaic from all tiles: (layers, channels, width, tiles), matched, NaN where a tile is not.

    Parameters
    ----------
    tiles : sequence of Tile
    window : Window
        What the mosaic shows of the canvas.
    coefficients : Tensor
        (channels, tiles, 4), for ``match_values``.
    feathers : sequence of Feather
        One for each tile.
    """

    tiles: Sequence[Tile]
    window: Window
    coefficients: Tensor
    feathers: Sequence[Feather]
    dtype: torch.dtype = field(default=torch.float32, init=False)

    @property
    def extent(self) -> int:
        """Rows of the mosaic."""
        top, bottom, *_ = self.window
        return bottom - top

    @property
    def shape(self) -> tuple[int, ...]:
        """Layers, channels, width, tiles."""
        *_, left, right = self.window
        return (len(LAYERS), self.coefficients.shape[0], right - left, len(self.tiles))

    def read(self, start: int, stop: int) -> Tensor:
        """Return the rows of all tiles."""
        block = torch.zeros((len(self.tiles), stop - start, *self.shape[:-1]))  # tile after tile: written fastest
        block[:, :, LAYERS.index("image")] = torch.nan
        top, _, left, right = self.window
        for band in bands(slice(top + start, top + stop), _ROWS_OF_LAYERS):
            for number, tile in enumerate(self.tiles):
                if (common := common_window((band.start, band.stop, left, right), tile.window)) is not None:
                    y0, y1, x0, x1 = common
                    rows = slice(y0 - top - start, y1 - top - start)
                    block[number, rows, :, :, x0 - left : x1 - left] = self._layers(number, common)
        return block.movedim(0, -1)

    def _layers(self, number: int, window: Window) -> Tensor:
        """Return a tile's layers (rows, layers, channels, width) in a window of the canvas."""
        tile = self.tiles[number]
        y0, y1, x0, x1 = window
        top, _, left, _ = tile.window
        layers = torch.stack([_part(tile, name, window) for name in LAYERS])
        feather = self.feathers[number].read(slice(y0 - top, y1 - top))[:, x0 - left : x1 - left]
        return match_layers(layers, self.coefficients[:, number], feather, (y0, x0)).permute(2, 0, 1, 3)


def match_layers(layers: Tensor, coefficients: Tensor, feather: Tensor, corner: tuple[int, int]) -> Tensor:
    """Bring a part of a tile to the others, and weigh it.

    Weights of frames are relative within their group; between groups the noise decides, and the feather.

    Parameters
    ----------
    layers : Tensor
        (layers, channels, rows, width): ``LAYERS``; overwritten.
    coefficients : Tensor
        (channels, 4), for ``match_values``.
    feather : Tensor
        (rows, width).
    corner : tuple of int
        Row and column of the canvas where the part begins.

    Returns
    -------
    Tensor
        Of the same shape; the weight is 0 where there is nothing.
    """
    planes = dict(zip(LAYERS, layers, strict=True))
    y, x = (
        torch.arange(first, first + size, dtype=torch.float64)
        for first, size in zip(corner, feather.shape, strict=True)
    )
    for image, variance, of_channel in zip(planes["image"], planes["variance"], coefficients, strict=True):
        image.copy_(match_values(image.double(), of_channel, y, x))
        variance.mul_(float(of_channel[0]) ** 2)
    planes["weight"].copy_((feather / planes["variance"]).nan_to_num(nan=0, posinf=0))
    return layers


def well_covered(tiles: Sequence[Tile], shape: tuple[int, int], share: float) -> Window:
    """Return the rows and columns of the canvas that somewhere have a share of the best coverage.

    Parameters
    ----------
    tiles : sequence of Tile
    shape : tuple of int
        Height and width of the canvas.
    share : float
        Of the largest number of frames at a pixel, 0 to 1.

    Returns
    -------
    Window
        From the first such row and column to the last.
    """
    height, width = shape
    best_of_row, best_of_column = np.zeros(height, np.float32), np.zeros(width, np.float32)
    for start in range(0, height, BAND_ROWS):
        rows = (start, min(start + BAND_ROWS, height), 0, width)
        frames = _frames_in(tiles, rows)
        best_of_row[rows[0] : rows[1]] = frames.max(axis=1)
        np.maximum(best_of_column, frames.max(axis=0), out=best_of_column)
    least = share * best_of_row.max()
    y, x = (np.flatnonzero(best >= least) for best in (best_of_row, best_of_column))
    return int(y[0]), int(y[-1]) + 1, int(x[0]), int(x[-1]) + 1


def common_window(first: Window, second: Window) -> Window | None:
    """Return what two windows share; None where they share no pixel."""
    y0, x0 = max(first[0], second[0]), max(first[2], second[2])
    y1, x1 = min(first[1], second[1]), min(first[3], second[3])
    return (y0, y1, x0, x1) if y1 > y0 and x1 > x0 else None


def coadd_kernel(rejects: bool) -> Kernel:
    """Return the kernel that blends rows of all tiles; with rejection where three or more overlap."""
    rejection = Rejection("winsorized_sigma_clip" if rejects else "none")
    return Kernel("coadd", partial(coadd, rejection=rejection))


def _overlaps(tiles: Sequence[Tile], a: int, b: int) -> list[Overlap]:
    """Return what two tiles have in common, for each channel."""
    window = common_window(tiles[a].window, tiles[b].window)
    assert window is not None
    y0, y1, x0, x1 = window
    parts = []
    for band in bands(slice(y0, y1)):
        first, second = (_part(tiles[number], "image", (band.start, band.stop, x0, x1)) for number in (a, b))
        parts.append([overlap_of((a, b), *both, (band.start, x0)) for both in zip(first, second, strict=True)])
    return [joined(of_channel) for of_channel in zip(*parts, strict=True)]


def _part(tile: Tile, plane: str, window: Window) -> Tensor:
    """Return a plane (channels, height, width) of a tile in a window of the canvas."""
    y0, y1, x0, x1 = window
    top, _, left, _ = tile.window
    rows = tile.file.read(plane, slice(y0 - top, y1 - top))
    return torch.from_numpy(rows[:, :, x0 - left : x1 - left])


def _coverage(tile: Tile, rows: slice) -> NDArray[np.float32]:
    """Return how many frames each pixel (rows, width) of a tile has in its least covered channel."""
    frames: NDArray[np.float32] = tile.file.read("count", rows).min(axis=0)
    return frames


def _frames_in(tiles: Sequence[Tile], window: Window) -> NDArray[np.float32]:
    """Return how many frames each pixel of a window of the canvas has."""
    top, bottom, left, right = window
    frames = np.zeros((bottom - top, right - left), np.float32)
    for tile in tiles:
        if (common := common_window(window, tile.window)) is not None:
            y0, y1, x0, x1 = common
            part = _coverage(tile, slice(y0 - tile.window[0], y1 - tile.window[0]))
            frames[y0 - top : y1 - top, x0 - left : x1 - left] += part[:, x0 - tile.window[2] : x1 - tile.window[2]]
    return frames
