"""What noise looks like: its correlation, spectrum and variance, and how structure among noise gives itself away.

The standard errors hold for independent noise whose variance differs from pixel to pixel, as photon noise does:
the sum of r(x)·r(x+k) over independent r of mean 0 has the variance Σ r²(x)·r²(x+k), whatever the variances are
(White 1980, "A heteroskedasticity-consistent covariance matrix estimator").
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from safelight.core.kernel import KernelInfo, Sample

Lag = tuple[int, int]
"""A displacement (y, x)."""


def lag_correlation(residual: Tensor, axis: int, max_lag: int) -> Tensor:
    """Return the autocorrelation along an axis, with its standard error for independent noise.

    Parameters
    ----------
    residual : Tensor
        Any shape, mean 0, floating point, longer than ``max_lag`` along ``axis``.
    axis : int
    max_lag : int

    Returns
    -------
    Tensor
        (2, max_lag): correlation at the lags 1 to ``max_lag``, and its standard error.
    """
    size = residual.shape[axis]
    energy = residual.square().sum()
    rows = []
    for lag in range(1, max_lag + 1):
        products = residual.narrow(axis, 0, size - lag) * residual.narrow(axis, lag, size - lag)
        rows.append(torch.stack((products.sum(), products.square().sum().sqrt())))
    return torch.stack(rows, 1) / energy


def block_spectra(values: Tensor, block: int) -> Tensor:
    """Return the power spectra of half-overlapping square blocks under a Hann window (Welch 1967).

    Parameters
    ----------
    values : Tensor
        (…, Y, X), floating point, at least ``block`` along Y and X.
    block : int
        Side of a block.

    Returns
    -------
    Tensor
        (n, block, block), frequencies in the order of ``torch.fft.fftfreq``. White noise of variance v gives v.
    """
    step = max(block // 2, 1)
    blocks = values.unfold(-2, block, step).unfold(-2, block, step).reshape(-1, block, block)
    line = torch.hann_window(block + 2, periodic=False, dtype=values.dtype, device=values.device)[1:-1]
    window = line[:, None] * line
    mean = (blocks * window).sum((-2, -1), keepdim=True) / window.sum()
    spectra: Tensor = torch.fft.fft2((blocks - mean) * window).abs().square() / window.square().sum()
    return spectra


def half_plane(radius: int) -> tuple[Lag, ...]:
    """Return the lags within a radius, one of each pair of opposite ones, without zero."""
    side = range(-radius, radius + 1)
    return tuple((y, x) for y in range(radius + 1) for x in side if y > 0 or x > 0)


def structure_sums(residual: Tensor, lags: Sequence[Lag], tile: int) -> Tensor:
    """Return, tile by tile, how much of a residual neighbouring pixels share.

    Noise independent between pixels shares nothing: the sum is 0 within its standard error. Structure that was
    smoothed away is still in the residual, and near pixels share it.

    Parameters
    ----------
    residual : Tensor
        (…, Y, X), mean 0, floating point.
    lags : sequence of (int, int)
        Which neighbours, see ``half_plane``; shorter than Y and X.
    tile : int
        Side of a tile in pixels; all tiles of an image are equally large to a pixel.

    Returns
    -------
    Tensor
        (3, …, tiles in Y, tiles in X): the sum of r(x)·r(x+k), mean over the lags; its variance for independent
        noise; and the sum of r².
    """
    height, width = residual.shape[-2:]
    rows, columns = (_tile_of(size, tile, residual.device) for size in (height, width))
    tiles = max(1, round(height / tile)), max(1, round(width / tile))

    def by_tile(values: Tensor, y: Tensor, x: Tensor) -> Tensor:
        strips = values.new_zeros((*values.shape[:-2], tiles[0], values.shape[-1])).index_add_(-2, y, values)
        return strips.new_zeros((*values.shape[:-2], *tiles)).index_add_(-1, x, strips)

    energy = by_tile(residual.square(), rows, columns)
    shared, variance = torch.zeros_like(energy), torch.zeros_like(energy)
    for dy, dx in lags:
        here = residual[..., : height - dy, max(-dx, 0) : width - max(dx, 0)]
        there = residual[..., dy:, max(dx, 0) : width + min(dx, 0)]
        products = here * there
        place = rows[: height - dy], columns[max(-dx, 0) : width - max(dx, 0)]
        shared += by_tile(products, *place)
        variance += by_tile(products.square(), *place)
    return torch.stack((shared / len(lags), variance / len(lags) ** 2, energy))


def _tile_of(size: int, tile: int, device: torch.device) -> Tensor:
    """Return which tile each position belongs to."""
    return torch.arange(size, device=device) * max(1, round(size / tile)) // size


def variance_by_level(level: Tensor, residual: Tensor, bins: int) -> Tensor:
    """Return the residual's variance at each brightness: bins of equally many pixels, outliers clipped.

    Parameters
    ----------
    level, residual : Tensor
        Same shape, floating point: what is taken for the clean image, and the rest.
    bins : int
        At most the number of pixels.

    Returns
    -------
    Tensor
        (2, bins): mean level and variance, from dark to bright.
    """
    order = level.flatten().argsort()
    size = order.numel() // bins
    order = order[: size * bins].view(bins, size)
    levels, deviations = level.flatten()[order], residual.flatten()[order]
    deviations = deviations - deviations.mean(1, keepdim=True)
    variance = deviations.square().mean(1, keepdim=True)
    for _ in range(2):  # hot pixels and cosmic rays are no noise; beyond 5 σ Gaussian noise loses nothing
        kept = deviations.square() <= 25 * variance
        variance = (deviations.square() * kept).sum(1, keepdim=True) / kept.sum(1, keepdim=True).clamp(min=1)
    return torch.stack((levels.mean(1), variance[:, 0]))


def _residuals(device: torch.device, dtype: torch.dtype) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(0)
    for shape in ((40, 52), (3, 35, 18)):
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        yield (noise + 0.5 * noise.roll(1, -1)).to(device, dtype)


def _lag_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for residual in _residuals(device, dtype):
        yield Sample((residual, -1, 4))
        yield Sample((residual, -2, 1))


def _spectra_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for residual in _residuals(device, dtype):
        yield Sample((residual, 16))
        yield Sample((residual, 5))


def _structure_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for residual in _residuals(device, dtype):
        yield Sample((residual, half_plane(2), 16))
        yield Sample((residual, ((0, 1), (3, -2)), 100))


def _level_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(0)
    for residual in _residuals(device, dtype):
        level = torch.randperm(residual.numel(), generator=generator).view(residual.shape)  # no ties to order
        yield Sample((level.to(device, dtype), residual, 8))


def _lag_oracle(residual: np.ndarray, axis: int, max_lag: int) -> np.ndarray:
    lines = np.moveaxis(residual, axis, -1).reshape(-1, residual.shape[axis])
    products = [(lines[:, lag:] * lines[:, :-lag]).ravel() for lag in range(1, max_lag + 1)]
    sums = np.array([[p.sum() for p in products], [np.linalg.norm(p) for p in products]])
    return np.asarray(sums / (lines**2).sum())


def _spectra_oracle(values: np.ndarray, block: int) -> np.ndarray:
    n = np.arange(1, block + 1)
    line = np.sin(np.pi * n / (block + 1)) ** 2
    window = np.outer(line, line)
    spectra = []
    for plane in values.reshape(-1, *values.shape[-2:]):
        for y in range(0, plane.shape[0] - block + 1, block // 2):
            for x in range(0, plane.shape[1] - block + 1, block // 2):
                part = plane[y : y + block, x : x + block]
                part = part - np.average(part, weights=window)
                spectra.append(np.abs(np.fft.fft2(part * window)) ** 2 / (window**2).sum())
    return np.stack(spectra)


def _structure_oracle(residual: np.ndarray, lags: Sequence[Lag], tile: int) -> np.ndarray:
    height, width = residual.shape[-2:]
    down, across = max(1, round(height / tile)), max(1, round(width / tile))
    sums = np.zeros((3, *residual.shape[:-2], down, across))
    for y in range(height):
        for x in range(width):
            place = (..., y * down // height, x * across // width)
            sums[2][place] += residual[..., y, x] ** 2
            for dy, dx in lags:
                # A pair belongs to the tile of its first pixel.
                if y + dy < height and 0 <= x + dx < width:
                    product = residual[..., y, x] * residual[..., y + dy, x + dx]
                    sums[0][place] += product / len(lags)
                    sums[1][place] += product**2 / len(lags) ** 2
    return sums


def _level_oracle(level: np.ndarray, residual: np.ndarray, bins: int) -> np.ndarray:
    size = level.size // bins
    order = np.argsort(level, axis=None)[: size * bins].reshape(bins, size)
    points = []
    for members in order:
        deviations = residual.flat[members] - residual.flat[members].mean()
        variance = np.mean(deviations**2)
        for _ in range(2):
            variance = np.mean(deviations[np.abs(deviations) <= 5 * np.sqrt(variance)] ** 2)
        points.append((level.flat[members].mean(), variance))
    return np.array(points).T


KERNELS = (
    KernelInfo("lag_correlation", lag_correlation, _lag_samples, _lag_oracle),
    KernelInfo(
        "block_spectra",
        block_spectra,
        _spectra_samples,
        _spectra_oracle,
        {torch.float32: (1e-4, 1e-4), torch.float64: (1e-11, 1e-11)},
    ),
    KernelInfo(
        "structure_sums",
        structure_sums,
        _structure_samples,
        _structure_oracle,
        {torch.float32: (1e-4, 1e-4), torch.float64: (1e-11, 1e-11)},
    ),
    KernelInfo("variance_by_level", variance_by_level, _level_samples, _level_oracle),
)
