"""One value from a pixel's neighbours, of which some do not count: beyond the border, or without a value."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from safelight.core.kernel import KernelInfo, Sample


def median_of(values: Tensor, counts: Tensor) -> Tensor:
    """Return the median of the neighbours that count: the mean of the middle two where they are even in number.

    ``torch.median`` returns the lower of the two instead, which is 0.155 standard deviations too low for eight
    values.

    Parameters
    ----------
    values : Tensor
        (…, N).
    counts : Tensor
        (…, N) bool: which of them count.

    Returns
    -------
    Tensor
        (…); infinite where none counts.
    """
    ordered = torch.where(counts, values, torch.inf).sort(-1).values
    number = counts.sum(-1, keepdim=True)
    middle = torch.cat(((number - 1).clamp(min=0) // 2, number // 2), -1)
    return ordered.gather(-1, middle).mean(-1)


def mean_of(values: Tensor, counts: Tensor) -> Tensor:
    """Return the mean of the neighbours that count, NaN where none does; shapes as in ``median_of``."""
    return torch.where(counts, values, 0).sum(-1) / counts.sum(-1)


def pick_of(values: Tensor, counts: Tensor, picks: Tensor) -> Tensor:
    """Return one of the neighbours that count, each equally likely; 0 where none does.

    Parameters
    ----------
    values, counts : Tensor
        As in ``median_of``.
    picks : Tensor
        (…): uniform in [0, 1).
    """
    number = counts.sum(-1)
    # A product of float32 numbers may round up to the number itself.
    wanted = torch.minimum((picks * number).long(), number - 1)
    chosen = counts & (counts.cumsum(-1) - 1 == wanted[..., None])
    return torch.where(chosen, values, 0).sum(-1)


def _samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(0)
    for shape in ((24,), (3, 5, 24), (2, 1, 120)):
        values = torch.randn(shape, generator=generator, dtype=torch.float64)
        counts = torch.rand(shape, generator=generator) < 0.6
        counts[..., 0] = True
        yield Sample((values.to(device, dtype), counts.to(device)))


def _samples_with_picks(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(1)
    for sample in _samples(device, dtype):
        values, counts = sample.arguments
        picks = torch.rand(values.shape[:-1], generator=generator, dtype=torch.float32)
        yield Sample((values, counts, picks.to(device)))


def _each(reduce: Callable[..., float], values: np.ndarray, counts: np.ndarray, *rest: np.ndarray) -> np.ndarray:
    result = np.empty(values.shape[:-1])
    for place in np.ndindex(result.shape):
        result[place] = reduce(values[place][counts[place].astype(bool)], *(part[place] for part in rest))
    return result


def _median_oracle(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return _each(lambda kept: float(np.median(kept)), values, counts)


def _mean_oracle(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return _each(lambda kept: float(np.mean(kept)), values, counts)


def _pick_oracle(values: np.ndarray, counts: np.ndarray, picks: np.ndarray) -> np.ndarray:
    return _each(lambda kept, pick: float(kept[int(pick * len(kept))]), values, counts, picks)


KERNELS = (
    KernelInfo("median_of", median_of, _samples, _median_oracle),
    KernelInfo("mean_of", mean_of, _samples, _mean_oracle),
    KernelInfo("pick_of", pick_of, _samples_with_picks, _pick_oracle),
)
