"""Colours of vertices: from the views that see them, and from no others."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import trimesh

from safelight.pipelines.mesh.cameras import Cameras, orbiting
from safelight.pipelines.mesh.colours import vertex_colours
from safelight.pipelines.mesh.views import View

RED, BLUE = (200, 10, 10), (10, 10, 200)
RADIUS = 0.2


@pytest.fixture
def ball() -> trimesh.Trimesh:
    return trimesh.creation.icosphere(subdivisions=3, radius=RADIUS)


def facing_each_other() -> Cameras:
    """Two cameras on either side of the origin of the world."""
    degrees = torch.tensor([[0.0, 180.0]])
    return orbiting(degrees, torch.zeros(1, 2), torch.full((1, 2), 0.8), 248.0)


def in_first_frame(points: np.ndarray, cameras: Cameras) -> torch.Tensor:
    axes, origin = cameras.axes[0, 0].numpy(), cameras.origin[0, 0].numpy()
    return torch.from_numpy((points - origin) @ axes.T)


def view(colour: tuple[int, int, int], shown: bool = True) -> View:
    pixels = np.empty((3, 224, 224), np.uint8)
    pixels[:] = np.array(colour[::-1])[:, None, None]
    return View(pixels, np.full((137, 137), shown), transparent=True)


def test_each_side_has_the_colour_of_the_camera_before_it(ball: trimesh.Trimesh) -> None:
    cameras = facing_each_other()
    points = in_first_frame(ball.vertices, cameras)
    colours, seen = vertex_colours(points, ball.faces, [view(RED), view(BLUE)], cameras)
    side = np.asarray(ball.vertices)[:, 0] / RADIUS  # the cameras stand on the x axis
    assert (colours[side > 0.4] == RED).all()
    assert (colours[side < -0.4] == BLUE).all()
    assert seen[np.abs(side) > 0.4].all()
    assert not seen[np.abs(side) < 0.1].any(), "from so near, a ball shows less than its half"


def test_what_hides_a_vertex_keeps_its_colour_away(ball: trimesh.Trimesh) -> None:
    cameras = facing_each_other()
    screen = trimesh.creation.box((0.02, 0.6, 0.6), trimesh.transformations.translation_matrix((0.4, 0, 0)))
    both = trimesh.util.concatenate([ball, screen])
    _, seen = vertex_colours(in_first_frame(both.vertices, cameras), both.faces, [view(RED), view(BLUE)], cameras)
    of_ball = seen[: len(ball.vertices)]
    assert not of_ball[ball.vertices[:, 0] > 0.05].any()
    assert of_ball[ball.vertices[:, 0] < -0.1].all()


def test_the_background_colours_nothing(ball: trimesh.Trimesh) -> None:
    cameras = facing_each_other()
    points = in_first_frame(ball.vertices, cameras)
    colours, seen = vertex_colours(points, ball.faces, [view(RED), view(BLUE, shown=False)], cameras)
    assert not seen[np.asarray(ball.vertices)[:, 0] < 0].any()
    assert (colours == RED).all(), "the nearest vertex that is seen lends its colour"
