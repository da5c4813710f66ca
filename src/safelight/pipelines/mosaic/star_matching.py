"""Find how one star field lies on another, from positions alone: triangles propose, votes choose, stars confirm.

Triangles of neighbouring stars with equal shape and similar size propose similarities (Groth 1986,
doi:10.1086/114099; Valdes et al. 1995, doi:10.1086/133667). Proposals that agree vote for one another. The best are
refined on all stars, and the one that remains is accepted only if chance would hardly give as many coincidences
anywhere (an a-contrario test, Desolneux et al. 2000). Nothing is random: the same stars give the same answer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.special import bdtrc

from safelight.pipelines.mosaic.plane_fit import affordable_freedom, apply_plane, fit_plane

Floats = NDArray[np.float64]
Integers = NDArray[np.intp]
Complexes = NDArray[np.complex128]

STARS_CONFIRMING = 300  # the brightest; more cost time and let chance coincide
STARS_PROPOSING = (15, 40, 120)  # the brightest so many: triangles of all sizes
NEIGHBOURS = 7  # of each star, of which triangles are made
SMALLEST_TRIANGLE = 12.0  # pixels, shortest side: smaller ones have no exact shape
FLATTEST_TRIANGLE = 0.03  # how much longer two sides must be than the third: flat ones have no handedness
SHAPE_TOLERANCE = 0.015  # of the ratios of sides
SCALE_TOLERANCE = 0.10  # how much the scales of two frames may differ
CANDIDATES_PER_TRIANGLE = 12
AGREEMENT = 15.0  # pixels between where two proposals take the same points
PROPOSALS_TRIED = 25
NARROWING = (12.0, 8.0, 5.0, 3.0)  # pixels within which stars count as the same, step by step
FEWEST_STARS = 6
CHANCE_LIMIT = -4.0  # log10 of how many chance matches are expected among all possible ones

Refusal = Literal["too_few_stars", "no_match", "not_connected"]


@dataclass(frozen=True, eq=False)
class Registration:
    """How a frame lies on another one.

    Parameters
    ----------
    transform : float64 (2, 3), optional
        Takes (x, y, 1) of the frame to (x, y) of the other; None if they do not match.
    pairs : int (matched, 2)
        Indices of matched stars: of the frame, of the other.
    residual, worst : float
        Root mean square and largest distance of matched stars in pixels of the other frame; NaN without a match.
    parity_flipped : bool
        Whether one of the frames is mirrored.
    reason : optional
        Why there is no match.
    """

    transform: Floats | None
    pairs: Integers
    residual: float = math.nan
    worst: float = math.nan
    parity_flipped: bool = False
    reason: Refusal | None = None

    @property
    def matched(self) -> int:
        """Number of matched stars."""
        return len(self.pairs)

    @property
    def registered(self) -> bool:
        """Whether the frames match."""
        return self.transform is not None


class StarPattern:
    """The stars of a frame, prepared for matching: build it once, match it often.

    Parameters
    ----------
    positions : float64 (stars, 2)
        x, y in pixels, brightest first.
    """

    def __init__(self, positions: Floats) -> None:
        self.positions = positions[:STARS_CONFIRMING]
        self.points: Complexes = self.positions[:, 0] + 1j * self.positions[:, 1]
        self.tree = cKDTree(self.positions.reshape(-1, 2))
        self.triangles, self.shapes, self.handedness = _triangles(self.positions)
        self.shape_tree = cKDTree(self.shapes) if len(self.shapes) else None


def match_stars(frame: StarPattern, other: StarPattern) -> Registration:
    """Return how a frame lies on another one, at any rotation, mirrored or not, at nearly the same scale.

    The transform is a similarity; an affinity where at least ten matched stars span half of the frame.
    """
    if min(len(frame.points), len(other.points)) < FEWEST_STARS:
        return _refused("too_few_stars")
    best: _Similarity | None = None
    for proposal in _proposals(frame, other):
        confirmed = _confirmed(proposal, frame, other)
        if confirmed is not None and (best is None or confirmed.chance < best.chance):
            best = confirmed
    if best is None or best.chance > CHANCE_LIMIT:
        return _refused("no_match")
    return _refined(best, frame, other)


@dataclass(frozen=True, eq=False)
class _Similarity:
    """z ↦ factor · z + shift, of conj(z) if mirrored; with its matched stars and how likely chance gives as many."""

    factor: complex
    shift: complex
    mirrored: bool
    pairs: Integers = field(default_factory=lambda: np.empty((0, 2), dtype=np.intp))
    chance: float = math.inf

    def __call__(self, points: Complexes) -> Complexes:
        return self.factor * (points.conj() if self.mirrored else points) + self.shift

    def as_matrix(self) -> Floats:
        a, b, sign = self.factor.real, self.factor.imag, -1 if self.mirrored else 1
        return np.array([[a, -b * sign, self.shift.real], [b, a * sign, self.shift.imag]])


def _plane(points: Complexes) -> Floats:
    return np.stack([points.real, points.imag], axis=-1)


def _refused(reason: Refusal) -> Registration:
    return Registration(None, np.empty((0, 2), dtype=np.intp), reason=reason)


def _triangles(positions: Floats) -> tuple[Integers, Floats, NDArray[np.bool_]]:
    """Return triangles of neighbours (n, 3) by vertex, their shapes (n, 3) and whether they turn left.

    Vertices are ordered by the length of the side opposite, longest first. The shape is (c/a, b/a) of the sides
    a ≥ b ≥ c and the logarithm of a, shrunk so that one tolerance fits all three.
    """
    chosen = [_neighbouring(positions[:depth]) for depth in STARS_PROPOSING]
    triangles = np.unique(np.concatenate(chosen), axis=0)
    corners = positions[triangles]
    opposite = np.linalg.norm(np.roll(corners, -1, axis=1) - np.roll(corners, 1, axis=1), axis=2)
    order = np.argsort(-opposite, axis=1, kind="stable")
    triangles, sides = np.take_along_axis(triangles, order, axis=1), np.take_along_axis(opposite, order, axis=1)
    longest, middle, shortest = sides.T
    shaped = (shortest >= SMALLEST_TRIANGLE) & (middle + shortest > (1 + FLATTEST_TRIANGLE) * longest)
    triangles, longest, middle, shortest = (part[shaped] for part in (triangles, longest, middle, shortest))
    size = np.log(longest) * (SHAPE_TOLERANCE / math.log1p(SCALE_TOLERANCE))
    first, second, third = np.moveaxis(positions[triangles], 1, 0)
    (ux, uy), (vx, vy) = (second - first).T, (third - first).T
    return triangles, np.stack([shortest / longest, middle / longest, size], axis=1), ux * vy - uy * vx > 0


def _neighbouring(positions: Floats) -> Integers:
    """Return all triangles, (n, 3) of ascending indices, of a star and two of its nearest neighbours."""
    count = min(NEIGHBOURS + 1, len(positions))
    if count < 3:
        return np.empty((0, 3), dtype=np.intp)
    _, near = cKDTree(positions).query(positions, k=count)
    two = np.array(list(combinations(range(1, count), 2)))
    alone = np.broadcast_to(near[:, :1, None], (len(positions), len(two), 1))
    triangles = np.concatenate([alone, near[:, two]], axis=2).reshape(-1, 3)
    return np.sort(triangles, axis=1).astype(np.intp)


def _proposals(frame: StarPattern, other: StarPattern) -> list[_Similarity]:
    """Return the similarities that most pairs of like triangles agree on, best first."""
    if frame.shape_tree is None or other.shape_tree is None:
        return []
    _, like = other.shape_tree.query(
        frame.shapes, k=CANDIDATES_PER_TRIANGLE, p=np.inf, distance_upper_bound=SHAPE_TOLERANCE
    )
    mine, nth = np.nonzero(like < len(other.triangles))
    theirs = like[mine, nth]
    proposals: list[tuple[int, _Similarity]] = []
    for mirrored in (False, True):
        same = (frame.handedness[mine] == other.handedness[theirs]) != mirrored
        proposals += _voted(frame, other, mine[same], theirs[same], mirrored)
    proposals.sort(key=lambda proposal: -proposal[0])
    return [proposal for _, proposal in proposals[:PROPOSALS_TRIED]]


def _voted(
    frame: StarPattern, other: StarPattern, mine: Integers, theirs: Integers, mirrored: bool
) -> list[tuple[int, _Similarity]]:
    """Return (votes, similarity) of the leaders: those that no similar proposal with more votes stands before."""
    p, q = frame.points[frame.triangles[mine]], other.points[other.triangles[theirs]]
    factor, shift = _similarities(p.conj() if mirrored else p, q)
    usable = _scale_is_near(factor)
    factor, shift = factor[usable], shift[usable]
    if not len(factor):
        return []
    centre, radius = frame.points.mean(), frame.points.std()
    ends = np.stack([centre - radius, centre + radius])
    ends = factor[:, None] * (ends.conj() if mirrored else ends) + shift[:, None]
    tree = cKDTree(ends.view(np.float64))
    votes = tree.query_ball_point(ends.view(np.float64), AGREEMENT, return_length=True)
    leaders: list[tuple[int, _Similarity]] = []
    taken = np.zeros(len(factor), dtype=np.bool_)
    for index in np.argsort(-votes, kind="stable"):
        if len(leaders) == PROPOSALS_TRIED:
            break
        if not taken[index]:
            taken[tree.query_ball_point(ends[index].view(np.float64), AGREEMENT)] = True
            leaders.append((int(votes[index]), _Similarity(complex(factor[index]), complex(shift[index]), mirrored)))
    return leaders


def _similarities(p: Complexes, q: Complexes) -> tuple[Complexes, Complexes]:
    """Return factor and shift of q ≈ factor · p + shift by least squares along the last axis."""
    centre_p, centre_q = p.mean(axis=-1, keepdims=True), q.mean(axis=-1, keepdims=True)
    from_p, from_q = p - centre_p, q - centre_q
    factor = (from_p.conj() * from_q).sum(axis=-1) / (np.abs(from_p) ** 2).sum(axis=-1)
    return factor, centre_q[..., 0] - factor * centre_p[..., 0]


def _scale_is_near(factor: Complexes) -> NDArray[np.bool_]:
    scale = np.abs(factor)
    return np.asarray((scale <= 1 + SCALE_TOLERANCE) & (scale * (1 + SCALE_TOLERANCE) >= 1))


def _confirmed(proposal: _Similarity, frame: StarPattern, other: StarPattern) -> _Similarity | None:
    """Fit a proposal to all stars that it brings together, nearer and nearer, and rate what remains."""
    points = frame.points.conj() if proposal.mirrored else frame.points
    current = proposal
    for radius in NARROWING:
        pairs = mutual_pairs(_plane(current(frame.points)), other.tree, radius)
        if len(pairs) < 3:
            return None
        factor, shift = _similarities(points[pairs[:, 0]], other.points[pairs[:, 1]])
        if not _scale_is_near(factor):
            return None
        current = replace(current, factor=complex(factor), shift=complex(shift))
    moved = current(frame.points)
    pairs = mutual_pairs(_plane(moved), other.tree, NARROWING[-1])
    return replace(current, pairs=pairs, chance=_chance(moved, len(pairs), other))


def mutual_pairs(points: Floats, tree: cKDTree, radius: float) -> Integers:
    """Return index pairs (n, 2), of points and of the tree's, that are each other's nearest within a radius."""
    distance, nearest = tree.query(points, distance_upper_bound=radius)
    mine = np.flatnonzero(np.isfinite(distance))
    order = mine[np.lexsort((mine, distance[mine]))]
    _, first = np.unique(nearest[order], return_index=True)
    winners = np.sort(order[first])
    return np.stack([winners, nearest[winners]], axis=1).astype(np.intp)


def _chance(points: Complexes, matched: int, other: StarPattern) -> float:
    """Return log10 of how many chance matches this good are expected among all similarities of two star pairs.

    A star that falls among the other frame's meets one by chance as often as it does after shifts by a few times
    the radius, and at least as often as uniform density says. Two pairs are met by construction.
    """
    low, high = other.positions.min(axis=0), other.positions.max(axis=0)
    inside = (points.real >= low[0]) & (points.real <= high[0]) & (points.imag >= low[1]) & (points.imag <= high[1])
    trials = max(int(inside.sum()), matched)
    uniform = 1 - math.exp(-len(other.points) * math.pi * NARROWING[-1] ** 2 / max(float(np.prod(high - low)), 1.0))
    ring = 6 * NARROWING[-1] * np.exp(2j * np.pi * np.arange(8) / 8)
    nearby = np.mean([len(mutual_pairs(_plane(points + shift), other.tree, NARROWING[-1])) for shift in ring]) / trials
    as_many = float(bdtrc(matched - 3, max(trials - 2, 1), max(uniform, nearby)))  # scipy.stats takes long to load
    tail = math.log10(as_many) if as_many > 0 else -math.inf
    return tail + math.log10(2) + 2 * math.log10(len(points) * len(other.points))


def _refined(similarity: _Similarity, frame: StarPattern, other: StarPattern) -> Registration:
    pairs = similarity.pairs
    transform = similarity.as_matrix()
    if affordable_freedom(frame.positions[pairs[:, 0]], frame.positions) == "affine":
        transform = fit_plane(frame.positions[pairs[:, 0]], other.positions[pairs[:, 1]], "affine")
        pairs = mutual_pairs(apply_plane(transform, frame.positions), other.tree, NARROWING[-1])
        transform = fit_plane(frame.positions[pairs[:, 0]], other.positions[pairs[:, 1]], "affine")
    off = np.linalg.norm(apply_plane(transform, frame.positions[pairs[:, 0]]) - other.positions[pairs[:, 1]], axis=1)
    return Registration(
        transform, pairs, float(np.sqrt((off**2).mean())), float(off.max()), bool(np.linalg.det(transform[:, :2]) < 0)
    )
