"""The mesh that is deformed: a closed triangle mesh of three levels, each with the midpoints of the edges of the last.

The published networks start from an ellipsoid of 156 vertices and 308 faces, subdivided to 618 and 2466 vertices.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import eigsh
from scipy.spatial import ConvexHull

from safelight.core.errors import InputError

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

LEVELS = 3
VERTICES = 156
"""Of the first level of our own ellipsoid: as many as the published one has."""
RADII = (0.28, 0.2, 0.2)
CENTRE = (0.0, 0.0, -0.8)
"""Of our own ellipsoid, in the frame of the first camera: where objects of 3D-R2N2's renderings are."""


@dataclass(frozen=True, eq=False)
class Level:
    """The triangles of one level.

    Parameters
    ----------
    vertices : int
    faces : array
        (faces, 3), counter-clockwise seen from outside.
    edges : array
        (edges, 2), the smaller number first; the next level adds their middles, in this order.
    """

    vertices: int
    faces: Indices
    edges: Indices

    @cached_property
    def support(self) -> sparse.csr_array:
        """T₁ = 2/λ·L − I of the normalised graph Laplacian L with its largest eigenvalue λ, float64.

        Defferrard et al. 2016, "Convolutional Neural Networks on Graphs with Fast Localized Spectral Filtering".
        """
        return chebyshev(self.vertices, self.edges)


@dataclass(frozen=True, eq=False)
class Template:
    """A closed mesh and its subdivisions.

    Parameters
    ----------
    coordinates : array
        (vertices, 3) of the first level, in the frame of the first camera.
    walked : array
        (faces, 3) of the first level in the order, and turned as, they were given: midpoints are numbered by them.
    levels : tuple of Level
    """

    coordinates: Floats
    walked: Indices
    levels: tuple[Level, ...]

    @cached_property
    def digest(self) -> str:
        """What tells templates apart: coordinates in float32, and how vertices are joined and numbered."""
        whole = hashlib.sha256(self.coordinates.astype("<f4").tobytes())
        for level in self.levels:
            whole.update(np.sort(level.edges, axis=1).astype("<i4").tobytes())
        return whole.hexdigest()


def make_template(coordinates: NDArray[np.floating], faces: NDArray[np.integer]) -> Template:
    """Return the template that starts from a mesh.

    The midpoints are numbered as in the published template: by walking the faces (a, b, c) in order, edges ab, ac,
    cb, each where it first appears.

    Parameters
    ----------
    coordinates : array
        (vertices, 3).
    faces : array
        (faces, 3), turned either way.

    Raises
    ------
    InputError
        The mesh is not closed, or is no manifold; a vertex is not finite, or belongs to no face.
    """
    vertices = len(coordinates)
    if not np.isfinite(coordinates).all():
        raise InputError("has vertices that are not finite")
    first = walked = np.asarray(faces, np.int64)
    turned = oriented(np.asarray(coordinates, np.float64), walked)
    if (alone := np.setdiff1d(np.arange(vertices), faces)).size:
        raise InputError(f"its vertex {alone[0]} belongs to no face", expected="a closed mesh and nothing besides")
    levels = []
    for _ in range(LEVELS):
        edges = edges_in_order(walked)
        levels.append(Level(vertices, turned, edges))
        numbers = _Midpoints(vertices, edges)
        walked, turned = _children(walked, numbers), _turned_children(turned, numbers)
        vertices += len(edges)
    return Template(np.asarray(coordinates, np.float64), first, tuple(levels))


def ellipsoid() -> Template:
    """Return our own template: points spread over an ellipsoid by the golden angle, and their convex hull."""
    number = np.arange(VERTICES) + 0.5
    polar, azimuth = np.arccos(1 - 2 * number / VERTICES), np.pi * (1 + np.sqrt(5)) * number
    sphere = np.stack([np.cos(polar), np.sin(polar) * np.cos(azimuth), np.sin(polar) * np.sin(azimuth)], axis=1)
    faces = ConvexHull(sphere).simplices
    order = np.lexsort(faces.T[::-1])  # the hull's own order is its library's affair
    return make_template(sphere * RADII + CENTRE, faces[order])


def oriented(coordinates: Floats, faces: Indices) -> Indices:
    """Return the faces turned so that all are counter-clockwise seen from outside.

    Raises
    ------
    InputError
        An edge does not belong to exactly two faces, or the surface has one side only.
    """
    neighbours = _across_edges(faces)
    turned = faces.copy()
    seen = np.zeros(len(faces), bool)
    for start in range(len(faces)):
        if seen[start]:
            continue
        part = _turn_alike(turned, neighbours, seen, start)
        if signed_volume(coordinates, turned[part]) < 0:
            turned[part] = turned[part][:, ::-1]
    _, counts = np.unique(_directed_edges(turned), axis=0, return_counts=True)
    if counts.max() > 1:
        raise InputError("the surface has one side only", expected="a closed mesh with an inside and an outside")
    return turned


def signed_volume(coordinates: Floats, faces: Indices) -> float:
    """Return the volume that closed, oriented faces enclose: positive where they are seen from outside."""
    corners = coordinates[faces] - coordinates[faces.ravel()].mean(axis=0)
    return float(np.einsum("fi,fi->", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])) / 6)


def edges_in_order(faces: Indices) -> Indices:
    """Return each edge once, (edges, 2) with the smaller number first, where a walk over the faces first meets it."""
    walk = np.sort(faces[:, [[0, 1], [0, 2], [2, 1]]].reshape(-1, 2), axis=1)
    _, first = np.unique(walk, axis=0, return_index=True)
    return walk[np.sort(first)]


def chebyshev(vertices: int, edges: Indices) -> sparse.csr_array:
    """Return T₁ of a graph, (vertices, vertices) float64, its diagonal stored too."""
    rows, columns = np.concatenate([edges, edges[:, ::-1]]).T
    adjacency = sparse.csr_array((np.ones(len(rows)), (rows, columns)), shape=(vertices, vertices))
    scale = sparse.diags_array(adjacency.sum(axis=1) ** -0.5)
    laplacian = sparse.eye_array(vertices) - scale @ adjacency @ scale
    start = np.random.default_rng(0).standard_normal(vertices)
    (largest,) = eigsh(laplacian, k=1, which="LM", v0=start, return_eigenvectors=False)
    diagonal = np.arange(vertices)
    off = (2 / largest) * laplacian
    off = off.tocoo()
    keep = off.row != off.col
    values = np.concatenate([off.data[keep], np.full(vertices, 2 / largest - 1)])
    places = (np.concatenate([off.row[keep], diagonal]), np.concatenate([off.col[keep], diagonal]))
    return sparse.csr_array((values, places), shape=(vertices, vertices))


@dataclass(frozen=True, eq=False)
class _Midpoints:
    """Numbers of the vertices that a subdivision puts in the middle of edges."""

    vertices: int
    edges: Indices

    @cached_property
    def _sorted(self) -> tuple[Indices, Indices]:
        keys = self.edges[:, 0] * self.vertices + self.edges[:, 1]
        order = np.argsort(keys)
        return keys[order], order

    def between(self, a: Indices, b: Indices) -> Indices:
        keys, order = self._sorted
        key = np.minimum(a, b) * self.vertices + np.maximum(a, b)
        return order[np.searchsorted(keys, key)] + self.vertices


def _children(faces: Indices, middle: _Midpoints) -> Indices:
    """Return the four parts of each face in the published order, which the numbering of the next level depends on."""
    a, b, c = faces.T
    ab, ac, bc = middle.between(a, b), middle.between(a, c), middle.between(b, c)
    return np.stack([a, ab, ac, b, ab, bc, c, ac, bc, ab, ac, bc], axis=1).reshape(-1, 3)


def _turned_children(faces: Indices, middle: _Midpoints) -> Indices:
    """Return the four parts of each face, turned as the face is."""
    a, b, c = faces.T
    ab, ac, bc = middle.between(a, b), middle.between(a, c), middle.between(b, c)
    return np.stack([a, ab, ac, ab, b, bc, ac, bc, c, ab, bc, ac], axis=1).reshape(-1, 3)


def _directed_edges(faces: Indices) -> Indices:
    return faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2)


def _across_edges(faces: Indices) -> Indices:
    """Return the face on the other side of each edge ab, bc, ca of each face, (faces, 3)."""
    edges = np.sort(_directed_edges(faces), axis=1)
    _, which, counts = np.unique(edges, axis=0, return_inverse=True, return_counts=True)
    if (odd := np.flatnonzero(counts != 2)).size:
        a, b = edges[np.flatnonzero(which == odd[0])[0]]
        raise InputError(
            f"the edge between vertices {a} and {b} belongs to {counts[odd[0]]} face(s)",
            expected="a closed mesh: two faces at every edge",
        )
    pairs = np.argsort(which, kind="stable").reshape(-1, 2)
    other = np.empty(len(edges), np.int64)
    other[pairs[:, 0]], other[pairs[:, 1]] = pairs[:, 1] // 3, pairs[:, 0] // 3
    return other.reshape(-1, 3)


def _turn_alike(faces: Indices, neighbours: Indices, seen: NDArray[np.bool_], start: int) -> list[int]:
    """Turn all faces joined to a first one as it is turned, in place; return them."""
    part, waiting = [start], [start]
    seen[start] = True
    while waiting:
        face = waiting.pop()
        own = {(int(a), int(b)) for a, b in zip(faces[face], np.roll(faces[face], -1), strict=True)}
        for other in neighbours[face]:
            if seen[other]:
                continue
            seen[other] = True
            if own & {(int(a), int(b)) for a, b in zip(faces[other], np.roll(faces[other], -1), strict=True)}:
                faces[other] = faces[other][::-1]
            part.append(int(other))
            waiting.append(int(other))
    return part
