"""What the networks are trained to make small (Wang et al. 2018, "Pixel2Mesh"; Wen et al. 2019, "Pixel2Mesh++").

All distances are squared. The graph of a level counts every edge in both directions and every vertex joined to itself,
as published: means over edges are over all of these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor
from torch.nn import functional

from safelight.pipelines.mesh.template import Level

SURFACE_SAMPLES = 4000
"""Points spread over the surface that the ground truth may find beside the vertices."""
TERMS = ("chamfer", "edge", "normal", "laplacian", "move")
_SHORTEST = 1e-6
"""Shorter vectors are not made longer than their length over this."""
_PAIRS = 1 << 24
"""Distances that are held at once where there is no tree: on a GPU."""


@dataclass(frozen=True)
class LossWeights:
    """How much each term counts; both stages were published with the same ones but for two.

    Parameters
    ----------
    edge : float
        Mean squared length of the edges.
    move : float
        Mean squared way of the vertices.
    chamfer : float
        Squared distance of the ground truth to the nearest vertex or point of the surface, and back.
    back : float
        Of the way from vertices to the ground truth, within that.
    normal : float
        How far edges are from standing square to the normal of the nearest point of the ground truth.
    laplacian : float
        Mean squared change of where a vertex lies between its neighbours.
    """

    edge: float
    move: float
    chamfer: float = 3000.0
    back: float = 0.55
    normal: float = 0.5
    laplacian: float = 1500.0


COARSE_WEIGHTS = LossWeights(edge=350.0, move=50.0)
REFINE_WEIGHTS = LossWeights(edge=500.0, move=100.0)


@dataclass(frozen=True, eq=False)
class Joints:
    """How the vertices of a level are joined.

    Parameters
    ----------
    vertices : int
    edges : Tensor
        (edges, 2) int64, each once.
    faces : Tensor
        (faces, 3) int64.
    neighbours : Tensor
        (vertices,) int64: how many each vertex has.
    """

    vertices: int
    edges: Tensor
    faces: Tensor
    neighbours: Tensor

    @classmethod
    def of(cls, level: Level, device: torch.device) -> Self:
        """Return the joints of a level of a template."""
        neighbours = np.bincount(level.edges.ravel(), minlength=level.vertices)
        parts = (torch.from_numpy(numbers).to(device) for numbers in (level.edges, level.faces, neighbours))
        return cls(level.vertices, *parts)

    @property
    def entries(self) -> int:
        """Edges in both directions, and vertices joined to themselves."""
        return 2 * len(self.edges) + self.vertices


@dataclass(frozen=True, eq=False)
class Target:
    """The ground truth of one object in the frame of the leading camera: points and normals, each (n, 3)."""

    points: Tensor
    normals: Tensor

    def to(self, device: torch.device) -> Self:
        """Return the same target on a device."""
        return type(self)(self.points.to(device), self.normals.to(device))


def block_losses(
    before: Tensor, after: Tensor, joints: Joints, target: Target, draws: Tensor, weights: LossWeights
) -> Tensor:
    """Return the weighted terms of one block of a network, in the order of ``TERMS``.

    Parameters
    ----------
    before, after : Tensor
        (vertices, 3): where the block found the vertices, and where it moved them.
    joints : Joints
    target : Target
    draws : Tensor
        (samples, 3) in 0…1, of ``points_on_surface``.
    weights : LossWeights

    Returns
    -------
    Tensor
        (5,)
    """
    spread = torch.cat([after, points_on_surface(after, joints.faces, draws)])
    found = spread[nearest(target.points, spread)]
    closest = nearest(after, target.points)
    there, back = squared(target.points - found).mean(), squared(after - target.points[closest]).mean()
    terms = (
        weights.chamfer * (there + weights.back * back),
        weights.edge * edge_loss(after, joints),
        weights.normal * normal_loss(after, joints, target.normals[closest]),
        weights.laplacian * squared(laplacian(before, joints) - laplacian(after, joints)).mean(),
        weights.move * squared(before - after).mean(),
    )
    return torch.stack(terms)


def edge_loss(points: Tensor, joints: Joints) -> Tensor:
    """Return the mean squared length of the edges of vertices (n, 3)."""
    a, b = joints.edges.unbind(1)
    return 2 * squared(points[a] - points[b]).sum() / joints.entries


def normal_loss(points: Tensor, joints: Joints, normals: Tensor) -> Tensor:
    """Return the mean |cosine| between each edge and the normal (n, 3) of the ground truth at its first end."""
    a, b = joints.edges.unbind(1)
    along = functional.normalize(points[a] - points[b], dim=1, eps=_SHORTEST)
    upright = functional.normalize(normals, dim=1, eps=_SHORTEST)
    cosines = (along * upright[a]).sum(1).abs() + (along * upright[b]).sum(1).abs()
    return cosines.sum() / joints.entries


def laplacian(points: Tensor, joints: Joints) -> Tensor:
    """Return where vertices (n, 3) lie, seen from the mean of their neighbours."""
    a, b = joints.edges.unbind(1)
    sums = torch.zeros_like(points).index_add(0, a, points[b]).index_add(0, b, points[a])
    return points - sums / joints.neighbours[:, None]


def points_on_surface(points: Tensor, faces: Tensor, draws: Tensor) -> Tensor:
    """Return points spread evenly over the faces (Osada et al. 2002, "Shape Distributions", equation 1).

    Parameters
    ----------
    points : Tensor
        (n, 3)
    faces : Tensor
        (faces, 3)
    draws : Tensor
        (samples, 3) in 0…1: which face, and where on it.

    Returns
    -------
    Tensor
        (samples, 3); they move with the vertices, gradients included.
    """
    a, b, c = points[faces].unbind(1)
    areas = torch.linalg.cross((b - a).detach(), (c - a).detach()).norm(dim=1).double().cumsum(0)
    chosen = torch.searchsorted(areas, draws[:, 0].double() * areas[-1]).clamp(max=len(faces) - 1)
    root, share = draws[:, 1:2].sqrt(), draws[:, 2:]
    return (1 - root) * a[chosen] + root * (1 - share) * b[chosen] + root * share * c[chosen]


def nearest(points: Tensor, others: Tensor) -> Tensor:
    """Return the number of the nearest of (m, 3) others to each of (n, 3) points; exact, without gradient."""
    points, others = points.detach(), others.detach()
    if points.device.type == "cpu":
        found = cKDTree(others.numpy()).query(points.numpy())[1]
        return torch.from_numpy(np.asarray(found, np.int64))
    return nearest_in_parts(points, others)


def nearest_in_parts(points: Tensor, others: Tensor) -> Tensor:
    """Return what ``nearest`` does from all distances, some points at a time: where there is no tree."""
    size = max(_PAIRS // len(others), 1)
    # Not |a|² + |b|² − 2ab, whose error is as large as the distances that matter.
    parts = (
        torch.cdist(points[start : start + size], others, compute_mode="donot_use_mm_for_euclid_dist")
        for start in range(0, len(points), size)
    )
    return torch.cat([distances.argmin(1) for distances in parts])


def squared(vectors: Tensor) -> Tensor:
    """Return the squared lengths of (n, 3)."""
    return vectors.square().sum(1)
