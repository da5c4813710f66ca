"""Features of points: what the maps of all views show where the points are."""

from __future__ import annotations

from collections.abc import Sequence
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


def nearest(maps: Sequence[Tensor], pixels: Tensor, view_of: Tensor) -> Tensor:
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
    Tensor
        (samples, views, n, channels of all maps).
    """
    inside = pixels.clamp(0, SIDE - 1)
    samples = torch.arange(len(pixels), device=pixels.device)[:, None, None]
    found = []
    for values in maps:
        x, y = (inside / (SIDE // values.shape[2])).long().unbind(-1)
        found.append(values[samples, view_of[:, None], y, x])
    return torch.cat(found, dim=-1)


def bilinear(maps: Sequence[Tensor], pixels: Tensor, rule: Bilinear) -> Tensor:
    """Return features interpolated where points are, of each view's own maps; shapes as for ``nearest``."""
    if rule == "tf":
        pixels = pixels.clamp(0, SIDE - 1)
    return torch.cat([_interpolated(values, pixels, rule) for values in maps], dim=-1)


def over_views(points: Tensor, features: Tensor) -> Tensor:
    """Return what the networks see of points: where they are, and maximum, mean and spread of their features.

    Parameters
    ----------
    points : Tensor
        (samples, n, 3).
    features : Tensor
        (samples, views, n, channels).

    Returns
    -------
    Tensor
        (samples, n, 3 + 3·channels).
    """
    # Summed in float64: the last bit decides where a vertex goes whose hypotheses fall on whole pixels. Not var_mean:
    # over so few values it takes six times as long.
    mean = features.mean(dim=1, dtype=torch.float64)
    variance = (features - mean[:, None]).square().mean(dim=1).to(points.dtype)
    return torch.cat([points, features.amax(dim=1), mean.to(points.dtype), (variance + SPREAD).sqrt()], dim=-1)


def _interpolated(values: Tensor, pixels: Tensor, rule: Bilinear) -> Tensor:
    samples, views, height, width, channels = values.shape
    place = pixels / (SIDE // height)
    edge = torch.tensor([width - 1, height - 1], device=pixels.device)
    if rule == "border":
        place = place.clamp(torch.zeros_like(edge), edge)
        low = place.floor().minimum(edge - 1)
        high = low + 1
    else:
        low, high = place.floor(), place.ceil()
    share = torch.stack([high - place, place - low], dim=-1)
    share = share * (torch.stack([low, high], dim=-1) <= edge[:, None])
    x, y = torch.stack([low, high], dim=-1).long().minimum(edge[:, None]).unbind(-2)
    picture = torch.arange(samples * views, device=pixels.device).view(samples, views, 1, 1, 1) * (height * width)
    corners = picture + y[..., :, None] * width + x[..., None, :]
    weights = share[..., 1, :, None] * share[..., 0, None, :]
    summed = functional.embedding_bag(
        corners.reshape(-1, 4), values.reshape(-1, channels), per_sample_weights=weights.reshape(-1, 4), mode="sum"
    )
    return summed.view(samples, views, -1, channels)
