"""The noise of an image: how its variance grows with brightness, and how alike neighbouring pixels' noise is."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from safelight.kernels.noise import block_spectra, variance_by_level
from safelight.pipelines.denoise.structure import Structure, line

CORRELATED = 0.1
"""Noise correlation from which structN2V is suggested: the network can predict about 2·0.1² of the noise."""
_CORRELATION_BLOCK = 32
_CORRELATION_LAGS = 3
_HIGH = 0.35  # cycles per pixel: beyond what optics resolve when sampled as usual, so noise alone
_MIDDLE = 0.12
_GROUPS = 8


@dataclass(frozen=True)
class NoiseCorrelation:
    """How much the noise of neighbouring pixels is alike.

    Parameters
    ----------
    horizontal, vertical : tuple of float
        Correlation at the lags 1, 2 and 3 pixels.
    error : float
        Standard error of one of them.
    """

    horizontal: tuple[float, ...]
    vertical: tuple[float, ...]
    error: float

    def suggested_structure(self) -> Structure:
        """Return the structural mask for structN2V; empty where the noise is independent enough without."""
        across, down = _reach(self.horizontal), _reach(self.vertical)
        if across and down:
            return line(max(across, down), "cross")
        if across:
            return line(across, "horizontal")
        return line(down, "vertical") if down else ()


@dataclass(frozen=True)
class NoiseFit:
    """The variance of the noise as a line, variance = gain · level + intercept: photon noise and read noise.

    Parameters
    ----------
    gain : float
        Grey levels per photon.
    intercept : float
        Read noise squared, less gain times the camera's black level.
    levels, variances : tuple of float
        The points that the line was fitted to.
    """

    gain: float
    intercept: float
    levels: tuple[float, ...]
    variances: tuple[float, ...]


def noise_correlation(noisy: Tensor) -> NoiseCorrelation | None:
    """Measure how much the noise of neighbouring pixels is alike, in the noisy image alone.

    Structure is at low spatial frequencies, so the noise's spectrum shows at the high ones; there the spectrum
    1 + 2·Σ ρₖ·cos(2π·k·f) of noise with the correlations ρₖ is fitted, in the half of the image's blocks that has the
    least structure. Each block counts the same, bright or dark.

    Parameters
    ----------
    noisy : Tensor
        (Y, X) or (Z, Y, X), floating point, finite.

    Returns
    -------
    NoiseCorrelation or None
        None for images below 32 pixels a side, and where there is no noise at all.
    """
    if min(noisy.shape[-2:]) < _CORRELATION_BLOCK:
        return None
    spectra = block_spectra(noisy, _CORRELATION_BLOCK)
    frequency = torch.fft.fftfreq(_CORRELATION_BLOCK, dtype=noisy.dtype, device=noisy.device)
    radius = (frequency[:, None].square() + frequency.square()).sqrt()
    high, middle = radius > _HIGH, (radius > _MIDDLE) & (radius < _HIGH)
    power = spectra[:, high].mean(1)
    noise = spectra[power > 1e-9 * power.max()]
    if len(noise) < 2 * _GROUPS:
        return None
    noise = noise / noise[:, high].mean(1)[:, None, None]
    order = noise[:, middle].mean(1).argsort()
    spectra = noise[order[: max(len(noise) // 2, _GROUPS)]][:, high]
    design = _correlation_design(frequency, high)
    fits = [_fitted_correlations(spectra[group::_GROUPS].mean(0), design) for group in range(_GROUPS)]
    whole = _fitted_correlations(spectra.mean(0), design)
    error = np.std(fits, axis=0, ddof=1).mean() / math.sqrt(_GROUPS)
    return NoiseCorrelation(tuple(whole[:_CORRELATION_LAGS]), tuple(whole[_CORRELATION_LAGS:]), float(error))


def fit_noise(noisy: Tensor, denoised: Tensor) -> NoiseFit | None:
    """Fit variance = gain · level + intercept to the residual, robustly; levels near saturation are left out.

    Parameters
    ----------
    noisy, denoised : Tensor
        Same shape, floating point, finite.

    Returns
    -------
    NoiseFit or None
        None where fewer than three levels are left, or the image has one level only.
    """
    bins = min(40, denoised.numel() // 200)
    if bins < 3:
        return None
    levels, variances = variance_by_level(denoised, noisy - denoised, bins).double().cpu().numpy()
    low, high = _limits(noisy)
    reach = 2 * np.sqrt(variances)
    kept = (variances > 0) & (levels - reach >= low) & (levels + reach <= high)
    levels, variances = levels[kept], variances[kept]
    if len(levels) < 3 or np.ptp(levels) == 0:
        return None
    gain, intercept = _robust_line(levels, variances)
    return NoiseFit(gain, intercept, tuple(levels.tolist()), tuple(variances.tolist()))


def _reach(correlation: tuple[float, ...]) -> int:
    """Return up to which lag the noise is correlated enough to hide."""
    reach = [lag for lag, value in enumerate(correlation, start=1) if abs(value) >= CORRELATED]
    return max(reach, default=0)


def _correlation_design(frequency: Tensor, high: Tensor) -> np.ndarray:
    """Return the columns 1, 2·cos(2π·k·f) of the spectrum of correlated noise: horizontal lags, then vertical."""
    vertical, horizontal = (f[high] for f in torch.meshgrid(frequency, frequency, indexing="ij"))
    columns = [torch.ones_like(horizontal)]
    for along in (horizontal, vertical):
        columns += [2 * torch.cos(2 * math.pi * lag * along) for lag in range(1, _CORRELATION_LAGS + 1)]
    return torch.stack(columns, 1).double().cpu().numpy()


def _fitted_correlations(spectrum: Tensor, design: np.ndarray) -> list[float]:
    coefficients = np.linalg.lstsq(design, spectrum.double().cpu().numpy(), rcond=None)[0]
    correlations: list[float] = (coefficients[1:] / coefficients[0]).tolist()
    return correlations


def _limits(noisy: Tensor) -> tuple[float, float]:
    """Return the lowest and highest value, infinite where fewer than 1 in 1,000 pixels have it: not clipped there."""
    low, high = noisy.amin(), noisy.amax()
    clipped_low, clipped_high = ((noisy == limit).double().mean() > 1e-3 for limit in (low, high))
    return float(low) if clipped_low else -math.inf, float(high) if clipped_high else math.inf


def _robust_line(levels: np.ndarray, variances: np.ndarray) -> tuple[float, float]:
    """Fit a line by reweighted least squares: a variance's error is proportional to it; outliers count less (Huber)."""
    design = np.stack((levels, np.ones_like(levels)), 1)
    expected = variances
    weights = np.ones_like(variances)
    for _ in range(20):
        scale = np.sqrt(weights) / expected
        gain, intercept = np.linalg.lstsq(design * scale[:, None], variances * scale, rcond=None)[0]
        expected = np.maximum(gain * levels + intercept, 1e-3 * variances.mean())
        deviation = np.abs(variances / expected - 1)
        limit = 1.345 * 1.4826 * np.median(deviation) + 1e-12
        weights = np.minimum(1, limit / np.maximum(deviation, 1e-12))
    return float(gain), float(intercept)
