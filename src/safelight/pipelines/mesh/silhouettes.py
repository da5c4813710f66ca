"""Does the mesh look like the photographs? Its outline in each view against the object's."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from safelight.pipelines.mesh.cameras import SIDE
from safelight.pipelines.mesh.views import View

Mask = NDArray[np.bool_]

COLOUR = (220, 38, 38)
TINT = 0.35
"""Of the mesh over the photograph."""

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


def outlined(view: View, drawn: Mask) -> NDArray[np.uint8]:
    """Return a view with the outline of the mesh over it, (224·2, 224·2, 3) uint8, red first."""
    size = (2 * SIDE, 2 * SIDE)
    picture = np.asarray(Image.fromarray(view.pixels[::-1].transpose(1, 2, 0)).resize(size, Image.Resampling.BICUBIC))
    mask = Image.fromarray(drawn).convert("L").resize(size, Image.Resampling.NEAREST)
    inside = np.asarray(mask) > 0
    edge = (np.asarray(mask.filter(ImageFilter.MaxFilter(3))) > 0) & ~inside
    tinted = np.where(inside[..., None], picture * (1 - TINT) + TINT * np.array(COLOUR), picture)
    coloured: NDArray[np.uint8] = np.where(edge[..., None], COLOUR, tinted).astype(np.uint8)
    return coloured
