"""Assemble the stacks of all groups into one mosaic: match them where they overlap, then blend them row by row.

The stacks lie on windows of one canvas, pixel on pixel, so nothing is resampled here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations

import torch
from torch import Tensor

from safelight.core.kernel import Kernel
from safelight.kernels.coadd import LAYERS, coadd
from safelight.kernels.matching import Overlap, match_tiles, match_values, overlap_of
from safelight.kernels.rejection import Rejection
from safelight.pipelines.mosaic.stack_file import StackFile

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
    return [_overlaps(tiles, a, b) for a, b in pairs if _common(tiles[a].window, tiles[b].window)]


def match(overlaps: Sequence[Sequence[Overlap]], tiles: Sequence[Tile], channels: int) -> Tensor:
    """Return the coefficients (channels, tiles, 4) that make tiles agree where they overlap."""
    return torch.stack(
        [match_tiles([pair[channel] for pair in overlaps], len(tiles)).coefficients for channel in range(channels)]
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


@dataclass
class TilesSource:
    """Rows of the canvas from all tiles: (layers, channels, width, tiles), matched, NaN where a tile is not.

    Parameters
    ----------
    tiles : sequence of Tile
    shape_of_canvas : tuple of int
        Height and width.
    coefficients : Tensor
        (channels, tiles, 4), for ``match_values``.
    feathers : mapping
        The feather weights of each tile by its name.
    """

    tiles: Sequence[Tile]
    shape_of_canvas: tuple[int, int]
    coefficients: Tensor
    feathers: Mapping[str, Tensor]
    dtype: torch.dtype = field(default=torch.float32, init=False)

    @property
    def extent(self) -> int:
        """Rows of the canvas."""
        return self.shape_of_canvas[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Layers, channels, width, tiles."""
        return (len(LAYERS), self.coefficients.shape[0], self.shape_of_canvas[1], len(self.tiles))

    def read(self, start: int, stop: int) -> Tensor:
        """Return the rows of all tiles."""
        block = torch.zeros((stop - start, *self.shape))
        block[:, LAYERS.index("image")] = torch.nan
        for number, tile in enumerate(self.tiles):
            y0, y1, x0, x1 = tile.window
            first, last = max(start, y0), min(stop, y1)
            if first < last:
                block[first - start : last - start, :, :, x0:x1, number] = self._layers(tile, number, first, last)
        return block

    def _layers(self, tile: Tile, number: int, first: int, last: int) -> Tensor:
        """Return a tile's layers (rows, layers, channels, width) in rows of the canvas."""
        y0, _, x0, x1 = tile.window
        rows = slice(first - y0, last - y0)
        planes = {name: torch.from_numpy(tile.file.read(name, rows)) for name in LAYERS}
        y, x = torch.arange(first, last, dtype=torch.float64), torch.arange(x0, x1, dtype=torch.float64)
        for channel, coefficients in enumerate(self.coefficients[:, number]):
            planes["image"][channel] = match_values(planes["image"][channel].double(), coefficients, y, x).float()
            planes["variance"][channel] *= float(coefficients[0]) ** 2
        # Weights of frames are relative within their group; between groups the noise decides.
        planes["weight"] = (self.feathers[tile.name][rows] / planes["variance"]).nan_to_num(nan=0, posinf=0)
        return torch.stack([planes[name] for name in LAYERS]).permute(2, 0, 1, 3)


def coadd_kernel(rejects: bool) -> Kernel:
    """Return the kernel that blends rows of all tiles; with rejection where three or more overlap."""
    rejection = Rejection("winsorized_sigma_clip" if rejects else "none")
    return Kernel("coadd", partial(coadd, rejection=rejection))


def _common(first: Window, second: Window) -> Window | None:
    y0, x0 = max(first[0], second[0]), max(first[2], second[2])
    y1, x1 = min(first[1], second[1]), min(first[3], second[3])
    return (y0, y1, x0, x1) if y1 > y0 and x1 > x0 else None


def _overlaps(tiles: Sequence[Tile], a: int, b: int) -> list[Overlap]:
    """Return what two tiles have in common, for each channel."""
    window = _common(tiles[a].window, tiles[b].window)
    assert window is not None
    first, second = (_part(tiles[number], window) for number in (a, b))
    corner = (window[0], window[2])
    return [overlap_of((a, b), *both, corner) for both in zip(first, second, strict=True)]


def _part(tile: Tile, window: Window) -> Tensor:
    """Return a tile's image (channels, height, width) in a window of the canvas."""
    y0, y1, x0, x1 = window
    top, _, left, _ = tile.window
    rows = tile.file.read("image", slice(y0 - top, y1 - top))
    return torch.from_numpy(rows[:, :, x0 - left : x1 - left])
