"""The places around a vertex that the refining network scores: an icosphere and its centre."""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from safelight.pipelines.mesh.template import Floats, chebyshev, edges_in_order, oriented

RADIUS = 0.02
_DECIMALS = 5
"""The published unit sphere is rounded so; a vertex whose hypotheses fall on whole pixels depends on it."""


def hypotheses() -> tuple[Floats, Floats]:
    """Return the places around a vertex, and how the graph convolutions see them.

    Returns
    -------
    offsets : array
        (43, 3): the 42 vertices of an icosphere of level 1, then its centre.
    support : array
        (43, 43): T₁ of its edges, and the centre joined to every vertex.
    """
    corners = icosahedron()
    faces = oriented(corners, _triangles(corners))
    middles = corners[edges_in_order(faces)].mean(axis=1)
    sphere = np.concatenate([corners, middles])
    sphere /= np.linalg.norm(sphere, axis=1, keepdims=True)
    sphere = RADIUS * sphere.round(_DECIMALS)
    offsets = np.concatenate([sphere, np.zeros((1, 3))])
    centre = len(sphere)
    spokes = np.stack([np.arange(centre), np.full(centre, centre)], axis=1)
    edges = np.concatenate([_edges(sphere), spokes])
    return offsets, chebyshev(len(offsets), edges).toarray()


def icosahedron() -> Floats:
    """Return 12 corners (12, 3), edges of length 2, turned as in the published data: edges' middles on the axes."""
    golden = (1 + np.sqrt(5)) / 2
    first = np.array([(0, a * golden, b) for a, b in product((1, -1), repeat=2)])
    return np.concatenate([np.roll(first, turn, axis=1) for turn in range(3)])


def _edges(points: Floats) -> NDArray[np.int64]:
    """Return the pairs of an icosphere's vertices that an edge joins: its edges are its shortest distances."""
    distances = cdist(points, points)
    shortest = distances[distances > 0].min()
    return np.argwhere(np.triu((distances > 0) & (distances < 1.3 * shortest)))


def _triangles(points: Floats) -> NDArray[np.int64]:
    joined = {(int(a), int(b)) for a, b in _edges(points)}
    thirds = range(len(points))
    return np.array([(a, b, c) for a, b in sorted(joined) for c in thirds if (b, c) in joined and (a, c) in joined])
