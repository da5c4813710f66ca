"""What of a pair must not be learnt from, bit by bit: the mask of the noisy frame."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from safelight.core.execute import Executor
from safelight.core.kernel import Kernel
from safelight.core.stream import TensorSource
from safelight.formats.raw import PerColour, RawFrame
from safelight.kernels.cfa import Tile, along, cell_side, interpolate_colours, normalise
from safelight.kernels.exposure import at_level
from safelight.kernels.loss_mask import (
    CLIPPED_ANCHOR,
    CLIPPED_TARGET,
    HALO,
    LARGEST_LOSS,
    MOVED,
    OUTSIDE,
    TEXTURE,
    between,
    gamma_loss,
    local_range,
    moved_pixels,
    opened,
)
from safelight.pipelines.pairs.alignment import Anchor, PairAlignment
from safelight.pipelines.pairs.overlap import Levels, Overlap, PairRows, in_parts, levels_of, pair_cells

MaskMethod = Literal["noise", "upstream"]

LOSS_QUANTILE = 0.9999
"""Upstream rejects at least the worst pixels above this quantile of the loss."""
_COUNTED_ROWS = 1024
_CELLS_HALO = 5
"""Further rows of context: 2 for what the shift has beyond the lattice shift, 1 for texture, 2 for the opening."""


@dataclass(frozen=True, eq=False)
class PairMask:
    """The mask of a pair, where the noisy frame is.

    Parameters
    ----------
    bits : ndarray
        (H, W) uint8, as the noisy frame's mosaic; 0 is a pixel to learn from. Bits: 1 moved, 2 the ground truth is
        clipped, 4 the noisy frame is clipped, 8 outside the overlap. Of a pair that failed nothing is 0.
    usable : float
        Share of 0 in the overlap.
    """

    bits: NDArray[np.uint8]
    usable: float


def mask(
    anchor: Anchor, target: RawFrame, alignment: PairAlignment, executor: Executor, method: MaskMethod = "noise"
) -> PairMask:
    """Return what of a pair must not be learnt from.

    Parameters
    ----------
    anchor : Anchor
    target : RawFrame
    alignment : PairAlignment
        Of these two.
    executor : Executor
    method : {"noise", "upstream"}
        How moved content is told. ``noise``: by what noise and interpolation do not explain. ``upstream``: as RawNIND's
        own mask, by the loss after gamma, which at high ISO finds noise.
    """
    bits = np.full(target.mosaic.shape, OUTSIDE, np.uint8)
    overlap = alignment.overlap
    if overlap is None:
        return PairMask(bits, 0.0)
    (y, x), (height, width) = overlap.target, overlap.shape
    rows = PairRows.of(anchor.frame, target, overlap)
    clipping = (anchor.frame.clipping, target.clipping)
    clipped = Kernel("pair_clipped", partial(clipped_rows, tile=overlap.tile, clipping=clipping))
    inside = bits[y : y + height, x : x + width]
    inside[:] = 0
    _add(inside, in_parts(clipped, rows.extent, rows.part, executor))
    if alignment.status == "failed":
        inside |= MOVED
    else:
        find = _moved_by_noise if method == "noise" else _moved_by_loss
        _add(inside, find(rows, levels_of(anchor.frame), levels_of(target), alignment, overlap, executor))
    return PairMask(bits, 1 - np.count_nonzero(inside) / inside.size)


def _add(bits: NDArray[np.uint8], found: Iterable[tuple[slice, Tensor]]) -> None:
    """Set bits that were found, by rows of tiles."""
    for rows, part in found:
        period = part.shape[1]
        bits[rows.start * period : rows.stop * period] |= part.flatten(0, 1).numpy()


def clipped_rows(rows: Tensor, tile: Tile, clipping: tuple[PerColour, PerColour]) -> Tensor:
    """Return the bits of clipped sites, (n, period, width) uint8, of ``PairRows``."""
    bits = torch.zeros_like(rows[:, 0], dtype=torch.uint8)
    for frame, bit in enumerate((CLIPPED_ANCHOR, CLIPPED_TARGET)):
        raw = rows[:, frame].to(torch.float32)
        level = along([[clipping[frame][colour] for colour in row] for row in tile], raw)
        bits += bit * (raw >= level).to(torch.uint8)
    return bits


def _moved_by_noise(
    rows: PairRows, anchor: Levels, target: Levels, alignment: PairAlignment, overlap: Overlap, executor: Executor
) -> Iterator[tuple[slice, Tensor]]:
    function = partial(_noise_rows, anchor=anchor, target=target, alignment=alignment, overlap=overlap)
    kernel = Kernel("pair_mask_noise", function, halo=HALO + _CELLS_HALO)
    return in_parts(kernel, rows.extent, rows.part, executor)


def _noise_rows(rows: Tensor, anchor: Levels, target: Levels, alignment: PairAlignment, overlap: Overlap) -> Tensor:
    first, second, usable = pair_cells(rows, overlap, anchor, target)
    for colour, gain in enumerate(alignment.rgb_gain):
        second[colour] *= gain
    missed = torch.zeros_like(usable[0], dtype=first.dtype)
    texture = local_range(first).mul_(TEXTURE)
    for colour, (noise, curve) in enumerate(zip(alignment.noise, alignment.offsets.to(rows.device), strict=True)):
        sigma = noise.variance(first[colour]).sqrt_()
        second[colour].sub_(first[colour]).sub_(at_level(curve, first[colour])).div_(sigma)
        missed = torch.maximum(missed, texture[colour].div_(sigma))
    moved = moved_pixels(second, missed, usable.all(0))
    return _bits(~opened(~moved), rows, cell_side(overlap.tile))


def _bits(moved: Tensor, rows: Tensor, side: int) -> Tensor:
    """Return the bits of moved cells for every site of rows of tiles."""
    bits = MOVED * moved.to(torch.uint8)
    sites = bits.repeat_interleave(side, 0).repeat_interleave(side, 1)
    return sites.view(rows.shape[0], *rows.shape[-2:])


def _moved_by_loss(
    rows: PairRows, anchor: Levels, target: Levels, alignment: PairAlignment, overlap: Overlap, executor: Executor
) -> Iterator[tuple[slice, Tensor]]:
    whole, lattice = alignment.shift_integer, alignment.shift_lattice
    residual = (whole[0] - lattice[0], whole[1] - lattice[1])
    function = partial(
        _loss_rows, tile=overlap.tile, anchor=anchor, target=target, gain=alignment.raw_gain, residual=residual
    )
    loss = torch.empty((rows.extent, *rows.shape[1:]), dtype=torch.float16)
    for place, part in in_parts(Kernel("pair_loss", function, halo=2), rows.extent, rows.part, executor):
        loss[place] = part
    limit = min(LARGEST_LOSS, _quantile(loss, LOSS_QUANTILE))
    kernel = Kernel("pair_mask_loss", partial(_over, limit=limit), halo=2)
    return in_parts(kernel, len(loss), lambda start, stop: TensorSource(loss[start:stop]), executor)


def _loss_rows(
    rows: Tensor, tile: Tile, anchor: Levels, target: Levels, gain: float, residual: tuple[int, int]
) -> Tensor:
    colours = [
        interpolate_colours(normalise(rows[:, frame].to(torch.float32), tile, black, white), tile)
        for frame, (black, white, _) in enumerate((anchor, target))
    ]
    loss = gamma_loss(between(colours[0], residual), gain * colours[1])
    return loss.to(torch.float16).view(rows.shape[0], *rows.shape[-2:])


def _over(loss: Tensor, limit: float) -> Tensor:
    """Return the bits of what is lost to the limit, and to the opening of the rest."""
    kept = opened(loss.flatten(0, 1) < limit)
    return MOVED * (~kept).to(torch.uint8).view(loss.shape)


def _quantile(loss: Tensor, share: float) -> float:
    """Return the smallest value that so large a share does not exceed, of numbers of 16 bits that are not negative."""
    # Not below 0, such numbers are ordered as their bits are: counting those is exact, fast and takes no memory.
    values = loss.flatten(0, 1).numpy().view(np.uint16)
    counts = np.zeros(1 << 16, np.int64)
    for start in range(0, len(values), _COUNTED_ROWS):
        counts += np.bincount(values[start : start + _COUNTED_ROWS].ravel(), minlength=len(counts))
    position = np.searchsorted(counts.cumsum(), share * values.size)
    return float(np.array(position, np.uint16).view(np.float16))
