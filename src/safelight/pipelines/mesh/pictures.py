"""A mesh and the ground truth as each camera sees them, shaded alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from safelight.core.files import atomic_write
from safelight.pipelines.mesh.cameras import SIDE, Cameras
from safelight.pipelines.mesh.losses import Target
from safelight.pipelines.mesh.silhouettes import OUTSIDE

Floats = NDArray[np.float64]

SCALE = 2
"""Pixels of a picture to those of 224 × 224."""
_COLOUR = np.array((230, 180, 170))
_DARKEST = 0.25
_DOT = 2.5
"""Radius of a point in pixels."""


def draw_beside(
    points: Tensor, faces: NDArray[np.int64], target: Target, cameras: Cameras, folder: Path
) -> list[dict[str, str]]:
    """Draw a mesh and the ground truth of one sample from each of its cameras.

    Parameters
    ----------
    points : Tensor
        (n, 3), in the frame of the first camera, as the target is.
    faces : array
        (m, 3)
    target : Target
    cameras : Cameras
    folder : Path
        Where ``mesh-01.png``, ``truth-01.png`` and so on are written.

    Returns
    -------
    list of dict
        For each view the names of both pictures, as ``mesh`` and ``truth``.

    Raises
    ------
    OutputError
        A picture cannot be written.
    """
    vertices, truth = points.double(), target.points.double()
    (pixels, places), (pixels_of_truth, places_of_truth) = _places(vertices, cameras), _places(truth, cameras)
    normals = _turned(target.normals.double(), cameras)
    drawn = []
    for view in range(cameras.views):
        pictures = {
            "mesh": shaded_faces(pixels[view], places[view], faces),
            "truth": shaded_points(pixels_of_truth[view], places_of_truth[view], normals[view]),
        }
        names = {kind: f"{kind}-{view + 1:02}.png" for kind in pictures}
        for kind, picture in pictures.items():
            with atomic_write(folder / names[kind]) as temporary:
                picture.save(temporary, format="PNG")
        drawn.append(names)
    return drawn


def shaded_faces(pixels: Floats, places: Floats, faces: NDArray[np.int64]) -> Image.Image:
    """Return a picture of faces, the farthest drawn first, as bright as they face the camera.

    Parameters
    ----------
    pixels : array
        (n, 2): x and y of the vertices in pixels of 224 × 224.
    places : array
        (n, 3): the vertices in the camera's frame.
    faces : array
        (m, 3)
    """
    a, b, c = np.moveaxis(places[faces], 1, 0)
    colours = _colours(np.cross(b - a, c - a), a + b + c)
    picture, draw = _canvas()
    scaled = (pixels * SCALE).clip(-OUTSIDE, OUTSIDE)
    for number in np.argsort(places[faces][..., 2].mean(axis=1)):
        draw.polygon([(x, y) for x, y in scaled[faces[number]]], fill=colours[number])
    return picture


def shaded_points(pixels: Floats, places: Floats, normals: Floats) -> Image.Image:
    """Return a picture of points with normals in the camera's frame; those that face away are left out."""
    colours = _colours(normals, places)
    facing = (normals * places).sum(axis=1) < 0
    picture, draw = _canvas()
    scaled = (pixels * SCALE).clip(-OUTSIDE, OUTSIDE)
    for number in np.argsort(places[:, 2]):
        if facing[number]:
            x, y = scaled[number]
            draw.ellipse((x - _DOT, y - _DOT, x + _DOT, y + _DOT), fill=colours[number])
    return picture


def _canvas() -> tuple[Image.Image, ImageDraw.ImageDraw]:
    picture = Image.new("RGB", (SCALE * SIDE, SCALE * SIDE), "white")
    return picture, ImageDraw.Draw(picture)


def _colours(normals: Floats, towards: Floats) -> list[tuple[int, int, int]]:
    """Return the colour of surfaces by the angle between their normals and the way that they are looked at."""
    lengths = np.linalg.norm(normals, axis=1) * np.linalg.norm(towards, axis=1)
    facing = np.abs((normals * towards).sum(axis=1)) / np.maximum(lengths, np.finfo(np.float64).tiny)
    bright = (_COLOUR * (_DARKEST + (1 - _DARKEST) * facing[:, None])).astype(int)
    return [(int(red), int(green), int(blue)) for red, green, blue in bright]


def _places(points: Tensor, cameras: Cameras) -> tuple[Floats, Floats]:
    """Return pixels (views, n, 2) and places in each camera's frame (views, n, 3) of points (n, 3)."""
    return cameras.pixels(points[None])[0].numpy(), cameras.in_view(cameras.to_world(points[None]))[0].numpy()


def _turned(directions: Tensor, cameras: Cameras) -> Floats:
    """Return directions (n, 3) of the first camera's frame in each camera's, (views, n, 3)."""
    turned: Floats = (directions @ cameras.axes[0, 0] @ cameras.axes[0].mT).numpy()
    return turned
