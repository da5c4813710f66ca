"""What can be told of a denoised image without a clean one, from what was removed: input − output.

Good denoising removes noise and nothing else. So the residual is white, unless the noise itself is correlated; its
variance grows with brightness as photon noise does; and near pixels share nothing, for what they share is structure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import cast

import torch
from torch import Tensor

from safelight.core.events import Event, Severity, Value
from safelight.kernels.noise import Lag, block_spectra, half_plane, lag_correlation, structure_sums
from safelight.pipelines.denoise.masking import Masker, MaskingSettings
from safelight.pipelines.denoise.noise_model import (
    NoiseCorrelation,
    NoiseFit,
    fit_noise,
    noise_correlation,
)
from safelight.pipelines.denoise.structure import format_structure

__all__ = [
    "Checkerboard",
    "Diagnostics",
    "StructureTest",
    "diagnose",
    "find_structure",
    "measure_checkerboard",
    "measure_leak",
    "noise_correlation",
]

MAX_LAG = 10
SPECTRUM_BLOCK = 64

LARGEST_LEAK = 0.005
"""A blind spot may correlate with the pixel that it hides by no more than this."""

TILE = 64
STRUCTURED_SHARE = 0.03
"""Share of a tile's residual variance that near pixels have in common, from which it counts as structure."""
STRUCTURED_ERRORS = 5.0
"""How many standard errors that share must be above 0; pure noise of any distribution passes 4 once in some 5,000."""
STRUCTURE_RADIUS = 2
NEGLIGIBLE = 1e-3
"""Share of the mean residual variance below which a tile is passed over."""

CHECKERBOARD_RATIO = 1.5
"""Power at the pixel scale over power just below it; 1 for white noise, below 1 for any smooth image."""
VISIBLE = 0.05
"""Strength of a checkerboard, over the deviation of what was removed, from which it is worth a word."""


@dataclass(frozen=True)
class StructureTest:
    """Whether structure was removed with the noise.

    In each tile of 64 pixels, the products of residual pixels at most 2 pixels apart are added up, all of them and
    those along four directions. Independent noise, photon noise too, gives 0 within a known standard error; blobs,
    edges and lines that were smoothed away give more.

    Parameters
    ----------
    share : float
        Mean over tiles of the least share of the residual's variance that is structure; about 0 for noise, below 0
        where noise was left in the output.
    worst : float
        The share in the worst tile and direction.
    tiles : int
        How many tiles there are, of all planes.
    structured : int
        In how many of them structure was found.
    places : tuple of tuple of bool
        Which they are, (Y, X), in the middle plane.
    """

    share: float
    worst: float
    tiles: int
    structured: int
    places: tuple[tuple[bool, ...], ...]

    @property
    def found(self) -> bool:
        """Whether structure was removed: in one tile at least, and in one of a hundred."""
        return self.structured > 0 and self.structured >= 0.01 * self.tiles


@dataclass(frozen=True)
class Checkerboard:
    """What an image holds at the pixel scale, within 0.05 cycles per pixel of the highest frequency of an axis.

    Parameters
    ----------
    ratio : float
        Its power density over that between 0.3 and 0.4; 1 for white noise, less for anything smooth.
    strength : float
        Its RMS in grey levels.
    """

    ratio: float
    strength: float


@dataclass(frozen=True)
class Diagnostics:
    """What was measured without a clean image.

    Parameters
    ----------
    mean, deviation : float
        Of the residual.
    autocorrelation : mapping
        Of the residual by axis (X, Y, Z), at the lags 1 to 10 or as far as the image goes.
    confidence : float
        White noise stays within ± this at 95 % of the lags.
    spectrum : tuple of float
        Power of the residual by spatial frequency, 0 to 0.5 cycles per pixel in equal steps; 1 for white noise.
    noise_fit : NoiseFit, optional
        None where the residual says nothing: constant, or too few pixels.
    noise_correlation : NoiseCorrelation, optional
        Of the input; None where the image is too small.
    structure : StructureTest
    checkerboard : Checkerboard, optional
        Of the output; None where the image is too small.
    leak : float, optional
        Of the blind spots that the model was trained with; None where these are not known.
    """

    mean: float
    deviation: float
    autocorrelation: Mapping[str, tuple[float, ...]]
    confidence: float
    spectrum: tuple[float, ...]
    noise_fit: NoiseFit | None
    noise_correlation: NoiseCorrelation | None
    structure: StructureTest
    checkerboard: Checkerboard | None
    leak: float | None

    @property
    def white(self) -> bool:
        """Whether the residual's autocorrelation is that of white noise, at most one lag in twenty outside."""
        lags = [value for values in self.autocorrelation.values() for value in values]
        outside = sum(abs(value) > self.confidence for value in lags)
        return outside <= max(1, len(lags) // 20) and all(abs(value) <= 2 * self.confidence for value in lags)

    @property
    def has_checkerboard(self) -> bool:
        """Whether the output has a checkerboard that can be seen."""
        board = self.checkerboard
        return board is not None and board.ratio > CHECKERBOARD_RATIO and board.strength > VISIBLE * self.deviation

    @property
    def leaks(self) -> bool:
        """Whether blind spots showed something of what they hide."""
        return self.leak is not None and abs(self.leak) > LARGEST_LEAK

    def as_json(self) -> dict[str, Value]:
        """Return everything as JSON values, as the report takes them."""
        structure = {**asdict(self.structure), "found": self.structure.found}
        suggested = self.noise_correlation.suggested_structure() if self.noise_correlation else ()
        judged = {
            "white": self.white,
            "has_checkerboard": self.has_checkerboard,
            "leaks": self.leaks,
            "suggested_structure": suggested,
        }
        return cast(dict[str, Value], _plain({**asdict(self), **judged, "structure": structure}))

    def notices(self, name: str) -> tuple[Event, ...]:
        """Return what a person should know about the image ``name``, as events."""
        notices = [self._verdict(name)]
        if self.checkerboard is not None and self.has_checkerboard:
            ratio = round(self.checkerboard.ratio, 2)
            notices.append(Event("checkerboard_found", Severity.WARNING, {"name": name, "ratio": ratio}))
        if self.leak is not None and self.leaks:
            leak: dict[str, Value] = {"name": name, "leak": round(self.leak, 4), "largest": LARGEST_LEAK}
            notices.append(Event("blind_spots_leak", Severity.WARNING, leak))
        correlation = self.noise_correlation
        if correlation is not None and correlation.suggested_structure():
            data: dict[str, Value] = {
                "name": name,
                "horizontal": round(correlation.horizontal[0], 3),
                "vertical": round(correlation.vertical[0], 3),
                "structure": format_structure(correlation.suggested_structure()),
            }
            notices.append(Event("noise_is_correlated", Severity.INFO, data))
        return tuple(notices)

    def _verdict(self, name: str) -> Event:
        test = self.structure
        if not test.found:
            return Event("residual_is_noise", Severity.INFO, {"name": name, "tiles": test.tiles})
        data: dict[str, Value] = {
            "name": name,
            "structured": test.structured,
            "tiles": test.tiles,
            "percent": round(100 * test.worst, 1),
        }
        return Event("residual_has_structure", Severity.WARNING, data)


def diagnose(noisy: Tensor, denoised: Tensor, leak: float | None = None) -> Diagnostics:
    """Measure what was removed and what is left.

    Parameters
    ----------
    noisy, denoised : Tensor
        (Y, X) or (Z, Y, X), floating point, same shape. Pixels that are not finite are left out. Takes about ten
        times the image's memory: of a very large image, give a part.
    leak : float, optional
        Of the blind spots that the model was trained with; see ``measure_leak``.
    """
    finite = noisy.isfinite() & denoised.isfinite()
    output = torch.where(finite, denoised, denoised[finite].mean() if bool(finite.any()) else 0.0)
    noisy = torch.where(finite, noisy, output)
    residual = noisy - output
    mean = residual.mean()
    deviation = residual.std(correction=0)
    correlation = noise_correlation(noisy)
    autocorrelation, confidence = _autocorrelation(residual - mean)
    return Diagnostics(
        mean=float(mean),
        deviation=float(deviation),
        autocorrelation=autocorrelation,
        confidence=confidence,
        spectrum=_radial_spectrum(residual),
        noise_fit=fit_noise(noisy, output),
        noise_correlation=correlation,
        structure=find_structure(residual, correlation),
        checkerboard=measure_checkerboard(output),
        leak=leak,
    )


def find_structure(residual: Tensor, correlation: NoiseCorrelation | None = None) -> StructureTest:
    """Test whether a residual holds structure; see ``StructureTest``.

    Parameters
    ----------
    residual : Tensor
        (Y, X) or (Z, Y, X), floating point, finite.
    correlation : NoiseCorrelation, optional
        Of the input: what noise itself has in common is not counted.
    """
    planes = residual.reshape(-1, *residual.shape[-2:])
    planes = planes - planes.mean((-2, -1), keepdim=True)
    groups = _lag_groups(*planes.shape[-2:])
    if not groups:
        return StructureTest(0.0, 0.0, len(planes), 0, ((False,),))
    shares, structured = [], []
    for lags in groups:
        shared, variance, energy = structure_sums(planes, lags, TILE)
        shared = shared - _shared_by_noise(lags, correlation) * energy
        share = torch.where(energy > 0, shared / energy, 0.0)
        shares.append(share)
        # Where nothing was removed, nothing can be told: an empty background's rounding is not structure.
        told = energy > NEGLIGIBLE * energy.mean()
        structured.append(told & (share > STRUCTURED_SHARE) & (shared > STRUCTURED_ERRORS * variance.sqrt()))
    share, found = torch.stack(shares).amax(0), torch.stack(structured).any(0)
    middle: list[list[bool]] = found[len(found) // 2].tolist()
    return StructureTest(
        share=float(shares[0].mean()),
        worst=float(share.max()),
        tiles=found.numel(),
        structured=int(found.sum()),
        places=tuple(map(tuple, middle)),
    )


def _lag_groups(height: int, width: int) -> list[list[Lag]]:
    """Return which neighbours to compare: all, for blobs, then along four directions, for edges and lines."""
    directions = [
        [(y * step, x * step) for step in range(1, STRUCTURE_RADIUS + 1)] for y, x in ((0, 1), (1, 0), (1, 1), (1, -1))
    ]
    groups = [list(half_plane(STRUCTURE_RADIUS)), *directions]
    inside = [[(y, x) for y, x in group if y < height and abs(x) < width] for group in groups]
    return [group for group in inside if group]


def _shared_by_noise(lags: Sequence[Lag], correlation: NoiseCorrelation | None) -> float:
    """Return the mean correlation over lags that the noise has by itself, at the top of its margin of error."""
    if correlation is None:
        return 0.0
    known = {(0, lag): value for lag, value in enumerate(correlation.horizontal, start=1)}
    known |= {(lag, 0): value for lag, value in enumerate(correlation.vertical, start=1)}
    return sum(max(known.get(lag, 0.0) + 2 * correlation.error, 0.0) for lag in lags if lag in known) / len(lags)


def measure_checkerboard(output: Tensor) -> Checkerboard | None:
    """Return what an image holds at the pixel scale; None below 16 pixels a side or without anything to compare."""
    block = min(SPECTRUM_BLOCK, *output.shape[-2:])
    if block < 16:
        return None
    spectrum = block_spectra(output, block).mean(0)
    frequency = torch.fft.fftfreq(block, dtype=output.dtype, device=output.device).abs()
    highest = torch.maximum(frequency[:, None], frequency)
    top = spectrum[highest > 0.45]
    below = float(spectrum[(highest > 0.3) & (highest < 0.4)].mean())
    if below <= 0:
        return None
    return Checkerboard(ratio=float(top.mean()) / below, strength=float((top.sum() / spectrum.numel()).sqrt()))


@cache
def measure_leak(masking: MaskingSettings, dims: int) -> float:
    """Return the correlation between what a blind spot shows and what it hides, in white noise.

    A network could learn to return its input as far as they correlate; at most ``LARGEST_LEAK`` is right. The hidden
    values change their sign and all else stays: what does not depend on them cancels. So some 20,000 blind spots are
    enough; the standard error is below 0.001.

    Parameters
    ----------
    masking : MaskingSettings
    dims : int
        2 or 3.
    """
    device = torch.device("cpu")
    patch = (64,) * dims if dims == 2 else (32,) * dims
    masker = Masker(masking.model_copy(update={"percent": 4.0}), patch, device)
    generator = torch.Generator(device).manual_seed(0)
    batch = math.ceil(20_000 / masker.boxes)
    noise = torch.randn((batch, 1, *patch), generator=generator)
    draws = masker.draw(batch, 1, generator)
    spots = masker.hide(noise, draws)
    turned = noise.flatten(2).scatter(2, spots.positions, -spots.targets).view_as(noise)
    shown, shown_turned = (
        hidden.visible.flatten(2).gather(2, spots.positions) for hidden in (spots, masker.hide(turned, draws))
    )
    inside = spots.weights > 0
    covariance = ((shown - shown_turned)[inside] / 2 * spots.targets[inside]).mean()
    return float(covariance / (shown[inside].std() * spots.targets[inside].std()))


def _autocorrelation(residual: Tensor) -> tuple[dict[str, tuple[float, ...]], float]:
    """Return the autocorrelation by axis, and the half-width of the 95 % band."""
    if not bool(residual.any()):
        return {}, 0.0
    found, errors = {}, [0.0]
    for axis, name in zip(range(-1, -residual.ndim - 1, -1), "XYZ", strict=False):
        lags = min(MAX_LAG, residual.shape[axis] - 1)
        if lags > 0:
            values, axis_errors = lag_correlation(residual, axis, lags).tolist()
            found[name] = tuple(values)
            errors += axis_errors
    return found, 1.96 * max(errors)


def _radial_spectrum(residual: Tensor) -> tuple[float, ...]:
    """Return the mean power by frequency in 16 equal steps, 1 for white noise; empty without any power."""
    block = min(SPECTRUM_BLOCK, *residual.shape[-2:])
    spectrum = block_spectra(residual, block).mean(0)
    frequency = torch.fft.fftfreq(block, dtype=residual.dtype, device=residual.device)
    radius = (frequency[:, None].square() + frequency.square()).sqrt()
    steps = (radius * 32).long()
    inside = steps < 16
    power = torch.zeros(16, dtype=residual.dtype, device=residual.device)
    power.index_add_(0, steps[inside], spectrum[inside])
    power /= torch.bincount(steps[inside], minlength=16).clamp(min=1)
    mean = float(spectrum.mean())
    return tuple((power / mean).tolist()) if mean > 0 else ()


def _plain(value: object) -> object:
    """Return nested mappings and tuples as JSON objects and arrays."""
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return value
