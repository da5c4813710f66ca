"""Which gains give a star the same light in all stacks: from the stars that they share.

The sky cannot tell. Its brightness differs between nights by gradients, and one that is no plane looks like a gain.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor

from safelight.kernels.matching import gains_of_light
from safelight.pipelines.mosaic.assembly import Tile, Window, common_window
from safelight.pipelines.mosaic.audit import middle_of
from safelight.pipelines.mosaic.star_matching import mutual_pairs
from safelight.pipelines.mosaic.stars import SMALLEST_FRAME, NoStarsError, StarField, measure_stars

SAME_STAR = 2.0
"""Pixels within which two detections are one star."""

FEWEST_STARS = 5
"""Fewer common stars say nothing about the gain."""

FEWEST_BRIGHT = 30
"""The gain is taken from the brighter half of the stars, but of so many at least."""


def star_gains(tiles: Sequence[Tile], channels: int) -> tuple[Tensor, list[str]]:
    """Return the gain of every tile from the light of the stars that it shares with others.

    Parameters
    ----------
    tiles : sequence of Tile
    channels : int

    Returns
    -------
    tuple
        Gains (channels, tiles) float64, and the tiles whose gain is 1 because they overlap others but share too few
        stars with any.
    """
    ratios: list[list[tuple[int, int, float, float]]] = [[] for _ in range(channels)]
    overlapping, known = set[int](), set[int]()
    for a, b in combinations(range(len(tiles)), 2):
        window = common_window(tiles[a].window, tiles[b].window)
        if window is None:
            continue
        overlapping |= {a, b}
        for channel in range(channels):
            found = _ratio(*(_stars(_middle(tiles[number], channel, window)) for number in (a, b)))
            if found is not None:
                known |= {a, b}
                ratios[channel].append((a, b, *found))
    gains = torch.stack([gains_of_light(of_channel, len(tiles)) for of_channel in ratios])
    return gains, [tiles[number].name for number in sorted(overlapping - known)]


def _middle(tile: Tile, channel: int, window: Window) -> NDArray[np.float32]:
    """Return the pixels of a channel in the middle of a window of the canvas."""
    y0, y1, x0, x1 = window
    top, _, left, _ = tile.window
    rows, columns = middle_of(y1 - y0, x1 - x0)
    down, right = y0 - top, x0 - left
    rows, columns = slice(rows.start + down, rows.stop + down), slice(columns.start + right, columns.stop + right)
    return tile.file.window("image", channel, rows, columns)


def _stars(pixels: NDArray[np.float32]) -> StarField | None:
    if min(pixels.shape) < SMALLEST_FRAME or not np.isfinite(pixels).any():
        return None
    try:
        return measure_stars(pixels)
    except NoStarsError:
        return None


def _ratio(first: StarField | None, second: StarField | None) -> tuple[float, float] | None:
    """Return the light of common stars in the first over that in the second, and how many tell it."""
    if first is None or second is None:
        return None
    ours, theirs = mutual_pairs(first.positions, cKDTree(second.positions), SAME_STAR).T
    bright = slice(max(FEWEST_BRIGHT, len(ours) // 2))  # the first field's brightest come first
    ratios = first.flux[ours][bright] / second.flux[theirs][bright]
    return (float(np.median(ratios)), float(len(ratios))) if len(ratios) >= FEWEST_STARS else None
