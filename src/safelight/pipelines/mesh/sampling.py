"""Features of points: what the maps of all views show where the points are."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from safelight.pipelines.mesh.cameras import SIDE

Bilinear = Literal["tf", "border"]
"""tf: a point at a whole row or column of a map gets nothing, and neither does what lies beyond the map's edge;
border: the common rule, corner pixels at the corners, the edge repeated."""

SPREAD = 1e-6
"""Added to the variance over views before its root is taken."""


def nearest(maps: Sequence[Tensor], pixels: Tensor, view_of: Tensor) -> list[Tensor]:
    """Return the features of the pixels that points fall into.

    Parameters
    ----------
    maps : sequence of Tensor
        (samples, views, height, width, channels) each.
    pixels : Tensor
        (samples, views, n, 2): x and y in pixels of the picture.
    view_of : Tensor
        (views,) int64: which view's maps each view's points are looked up in.

    Returns
    -------
    list of Tensor
        (samples, views, n, channels) of each map.
    """
    # A vertex that is no number falls on the first pixel, and stays none: whoever sees the mesh says so.
    inside = pixels.nan_to_num(0).clamp(0, SIDE - 1)
    samples = torch.arange(len(pixels), device=pixels.device)[:, None, None]
    found = []
    for values in maps:
        x, y = (inside / (SIDE // values.shape[2])).long().unbind(-1)
        found.append(values[samples, view_of[:, None], y, x])
    return found


def bilinear(maps: Sequence[Tensor], pixels: Tensor, rule: Bilinear) -> list[Tensor]:
    """Return features interpolated where points are, of each view's own maps; shapes as for ``nearest``."""
    pixels = pixels.nan_to_num(0)  # as in nearest
    if rule == "tf":
        pixels = pixels.clamp(0, SIDE - 1)
    return [_interpolated(values, pixels, rule) for values in maps]


def over_views(points: Tensor, features: Sequence[Tensor]) -> Tensor:
    """Return what the networks see of points: where they are, and maximum, mean and spread of their features.

    Parameters
    ----------
    points : Tensor
        (samples, n, 3).
    features : sequence of Tensor
        (samples, views, n, channels) each.

    Returns
    -------
    Tensor
        (samples, n, 3 + 3·channels of all).
    """
    most = [values.amax(dim=1) for values in features]
    means, spreads = zip(*map(_mean_and_spread, features), strict=True)
    return torch.cat([points, *most, *means, *spreads], dim=-1)


def _mean_and_spread(values: Tensor) -> tuple[Tensor, Tensor]:
    # In float64: the last bit decides where a vertex goes whose hypotheses fall on whole pixels. View by view: over so
    # few values, reductions take half as long again, and var_mean six times as long.
    views = [view.to(torch.float64, copy=True) for view in values.unbind(dim=1)]
    mean = reduce(torch.add, views) / len(views)
    variance = reduce(Tensor.add_, (view.sub_(mean).square_() for view in views)) / len(views)
    return mean.to(values.dtype), (variance.to(values.dtype) + SPREAD).sqrt()


def _interpolated(values: Tensor, pixels: Tensor, rule: Bilinear) -> Tensor:
    samples, views, height, width, channels = values.shape
    columns, across = _corners(pixels[..., 0] / (SIDE // width), width, rule)
    rows, down = _corners(pixels[..., 1] / (SIDE // height), height, rule)
    picture = torch.arange(samples * views, device=pixels.device).view(samples, views, 1) * height
    lines = [(picture + row) * width for row in rows]
    places = torch.stack([line + column for line in lines for column in columns], dim=-1)
    weights = torch.stack([upper * side for upper in down for side in across], dim=-1)
    summed = functional.embedding_bag(
        places.view(-1, 4), values.reshape(-1, channels), per_sample_weights=weights.view(-1, 4), mode="sum"
    )
    return summed.view(samples, views, -1, channels)


def _corners(place: Tensor, size: int, rule: Bilinear) -> tuple[list[Tensor], list[Tensor]]:
    """Return the two pixels that a place along an axis lies between, and their weights."""
    if rule == "border":
        place = place.clamp(0, size - 1)
        low = place.floor().clamp(max=size - 2)
        high = low + 1
        near, far = high - place, place - low
    else:
        low, high = place.floor(), place.ceil()
        near, far = high - place, (place - low) * (high < size)
    return [low.long(), high.long().clamp(max=size - 1)], [near, far]
