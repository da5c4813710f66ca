"""How far a mesh is from the ground truth: Chamfer distance and F-score, exact, in float64.

Distances are squared, as in Pixel2Mesh: a threshold τ of 10⁻⁴ is a distance of 0.01.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from safelight.core.errors import InputError
from safelight.pipelines.mesh.losses import points_on_surface

Floats = NDArray[np.float64]

SURFACE_SAMPLES = 10_000
_SEED = 0
_SMALL = 1e-6
"""Added to the F-score's denominator, in per cent, as in the published code."""


@dataclass(frozen=True)
class Distances:
    """Squared distances to the nearest point of the other set.

    Parameters
    ----------
    predicted : array
        (n,): of each predicted point to the ground truth.
    truth : array
        (m,): of each point of the ground truth to the prediction.
    """

    predicted: Floats
    truth: Floats

    @property
    def chamfer(self) -> float:
        """The sum of both means."""
        return float(self.predicted.mean() + self.truth.mean())

    def f_score(self, tau: float) -> float:
        """Return the harmonic mean of precision and recall at a squared distance, in per cent."""
        precision, recall = (100 * float((values <= tau).mean()) for values in (self.predicted, self.truth))
        return 2 * precision * recall / (precision + recall + _SMALL)


def compare(predicted: NDArray[np.floating], truth: NDArray[np.floating]) -> Distances:
    """Return the distances between two sets of points, (n, 3) and (m, 3).

    Raises
    ------
    InputError
        A set is empty, or has points that are not finite.
    """
    for name, points in (("prediction", predicted), ("ground truth", truth)):
        if not len(points):
            raise InputError(f"the {name} has no points")
        if not np.isfinite(points).all():
            raise InputError(f"the {name} has points that are not finite")
    first, second = (np.asarray(points, np.float64) for points in (predicted, truth))
    return Distances(_nearest(first, second), _nearest(second, first))


def sample_surface(vertices: Floats, faces: NDArray[np.int64], count: int = SURFACE_SAMPLES) -> Floats:
    """Return points (count, 3) spread evenly over the faces; the same ones for the same mesh."""
    draws = torch.from_numpy(np.random.default_rng(_SEED).random((count, 3)))
    points: Floats = points_on_surface(torch.from_numpy(vertices), torch.from_numpy(faces), draws).numpy()
    return points


def _nearest(points: Floats, others: Floats) -> Floats:
    distances: Floats = cKDTree(others).query(points)[0] ** 2
    return distances
