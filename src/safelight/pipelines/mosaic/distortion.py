"""One distortion for all frames of a camera: each plate solution measures it anew, with few stars and much noise."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import numpy as np
from astropy.wcs import WCS, Sip

from safelight.pipelines.mosaic.plane_fit import Floats, apply_plane, fit_plane
from safelight.pipelines.mosaic.stars import StarField
from safelight.pipelines.mosaic.wcs import fitted, parity, pixel_grid, pixel_to_sky, tangent_plane

FEWEST_SOLUTIONS = 3
GRID_POINTS = 11  # per side

Camera = tuple[int, int, int]


def share_distortion(fields: Mapping[str, StarField], solutions: Mapping[str, WCS]) -> dict[str, WCS]:
    """Return the solutions with the median distortion of all frames of the same size and handedness.

    The median of many solutions is nearer to the camera's distortion than any of them. Frames of which there are
    fewer than three with a distortion keep theirs.
    """
    cameras: dict[Camera, list[str]] = defaultdict(list)
    for name in sorted(solutions):
        if solutions[name].sip is not None:
            cameras[fields[name].width, fields[name].height, parity(solutions[name])].append(name)
    shared = dict(solutions)
    for (width, height, _), names in cameras.items():
        if len(names) >= FEWEST_SOLUTIONS:
            grid = pixel_grid(width, height, GRID_POINTS)
            bends = np.median([_bend(solutions[name], grid) for name in names], axis=0)
            order = max(solutions[name].sip.a_order for name in names)
            centre = np.array([width - 1, height - 1]) / 2
            a, b = _polynomials(grid - centre, bends, order)
            for name in names:
                shared[name] = _with_distortion(solutions[name], grid, centre, a, b)
    return shared


def _bend(wcs: WCS, grid: Floats) -> Floats:
    """Return by how many pixels a solution's tangent plane departs from an affinity, at each point of the grid."""
    plane = tangent_plane(*pixel_to_sky(wcs, *grid.T), *wcs.wcs.crval) @ np.linalg.inv(wcs.pixel_scale_matrix).T
    return plane - apply_plane(fit_plane(grid, plane, "affine"), grid)


def _polynomials(points: Floats, bends: Floats, order: int) -> tuple[Floats, Floats]:
    """Return SIP's A and B, (order + 1)² each, of terms from the second order on; lower ones belong to the matrix."""
    powers = [(p, q) for p in range(order + 1) for q in range(order + 1 - p)]
    half = np.abs(points).max(axis=0)  # fit in units of the frame: powers of pixels differ by many decades
    x, y = (points / half).T
    terms = np.stack([x**p * y**q for p, q in powers], axis=1)
    found = np.linalg.lstsq(terms, bends, rcond=None)[0]
    a, b = np.zeros((2, order + 1, order + 1))
    for (p, q), (in_x, in_y) in zip(powers, found, strict=True):
        if p + q >= 2:
            a[p, q], b[p, q] = np.array([in_x, in_y]) / (half[0] ** p * half[1] ** q)
    return a, b


def _with_distortion(wcs: WCS, grid: Floats, centre: Floats, a: Floats, b: Floats) -> WCS:
    """Return the solution with another distortion, about the frame's centre, as near to the old one as it can be."""
    sky = pixel_to_sky(wcs, *grid.T)
    new = wcs.deepcopy()
    new.wcs.crpix = centre + 1
    new.wcs.crval = [float(value[0]) for value in pixel_to_sky(wcs, *centre[:, None])]
    new.sip = Sip(a, b, None, None, new.wcs.crpix)
    new.wcs.set()
    return fitted(new, grid, *sky, "affine")
