"""What of a pair must not be learnt from, bit by bit: the mask of the noisy frame."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from safelight.core.execute import Executor
from safelight.core.kernel import Kernel
from safelight.core.stream import TensorSink, TensorSource
from safelight.formats.raw import RawFrame
from safelight.kernels.cfa import Tile, cell_side, interpolate_colours, normalise
from safelight.kernels.exposure import at_even_levels, at_level, noise_variance
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
    shift_weights,
)
from safelight.pipelines.pairs.alignment import Anchor, PairAlignment
from safelight.pipelines.pairs.overlap import (
    BLACK,
    WHITE,
    Overlap,
    PairRows,
    is_clipped,
    levels_of,
    pair_cells,
)

MaskMethod = Literal["noise", "upstream"]

LOSS_QUANTILE = 0.9999
"""Upstream rejects at least the worst pixels above this quantile of the loss."""
PART_ROWS = 128
"""Rows of tiles that are enough at once: they stay in a cache."""
OFFSET_LEVELS = 1024
"""How finely the offset by level is told."""
_COUNTED_ROWS = 1024
_WHOLE_REACH = 4
"""Pixels by which the nearest whole shift and the lattice shift differ at most, rounding included."""
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
    inside = bits[y : y + height, x : x + width]
    inside[:] = MOVED if alignment.status == "failed" else 0
    rows = PairRows.of(anchor.frame, target, overlap)
    levels = levels_of(anchor.frame, target)
    sink = _BitSink(inside)
    if method == "noise" and alignment.status != "failed":
        executor.map(noise_kernel(levels, alignment, overlap), rows, sink, most_rows=PART_ROWS)
        return PairMask(bits, _usable(inside))
    clipped = Kernel("pair_clipped", partial(clipped_rows, tile=overlap.tile), (levels,))
    executor.map(clipped, rows, sink, most_rows=PART_ROWS)
    if alignment.status != "failed":
        _mark_lost(rows, sink, levels, alignment, overlap, executor)
    return PairMask(bits, _usable(inside))


@dataclass(frozen=True, eq=False)
class _BitSink:
    """Adds bits to those of a mask, (height, width) uint8, by rows of tiles."""

    bits: NDArray[np.uint8]

    def write(self, start: int, stop: int, result: Tensor) -> None:
        period = result.shape[1]
        self.bits[start * period : stop * period] |= result.flatten(0, 1).numpy()


def _usable(inside: NDArray[np.uint8]) -> float:
    return 1 - np.count_nonzero(inside) / inside.size


def clipped_rows(rows: Tensor, levels: Tensor, *, tile: Tile) -> Tensor:
    """Return the bits of clipped sites, (n, period, width) uint8, of ``PairRows``."""
    anchor, target = (is_clipped(rows[:, frame], levels[frame], tile).to(torch.uint8) for frame in (0, 1))
    return CLIPPED_ANCHOR * anchor + CLIPPED_TARGET * target


def noise_kernel(levels: Tensor, alignment: PairAlignment, overlap: Overlap) -> Kernel:
    """Return the kernel of a mask that compares with the noise; what changes from pair to pair are its constants."""
    noise = torch.tensor([[fit.slope, fit.floor] for fit in alignment.noise])
    curves = torch.stack([at_even_levels(curve, OFFSET_LEVELS) for curve in alignment.offsets])
    constants = (levels, overlap.weights, torch.tensor(alignment.rgb_gain), noise, curves)
    return Kernel("pair_mask_noise", partial(_noise_rows, tile=overlap.tile), constants, halo=HALO + _CELLS_HALO)


def _noise_rows(
    rows: Tensor, levels: Tensor, weights: Tensor, gain: Tensor, noise: Tensor, curves: Tensor, *, tile: Tile
) -> Tensor:
    first, second, usable = pair_cells(rows, levels, weights, tile)
    missed = torch.zeros_like(first[0])
    texture = local_range(first).mul_(TEXTURE)
    for colour, (slope, floor) in enumerate(noise):
        sigma = noise_variance(first[colour], slope, floor).sqrt_()
        second[colour].mul_(gain[colour]).sub_(first[colour]).sub_(at_level(curves[colour], first[colour])).div_(sigma)
        missed = torch.maximum(missed, texture[colour].div_(sigma))
    kept = opened(~moved_pixels(second, missed, usable.all(0)))
    return clipped_rows(rows, levels, tile=tile).add_(_of_sites(~kept, rows, cell_side(tile)), alpha=MOVED)


def _of_sites(moved: Tensor, rows: Tensor, side: int) -> Tensor:
    """Return what is said of cells for every site of rows of tiles, as 0 and 1."""
    sites = moved.to(torch.uint8).repeat_interleave(side, 0).repeat_interleave(side, 1)
    return sites.view(rows.shape[0], *rows.shape[-2:])


def _mark_lost(
    rows: PairRows, sink: _BitSink, levels: Tensor, alignment: PairAlignment, overlap: Overlap, executor: Executor
) -> None:
    """Mark what upstream's mask leaves out: the loss must be known everywhere before its limit is."""
    residual = [
        whole - lattice for whole, lattice in zip(alignment.shift_integer, alignment.shift_lattice, strict=True)
    ]
    weights = shift_weights((residual[0], residual[1]), _WHOLE_REACH)
    function = partial(_loss_rows, tile=overlap.tile)
    loss = TensorSink(rows.extent)
    kernel = Kernel("pair_loss", function, (levels, weights, torch.tensor(alignment.raw_gain)), halo=2)
    executor.map(kernel, rows, loss, most_rows=PART_ROWS)
    limit = torch.tensor(min(LARGEST_LOSS, _quantile(loss.result, LOSS_QUANTILE)))
    over = Kernel("pair_mask_loss", _over, (limit,), halo=2)
    executor.map(over, TensorSource(loss.result), sink, most_rows=PART_ROWS)


def _loss_rows(rows: Tensor, levels: Tensor, weights: Tensor, gain: Tensor, *, tile: Tile) -> Tensor:
    anchor, target = (
        interpolate_colours(normalise(rows[:, frame], tile, levels[frame, BLACK], levels[frame, WHITE]), tile)
        for frame in (0, 1)
    )
    loss = gamma_loss(between(anchor, weights), target.mul_(gain))
    return loss.to(torch.float16).view(rows.shape[0], *rows.shape[-2:])


def _over(loss: Tensor, limit: Tensor) -> Tensor:
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
