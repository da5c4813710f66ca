"""Does the mesh look like the photographs? Its outline in each view against the object's."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from safelight.pipelines.mesh.cameras import SIDE

Mask = NDArray[np.bool_]

OUTSIDE = 2**15
"""Pixels are drawn no farther out than this; the picture ends long before."""


def silhouette(pixels: NDArray[np.floating], faces: NDArray[np.integer], size: tuple[int, int]) -> Mask:
    """Return where a mesh is in a picture.

    Parameters
    ----------
    pixels : array
        (n, 2): x and y of the vertices in pixels of 224 × 224.
    faces : array
        (m, 3).
    size : tuple of int
        Height and width of the picture.
    """
    height, width = size
    scaled = (np.asarray(pixels, np.float64) * (width / SIDE, height / SIDE)).clip(-OUTSIDE, OUTSIDE)
    picture = Image.new("1", (width, height))
    draw = ImageDraw.Draw(picture)
    for corners in scaled[np.asarray(faces)]:
        draw.polygon([(x, y) for x, y in corners], fill=1)
    return np.asarray(picture)


def intersection_over_union(first: Mask, second: Mask) -> float:
    """Return the share of what either covers that both cover; 0 where neither covers anything."""
    union = int((first | second).sum())
    return float((first & second).sum() / union) if union else 0.0
