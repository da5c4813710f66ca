"""Two mosaics of one scene, colour on colour, by rows of tiles."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from safelight.formats.raw import RawFrame
from safelight.kernels.cfa import Offset, Tile, any_in_cells, at_sites, colour_cells
from safelight.kernels.loss_mask import between, shift_weights

BLACK, WHITE, CLIPPING = 0, 1, 2
"""Which levels are where in ``levels_of``."""
_REACH = 1
"""Cells by which the true shift and the lattice shift differ at most: half the way to the next ones."""


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

    @property
    def weights(self) -> Tensor:
        """How cells of the anchor are interpolated to the place of the target's."""
        return shift_weights(self.residual, _REACH)


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

    def read(self, start: int, stop: int) -> Tensor:
        """Return rows of tiles of both frames."""
        rows = slice(start * self.period, stop * self.period)
        parts = [part[rows].reshape(stop - start, *self.shape[1:]) for part in (self.anchor, self.target)]
        return torch.from_numpy(np.stack(parts, axis=1))


def levels_of(*frames: RawFrame) -> Tensor:
    """Return what the raw values of frames mean: (frames, 3, 4), black, white and clipping of each colour."""
    return torch.tensor([[frame.black, (frame.white,) * 4, frame.clipping] for frame in frames])


def pair_cells(rows: Tensor, levels: Tensor, weights: Tensor, tile: Tile) -> tuple[Tensor, Tensor, Tensor]:
    """Return the colours of both frames' cells, the anchor's moved to the target's place.

    Parameters
    ----------
    rows : Tensor
        (n, 2, period, width), from ``PairRows``.
    levels : Tensor
        Of anchor and target, from ``levels_of``.
    weights : Tensor
        Of what the true shift has beyond the lattice shift, from ``Overlap.weights``.
    tile : Tile

    Returns
    -------
    tuple of Tensor
        (3, cells down, cells across) each: anchor, target, and whether neither is clipped.
    """
    anchor, target = (
        colour_cells(rows[:, frame], tile, levels[frame, BLACK], levels[frame, WHITE]) for frame in (0, 1)
    )
    full, full_target = (any_in_cells(is_clipped(rows[:, frame], levels[frame], tile), tile) for frame in (0, 1))
    clipped = between(full.to(levels.dtype), weights) > 0
    return between(anchor, weights), target, ~(clipped | full_target)


def is_clipped(rows: Tensor, levels: Tensor, tile: Tile) -> Tensor:
    """Return which sites of a frame are clipped, of the shape of its rows of tiles."""
    return rows.to(levels.dtype) >= at_sites(levels[CLIPPING], tile, rows.shape[-1])
