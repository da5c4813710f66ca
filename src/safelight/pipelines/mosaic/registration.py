"""Put frames on one sky: frames without a WCS by their stars, then all of them against the stars they share.

Everything happens on the sphere, so that mosaics of any width, RA 0° and the poles are nothing special. Frames are
taken in order of quality, ties by name: the order in which they are given makes no difference.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from astropy.wcs import WCS

from safelight.pipelines.mosaic.distortion import share_distortion
from safelight.pipelines.mosaic.plane_fit import Floats, affordable_freedom
from safelight.pipelines.mosaic.refinement import Alignment, by_quality, frame_centre, radians_per_pixel, refine
from safelight.pipelines.mosaic.star_matching import FEWEST_STARS, Refusal, Registration, StarPattern, match_stars
from safelight.pipelines.mosaic.stars import StarField
from safelight.pipelines.mosaic.wcs import fitted, pixel_to_sky, relative_wcs, same_camera_wcs, sky_to_pixel

ANCHOR_SPACING = 0.5  # of the frame's smaller side: frames are matched with anchors, not all with all
CLEARLY_WORSE = 1.5  # times the residual without distortion: then the distortion is not this frame's
MATCH_IS_GOOD = 0.5  # share of the stars: no other anchor needs to be tried


def align(fields: Mapping[str, StarField], solutions: Mapping[str, WCS], scale: float = 1.0) -> dict[str, Alignment]:
    """Place all frames on one sky.

    Frames with a solution keep it, apart from a small correction, and the distortion that most frames of the same
    camera agree on, unless that brings shared stars further apart. The others are matched with placed frames,
    directly or over a chain of overlapping frames. If no frame has a solution, the sky is a relative TAN grid around
    RA 0°, Dec 0° and the largest set of frames that are connected by their stars is placed.

    Parameters
    ----------
    fields : mapping
        The stars of each frame by its name.
    solutions : mapping
        The WCS of those frames that have one.
    scale : float
        Arc seconds per pixel of the relative grid.

    Returns
    -------
    dict
        An Alignment for each frame, in order of names.
    """
    names = by_quality(fields)
    given = {name: Alignment(solutions[name], "solution") for name in names if name in solutions}
    placed = _grown(fields, given, names) if given else _largest_component(fields, names, scale)
    refined = _better(refine(fields, placed), refine(fields, _with_shared_distortion(fields, placed)))
    lost: Refusal = "no_match" if given else "not_connected"
    return {name: refined.get(name) or _not_placed(fields[name], lost) for name in sorted(fields)}


def _with_shared_distortion(fields: Mapping[str, StarField], placed: Mapping[str, Alignment]) -> dict[str, Alignment]:
    solutions = share_distortion(fields, {name: alignment.wcs for name, alignment in placed.items()})
    return {
        name: replace(alignment, wcs=solutions[name], shared_distortion=solutions[name] is not alignment.wcs)
        for name, alignment in placed.items()
    }


def _better(own: dict[str, Alignment], shared: dict[str, Alignment]) -> dict[str, Alignment]:
    """Return the alignments whose stars lie nearer together; with a shared distortion if there is no difference."""
    return shared if _squared_error(shared) <= _squared_error(own) else own


def _squared_error(alignments: Mapping[str, Alignment]) -> float:
    """Return the mean squared distance of shared stars, in pixels²."""
    shared = [alignment for alignment in alignments.values() if alignment.matched]
    stars = sum(alignment.matched for alignment in shared)
    return sum(alignment.matched * alignment.residual**2 for alignment in shared) / max(stars, 1)


def _not_placed(field: StarField, reason: Refusal) -> Alignment:
    return Alignment(None, "stars", reason="too_few_stars" if len(field) < FEWEST_STARS else reason)


def _largest_component(fields: Mapping[str, StarField], names: Sequence[str], scale: float) -> dict[str, Alignment]:
    """Return the largest set of frames connected by their stars; of equal ones that with the best reference."""
    waiting, largest = list(names), dict[str, Alignment]()
    while len(waiting) > len(largest):
        reference = waiting[0]
        field = fields[reference]
        start = {reference: Alignment(relative_wcs(field.width, field.height, scale), "stars")}
        component = _grown(fields, start, waiting)
        waiting = [name for name in waiting if name not in component]
        largest = max(largest, component, key=len)
    return largest


def _grown(
    fields: Mapping[str, StarField], placed: Mapping[str, Alignment], names: Sequence[str]
) -> dict[str, Alignment]:
    """Return the placed frames and those that a chain of star matches joins to them."""
    placed = dict(placed)
    anchors: list[_Anchor] = []
    while True:
        new = _new_anchors(fields, placed, anchors)
        anchors += new
        waiting = [name for name in names if name not in placed]
        if not new or not waiting:
            return placed
        for name in waiting:
            if (alignment := _placed_by_stars(fields[name], new)) is not None:
                placed[name] = alignment


@dataclass(frozen=True, eq=False)
class _Anchor:
    """A placed frame that others are matched with."""

    name: str
    wcs: WCS
    field: StarField
    pattern: StarPattern
    centre: Floats


def _new_anchors(
    fields: Mapping[str, StarField], placed: Mapping[str, Alignment], anchors: Sequence[_Anchor]
) -> list[_Anchor]:
    """Return the best placed frames that lie far enough from all anchors, and from one another."""
    new: list[_Anchor] = []
    for name in by_quality({name: fields[name] for name in placed}):
        field, wcs = fields[name], placed[name].wcs
        centre = frame_centre(wcs, field)
        apart = ANCHOR_SPACING * min(field.width, field.height) * radians_per_pixel(wcs)
        if all(np.linalg.norm(centre - anchor.centre) > apart for anchor in (*anchors, *new)):
            new.append(_Anchor(name, wcs, field, StarPattern(field.positions), centre))
    return new


def _placed_by_stars(field: StarField, anchors: Iterable[_Anchor]) -> Alignment | None:
    pattern = StarPattern(field.positions)
    best: tuple[Registration, _Anchor] | None = None
    for anchor in anchors:
        match = match_stars(pattern, anchor.pattern)
        if match.registered and (best is None or match.matched > best[0].matched):
            best = match, anchor
            if match.matched >= MATCH_IS_GOOD * min(len(pattern.positions), len(anchor.pattern.positions)):
                break
    if best is None:
        return None
    match, anchor = best
    wcs = _wcs_by_stars(field, anchor, match)
    return Alignment(wcs, "stars", anchor=anchor.name, parity_flipped=match.parity_flipped)


def _wcs_by_stars(field: StarField, anchor: _Anchor, match: Registration) -> WCS:
    """Return the WCS that the matched stars give.

    A frame of the anchor's size and handedness is taken for one of the same camera, with its distortion, unless the
    stars clearly say otherwise.
    """
    plain, plain_error = _fitted_to_stars(field, anchor, match, distorted=False)
    same_size = (field.width, field.height) == (anchor.field.width, anchor.field.height)
    if anchor.wcs.sip is None or not same_size or match.parity_flipped:
        return plain
    distorted, distorted_error = _fitted_to_stars(field, anchor, match, distorted=True)
    return distorted if distorted_error <= CLEARLY_WORSE * plain_error else plain


def _fitted_to_stars(field: StarField, anchor: _Anchor, match: Registration, *, distorted: bool) -> tuple[WCS, float]:
    """Return a WCS and by how many pixels (rms) it misses the matched stars of the anchor."""
    assert match.transform is not None
    mine, theirs = match.pairs.T
    positions = field.positions[mine]
    sky = pixel_to_sky(anchor.wcs, anchor.field.x[theirs], anchor.field.y[theirs])
    wcs = same_camera_wcs(anchor.wcs, match.transform, field.width, field.height, distorted=distorted)
    wcs = fitted(wcs, positions, *sky, affordable_freedom(positions, field.positions))
    off = np.stack(sky_to_pixel(wcs, *sky), axis=1) - positions
    return wcs, float(np.sqrt(np.square(off).sum(axis=1).mean()))
