"""Many samples of every pixel into one value, with what is known about it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from safelight.core.kernel import Kernel, KernelInfo, Sample
from safelight.kernels.ordering import sort_frames
from safelight.kernels.rejection import REJECTIONS, Rejection, count_of, median_of_sorted, reject, reject_oracle

Statistic = Literal["mean", "median"]

BLOCK_SAMPLES = 1 << 20
"""Samples that are computed at a time: what a processor's cache holds. More only takes more memory, also on a GPU."""
BLOCK_PIXELS = 1 << 12
"""Pixels that a block has at least, however many frames there are."""


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
        (…, n), float32: n frames. What is not finite is invalid.
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
        Tensors of the shape (…), float32.
    """
    planes = _combine_planes(samples, weights, noise, scale, offset, rejection=rejection, statistic=statistic)
    return Combined(*planes.unbind())


def combining_kernel(
    weights: Tensor,
    noise: Tensor,
    scale: Tensor,
    offset: Tensor,
    *,
    rejection: Rejection,
    statistic: Statistic = "mean",
) -> Kernel:
    """Return :func:`combine` as what the Executor maps over rows of (width, n) samples into rows of (7, width)."""
    function = partial(_combine_rows, rejection=rejection, statistic=statistic)
    return Kernel(f"combine_{rejection.method}", function, (weights, noise, scale, offset))


def _combine_rows(samples: Tensor, *per_frame: Tensor | None, rejection: Rejection, statistic: Statistic) -> Tensor:
    return _combine_planes(samples, *per_frame, rejection=rejection, statistic=statistic).movedim(0, 1)


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
    flat = samples.reshape(-1, n)
    pixels = flat.shape[0]
    order = _frame_order(weights, noise, n, samples.device)
    weights_of, noise_of = (_by_pixel(values, samples.shape) for values in (weights, noise))
    out = samples.new_empty((len(PLANES), pixels))
    step = max(BLOCK_PIXELS, BLOCK_SAMPLES // n)
    # On the meta device the first block tells: the others take the same memory.
    for start in range(0, min(pixels, step) if samples.is_meta else pixels, step):
        block = slice(start, start + step)
        planes = flat[block].T.contiguous()
        if scale is not None:
            planes = planes * scale[:, None]
        if offset is not None:
            planes = planes + offset[:, None]
        w, sigma = (None if of is None else of[block].T for of in (weights_of, noise_of))
        _combine_block(planes, order, w, sigma, rejection, statistic, out[:, block])
    return out.view(len(PLANES), *samples.shape[:-1])


def _by_pixel(values: Tensor | None, shape: torch.Size) -> Tensor | None:
    """Return per-frame or per-sample values as (pixels, n); per-frame ones without a copy."""
    n = shape[-1]
    if values is None:
        return None
    return values.expand(math.prod(shape[:-1]), n) if values.dim() == 1 else values.reshape(-1, n)


def _frame_order(weights: Tensor | None, noise: Tensor | None, n: int, device: torch.device) -> Tensor:
    """Return the frames by weight and noise: the order in which equal samples are taken."""
    order = torch.arange(n, device=device)
    for key in (noise, weights):
        if key is not None and key.dim() == 1:
            order = order[key[order].argsort(stable=True)]
    return order


def _combine_block(
    planes: Tensor,
    order: Tensor,
    weights: Tensor | None,
    noise: Tensor | None,
    rejection: Rejection,
    statistic: Statistic,
    out: Tensor,
) -> None:
    """Combine (n, pixels) into (7, pixels)."""
    if rejection.siril_guards:
        planes = planes / (planes != 0)  # 0/0 is NaN: no data
    values, rank = sort_frames(planes, order.argsort())
    total = count_of(values < math.inf)
    level = median_of_sorted(values, torch.zeros_like(total), total)
    deviations = torch.nan_to_num(values - level, nan=0.0, posinf=0.0)
    low, high = reject(deviations, total, level, rejection)
    ranks = torch.arange(values.shape[0], device=values.device)[:, None]
    kept = (ranks < total) & ~(low | high)
    count = count_of(kept)

    if weights is None or statistic == "median":
        w = kept.to(values.dtype)
        weight = squares = count.to(values.dtype)
    else:
        w = weights[order].gather(0, rank) * kept
        weight, squares = w.sum(0), w.square().sum(0)
    if statistic == "median":
        centre, loss = _median_of_kept(deviations, kept, count), torch.where(count > 2, math.pi / 2, 1.0)
    else:
        centre, loss = (w * deviations).sum(0) / weight, torch.ones_like(weight)
    out[0] = level + centre
    out[1] = weight
    if noise is None:
        out[2] = math.nan
    else:
        out[2] = (w * noise[order].gather(0, rank)).square().sum(0) / weight.square() * loss
    out[3] = count
    out[4] = torch.nan_to_num(weight.square() / squares, nan=0.0) / loss
    out[5] = count_of(low)
    out[6] = count_of(high)


def _median_of_kept(deviations: Tensor, kept: Tensor, count: Tensor) -> Tensor:
    """Return the median of the samples that are kept, NaN where there are none."""
    place = kept.cumsum(0) * kept
    below = (deviations * (place == (count + 1) // 2)).sum(0)
    above = (deviations * (place == count // 2 + 1)).sum(0)
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


KERNELS = (KernelInfo("combine", _combine_planes, _samples, _combine_oracle, {torch.float32: (1e-5, 1e-5)}),)
