"""Distances are exact, and those of published results."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from safelight.core.errors import InputError
from safelight.formats.mesh import read_mesh
from safelight.pipelines.mesh.metrics import compare, sample_surface
from safelight.pipelines.mesh.template import ellipsoid


def test_a_published_pair(shared: Path) -> None:
    demo = shared / "data" / "mesh_demo"
    predicted, truth = (read_mesh(demo / f"pair_mvp2m_{name}.obj").vertices for name in ("prediction", "gt_points"))
    distances = compare(predicted, truth)
    assert distances.chamfer == pytest.approx(2.6666e-4, abs=5e-9)
    assert distances.f_score(1e-4) == pytest.approx(54.60, abs=5e-3)


def test_against_all_pairs() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(70, 3)) + 100, rng.normal(size=(90, 3)) + 100
    squared = ((first[:, None] - second) ** 2).sum(axis=-1)
    distances = compare(first, second)
    np.testing.assert_allclose(distances.predicted, squared.min(axis=1), rtol=1e-12)
    np.testing.assert_allclose(distances.truth, squared.min(axis=0), rtol=1e-12)
    precision, recall = (100 * (squared.min(axis=axis) <= 0.1).mean() for axis in (1, 0))
    assert distances.f_score(0.1) == pytest.approx(2 * precision * recall / (precision + recall), rel=1e-6)


def test_the_same_points_are_perfect_and_far_ones_score_nothing() -> None:
    points = np.eye(3)
    assert compare(points, points).chamfer == 0
    assert compare(points, points).f_score(1e-4) == pytest.approx(100)
    assert compare(points, points + 9).f_score(1e-4) == 0


@pytest.mark.parametrize(
    ("points", "problem"),
    [(np.empty((0, 3)), "has no points"), (np.full((4, 3), np.nan), "has points that are not finite")],
)
def test_points_that_cannot_be_compared(points: np.ndarray, problem: str) -> None:
    with pytest.raises(InputError, match=f"the prediction {problem}"):
        compare(points, np.eye(3))
    with pytest.raises(InputError, match=f"the ground truth {problem}"):
        compare(np.eye(3), points)


def test_samples_spread_evenly_over_the_surface() -> None:
    """A triangle of three times the area gets three times the points, wherever its corners are."""
    vertices = np.array([(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 3, 5), (1, 3, 5), (0, 6, 5)], float)
    points = sample_surface(vertices, np.array([(0, 1, 2), (3, 4, 5)]), 20_000)
    near = points[:, 2] < 2
    assert near.mean() == pytest.approx(0.25, abs=0.01)
    np.testing.assert_allclose(points[near].mean(axis=0), [1 / 3, 1 / 3, 0], atol=0.01)


def test_samples_are_the_same_every_time() -> None:
    template = ellipsoid()
    samples = [sample_surface(template.coordinates, template.levels[0].faces, 50) for _ in range(2)]
    np.testing.assert_array_equal(*samples)


def test_a_mesh_that_fell_to_a_point_has_that_point() -> None:
    """Networks whose features died give all vertices one place: bad, and no reason to stop a test."""
    np.testing.assert_array_equal(sample_surface(np.full((3, 3), 0.5), np.array([(0, 1, 2)]), 4), np.full((4, 3), 0.5))
