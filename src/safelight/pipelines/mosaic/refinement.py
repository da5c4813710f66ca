"""Relative astrometry: correct the WCS of each placed frame until shared stars fall on one place in all frames."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from astropy.wcs import WCS
from scipy.spatial import cKDTree

from safelight.pipelines.mosaic.plane_fit import Floats, affordable_freedom
from safelight.pipelines.mosaic.star_matching import Integers, Refusal, mutual_pairs
from safelight.pipelines.mosaic.stars import StarField
from safelight.pipelines.mosaic.wcs import ARCSECONDS, fitted, pixel_scale, pixel_to_sky, sky_of_vectors, unit_vectors

STARS_PER_FRAME = 300  # the brightest
SEARCH_RADIUS = 8.0  # pixels by which a placed frame may be off
CROWDING = 0.15  # of the mean distance between stars: the search radius stays below
SAME_STAR = 3.0  # pixels, once the frame is corrected
ROUNDS = 6  # of averaging and correcting
OUTLIER = 4.0  # times the median distance
NEVER_OUTLIER = 0.5  # pixels
FEWEST_SHARED = 3


@dataclass(frozen=True, eq=False)
class Alignment:
    """Where a frame lies on the common sky.

    Parameters
    ----------
    wcs : WCS, optional
        The frame's refined solution; None if the frame could not be placed.
    source : {"solution", "stars"}
        Whether the frame came with a WCS or was placed by matching stars.
    matched : int
        Number of its stars that other frames have too.
    residual, worst : float
        Root mean square and largest distance, in pixels, between the frame's stars and the mean of the same
        stars in the other frames; NaN without such stars.
    moved : float
        By how many pixels the refinement moved the frame's centre.
    anchor : str, optional
        The frame whose stars placed this one.
    parity_flipped : bool
        Whether the frame is mirrored with respect to its anchor.
    shared_distortion : bool
        Whether the WCS has the distortion that the frames of its camera agree on, not one of its own.
    reason : optional
        Why the frame could not be placed.
    """

    wcs: WCS | None
    source: Literal["solution", "stars"]
    matched: int = 0
    residual: float = math.nan
    worst: float = math.nan
    moved: float = math.nan
    anchor: str | None = None
    parity_flipped: bool = False
    shared_distortion: bool = False
    reason: Refusal | None = None


def by_quality(fields: Mapping[str, StarField]) -> list[str]:
    """Return names of frames, best first: many stars and sharp ones; equals by name."""
    return sorted(fields, key=lambda name: (-len(fields[name]) / fields[name].median_fwhm, name))


def frame_centre(wcs: WCS, field: StarField) -> Floats:
    """Return where on the unit sphere the centre of a frame lies."""
    return unit_vectors(*pixel_to_sky(wcs, np.array((field.width - 1) / 2), np.array((field.height - 1) / 2)))


def radians_per_pixel(wcs: WCS) -> float:
    """Return the pixel scale as a length on the unit sphere."""
    return math.radians(pixel_scale(wcs) / ARCSECONDS)


def refine(fields: Mapping[str, StarField], placed: Mapping[str, Alignment]) -> dict[str, Alignment]:
    """Return the placed frames with corrected WCSs and the residuals that remain.

    Solutions that frames came with are averaged, so that the sky stays where they say on the whole; frames placed by
    stars follow. A frame that shares too few stars keeps its WCS. Distortions stay as they are.
    """
    names = by_quality({name: fields[name] for name in placed})
    positions = {name: fields[name].positions[:STARS_PER_FRAME] for name in names}
    given = {name: alignment.wcs for name, alignment in placed.items()}
    labels, joined = _identified(names, positions, given)
    current = {name: given[name] if placed[name].source == "solution" else joined[name] for name in names}
    for _ in range(ROUNDS):
        sums, counts = _added_up(positions, current, labels)
        means = np.where(counts[:, None] > 1, sums, np.nan)
        current = {name: _corrected(current[name], positions[name], means[labels[name]]) for name in names}
    sums, counts = _added_up(positions, current, labels)
    refined = {}
    for name in names:
        off = _residuals(current[name], positions[name], sums[labels[name]], counts[labels[name]])
        refined[name] = replace(
            placed[name],
            wcs=current[name],
            matched=len(off),
            residual=float(np.sqrt((off**2).mean())) if len(off) else math.nan,
            worst=float(off.max()) if len(off) else math.nan,
            moved=_moved(given[name], current[name], fields[name]),
        )
    return refined


def _identified(
    names: Sequence[str], positions: Mapping[str, Floats], solutions: Mapping[str, WCS]
) -> tuple[dict[str, Integers], dict[str, WCS]]:
    """Give each star of each frame the number of a star of the sky, the same one to the same star.

    Frame after frame is fitted to the stars known so far, which those that it adds then join.
    Returns the numbers and the fitted WCSs.
    """
    sky = np.empty((0, 3))
    labels: dict[str, Integers] = {}
    joined: dict[str, WCS] = {}
    for name in names:
        points, wcs = positions[name], solutions[name]
        pixel = radians_per_pixel(wcs)
        if len(sky):
            tree = cKDTree(sky)
            pairs = mutual_pairs(_vectors(wcs, points), tree, _search_radius(points) * pixel)
            targets = np.full((len(points), 3), np.nan)
            targets[pairs[:, 0]] = sky[pairs[:, 1]]
            wcs = _corrected(wcs, points, targets)
            pairs = mutual_pairs(_vectors(wcs, points), tree, SAME_STAR * pixel)
        else:
            pairs = np.empty((0, 2), dtype=np.intp)
        new = np.setdiff1d(np.arange(len(points)), pairs[:, 0])
        label = np.empty(len(points), dtype=np.intp)
        label[pairs[:, 0]] = pairs[:, 1]
        label[new] = len(sky) + np.arange(len(new))
        sky = np.concatenate([sky, _vectors(wcs, points[new])])
        labels[name], joined[name] = label, wcs
    return labels, joined


def _search_radius(positions: Floats) -> float:
    """Return within how many pixels a star is sought: less where neighbours are near."""
    apart = math.sqrt(float(np.prod(np.ptp(positions, axis=0))) / len(positions))
    return max(SAME_STAR, min(SEARCH_RADIUS, CROWDING * apart))


def _vectors(wcs: WCS, positions: Floats) -> Floats:
    return unit_vectors(*pixel_to_sky(wcs, *positions.T))


def _added_up(
    positions: Mapping[str, Floats], solutions: Mapping[str, WCS], labels: Mapping[str, Integers]
) -> tuple[Floats, Integers]:
    """Return for each star of the sky the sum of its unit vectors over the frames, (stars, 3), and their number."""
    label = np.concatenate([labels[name] for name in solutions])
    vectors = np.concatenate([_vectors(wcs, positions[name]) for name, wcs in solutions.items()])
    sums: Floats = np.stack([np.bincount(label, weights=axis) for axis in vectors.T], axis=1).astype(np.float64)
    return sums, np.bincount(label)


def _corrected(wcs: WCS, positions: Floats, targets: Floats) -> WCS:
    """Return the WCS fitted to where stars should be: vectors (stars, 3) of any length, NaN for unknown ones."""
    known = np.flatnonzero(np.isfinite(targets[:, 0]))
    if len(known) < FEWEST_SHARED:
        return wcs
    off = _vectors(wcs, positions[known]) - _unit(targets[known])
    off = np.linalg.norm(off - np.median(off, axis=0), axis=1) / radians_per_pixel(wcs)
    known = known[off <= max(OUTLIER * float(np.median(off)), NEVER_OUTLIER)]
    freedom = affordable_freedom(positions[known], positions)
    ra, dec = sky_of_vectors(targets[known])
    return fitted(wcs, positions[known], ra, dec, freedom)


def _unit(vectors: Floats) -> Floats:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True))


def _residuals(wcs: WCS, positions: Floats, sums: Floats, counts: Integers) -> Floats:
    """Return how many pixels each shared star lies from its mean over the other frames."""
    shared = counts > 1
    own = _vectors(wcs, positions[shared])
    return np.asarray(np.linalg.norm(own - _unit(sums[shared] - own), axis=1) / radians_per_pixel(wcs))


def _moved(before: WCS, after: WCS, field: StarField) -> float:
    apart = np.linalg.norm(frame_centre(after, field) - frame_centre(before, field))
    return float(apart) / radians_per_pixel(after)
