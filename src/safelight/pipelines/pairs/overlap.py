"""Two mosaics of one scene, colour on colour, by rows of tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from safelight.core.execute import Executor
from safelight.core.kernel import Kernel
from safelight.core.stream import Source, TensorSink
from safelight.formats.raw import PerColour, RawFrame
from safelight.kernels.cfa import Offset, Tile, along, colour_cells, normalise
from safelight.kernels.loss_mask import between

PART_ROWS = 128
"""Rows of tiles that are computed at once."""

Levels = tuple[PerColour, float, PerColour]
"""Black by colour, white, clipping by colour."""


@dataclass(frozen=True)
class Overlap:
    """Where two mosaics show the same, colour on colour: at the lattice shift.

    Parameters
    ----------
    tile : Tile
        Colours from the first pixel of the overlap on, in both.
    anchor, target : tuple of int
        Its first pixel in either mosaic.
    shape : tuple of int
        Whole tiles, in pixels.
    residual : tuple of float
        What the true shift has beyond the lattice shift, in cells.
    """

    tile: Tile
    anchor: Offset
    target: Offset
    shape: tuple[int, int]
    residual: tuple[float, float]


@dataclass(frozen=True)
class PairRows:
    """The overlap of two mosaics by rows of tiles, (2, period, width) each: anchor and target.

    Parameters
    ----------
    anchor, target : ndarray
        (height, width) uint16, whole tiles.
    period : int
    """

    anchor: NDArray[np.uint16]
    target: NDArray[np.uint16]
    period: int
    dtype: torch.dtype = field(default=torch.uint16, init=False)

    @classmethod
    def of(cls, anchor: RawFrame, target: RawFrame, overlap: Overlap) -> PairRows:
        """Return the overlap of two frames."""
        parts = [
            frame.mosaic[y : y + overlap.shape[0], x : x + overlap.shape[1]]
            for frame, (y, x) in ((anchor, overlap.anchor), (target, overlap.target))
        ]
        return cls(parts[0], parts[1], len(overlap.tile))

    @property
    def extent(self) -> int:
        """Rows of tiles."""
        return int(self.anchor.shape[0]) // self.period

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a row of tiles."""
        return (2, self.period, self.anchor.shape[1])

    def part(self, start: int, stop: int) -> PairRows:
        """Return some rows of tiles alone."""
        rows = slice(start * self.period, stop * self.period)
        return PairRows(self.anchor[rows], self.target[rows], self.period)

    def read(self, start: int, stop: int) -> Tensor:
        """Return rows of tiles of both frames."""
        rows = slice(start * self.period, stop * self.period)
        parts = [part[rows].reshape(stop - start, *self.shape[1:]) for part in (self.anchor, self.target)]
        return torch.from_numpy(np.stack(parts, axis=1))


def in_parts(
    kernel: Kernel, extent: int, part: Callable[[int, int], Source], executor: Executor, rows: int | None = None
) -> Iterator[tuple[slice, Tensor]]:
    """Yield which rows and what a kernel makes of them, on the CPU, a part at a time.

    The executor fills whatever memory there is; large frames are not to take more than a few times their own size.

    Parameters
    ----------
    kernel : Kernel
    extent : int
        Rows in all.
    part : callable
        ``(start, stop) -> Source`` of these rows alone.
    executor : Executor
    rows : int, optional
        Rows of a part, ``PART_ROWS`` by default. Every part is planned anew, which takes some milliseconds.
    """
    rows = rows or PART_ROWS
    for start in range(0, extent, rows):
        stop = min(start + rows, extent)
        first, last = max(start - kernel.halo, 0), min(stop + kernel.halo, extent)
        sink = TensorSink(last - first)
        executor.map(kernel, part(first, last), sink)
        yield slice(start, stop), sink.result[start - first : stop - first]


def levels_of(frame: RawFrame) -> Levels:
    """Return what a frame's raw values mean."""
    return frame.black, frame.white, frame.clipping


def pair_cells(rows: Tensor, overlap: Overlap, anchor: Levels, target: Levels) -> tuple[Tensor, Tensor, Tensor]:
    """Return the colours of both frames' cells, the anchor's moved to the target's place.

    Parameters
    ----------
    rows : Tensor
        (n, 2, period, width), from ``PairRows``.
    overlap : Overlap
    anchor, target : tuple
        Levels of either frame.

    Returns
    -------
    tuple of Tensor
        (3, cells down, cells across) each: anchor, target, and whether neither is clipped.
    """
    tile = overlap.tile
    images, full = [], []
    for frame, (black, white, clipping) in enumerate((anchor, target)):
        raw = rows[:, frame].to(torch.float32)
        images.append(colour_cells(normalise(raw, tile, black, white), tile))
        level = along([[clipping[colour] for colour in row] for row in tile], raw)
        full.append(colour_cells((raw >= level).to(torch.float32), tile))
    first, clipped = between(images[0], overlap.residual), between(full[0], overlap.residual)
    return first, images[1], (clipped + full[1]) == 0
