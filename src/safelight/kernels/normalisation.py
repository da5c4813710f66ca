"""What makes frames comparable before they are combined: scale, offset and weight of every frame and channel."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from safelight.core.kernel import KernelInfo, Sample

Normalisation = Literal["none", "additive", "multiplicative", "additive_with_scaling", "linear_fit"]
Weighting = Literal["none", "noise_variance", "noise_fwhm"]

MAD_TO_SIGMA = 1.482602218505602
"""1 / Φ⁻¹(3/4): the standard deviation of a Gaussian over its median absolute deviation."""
LINEAR_FIT_SHARES = (0.25, 0.9)


class Coefficients(NamedTuple):
    """A sample x enters as ``scale * x + offset``; (frames, channels) each."""

    scale: Tensor
    offset: Tensor


def quantiles(values: Tensor, shares: Sequence[float]) -> Tensor:
    """Return quantiles along the last axis, NaN left out, interpolated linearly between samples.

    Unlike ``torch.nanquantile`` it takes any number of samples.

    Parameters
    ----------
    values : Tensor
        (…, n), floating point.
    shares : sequence of float
        k shares from 0 to 1.

    Returns
    -------
    Tensor
        (k, …); NaN where all is NaN.
    """
    ordered = values.sort(-1).values
    last = (~values.isnan()).sum(-1, keepdim=True) - 1
    found = []
    for share in shares:
        position = (share * last.to(values.dtype)).clamp(min=0)
        below = position.floor()
        above = torch.minimum(below + 1, last.clamp(min=0))
        low, high = ordered.gather(-1, below.long()), ordered.gather(-1, above.long())
        found.append((low + (position - below) * (high - low)).squeeze(-1))
    return torch.stack(found)


def location_and_scale(background: Tensor) -> Tensor:
    """Return the median and the median absolute deviation, as a standard deviation, along the last axis.

    Parameters
    ----------
    background : Tensor
        (…, n), floating point; NaN is left out.

    Returns
    -------
    Tensor
        (2, …).
    """
    median = quantiles(background, (0.5,))[0]
    deviation = quantiles((background - median[..., None]).abs(), (0.5,))[0]
    return torch.stack((median, MAD_TO_SIGMA * deviation))


def normalise_to(background: Iterable[Tensor], method: Normalisation, reference: int = 0) -> Coefficients:
    """Return what brings every frame's background to that of a reference frame, channel by channel.

    Parameters
    ----------
    background : iterable of Tensor
        Of every frame (channels, n), floating point: samples of the background, NaN where there is a star or nothing.
        They are taken one frame after the other, so that those of hundreds need not be in memory.
    method : str
        With l and s for a frame's location and scale, and l₀, s₀ for the reference's: ``additive`` x − l + l₀;
        ``multiplicative`` x·l₀/l; ``additive_with_scaling`` (x − l)·s₀/s + l₀; ``linear_fit`` takes the quartile and
        the 90th percentile to the reference's.
    reference : int
        Index of the reference frame, whose coefficients are 1 and 0.

    Returns
    -------
    Coefficients
        Not finite for a frame that cannot be normalised so: without samples, or without the spread or the level to
        divide by.
    """
    if method == "linear_fit":
        low, high = torch.stack([quantiles(frame, LINEAR_FIT_SHARES) for frame in background], dim=1)
        scale = (high - low)[reference] / (high - low)
        return Coefficients(scale, low[reference] - scale * low)
    location, spread = torch.stack([location_and_scale(frame) for frame in background], dim=1)
    one = torch.ones_like(location)
    match method:
        case "none":
            return Coefficients(one, torch.zeros_like(location))
        case "additive":
            return Coefficients(one, location[reference] - location)
        case "multiplicative":
            return Coefficients(location[reference] / location, torch.zeros_like(location))
        case "additive_with_scaling":
            scale = spread[reference] / spread
            return Coefficients(scale, location[reference] - scale * location)


def frame_weights(noise: Tensor, fwhm: Tensor, method: Weighting) -> Tensor:
    """Return how much every frame counts, with a mean of 1 over the frames of each channel.

    Parameters
    ----------
    noise : Tensor
        (frames, channels): standard deviation of the background after scaling.
    fwhm : Tensor
        (frames,): of the stars, in pixels.
    method : str
        ``none``: all alike. ``noise_variance``: 1/noise². ``noise_fwhm``: that times
        (1/f² − 1/f_max²) / (1/f_min² − 1/f_max²), so the frame with the widest stars counts for nothing; where all are
        as wide, noise alone decides.

    Returns
    -------
    Tensor
        (frames, channels).
    """
    weights = torch.ones_like(noise) if method == "none" else 1 / noise.square()
    if method == "noise_fwhm":
        sharpness = 1 / fwhm.square()
        span = sharpness.amax() - sharpness.amin()
        weights = weights * torch.where(span > 0, (sharpness - sharpness.amin()) / span, 1.0)[:, None]
    return weights / weights.mean(0)


def _samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(0)
    level = torch.tensor([1000.0, 1100.0, 900.0, 1000.0], dtype=torch.float64)[:, None, None]
    spread = torch.tensor([20.0, 30.0, 10.0, 20.0], dtype=torch.float64)[:, None, None]
    background = level + spread * torch.randn((4, 3, 301), generator=generator, dtype=torch.float64)
    background[torch.rand(background.shape, generator=generator) < 0.1] = torch.nan
    for method in ("none", "additive", "multiplicative", "additive_with_scaling", "linear_fit"):
        yield Sample((background.to(device, dtype), method, 1))


def _weight_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(0)
    noise = 10 + torch.rand((5, 3), generator=generator, dtype=torch.float64)
    fwhm = 2 + torch.rand(5, generator=generator, dtype=torch.float64)
    for method in ("none", "noise_variance", "noise_fwhm"):
        yield Sample((noise.to(device, dtype), fwhm.to(device, dtype), method))
    yield Sample((noise.to(device, dtype), torch.full_like(fwhm, 2.5).to(device, dtype), "noise_fwhm"))


def _coefficients(background: Tensor, method: Normalisation, reference: int) -> Tensor:
    return torch.stack(normalise_to(background, method, reference))


def _oracle(background: np.ndarray, method: Normalisation, reference: int) -> np.ndarray:
    coefficients = np.zeros((2, *background.shape[:2]))
    for frame, channel in np.ndindex(background.shape[:2]):
        x, x0 = background[frame, channel], background[reference, channel]
        if method == "linear_fit":
            fit = np.polyfit(np.nanpercentile(x, (25, 90)), np.nanpercentile(x0, (25, 90)), 1)
            coefficients[:, frame, channel] = fit
            continue
        level, level0 = np.nanmedian(x), np.nanmedian(x0)
        scale = np.nanmedian(np.abs(x0 - level0)) / np.nanmedian(np.abs(x - level))
        coefficients[:, frame, channel] = {
            "none": (1, 0),
            "additive": (1, level0 - level),
            "multiplicative": (level0 / level, 0),
            "additive_with_scaling": (scale, level0 - scale * level),
        }[method]
    return coefficients


def _weights_oracle(noise: np.ndarray, fwhm: np.ndarray, method: Weighting) -> np.ndarray:
    weights = np.ones_like(noise)
    for frame in range(len(fwhm)):
        if method != "none":
            weights[frame] = 1 / noise[frame] ** 2
        if method == "noise_fwhm" and fwhm.min() < fwhm.max():
            weights[frame] *= (fwhm[frame] ** -2 - fwhm.max() ** -2) / (fwhm.min() ** -2 - fwhm.max() ** -2)
    return np.asarray(weights * len(fwhm) / weights.sum(0))


_TOLERANCES = {torch.float32: (1e-4, 1e-2), torch.float64: (1e-9, 1e-9)}
KERNELS = (
    KernelInfo("normalise_to", _coefficients, _samples, _oracle, _TOLERANCES),
    KernelInfo("frame_weights", frame_weights, _weight_samples, _weights_oracle),
)
