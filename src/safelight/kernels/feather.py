"""How much a pixel counts by where it lies: less and less towards the edge of its tile, or the corners of its frame.

A pixel here and there that rejection or a hot pixel left invalid is no edge: a pixel belongs to the tile if most of
its surroundings are valid. The distance to the tile's edge is Euclidean and exact, but for feathers wider than
``FINE`` pixels, which are measured on blocks of pixels: to within 1 % of their width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from safelight.core.kernel import KernelInfo, Sample

SURROUNDINGS = 9
"""Side of the square of pixels that decides whether its middle belongs to the tile; odd."""

FINE = 64
"""Width in pixels of the widest feather that is measured pixel by pixel."""


def distance_to_edge(inside: Tensor, reach: float) -> Tensor:
    """Return the exact distance of every pixel's centre to that of the nearest pixel outside, up to ``reach``.

    The Euclidean transform separates (Felzenszwalb & Huttenlocher 2012): along rows, then over the distances of each
    column, of which none further than ``reach`` counts.

    Parameters
    ----------
    inside : Tensor
        (rows, width) bool; everything beyond is outside.
    reach : float
        In pixels; the cost is proportional to it.

    Returns
    -------
    Tensor
        (rows, width) float32; 0 outside.
    """
    rows, width = inside.shape
    x = torch.arange(1, width + 1, dtype=torch.float32, device=inside.device)
    left = torch.where(inside, 0, x).cummax(1).values
    right = torch.where(inside, width + 1, x).flip(1).cummin(1).values.flip(1)
    furthest = math.ceil(reach)
    squares = nn.functional.pad(torch.minimum(x - left, right - x).square(), (0, 0, furthest, furthest))
    least = torch.full(inside.shape, float(reach) ** 2, device=inside.device)
    for first in range(2 * furthest + 1):
        torch.minimum(least, squares[first : first + rows] + (first - furthest) ** 2, out=least)
    return least.sqrt()


def block_of(reach: float) -> int:
    """Return the side in pixels of the blocks that a feather is measured on."""
    return max(round(reach / FINE), 1)


def reach_of_rows(reach: float) -> int:
    """Return how many rows above and below a row can change its feather weights."""
    return math.ceil(reach) + SURROUNDINGS // 2 + 2 * block_of(reach)


def feather_weights(valid: Tensor, reach: float) -> Tensor:
    """Return weights that rise from the edge of a tile to its inside.

    Parameters
    ----------
    valid : Tensor
        (rows, width) bool.
    reach : float
        Distance from the edge in pixels from which on the weight is 1; 0 does without a feather.

    Returns
    -------
    Tensor
        (rows, width) float32: 0 where invalid, else min(distance / reach, 1) and more than 0.
    """
    if reach == 0:
        return valid.float()
    rows, width = valid.shape
    inside = _mean_around(valid.float()) >= 0.5
    block = block_of(reach)
    if block > 1:
        inside = nn.functional.avg_pool2d(inside.float()[None], block, ceil_mode=True)[0] >= 0.5
    # The outermost pixel's, or block's, middle is half of its size from the edge.
    distance = block * (distance_to_edge(inside, reach / block + 0.5) - 0.5)
    if block > 1:
        size = tuple(side * block for side in inside.shape)
        distance = nn.functional.interpolate(distance[None, None], size, mode="bilinear")[0, 0, :rows, :width]
    return (distance.clamp(min=0.5) / reach).clamp(max=1) * valid


def radial_weights(height: int, width: int, feather: float, power: float) -> Tensor:
    """Return weights that fall from the middle of a frame to its corners: 1 − feather · (r / R)^power.

    Parameters
    ----------
    height, width : int
        In pixels; r is the distance from the middle of the frame, and R that of its outermost pixel.
    feather : float
        By how much the corners count less than the middle, from 0 to below 1: no pixel counts for nothing.
    power : float
        More than 0; the larger, the nearer to the corners the weights begin to fall.

    Returns
    -------
    Tensor
        (height, width) float32.
    """
    y, x = (torch.arange(size) - (size - 1) / 2 for size in (height, width))
    distance = torch.hypot(y[:, None], x)
    return 1 - feather * (distance / distance.amax().clamp(min=1)) ** power


def _mean_around(values: Tensor) -> Tensor:
    half = SURROUNDINGS // 2
    lines = nn.functional.avg_pool2d(values[None], (1, SURROUNDINGS), stride=1, padding=(0, half))
    return nn.functional.avg_pool2d(lines, (SURROUNDINGS, 1), stride=1, padding=(half, 0))[0]


def _masks(device: torch.device) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(0)
    for shape in ((17, 23), (1, 5), (30, 8)):
        yield (torch.rand(shape, generator=generator) < 0.9).to(device)
        yield torch.ones(shape, dtype=torch.bool, device=device)
        yield torch.zeros(shape, dtype=torch.bool, device=device)


def _samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    yield from (Sample((mask, reach)) for mask in _masks(device) for reach in (1.5, 6, 100))


def _distance_oracle(inside: np.ndarray, reach: float) -> np.ndarray:
    outside = np.argwhere(~np.pad(inside.astype(bool), 1)) - 1
    places = np.indices(inside.shape).reshape(2, -1).T
    distance = np.linalg.norm(places[:, None] - outside[None], axis=-1).min(axis=1)
    return np.asarray(np.minimum(distance, reach).reshape(inside.shape))


def _feather_oracle(valid: np.ndarray, reach: float) -> np.ndarray:
    half = SURROUNDINGS // 2
    boxes = np.lib.stride_tricks.sliding_window_view(np.pad(valid, half), (SURROUNDINGS, SURROUNDINGS))
    distance = _distance_oracle(2 * boxes.sum(axis=(2, 3)) >= SURROUNDINGS**2, math.inf) - 0.5
    return np.where(valid, np.clip(np.maximum(distance, 0.5) / reach, 0, 1), 0)


def _feather_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    yield from (Sample((mask, reach)) for mask in _masks(device) for reach in (1.5, 6))


KERNELS = (
    KernelInfo("distance_to_edge", distance_to_edge, _samples, _distance_oracle, {torch.float32: (1e-6, 1e-6)}),
    KernelInfo("feather_weights", feather_weights, _feather_samples, _feather_oracle, {torch.float32: (1e-6, 1e-6)}),
)
