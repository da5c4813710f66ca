"""Least-squares maps of the plane onto itself: shift, similarity, affinity."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Freedom = Literal["shift", "similarity", "affine"]

FEWEST_FOR_SIMILARITY, FEWEST_FOR_AFFINE = 4, 10
SPREAD_FOR_SIMILARITY, SPREAD_FOR_AFFINE = 0.25, 0.5  # share of the frame that the points must span


def affordable_freedom(points: Floats, everywhere: Floats) -> Freedom:
    """Return the freest map that matched points (n, 2) hold: where nothing holds it, a fit runs off.

    ``everywhere`` (m, 2) are points all over the frame, to compare the spread with.
    """
    spread = np.ptp(points, axis=0) / np.maximum(np.ptp(everywhere, axis=0), 1.0)
    if len(points) >= FEWEST_FOR_AFFINE and spread.min() >= SPREAD_FOR_AFFINE:
        return "affine"
    if len(points) >= FEWEST_FOR_SIMILARITY and spread.max() >= SPREAD_FOR_SIMILARITY:
        return "similarity"
    return "shift"


def fit_plane(points: Floats, targets: Floats, freedom: Freedom) -> Floats:
    """Return the map (2, 3) that takes points (n, 2) to targets (n, 2) with the least squared error.

    A similarity keeps the handedness; a shift needs one point, a similarity two, an affinity three.
    """
    centre, target_centre = points.mean(axis=0), targets.mean(axis=0)
    linear = _linear(points - centre, targets - target_centre, freedom)
    return np.column_stack([linear, target_centre - linear @ centre])


def apply_plane(transform: Floats, points: Floats) -> Floats:
    """Return points (n, 2) mapped by a transform (2, 3)."""
    return np.asarray(points @ transform[:, :2].T + transform[:, 2])


def _linear(points: Floats, targets: Floats, freedom: Freedom) -> Floats:
    if freedom == "shift":
        return np.eye(2)
    if freedom == "affine":
        return np.asarray(np.linalg.lstsq(points, targets, rcond=None)[0].T, dtype=np.float64)
    p, q = points[:, 0] + 1j * points[:, 1], targets[:, 0] + 1j * targets[:, 1]
    factor = np.vdot(p, q) / np.vdot(p, p)
    return np.array([[factor.real, -factor.imag], [factor.imag, factor.real]])
