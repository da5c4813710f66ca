"""The Gaussian filter: the simplest denoiser, beside which every other is judged."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from safelight.core.kernel import KernelInfo, Sample
from safelight.kernels.tiles import reflect

TRUNCATE = 4.0
"""Standard deviations after which the filter ends."""


def gaussian_weights(sigma: float, radius: int) -> tuple[float, ...]:
    """Return the 2·radius + 1 samples of a Gaussian, normalised to the sum 1."""
    raw = [math.exp(-0.5 * (x / sigma) ** 2) for x in range(-radius, radius + 1)]
    total = sum(raw)
    return tuple(weight / total for weight in raw)


def weigh_neighbours(values: Tensor, weights: Sequence[float], axis: int) -> Tensor:
    """Correlate an axis with weights, without padding.

    Parameters
    ----------
    values : Tensor
        Any shape, n long along ``axis``.
    weights : sequence of float
        k weights.
    axis : int

    Returns
    -------
    Tensor
        n − k + 1 long along ``axis``.
    """
    # A sum of shifted views rather than a convolution: no library may choose TF32 for it, and it takes any shape.
    size = values.shape[axis] - len(weights) + 1
    total = values.narrow(axis, 0, size) * weights[0]
    for shift, weight in enumerate(weights[1:], start=1):
        total.add_(values.narrow(axis, shift, size), alpha=weight)
    return total


def gaussian_filter(values: Tensor, sigma: float, dims: int = 2) -> Tensor:
    """Smooth the last axes with a Gaussian; borders are mirrored, the edge pixel not repeated.

    Parameters
    ----------
    values : Tensor
        (…, Y, X) or (…, Z, Y, X), floating point.
    sigma : float
        Standard deviation in pixels; 0 returns the values as they are.
    dims : int
        How many of the last axes to smooth.

    Returns
    -------
    Tensor
        Same shape. Equal to ``scipy.ndimage.gaussian_filter(mode="mirror")``.
    """
    radius = int(TRUNCATE * sigma + 0.5)
    if radius == 0:
        return values
    weights = gaussian_weights(sigma, radius)
    for axis in range(-dims, 0):
        size = values.shape[axis]
        mirrored = torch.tensor(reflect(-radius, size + radius, size), device=values.device)
        values = weigh_neighbours(values.index_select(axis, mirrored), weights, axis)
    return values


def _samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(0)
    for shape, sigma, dims in (((31, 40), 1.5, 2), ((3, 9, 5), 2.0, 2), ((6, 12, 7), 0.8, 3), ((1, 4), 1.0, 2)):
        values = 100 + 20 * torch.rand(shape, generator=generator, dtype=torch.float64)
        yield Sample((values.to(device, dtype), sigma), {"dims": dims})


def _gaussian_oracle(values: np.ndarray, sigma: float, dims: int = 2) -> np.ndarray:
    radius = int(TRUNCATE * sigma + 0.5)
    position = np.arange(-radius, radius + 1)
    kernel = np.exp(-(position**2) / (2 * sigma**2))
    kernel /= kernel.sum()
    for axis in range(values.ndim - dims, values.ndim):
        pad = [(radius, radius) if a == axis else (0, 0) for a in range(values.ndim)]
        padded = np.pad(values, pad, mode="reflect")
        values = np.apply_along_axis(np.convolve, axis, padded, kernel, mode="valid")
    return values


KERNELS = (KernelInfo("gaussian_filter", gaussian_filter, _samples, _gaussian_oracle),)
