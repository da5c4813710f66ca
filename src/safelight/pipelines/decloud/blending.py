"""Tiles joined to one image while they come in: each counts less and less across a seam, its neighbour more and more.

Only what a neighbour still has to be added to is kept: a few rows of the image, and a few columns of the last tile.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from safelight.kernels.tiles import Layout, Span

FEATHER = 16
"""Pixels across a seam over which two tiles are blended; half of them lie nearer to the tile's edge than the seam."""

_HALF = FEATHER // 2


class Blender:
    """Joins the tiles of a layout, which come in its order.

    Parameters
    ----------
    layout : Layout
    channels : int
    """

    def __init__(self, layout: Layout, channels: int) -> None:
        self._layout = layout
        width = layout.axes[1][-1].core_stop
        self._rows = torch.zeros((channels, FEATHER, width))
        self._columns = torch.zeros(0)

    def add(self, number: int, tile: Tensor) -> tuple[int, int, Tensor]:
        """Take a tile, (C, Y, X), and return what is finished by it.

        Returns
        -------
        int, int
            Row and column of the first finished pixel.
        Tensor
            (C, rows, columns).
        """
        spans = self._layout[number]
        (rows, weights_y), (columns, weights_x) = (
            _reach(axis, span) for axis, span in zip(self._layout.axes, spans, strict=True)
        )
        top, left = spans[0].start, spans[1].start
        part = tile[:, rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
        block = part * weights_y[:, None] * weights_x
        start, stop = self._join_columns(block, spans[1], columns)
        first, last = self._join_rows(block[:, :, start:stop], spans[0], columns.start + start)
        return rows.start + first, columns.start + start, block[:, first:last, start:stop]

    def _join_columns(self, block: Tensor, span: Span, columns: slice) -> tuple[int, int]:
        """Add what the tile on the left left over; keep what is for the one on the right. Return what is finished."""
        if span != self._layout.axes[1][0]:
            block[:, :, :FEATHER] += self._columns
        if span == self._layout.axes[1][-1]:
            return 0, columns.stop - columns.start
        self._columns = block[:, :, -FEATHER:].clone()
        return 0, columns.stop - columns.start - FEATHER

    def _join_rows(self, block: Tensor, span: Span, column: int) -> tuple[int, int]:
        """Do the same for the tiles above and below."""
        kept = self._rows[:, :, column : column + block.shape[2]]
        if span != self._layout.axes[0][0]:
            block[:, :FEATHER] += kept
        if span == self._layout.axes[0][-1]:
            return 0, block.shape[1]
        kept.copy_(block[:, -FEATHER:])
        return 0, block.shape[1] - FEATHER


def _reach(axis: Sequence[Span], span: Span) -> tuple[slice, Tensor]:
    """Return which pixels of an axis a tile contributes to, and how much."""
    start = span.core_start - (_HALF if span != axis[0] else 0)
    stop = span.core_stop + (_HALF if span != axis[-1] else 0)
    weights = torch.ones(stop - start)
    ramp = (torch.arange(FEATHER) + 0.5) / FEATHER
    if span != axis[0]:
        weights[:FEATHER] = ramp
    if span != axis[-1]:
        weights[-FEATHER:] = ramp.flip(0)
    return slice(start, stop), weights
