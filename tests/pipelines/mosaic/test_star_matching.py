"""Two fields of stars are matched however they are turned, mirrored and spoilt; strangers are never matched."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from safelight.pipelines.mosaic.plane_fit import Freedom, affordable_freedom, apply_plane, fit_plane
from safelight.pipelines.mosaic.star_matching import StarPattern, match_stars

Floats = NDArray[np.float64]

WIDTH, HEIGHT = 1080.0, 1920.0
CENTRE = np.array([WIDTH, HEIGHT]) / 2
SEEN = 0.85  # share of the stars that a frame shows
ERROR = 0.2  # pixels, of each coordinate


class Sky:
    """Stars of all brightnesses over an area around the frame; ``observe`` is a frame, brightest first."""

    def __init__(self, seed: int, per_frame: int = 80) -> None:
        self.random = np.random.default_rng(seed)
        count = per_frame * 9
        self.stars = self.random.uniform([-WIDTH, -HEIGHT], [2 * WIDTH, 2 * HEIGHT], (count, 2))
        self.flux = self.random.pareto(1.0, count)

    def observe(self, transform: Floats, spurious: float = 0.3) -> Floats:
        inverse = np.linalg.inv(np.vstack([transform, [0, 0, 1]]))[:2]
        seen = apply_plane(inverse, self.stars)
        inside = ((seen > 0) & (seen < [WIDTH, HEIGHT])).all(axis=1) & (self.random.random(len(seen)) < SEEN)
        stars = seen[inside] + self.random.normal(0, ERROR, (inside.sum(), 2))
        flux = self.flux[inside] * np.exp(self.random.normal(0, 0.2, len(stars)))
        added = int(len(stars) * spurious / (1 - spurious))
        stars = np.concatenate([stars, self.random.uniform([0, 0], [WIDTH, HEIGHT], (added, 2))])
        flux = np.concatenate([flux, self.random.choice(flux, added)])
        return stars[np.argsort(-flux)]


def pose(
    degrees: float = 0.0, scale: float = 1.0, mirrored: bool = False, shift: tuple[float, float] = (0, 0)
) -> Floats:
    """Return a frame's pose: its pixels on the sky, turned about its centre."""
    turn = np.radians(degrees)
    linear = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    if mirrored:
        linear = linear @ np.diag([-1.0, 1.0])
    return np.column_stack([linear, CENTRE - linear @ CENTRE + np.array(shift)])


def largest_error(found: Floats, expected: Floats, stars: Floats) -> float:
    return float(np.linalg.norm(apply_plane(found, stars) - apply_plane(expected, stars), axis=1).max())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "expected",
    [
        pose(),
        pose(70.0),
        pose(181.3, mirrored=True),
        pose(-20.0, scale=0.92),
        pose(110.0, scale=1.08, mirrored=True),
        pose(3.0, shift=(0.0, 0.4 * HEIGHT)),
        pose(180.0, shift=(0.0, 0.65 * HEIGHT)),
        pose(0.0, shift=(0.5 * WIDTH, 0.3 * HEIGHT), mirrored=True),
    ],
    ids=["same", "70°", "mirrored", "smaller", "larger", "60 %", "35 %", "corner"],
)
def test_frames_of_one_sky_match(expected: Floats, seed: int) -> None:
    sky = Sky(seed)
    frame, other = sky.observe(expected), sky.observe(pose())
    found = match_stars(StarPattern(frame), StarPattern(other))
    assert found.transform is not None
    shared = frame[((apply_plane(expected, frame) > 0) & (apply_plane(expected, frame) < [WIDTH, HEIGHT])).all(axis=1)]
    assert largest_error(found.transform, expected, shared) < 1.0
    assert found.residual < 3 * ERROR
    assert found.matched >= 12
    assert found.parity_flipped == (np.linalg.det(expected[:, :2]) < 0)
    assert found.reason is None


def test_strangers_never_match() -> None:
    matched = 0
    for seed in range(40):
        count = (10, 30, 100, 250)[seed % 4]
        frame, other = (Sky(1000 * part + seed, count).observe(pose()) for part in (1, 2))
        matched += match_stars(StarPattern(frame), StarPattern(other)).registered
    assert matched == 0


def test_clusters_of_stars_are_no_match() -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        frames = [
            np.concatenate([random.normal(CENTRE, 60, (60, 2)), random.uniform([0, 0], [WIDTH, HEIGHT], (40, 2))])
            for _ in range(2)
        ]
        assert not match_stars(*(StarPattern(random.permutation(frame)) for frame in frames)).registered


@pytest.mark.parametrize("count", [0, 1, 5])
def test_too_few_stars_are_named_as_the_reason(count: int) -> None:
    few, many = StarPattern(Sky(0).observe(pose())[:count]), StarPattern(Sky(0).observe(pose()))
    assert match_stars(few, many).reason == match_stars(many, few).reason == "too_few_stars"


def test_no_match_is_named_as_the_reason() -> None:
    found = match_stars(StarPattern(Sky(1).observe(pose())), StarPattern(Sky(2).observe(pose())))
    assert (found.transform, found.matched, found.reason) == (None, 0, "no_match")


def test_the_same_stars_give_the_same_bits() -> None:
    sky = Sky(5)
    frame, other = sky.observe(pose(70.0)), sky.observe(pose())
    first, second = (match_stars(StarPattern(frame), StarPattern(other)) for _ in range(2))
    assert first.transform is not None
    assert second.transform is not None
    assert first.transform.tobytes() == second.transform.tobytes()


@pytest.mark.parametrize("freedom", ["shift", "similarity", "affine"])
def test_a_plane_fit_is_exact_without_noise(freedom: Freedom) -> None:
    points = np.random.default_rng(0).uniform(0, 1000, (20, 2)) + 1e5
    linear = {
        "shift": np.eye(2),
        "similarity": np.array([[0.3, -0.9], [0.9, 0.3]]),
        "affine": np.array([[1.1, 0.2], [-0.1, 0.9]]),
    }[freedom]
    transform = np.column_stack([linear, [5.0, -7.0]])
    found = fit_plane(points, apply_plane(transform, points), freedom)
    np.testing.assert_allclose(apply_plane(found, points), apply_plane(transform, points), atol=1e-6)


def test_a_fit_is_only_as_free_as_its_points_hold() -> None:
    everywhere = np.random.default_rng(0).uniform([0, 0], [WIDTH, HEIGHT], (100, 2))
    corner = everywhere[(everywhere < [300, 500]).all(axis=1)]
    assert affordable_freedom(everywhere, everywhere) == "affine"
    assert affordable_freedom(everywhere[:5], everywhere) == "similarity"
    assert affordable_freedom(everywhere[:2], everywhere) == "shift"
    assert affordable_freedom(corner, everywhere) != "affine"
