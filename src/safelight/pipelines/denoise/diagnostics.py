"""What can be told of a denoised image without a clean one, from what was removed: input − output.

Good denoising removes noise and nothing else. So the residual is white, unless the noise itself is correlated; its
variance grows with brightness as photon noise does; and near pixels share nothing, for what they share is structure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

from safelight.core.events import Event, Severity, Value
from safelight.kernels.noise import Lag, block_spectra, half_plane, lag_correlation, structure_sums, variance_by_level
from safelight.pipelines.denoise.masking import Masker, MaskingSettings, line

Structure = tuple[tuple[int, ...], ...]

MAX_LAG = 10
SPECTRUM_BLOCK = 64

LARGEST_LEAK = 0.005
"""A blind spot may correlate with the pixel that it hides by no more than this."""

CORRELATED = 0.1
"""Noise correlation from which structN2V is suggested: the network can predict about 2·0.1² of the noise."""
_CORRELATION_BLOCK = 32
_CORRELATION_LAGS = 3
_HIGH = 0.35  # cycles per pixel: beyond what optics resolve when sampled as usual, so noise alone
_MIDDLE = 0.12
_GROUPS = 8

TILE = 64
STRUCTURED_SHARE = 0.03
"""Share of a tile's residual variance that near pixels have in common, from which it counts as structure."""
STRUCTURED_ERRORS = 5.0
"""How many standard errors that share must be above 0; pure noise of any distribution passes 4 once in some 5,000."""
STRUCTURE_RADIUS = 2

CHECKERBOARD = 1.5
"""Power at the pixel scale over power just below it; 1 for white noise, below 1 for any smooth image."""


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
    checkerboard : float, optional
        Power of the output at the pixel scale over that just below; above 1.5 it is a checkerboard.
    """

    mean: float
    deviation: float
    autocorrelation: Mapping[str, tuple[float, ...]]
    confidence: float
    spectrum: tuple[float, ...]
    noise_fit: NoiseFit | None
    noise_correlation: NoiseCorrelation | None
    structure: StructureTest
    checkerboard: float | None

    @property
    def white(self) -> bool:
        """Whether the residual's autocorrelation is that of white noise, at most one lag in twenty outside."""
        lags = [value for values in self.autocorrelation.values() for value in values]
        outside = sum(abs(value) > self.confidence for value in lags)
        return outside <= max(1, len(lags) // 20) and all(abs(value) <= 2 * self.confidence for value in lags)

    def as_json(self) -> dict[str, Value]:
        """Return everything as JSON values, as the report takes them."""
        structure = {**asdict(self.structure), "found": self.structure.found}
        suggested = self.noise_correlation.suggested_structure() if self.noise_correlation else ()
        values = {**asdict(self), "white": self.white, "structure": structure, "suggested_structure": suggested}
        return cast(dict[str, Value], _plain(values))

    def notices(self, name: str) -> tuple[Event, ...]:
        """Return what a person should know about the image ``name``, as events."""
        notices = [self._verdict(name)]
        if self.checkerboard is not None and self.checkerboard > CHECKERBOARD:
            notices.append(
                Event("checkerboard_found", Severity.WARNING, {"name": name, "ratio": round(self.checkerboard, 2)})
            )
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


def diagnose(noisy: Tensor, denoised: Tensor) -> Diagnostics:
    """Measure what was removed and what is left.

    Parameters
    ----------
    noisy, denoised : Tensor
        (Y, X) or (Z, Y, X), floating point, same shape. Pixels that are not finite are left out. Takes about ten
        times the image's memory: of a very large image, give a part.
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
    )


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
        structured.append((share > STRUCTURED_SHARE) & (shared > STRUCTURED_ERRORS * variance.sqrt()))
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


def measure_checkerboard(output: Tensor) -> float | None:
    """Return the power within 0.05 of the highest frequency of an axis over that between 0.3 and 0.4.

    1 for white noise, less for anything smooth; None for images below 16 pixels a side or without any power there.
    """
    block = min(SPECTRUM_BLOCK, *output.shape[-2:])
    if block < 16:
        return None
    spectrum = block_spectra(output, block).mean(0)
    frequency = torch.fft.fftfreq(block, dtype=output.dtype, device=output.device).abs()
    highest = torch.maximum(frequency[:, None], frequency)
    below = float(spectrum[(highest > 0.3) & (highest < 0.4)].mean())
    return float(spectrum[highest > 0.45].mean()) / below if below > 0 else None


def measure_leak(masking: MaskingSettings, dims: int) -> float:
    """Return the correlation between what a blind spot shows and what it hides, in white noise.

    A network could learn to return its input as far as they correlate; at most ``LARGEST_LEAK`` is right. Measured
    at some 400,000 blind spots: its standard error is 0.0016.

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
    batch = math.ceil(400_000 / masker.boxes)
    noise = torch.randn((batch, 1, *patch), generator=generator)
    spots = masker.hide(noise, masker.draw(batch, 1, generator))
    shown = spots.visible.flatten(2).gather(2, spots.positions)
    inside = spots.weights > 0
    return float(torch.corrcoef(torch.stack((shown[inside], spots.targets[inside])))[0, 1])


def format_structure(structure: Structure) -> str:
    """Return a structural mask as ``--structure`` takes it: rows of 0 and 1; ``none`` without."""
    return "/".join("".join(map(str, row)) for row in structure) or "none"


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


def _plain(value: object) -> object:
    """Return nested mappings and tuples as JSON objects and arrays."""
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return value
