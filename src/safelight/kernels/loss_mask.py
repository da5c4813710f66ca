"""Which pixels of a pair must not be learnt from: what moved between the frames, beyond what noise explains."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from safelight.kernels.gaussian import weigh_neighbours

MOVED, CLIPPED_ANCHOR, CLIPPED_TARGET, OUTSIDE = 1, 2, 4, 8
"""Bits of a mask; 0 is a pixel to learn from."""

SCALES = (1, 3, 9)
"""Sides of the windows in which a difference is looked for, in pixels."""
SIGNIFICANCE = 4.5
"""Standard deviations from which on a difference is real."""
NEARBY_SIGNIFICANCE = 2.5
"""The same beside one that was found, in the largest window."""
TEXTURE = 0.15
"""Share of the local range that interpolation may miss."""
GAMMA = 1 / 2.2
LARGEST_LOSS = 0.4
_EPSILON = 1e-12

HALO = sum(scale // 2 for scale in (*SCALES, SCALES[-1]))
"""Rows of context that a row of ``moved_pixels`` needs."""


def between(image: Tensor, shift: tuple[float, float]) -> Tensor:
    """Return ``image[…, y + dy, x + dx]``, interpolated linearly; the edge is repeated outside.

    Parameters
    ----------
    image : Tensor
        (…, height, width), floating point.
    shift : tuple of float
        (dy, dx).
    """
    for axis, distance in zip((-2, -1), shift, strict=True):
        whole = int(np.floor(distance))
        fraction = distance - whole
        size = image.shape[axis]
        first = torch.arange(whole, whole + size + 1, device=image.device).clamp(0, size - 1)
        image = weigh_neighbours(image.index_select(axis, first), (1 - fraction, fraction), axis)
    return image


def local_range(image: Tensor) -> Tensor:
    """Return the largest difference within each pixel's 3 × 3 neighbourhood, (channels, height, width)."""
    highest = nn.functional.max_pool2d(image[None], 3, 1, 1)[0]
    lowest = nn.functional.max_pool2d(-image[None], 3, 1, 1)[0]
    return highest + lowest


def moved_pixels(difference: Tensor, variance: Tensor, texture: Tensor, usable: Tensor) -> Tensor:
    """Return where two frames differ by more than noise and interpolation explain.

    The mean difference in windows of growing size is compared with its standard deviation. What a smaller window has
    found, and what is not usable, counts in no larger one: so a strong difference does not spread over its window.

    Parameters
    ----------
    difference : Tensor
        (channels, height, width), floating point.
    variance : Tensor
        Same shape: of the difference by noise, independent from pixel to pixel.
    texture : Tensor
        Same shape: what interpolation may miss, alike over a window.
    usable : Tensor
        (height, width), bool: not clipped.

    Returns
    -------
    Tensor
        (height, width), bool.
    """
    found = torch.zeros_like(usable)
    for scale in SCALES:
        excess, number = _excess(difference, variance, texture, usable & ~found, scale)
        # Where few pixels are left, they say little about the middle of the window.
        found |= usable & (2 * number >= scale * scale) & (excess > SIGNIFICANCE**2)
    near = box_sum(found.to(difference.dtype), SCALES[-1]) > 0
    return found | (usable & near & (excess > NEARBY_SIGNIFICANCE**2))


def _excess(
    difference: Tensor, variance: Tensor, texture: Tensor, counted: Tensor, scale: int
) -> tuple[Tensor, Tensor]:
    """Return the squared mean difference over what is expected of it, summed over channels, and the pixels counted."""
    mask = counted.to(difference.dtype)
    excess = torch.zeros_like(mask)
    for channels in zip(difference, variance, texture, strict=True):
        total, noise, missed = (box_sum(values * mask, scale) for values in channels)
        excess += total.square_().div_(noise.add_(missed.square_()).clamp_(min=_EPSILON))
    return excess, box_sum(mask, scale)


def box_sum(values: Tensor, side: int) -> Tensor:
    """Return the sum over a square around each pixel, (…, height, width); beyond the edge is 0.

    Parameters
    ----------
    values : Tensor
    side : int
        A power of 3: sums of three are taken, then of three of those, and so on.
    """
    for axis in (-2, -1):
        step = 1
        while step < side:
            padding = [0, 0, step, step] if axis == -2 else [step, step]
            padded = nn.functional.pad(values, padding)
            size = values.shape[axis]
            values = padded.narrow(axis, 0, size) + padded.narrow(axis, step, size)
            values += padded.narrow(axis, 2 * step, size)
            step *= 3
    return values


def opened(mask: Tensor) -> Tensor:
    """Return the binary opening of a mask (height, width) with a 3 × 3 cross; outside is neither in nor out."""
    return _grown(~_grown(~mask))


def _grown(mask: Tensor) -> Tensor:
    """Return a mask with the four neighbours of its pixels."""
    grown = mask.clone()
    grown[1:] |= mask[:-1]
    grown[:-1] |= mask[1:]
    grown[:, 1:] |= mask[:, :-1]
    grown[:, :-1] |= mask[:, 1:]
    return grown


def gamma_loss(anchor: Tensor, target: Tensor) -> Tensor:
    """Return the sum over the channels of |γ(anchor) − γ(target)|, γ(x) = x^(1/2.2) of x from 0 to 1.

    Parameters
    ----------
    anchor, target : Tensor
        (channels, height, width), floating point; the target times its gain.

    Returns
    -------
    Tensor
        (height, width).
    """
    return (anchor.clamp(0, 1).pow(GAMMA) - target.clamp(0, 1).pow(GAMMA)).abs().sum(0)
