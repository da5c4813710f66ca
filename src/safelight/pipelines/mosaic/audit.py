"""The audit: does the mosaic hold what stacking promises? Each check is a measured value against a threshold.

A stack that silently lost all frames but one looks like a success; its noise tells. So do stars that lost light to
rejection, stars that registration smeared, steps at seams, and stars that are not where the WCS says.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from safelight.core.events import Value
from safelight.core.pipeline import Record
from safelight.pipelines.mosaic.star_matching import mutual_pairs
from safelight.pipelines.mosaic.stars import StarField, measure_stars

Floats = NDArray[np.float64]

NOISE_EFFICIENCY = 0.85
"""Least noise gain over √N_eff. Resampling and faint stars cost some: 49 real frames reach 0.93."""

FLUX_ERROR = 0.02
"""Largest relative change of star light."""

FWHM_GROWTH = 0.05
"""Largest relative growth of the stars."""

SEAM_STEP = 0.1
"""Largest step at a seam, in standard deviations of one pixel of a single frame."""

ASTROMETRIC_RESIDUAL = 0.3
"""Largest rms distance of stars from where the frames' solutions put them, in pixels."""

EVEN_COVERAGE = 0.9
"""Least share of the usual number of frames where noise is compared."""

AUDITED_PIXELS = 1 << 23
"""Most pixels of a picture that are audited: those of a large one tell no more, and take more memory."""

_FEWEST_STARS = 5
"""Fewer common stars say nothing."""

_FEWEST_BRIGHT = 10
"""Light is compared on the brightest quarter, but so many at least: noise makes faint stars of one frame too bright."""


@dataclass(frozen=True)
class Check:
    """One measured promise.

    Parameters
    ----------
    name : str
        noise_gain, flux_conservation, fwhm_growth, seam_step or astrometric_residual.
    where : str
        The group, or the pair of groups, that it was measured on.
    measured, threshold : float
    bound : {"least", "most"}
        What the threshold is.
    """

    name: str
    where: str
    measured: float
    threshold: float
    bound: Literal["least", "most"]

    @property
    def passed(self) -> bool:
        """Whether the threshold is kept; a value that could not be measured is no pass."""
        kept = self.measured >= self.threshold if self.bound == "least" else self.measured <= self.threshold
        return bool(np.isfinite(self.measured) and kept)

    def as_json(self) -> dict[str, Value]:
        """Return the check as JSON values."""
        return {**asdict(self), "passed": self.passed}


def middle_of(height: int, width: int) -> tuple[slice, slice]:
    """Return the rows and columns that are audited of a picture: all of it, or its middle."""
    share = min((AUDITED_PIXELS / (height * width)) ** 0.5, 1.0)
    rows, columns = round(share * height), round(share * width)
    y0, x0 = (height - rows) // 2, (width - columns) // 2
    return slice(y0, y0 + rows), slice(x0, x0 + columns)


def evenly_covered(frames: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return which pixels have about as many frames as most: a stack's noise differs where fewer lie, at its edges."""
    most = np.median(frames[frames > 0])
    return np.asarray(frames >= EVEN_COVERAGE * most)


def measure_part(pixels: NDArray[np.float32], part: tuple[slice, slice]) -> StarField:
    """Return the stars of a part of a picture, where they are in the whole."""
    stars = measure_stars(pixels)
    rows, columns = part
    return replace(stars, x=stars.x + columns.start, y=stars.y + rows.start)


def check_noise(where: str, frame_noises: Sequence[float], stack_noise: float, n_eff: float) -> Check:
    """Compare the measured noise gain with √N_eff, which independent noise of equal frames would give.

    Parameters
    ----------
    where : str
    frame_noises : sequence of float
        Noise of the single frames, resampled as for the stack and on its scale.
    stack_noise : float
        Noise of the stack, measured in the same way.
    n_eff : float
        Effective number of frames, (Σw)² / Σw².
    """
    gain = float(np.median(frame_noises)) / stack_noise if stack_noise > 0 else np.nan
    return Check("noise_gain", where, gain, NOISE_EFFICIENCY * float(np.sqrt(n_eff)), "least")


def check_stars(where: str, frames: Iterable[StarField], stack: StarField, tolerance: float) -> list[Check]:
    """Compare the light, the sharpness and the places of the stars in a stack with those in its frames.

    Parameters
    ----------
    where : str
    frames : iterable of StarField
        Stars of the single frames, on the stack's grid and scale.
    stack : StarField
    tolerance : float
        Largest distance of two detections of one star, in pixels.
    """
    light, size, distance = [], [], []
    for frame in frames:
        ours, theirs = _matched_stars(frame, stack, tolerance)
        if len(ours) < _FEWEST_STARS:
            continue
        bright = slice(max(_FEWEST_BRIGHT, len(ours) // 4))
        light.append(float(np.median(stack.flux[theirs][bright] / frame.flux[ours][bright])))
        size.append(float(np.median(stack.fwhm[theirs] / frame.fwhm[ours])))
        offsets = stack.positions[theirs] - frame.positions[ours]
        distance.append(float(np.hypot(*np.median(offsets, axis=0))))
    flux_error = abs(_median(light) - 1)
    return [
        Check("flux_conservation", where, flux_error, FLUX_ERROR, "most"),
        Check("fwhm_growth", where, _median(size) - 1, FWHM_GROWTH, "most"),
        Check("astrometric_residual", where, _root_mean_square(distance), ASTROMETRIC_RESIDUAL, "most"),
    ]


def check_seam(where: str, step: float, frame_noise: float) -> Check:
    """Compare the step between two tiles where they overlap with the noise of one pixel of a single frame."""
    return Check("seam_step", where, abs(step) / frame_noise, SEAM_STEP, "most")


def missed_checks(records: Sequence[Record]) -> list[Mapping[str, Value]]:
    """Return the checks that the groups and the mosaic do not pass."""
    details: list[Mapping[str, Any]] = [record.details for record in records]
    return [check for one in details for check in one["checks"] if not check["passed"]]


def _matched_stars(first: StarField, second: StarField, tolerance: float) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the indices of the unsaturated stars of both, the first's brightest first."""
    pairs = mutual_pairs(first.positions, cKDTree(second.positions), tolerance)
    usable = ~(first.saturated[pairs[:, 0]] | second.saturated[pairs[:, 1]])
    ours, theirs = pairs[usable].T
    return ours, theirs


def _median(values: Sequence[float]) -> float:
    return float(np.median(values)) if len(values) else np.nan


def _root_mean_square(values: Sequence[float]) -> float:
    return float(np.sqrt(np.mean(np.square(values)))) if values else np.nan
