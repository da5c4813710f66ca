"""Where clouds and their shadows are, by the rule that the published data loader uses.

Clouds are bright in all of several ways at once; shadows are dark beside the rest of the image, so that a clear image
has some as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

CLOUD, SHADOW = 1, -1
REACH = 7
"""How far in pixels the mask of a pixel looks: closing (2 + 2) and mean (3)."""

_DARK_SHARE, _BLUE_SHARE = 3 / 4, 5 / 6
_CLOSING, _MEAN, _MEDIAN = 5, 7, 5
_LEAST = 1e-5
_ZERO_SUM = 0.001


@dataclass(frozen=True)
class ShadowLevels:
    """Below which values a pixel is in shadow.

    Parameters
    ----------
    infrared, blue : float
        Of the mean of bands 8 and 11 (by index 7 and 11), and of band 2 (index 1), as reflectances.
    """

    infrared: float
    blue: float

    @classmethod
    def of(cls, image: Tensor) -> Self:
        """Return the levels of an image of reflectances, (13, Y, X)."""
        infrared, blue = shadow_indices(image)
        return cls.between((infrared.min().item(), infrared.mean().item()), (blue.min().item(), blue.mean().item()))

    @classmethod
    def between(cls, infrared: tuple[float, float], blue: tuple[float, float]) -> Self:
        """Return the levels that belong to the minimum and the mean of each index."""
        (low, mean), (low_blue, mean_blue) = infrared, blue
        return cls(low + _DARK_SHARE * (mean - low), low_blue + _BLUE_SHARE * (mean_blue - low_blue))


def shadow_indices(image: Tensor) -> tuple[Tensor, Tensor]:
    """Return what is compared with ``ShadowLevels``, of reflectances (13, Y, X): two of (Y, X)."""
    return (image[7] + image[11]) / 2, image[1]


def cloud_mask(image: Tensor, threshold: float, levels: ShadowLevels | None = None) -> Tensor:
    """Return 1 for cloud, −1 for shadow, else 0.

    Parameters
    ----------
    image : Tensor
        (13, Y, X): reflectances, not clipped.
    threshold : float
        Score from which a pixel counts as cloudy.
    levels : ShadowLevels, optional
        Of the scene that the image is a part of; of the image itself by default.

    Returns
    -------
    Tensor
        (Y, X), int8.
    """
    levels = levels or ShadowLevels.of(image)
    infrared, blue = shadow_indices(image)
    dark = ((infrared < levels.infrared) & (blue < levels.blue)).to(image.dtype)
    shadow = _median(dark) > 0
    cloud = cloud_score(image) >= threshold
    mask = torch.where(shadow, SHADOW, 0)
    return torch.where(cloud, CLOUD, mask).to(torch.int8)


def cloud_score(image: Tensor) -> Tensor:
    """Return how cloudy each pixel of (13, Y, X) reflectances is, (Y, X) from 0 to 1."""
    green_and_swir = image[2] + image[11]
    snow = (image[2] - image[11]) / torch.where(green_and_swir == 0, _ZERO_SUM, green_and_swir)
    score = torch.ones_like(image[0])
    for value, low, high in (
        (image[1], 0.1, 0.5),
        (image[0], 0.1, 0.3),
        (image[0] + image[10], 0.15, 0.2),
        (image[1] + image[2] + image[3], 0.2, 0.8),
        (snow, 0.8, 0.6),
    ):
        score = torch.minimum(score, (value - low) / (high - low))
    closed = -_largest(-_largest(score))
    smooth = functional.avg_pool2d(closed[None], _MEAN, 1, _MEAN // 2)[0]
    return smooth.clamp(_LEAST, 1)


def _largest(image: Tensor) -> Tensor:
    """Return the largest value of each pixel's surroundings; what lies beyond the edge does not count."""
    return functional.max_pool2d(image[None], _CLOSING, 1, _CLOSING // 2)[0]


def _median(image: Tensor) -> Tensor:
    """Return the median of each pixel's surroundings, zero beyond the edge."""
    padded = functional.pad(image, (_MEDIAN // 2,) * 4)
    windows = padded.unfold(0, _MEDIAN, 1).unfold(1, _MEDIAN, 1)
    return windows.flatten(2).median(2).values
