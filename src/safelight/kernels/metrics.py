"""How near an image is to a clean reference. Every function returns a tensor: nothing waits for the device.

Sums are of squared differences, never differences of squared sums, so that float32 serves at level 10,000.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from safelight.core.kernel import KernelInfo, Sample
from safelight.kernels.gaussian import gaussian_weights, weigh_neighbours

SSIM_WINDOW = 11
SSIM_SIGMA = 1.5
_HIGH_PASS = (-0.25, 0.5, -0.25)


def range_of(reference: Tensor) -> Tensor:
    """Return the maximum minus the minimum, a scalar: the usual data range of microscopy benchmarks."""
    return reference.amax() - reference.amin()


def psnr(prediction: Tensor, reference: Tensor, data_range: float | Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio, 10·log₁₀(data_range² / mean squared error).

    Parameters
    ----------
    prediction, reference : Tensor
        Same shape, floating point.
    data_range : float or Tensor
        255 for 8-bit photographs; ``range_of(reference)`` is usual in microscopy. It must be said, since the
        result means nothing without it.

    Returns
    -------
    Tensor
        Scalar, in dB; infinite for equal images.
    """
    return _decibels((prediction - reference).square().mean(), data_range)


def scale_invariant_psnr(prediction: Tensor, reference: Tensor, data_range: float | Tensor) -> Tensor:
    """Return the PSNR after the least-squares affine fit of the prediction to the reference.

    Weigert et al. 2018, "Content-aware image restoration"; the measure of N2V2's tables. Insensitive to offset
    and gain, for references that were recorded or stretched otherwise than the prediction.

    Parameters
    ----------
    prediction, reference : Tensor
        Same shape, floating point.
    data_range : float or Tensor
        Of the reference.

    Returns
    -------
    Tensor
        Scalar, in dB. A constant prediction is fitted by the reference's mean.
    """
    predicted = prediction - prediction.mean()
    wanted = reference - reference.mean()
    power = predicted.square().sum()
    gain = torch.where(power > 0, (predicted * wanted).sum() / power, 0.0)
    return _decibels((wanted - gain * predicted).square().mean(), data_range)


def ssim(prediction: Tensor, reference: Tensor, data_range: float | Tensor) -> Tensor:
    """Return the mean structural similarity of planes.

    Wang et al. 2004, "Image quality assessment: from error visibility to structural similarity": Gaussian window
    of 11 pixels with σ = 1.5, K₁ = 0.01, K₂ = 0.03, mean over all whole windows.

    Parameters
    ----------
    prediction, reference : Tensor
        (…, Y, X), floating point, Y and X at least 11; a volume is measured plane by plane.
    data_range : float or Tensor

    Returns
    -------
    Tensor
        Scalar, at most 1.

    Raises
    ------
    ValueError
        The planes are smaller than the window.
    """
    if min(prediction.shape[-2:]) < SSIM_WINDOW:
        raise ValueError(f"planes of {tuple(prediction.shape[-2:])} pixels are smaller than SSIM's {SSIM_WINDOW}")
    # Second moments of values far from zero cancel in float32; covariances do not depend on the origin.
    origin = reference.mean()
    p, r = prediction - origin, reference - origin
    mean_p, mean_r, mean_pp, mean_rr, mean_pr = _windowed(torch.stack((p, r, p * p, r * r, p * r)))
    variances = (mean_pp - mean_p.square()) + (mean_rr - mean_r.square())
    covariance = mean_pr - mean_p * mean_r
    mean_p, mean_r = mean_p + origin, mean_r + origin
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    luminance = (2 * mean_p * mean_r + c1) / (mean_p.square() + mean_r.square() + c1)
    similarity: Tensor = luminance * (2 * covariance + c2) / (variances + c2)
    return similarity.mean()


def high_pass(values: Tensor) -> Tensor:
    """Return what is at the pixel scale: [−1, 2, −1]/4 along Y and along X, (…, Y − 2, X − 2).

    A checkerboard passes unchanged, anything smooth vanishes.
    """
    return weigh_neighbours(weigh_neighbours(values, _HIGH_PASS, -2), _HIGH_PASS, -1)


def high_pass_ratio(prediction: Tensor, reference: Tensor) -> Tensor:
    """Return the RMS of the prediction's pixel-scale content over the reference's.

    Above 1 it holds a checkerboard or noise, far below 1 it is over-smoothed.

    Parameters
    ----------
    prediction, reference : Tensor
        (…, Y, X), floating point, Y and X at least 3.

    Returns
    -------
    Tensor
        Scalar.
    """
    return (high_pass(prediction).square().mean() / high_pass(reference).square().mean()).sqrt()


def _decibels(error: Tensor, data_range: float | Tensor) -> Tensor:
    return 10 * torch.log10(data_range**2 / error)


def _windowed(maps: Tensor) -> Tensor:
    weights = gaussian_weights(SSIM_SIGMA, SSIM_WINDOW // 2)
    return weigh_neighbours(weigh_neighbours(maps, weights, -2), weights, -1)


def _pairs(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    for shape, level, sigma in (((40, 33), 100.0, 5.0), ((3, 24, 17), 10_000.0, 80.0)):
        y, x = torch.arange(shape[-2]), torch.arange(shape[-1])
        wave = torch.sin(0.3 * y.double())[:, None] * torch.cos(0.2 * x.double())
        reference = level * (1 + 0.1 * wave).expand(shape)
        noise = sigma * torch.randn(shape, generator=generator, dtype=torch.float64)
        yield (0.9 * reference + noise + 3).to(device, dtype), reference.to(device, dtype)


def _with_range(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for pair in _pairs(device, dtype):
        yield Sample(pair, {"data_range": 255.0})


def _without_range(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for pair in _pairs(device, dtype):
        yield Sample(pair)


def _psnr_oracle(prediction: np.ndarray, reference: np.ndarray, data_range: float) -> np.ndarray:
    rms = np.linalg.norm((prediction - reference).ravel()) / np.sqrt(reference.size)
    return np.asarray(20 * np.log10(data_range / rms))


def _scale_invariant_psnr_oracle(prediction: np.ndarray, reference: np.ndarray, data_range: float) -> np.ndarray:
    columns = np.stack((prediction.ravel(), np.ones(prediction.size)), axis=1)
    coefficients = np.linalg.lstsq(columns, reference.ravel(), rcond=None)[0]
    return _psnr_oracle(columns @ coefficients, reference.ravel(), data_range)


def _ssim_oracle(prediction: np.ndarray, reference: np.ndarray, data_range: float) -> np.ndarray:
    axis = np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
    window = np.exp(-(axis[:, None] ** 2 + axis**2) / (2 * SSIM_SIGMA**2))
    window /= window.sum()
    p, r = (
        np.lib.stride_tricks.sliding_window_view(image, window.shape, axis=(-2, -1))
        for image in (prediction, reference)
    )
    mean_p, mean_r = ((window * part).sum((-2, -1), keepdims=True) for part in (p, r))
    var_p, var_r = ((window * (part - mean) ** 2).sum((-2, -1)) for part, mean in ((p, mean_p), (r, mean_r)))
    covariance = (window * (p - mean_p) * (r - mean_r)).sum((-2, -1))
    mean_p, mean_r = mean_p[..., 0, 0], mean_r[..., 0, 0]
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    numerator = (2 * mean_p * mean_r + c1) * (2 * covariance + c2)
    return np.asarray((numerator / ((mean_p**2 + mean_r**2 + c1) * (var_p + var_r + c2))).mean())


def _high_pass_ratio_oracle(prediction: np.ndarray, reference: np.ndarray) -> np.ndarray:
    p, r = (np.diff(np.diff(image, 2, axis=-1), 2, axis=-2) for image in (prediction, reference))
    return np.asarray(np.linalg.norm(p) / np.linalg.norm(r))


def _info(
    function: Callable[..., Tensor], oracle: Callable[..., np.ndarray], samples: Callable[..., Any]
) -> KernelInfo:
    # Decibels and ratios: absolute agreement to 1e-3 is more than any table prints.
    tolerances = {torch.float32: (1e-4, 1e-4), torch.float64: (1e-9, 1e-9)}
    return KernelInfo(function.__name__, function, samples, oracle, tolerances)


KERNELS = (
    _info(psnr, _psnr_oracle, _with_range),
    _info(scale_invariant_psnr, _scale_invariant_psnr_oracle, _with_range),
    _info(ssim, _ssim_oracle, _with_range),
    _info(high_pass_ratio, _high_pass_ratio_oracle, _without_range),
)
