"""Each loss equals the same sum written out in float64, has the published weight, and pulls the vertices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from torch import Tensor

from safelight.pipelines.mesh import losses
from safelight.pipelines.mesh.losses import COARSE_WEIGHTS, REFINE_WEIGHTS, TERMS, Joints, LossWeights, Target
from safelight.pipelines.mesh.template import Level, ellipsoid

LEVEL: Level = ellipsoid().levels[0]
Floats = NDArray[np.float64]


def moved(seed: int) -> Floats:
    return ellipsoid().coordinates + 0.02 * np.random.default_rng(seed).standard_normal((LEVEL.vertices, 3))


@pytest.fixture(scope="module")
def target() -> Target:
    random = np.random.default_rng(5)
    points = ellipsoid().coordinates[random.integers(0, 156, 400)] + 0.02 * random.standard_normal((400, 3))
    return Target(tensor(points), tensor(random.standard_normal((400, 3))))


def tensor(values: Floats) -> Tensor:
    return torch.from_numpy(values)


def joints() -> Joints:
    return Joints.of(LEVEL, torch.device("cpu"))


def draws(count: int = 300) -> Tensor:
    return torch.rand(count, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def graph() -> list[tuple[int, int]]:
    """The published graph: both directions of each edge, and a loop at each vertex."""
    edges = [(int(a), int(b)) for a, b in LEVEL.edges]
    return [*edges, *((b, a) for a, b in edges), *((v, v) for v in range(LEVEL.vertices))]


def terms(before: Floats, after: Floats, target: Target, weights: LossWeights) -> dict[str, float]:
    found = losses.block_losses(tensor(before), tensor(after), joints(), target, draws(), weights)
    return dict(zip(TERMS, found.tolist(), strict=True))


def seen_from_neighbours(points: Floats) -> Floats:
    neighbours: list[list[int]] = [[] for _ in points]
    for a, b in LEVEL.edges:
        neighbours[a].append(b)
        neighbours[b].append(a)
    return np.stack([point - points[near].mean(axis=0) for point, near in zip(points, neighbours, strict=True)])


@pytest.mark.parametrize(
    ("weights", "edge", "move"), [(COARSE_WEIGHTS, 350, 50), (REFINE_WEIGHTS, 500, 100)], ids=["coarse", "refine"]
)
def test_every_term_is_the_published_one(target: Target, weights: LossWeights, edge: float, move: float) -> None:
    before, after = moved(1), moved(2)
    points, normals = target.points.numpy(), target.normals.numpy()
    spread = np.concatenate([after, losses.points_on_surface(tensor(after), joints().faces, draws()).numpy()])
    there = (cdist(points, spread) ** 2).min(axis=1).mean()
    back = (cdist(after, points) ** 2).min(axis=1).mean()
    normal_at = normals[cdist(after, points).argmin(axis=1)]
    lengths, cosines = [], []
    for a, b in graph():
        along = after[a] - after[b]
        lengths.append(along @ along)
        norms = np.linalg.norm(along) * np.linalg.norm(normal_at[a])
        cosines.append(abs(along @ normal_at[a]) / norms if a != b else 0.0)
    bent = seen_from_neighbours(before) - seen_from_neighbours(after)
    expected = {
        "chamfer": 3000 * (there + 0.55 * back),
        "edge": edge * np.mean(lengths),
        "normal": 0.5 * np.mean(cosines),
        "laplacian": 1500 * (bent**2).sum(axis=1).mean(),
        "move": move * ((before - after) ** 2).sum(axis=1).mean(),
    }
    assert terms(before, after, target, weights) == pytest.approx(expected, rel=1e-12)


def test_points_are_spread_evenly_over_the_surface() -> None:
    points = tensor(np.array([[0.0, 0, 0], [3, 0, 0], [0, 2, 0], [0, 0, 5]]))
    faces = torch.tensor([[0, 1, 2], [0, 2, 1], [0, 1, 3]])
    count = 40_000
    found = losses.points_on_surface(points, faces, draws(count))
    assert len(found) == count
    flat = found[found[:, 2] == 0]
    assert len(flat) / count == pytest.approx(6 / 13.5, abs=0.01), "as the areas of the faces"
    assert (flat[:, 0] / 3 + flat[:, 1] / 2).max() <= 1 + 1e-12
    assert flat.mean(0).tolist() == pytest.approx([1, 2 / 3, 0], abs=0.02), "the middle of the triangle"


def test_the_last_draw_falls_on_a_face() -> None:
    points, faces = tensor(moved(1)).float(), joints().faces
    assert losses.points_on_surface(points, faces, torch.ones(1, 3)).isfinite().all()


@pytest.mark.parametrize("term", TERMS)
def test_every_term_pulls_the_vertices(target: Target, term: str) -> None:
    """The gradient is that of small steps, the nearest points held: they change at no single place."""
    before, number = tensor(moved(1)), TERMS.index(term)
    after = tensor(moved(2)).requires_grad_()

    def loss(points: Tensor) -> Tensor:
        return losses.block_losses(before, points, joints(), target, draws(), COARSE_WEIGHTS)[number]

    (pull,) = torch.autograd.grad(loss(after), after)
    assert (pull.abs().sum(1) > 0).float().mean() > 0.5
    way = torch.from_numpy(np.random.default_rng(0).standard_normal(after.shape))
    step = 1e-9  # so short that no sample of the surface slips onto another face
    rise = (loss(after.detach() + step * way) - loss(after.detach() - step * way)).item() / (2 * step)
    assert (pull * way).sum().item() == pytest.approx(rise, rel=2e-3)


def test_vertices_at_one_place_give_no_infinite_gradient(target: Target) -> None:
    after = tensor(moved(2))
    after[LEVEL.edges[0, 0]] = after[LEVEL.edges[0, 1]]
    after.requires_grad_()
    losses.block_losses(tensor(moved(1)), after, joints(), target, draws(), COARSE_WEIGHTS).sum().backward()
    assert after.grad is not None
    assert after.grad.isfinite().all()


def test_nearest_without_a_tree_is_the_nearest(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU computes, in parts as where memory is short."""
    monkeypatch.setattr(losses, "_PAIRS", 7 * len(target.points))
    points = tensor(moved(3))
    with_tree = losses.nearest(points, target.points)
    assert torch.equal(losses.nearest_in_parts(points, target.points), with_tree)
