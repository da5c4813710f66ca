"""The colour of each vertex, from the views that see it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import trimesh
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor
from trimesh.ray.ray_pyembree import RayMeshIntersector

from safelight.pipelines.mesh.cameras import SIDE, Cameras
from safelight.pipelines.mesh.views import View

_LIFT = 1e-3
"""How far above the surface a vertex looks for its cameras, so that its own faces do not hide them."""


def vertex_colours(
    points: Tensor, faces: NDArray[np.int64], views: Sequence[View], cameras: Cameras
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return the colour of each vertex: the mean over the views that see it, weighted by how much it faces them.

    Parameters
    ----------
    points : Tensor
        (n, 3), in the first camera's frame.
    faces : array
        (m, 3), counter-clockwise seen from outside.
    views : sequence of View
    cameras : Cameras
        Of one sample.

    Returns
    -------
    colours : array
        (n, 3) uint8, red first; a vertex that no view sees has the colour of the nearest one that a view does.
    seen : array
        (n,) bool.
    """
    world = cameras.to_world(points[None].double())[0].numpy()
    surface = trimesh.Trimesh(world, faces, process=False)
    caster, normals = RayMeshIntersector(surface), np.asarray(surface.vertex_normals)
    places = cameras.pixels(points[None].double())[0].numpy()
    weights, colours = np.zeros(len(world)), np.zeros((len(world), 3))
    for view, origin, place in zip(views, cameras.origin[0].numpy(), places, strict=True):
        towards = origin - world
        towards /= np.linalg.norm(towards, axis=1, keepdims=True)
        facing = np.einsum("ni,ni->n", normals, towards).clip(min=0)
        hidden = caster.intersects_first(world + _LIFT * normals, towards) >= 0
        shown, colour = _look_up(view, place)
        share = np.where(shown & ~hidden, facing, 0)
        weights += share
        colours += share[:, None] * colour
    seen = weights > 0
    if not seen.any():
        return np.zeros(colours.shape, np.uint8), seen
    of_seen = colours[seen] / weights[seen, None]
    nearest = cKDTree(world[seen]).query(world)[1]
    return of_seen[nearest].round().astype(np.uint8), seen


def _look_up(view: View, place: NDArray[np.float64]) -> tuple[NDArray[np.bool_], NDArray[np.uint8]]:
    """Return whether a view shows the object at places (n, 2) in pixels of 224, and its colours there, red first."""
    inside: NDArray[np.bool_] = np.all((place >= 0) & (place < SIDE), axis=1)
    x, y = np.where(inside[:, None], place, 0).T
    height, width = view.silhouette.shape
    shown = inside & view.silhouette[(y * height / SIDE).astype(np.int64), (x * width / SIDE).astype(np.int64)]
    return shown, view.pixels[::-1, y.astype(np.int64), x.astype(np.int64)].T
