"""Many samples of every pixel into one value, with what is known about it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from safelight.core.kernel import KernelInfo, Sample
from safelight.kernels.ordering import sort_frames
from safelight.kernels.rejection import (
    REJECTIONS,
    Rejection,
    less,
    median_of_sorted,
    positions_of,
    reject,
    reject_oracle,
    sum_of,
    surely_keeps_all,
)

Statistic = Literal["mean", "median"]

BLOCK_SAMPLES = 1 << 19
"""Samples that are computed at a time: what a processor's cache holds. More only takes more memory, also on a GPU."""
BLOCK_PIXELS = 1 << 12
"""Pixels that a block has at least, however many frames there are."""
_ITERATED_PARTS = 2
"""Parts of a block that are iterated one by one: then that takes no more memory than to sort a block, however many
pixels the data make iterate."""
MEDIAN_LOSS = math.pi / 2
"""Variance of the median over that of the mean, of Gaussian samples."""


@dataclass(frozen=True)
class Combined:
    """What became of the samples of every pixel: seven tensors of one shape.

    Parameters
    ----------
    image : Tensor
        The (weighted) mean or the median of the survivors; NaN where there are none.
    weight : Tensor
        Σw of the survivors, 0 where there are none.
    variance : Tensor
        Of ``image``: Σw²σ² / (Σw)². NaN where there are no survivors, or the frames' noise was not given.
    count : Tensor
        How many samples survived.
    n_eff : Tensor
        (Σw)² / Σw²: as many samples of equal weight have the same noise; 0 where there are none.
    low, high : Tensor
        How many samples were rejected as too low, and as too high.
    """

    image: Tensor
    weight: Tensor
    variance: Tensor
    count: Tensor
    n_eff: Tensor
    low: Tensor
    high: Tensor

    def __iter__(self) -> Iterator[Tensor]:
        """Yield the planes in the order of ``PLANES``."""
        return (getattr(self, name) for name in PLANES)


PLANES = tuple(field.name for field in fields(Combined))


def combine(
    samples: Tensor,
    weights: Tensor | None = None,
    noise: Tensor | None = None,
    scale: Tensor | None = None,
    offset: Tensor | None = None,
    *,
    rejection: Rejection,
    statistic: Statistic = "mean",
) -> Combined:
    """Combine the samples of every pixel.

    The result does not depend on how the pixels are divided into calls, to the bit; nor on the order of the frames,
    unless weights or noise differ from pixel to pixel and a pixel has the same value in two frames.

    Parameters
    ----------
    samples : Tensor
        (…, n), float32 or float64: n frames. What is not finite is invalid.
    weights : Tensor, optional
        (n,) or (…, n), not negative; all 1 by default. The median and the rejection do without.
    noise : Tensor, optional
        (n,) or (…, n): standard deviation of the samples' noise, after ``scale``.
    scale, offset : Tensor, optional
        (n,): a sample x enters as ``scale * x + offset``.
    rejection : Rejection
    statistic : str
        ``mean`` or ``median``. With Gaussian noise the median of three or more has π/2 times the variance of the
        mean; ``variance`` and ``n_eff`` say so.

    Returns
    -------
    Combined
        Tensors of the shape (…).
    """
    planes = _combine_planes(samples, weights, noise, scale, offset, rejection=rejection, statistic=statistic)
    return Combined(*planes.unbind())


def pixels_of_block(n: int) -> int:
    """Return how many pixels of n samples are computed at a time."""
    return max(BLOCK_PIXELS, BLOCK_SAMPLES // n)


def rows_of_block(width: int, n: int) -> int:
    """Return how many rows of n samples per pixel are computed at a time.

    A kernel aligned to them takes the same bits from any number of rows. They are the least that is worth while, also
    where hundreds of frames leave no room for more, and the least from which a dry run can tell what more rows take.
    """
    return max(pixels_of_block(n) // width, 1)


def _combine_planes(
    samples: Tensor,
    weights: Tensor | None,
    noise: Tensor | None,
    scale: Tensor | None = None,
    offset: Tensor | None = None,
    *,
    rejection: Rejection,
    statistic: Statistic = "mean",
) -> Tensor:
    """Return the planes of :class:`Combined` as one tensor, (7, …)."""
    n = samples.shape[-1]
    order = _frame_order(weights, noise, n, samples.device)
    planes = samples.new_empty((len(PLANES), *samples.shape[:-1]))
    flat = planes.view(len(PLANES), -1)
    width = math.prod(samples.shape[1:-1])
    step = rows_of_block(width, n)
    starts = range(0, samples.shape[0], step)
    most = min(pixels_of_block(n) // _ITERATED_PARTS, flat.shape[1])
    of_weights, of_noise = (None if of is None else of.new_empty((n, most)) for of in (weights, noise))
    room = _Ordered(samples.new_empty((n, most)), of_weights, of_noise)
    waiting = _Waiting(flat, room, rejection, statistic)
    for start in starts[:1] if samples.is_meta else starts:  # all blocks take as much memory as the first
        rows = slice(start, start + step)
        w, sigma = (None if of is None else _frames_first(of, rows)[order] for of in (weights, noise))
        block = _normalised(_frames_first(samples, rows), scale, offset)
        ordered = _order(block, order.argsort(), w, sigma, rejection)
        del block
        combined, iterated = _combine_ordered(ordered, rejection, statistic, iterate=False)
        first = start * width
        flat[:, first : first + combined.shape[1]] = combined
        del combined
        waiting.add(first, positions_of(iterated), ordered)
        del w, sigma, ordered, iterated  # the next block so takes no more memory than this one
    waiting.finish()
    return planes


class _Ordered(NamedTuple):
    """A block's samples, ascending in every column, with their weights and noise; (n, pixels) each."""

    values: Tensor
    weights: Tensor | None
    noise: Tensor | None

    def first(self, pixels: int) -> _Ordered:
        """Return the first columns."""
        weights, noise = (None if of is None else of[:, :pixels] for of in (self.weights, self.noise))
        return _Ordered(self.values[:, :pixels], weights, noise)


class _Waiting:
    """Pixels that have to be iterated; many of them are at once, but never more than there is room for.

    A pass over few pixels takes as many operations as one over many. The room is taken at once, so that it is planned
    for whatever the data are.
    """

    def __init__(self, planes: Tensor, room: _Ordered, rejection: Rejection, statistic: Statistic) -> None:
        self._planes = planes
        self._room = room
        self._most = room.values.shape[1]
        self._rejection = rejection
        self._statistic: Statistic = statistic
        self._places = torch.empty(self._most, dtype=torch.int64, device=planes.device)
        self._taken = 0

    def add(self, first: int, pixels: Tensor, ordered: _Ordered) -> None:
        """Let some pixels of a block wait, whose first pixel is the image's pixel ``first``."""
        left = pixels[: self._most] if pixels.is_meta else pixels  # all parts take as much memory as the first
        while left.shape[0] > 0:
            part, left = left[: self._most - self._taken], left[self._most - self._taken :]
            taken = slice(self._taken, self._taken + part.shape[0])
            for room, of in zip(self._room, ordered, strict=True):
                if room is not None and of is not None:
                    room[:, taken] = of.index_select(1, part)
            self._places[taken] = first + part
            self._taken = taken.stop
            if self._taken == self._most:
                self.finish()

    def finish(self) -> None:
        """Iterate and write what comes out."""
        if self._taken == 0:
            return
        combined, _ = _combine_ordered(self._room.first(self._taken), self._rejection, self._statistic)
        self._planes.index_copy_(1, self._places[: self._taken], combined)
        self._taken = 0


def _normalised(block: Tensor, scale: Tensor | None, offset: Tensor | None) -> Tensor:
    """Return samples (n, pixels) scaled and shifted frame by frame."""
    if scale is not None:
        block = block * scale[:, None]
    return block if offset is None else block + offset[:, None]


def _frames_first(values: Tensor, rows: slice) -> Tensor:
    """Return rows of per-sample values (…, n) as (n, pixels); per-frame values (n,) as (n, 1)."""
    return values[:, None] if values.dim() == 1 else values[rows].movedim(-1, 0).reshape(values.shape[-1], -1)


def _frame_order(weights: Tensor | None, noise: Tensor | None, n: int, device: torch.device) -> Tensor:
    """Return the frames by weight and noise: the order in which equal samples are taken."""
    order = torch.arange(n, device=device)
    for key in (noise, weights):
        if key is not None and key.dim() == 1:
            order = order[key[order].argsort(stable=True)]
    return order


def _order(block: Tensor, rank: Tensor, weights: Tensor | None, noise: Tensor | None, rejection: Rejection) -> _Ordered:
    """Sort (n, pixels); weights and noise are in the order of the ranks, (n, pixels) or (n, 1)."""
    if rejection.siril_guards:
        block = block / (block != 0)  # 0/0 is NaN: no data
    values, rank = sort_frames(block, rank)
    weights, noise = (None if of is None else of.expand_as(rank).gather(0, rank) for of in (weights, noise))
    return _Ordered(values, weights, noise)


def _combine_ordered(
    ordered: _Ordered, rejection: Rejection, statistic: Statistic, iterate: bool = True
) -> tuple[Tensor, Tensor]:
    """Return the planes of :class:`Combined`, (7, pixels), and where they do not hold without iterating."""
    values, weights, noise = ordered
    total = _valid(values).sum(0)
    level = median_of_sorted(values, torch.zeros_like(total), total)
    deviations = torch.nan_to_num(values - level, nan=0.0, posinf=0.0)
    if iterate or rejection.method not in ("kappa_sigma", "winsorized_sigma_clip"):
        too_low, too_high = reject(deviations, total, level, rejection)
        kept, low, high = _valid(values) - too_low - too_high, too_low.sum(0), too_high.sum(0)
        unsure = torch.zeros_like(total, dtype=torch.bool)
    else:
        kept, low, high = _valid(values), torch.zeros_like(total), torch.zeros_like(total)
        unsure = ~surely_keeps_all(deviations, total, rejection)
    count = kept.sum(0)

    w = kept if weights is None or statistic == "median" else kept * weights
    weight = sum_of(w.clone())
    n_eff = torch.nan_to_num(weight * weight / sum_of(w * w), nan=0.0)
    variance = torch.full_like(weight, math.nan) if noise is None else sum_of((w * noise).square()) / (weight * weight)
    if statistic == "mean":
        image = level + sum_of(w * deviations) / weight
    else:
        image = level + _median_of_kept(deviations, kept, count)
        loss = torch.where(count > 2, MEDIAN_LOSS, torch.ones_like(weight))
        n_eff, variance = n_eff / loss, variance * loss
    return torch.stack((image, weight, variance, count, n_eff, low, high)), unsure


def _valid(values: Tensor) -> Tensor:
    return less(values, values.new_full((), math.inf))


def _median_of_kept(deviations: Tensor, kept: Tensor, count: Tensor) -> Tensor:
    """Return the median of the samples that are kept, NaN where there are none."""
    place = kept.cumsum(0) * kept
    below = sum_of(deviations * (place == ((count + 1) / 2).floor()))
    above = sum_of(deviations * (place == (count / 2).floor() + 1))
    return torch.where(count > 0, below + (above - below) / 2, math.nan)


def _samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    for n in (1, 4, 13):
        samples = 1000 + 20 * torch.randn((2, 35, n), generator=generator, dtype=torch.float64)
        samples[draw(2, 35, n) < 0.05] += 900
        samples[draw(2, 35, n) < 0.03] = math.nan
        samples[1, 3] = math.nan
        samples = samples.to(device, dtype)
        weights, noise, scale, offset = (values.to(device, dtype) for values in (0.5 + draw(4, n)))
        for rejection in REJECTIONS:
            yield Sample((samples, weights, noise, scale, 10 * offset), {"rejection": rejection})
        yield Sample((samples, weights, None), {"rejection": Rejection("kappa_sigma"), "statistic": "median"})
        yield Sample((samples, None, noise), {"rejection": Rejection("none")})
        yield Sample((samples, draw(2, 35, n).to(device, dtype), noise), {"rejection": Rejection("minmax")})


def _combine_oracle(
    samples: np.ndarray,
    weights: np.ndarray | None = None,
    noise: np.ndarray | None = None,
    scale: np.ndarray | None = None,
    offset: np.ndarray | None = None,
    *,
    rejection: Rejection,
    statistic: Statistic = "mean",
) -> np.ndarray:
    result = np.zeros((len(PLANES), *samples.shape[:-1]))
    for row, column in np.ndindex(samples.shape[:2]):
        x = samples[row, column]
        x = x if scale is None else x * scale
        x = x if offset is None else x + offset
        w, sigma = (
            np.full(x.shape, blank) if values is None else np.broadcast_to(values, samples.shape)[row, column]
            for values, blank in ((weights, 1.0), (noise, np.nan))
        )
        order = np.lexsort((sigma, w, x))
        order = order[np.isfinite(x[order])]
        x, w, sigma = x[order], w[order], sigma[order]
        verdict = reject_oracle(x, float(np.median(x)) if len(x) else 0.0, rejection)
        low, high = (verdict < 0).sum(), (verdict > 0).sum()
        x, w, sigma = (values[verdict == 0] for values in (x, w, sigma))
        if len(x) == 0:
            result[:, row, column] = np.nan, 0, np.nan, 0, 0, low, high
            continue
        loss = 1.0
        image = np.average(x, weights=w)
        if statistic == "median":
            image, w, loss = np.median(x), np.ones_like(x), np.pi / 2 if len(x) > 2 else 1.0
        variance = loss * ((w * sigma) ** 2).sum() / w.sum() ** 2
        n_eff = w.sum() ** 2 / (w**2).sum() / loss
        result[:, row, column] = image, w.sum(), variance, len(x), n_eff, low, high
    return result


KERNELS = (KernelInfo("combine", _combine_planes, _samples, _combine_oracle),)
