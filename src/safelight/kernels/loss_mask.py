"""Which pixels of a pair must not be learnt from: what moved between the frames, beyond what noise explains."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from safelight.core.kernel import KernelInfo, Sample
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


def moved_pixels(deviation: Tensor, missed: Tensor, usable: Tensor) -> Tensor:
    """Return where two frames differ by more than noise and interpolation explain.

    The mean difference in windows of growing size is compared with its standard deviation. What a smaller window has
    found, and what is not usable, counts in no larger one: so a strong difference does not spread over its window.

    Parameters
    ----------
    deviation : Tensor
        (channels, height, width), floating point: difference over its standard deviation by noise, which is
        independent from pixel to pixel.
    missed : Tensor
        (height, width): what interpolation may miss, in the same unit, alike over a window.
    usable : Tensor
        (height, width), bool: not clipped.

    Returns
    -------
    Tensor
        (height, width), bool.
    """
    found = torch.zeros_like(usable)
    for scale in SCALES:
        excess, number = _excess(deviation, missed, usable & ~found, scale)
        # Where few pixels are left, they say little about the middle of the window.
        found |= usable & (2 * number >= scale * scale) & (excess > SIGNIFICANCE**2)
    near = box_sum(found.to(deviation.dtype), SCALES[-1]) > 0
    return found | (usable & near & (excess > NEARBY_SIGNIFICANCE**2))


def _excess(deviation: Tensor, missed: Tensor, counted: Tensor, scale: int) -> tuple[Tensor, Tensor]:
    """Return the squared mean deviation over what is expected of it, summed over channels, and the pixels counted."""
    mask = counted.to(deviation.dtype)
    number = box_sum(mask, scale)
    expected = box_sum(missed * mask, scale).square_().add_(number).add_(_EPSILON)
    return box_sum(deviation * mask, scale).square_().sum(0).div_(expected), number


def box_sum(values: Tensor, side: int) -> Tensor:
    """Return the sum over a square around each pixel, (…, height, width); beyond the edge is 0.

    Parameters
    ----------
    values : Tensor
    side : int
        A power of 3: sums of three are taken, then of three of those, and so on.
    """
    if side == 1:
        return values
    values = nn.functional.pad(values, (side // 2,) * 4)
    for axis in (-2, -1):
        step = 1
        while step < side:
            size = values.shape[axis] - 2 * step
            total = values.narrow(axis, 0, size) + values.narrow(axis, step, size)
            values, step = total.add_(values.narrow(axis, 2 * step, size)), 3 * step
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


def _samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(0)
    for shape in ((3, 33, 40), (1, 7, 5)):
        deviation = torch.randn(shape, generator=generator, dtype=torch.float64)
        deviation[:, 2:6, 1:4] += 4
        deviation[:, 20:, 25:] += 1.2
        missed = 0.1 * torch.rand(shape[1:], generator=generator, dtype=torch.float64)
        usable = torch.rand(shape[1:], generator=generator) > 0.1
        yield Sample((deviation.to(device, dtype), missed.to(device, dtype), usable.to(device)))


def _image_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    image = torch.rand((3, 11, 9), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for shift in ((0.25, -1.5), (2.0, 0.75)):
        yield Sample((image.to(device, dtype), shift))


def _mask_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    yield Sample(((torch.rand((20, 31), generator=torch.Generator().manual_seed(0)) > 0.2).to(device),))


def _loss_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    frames = torch.rand((2, 3, 8, 9), generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 1.3 - 0.1
    anchor, target = frames.to(device, dtype)
    yield Sample((anchor, target))


def _moved_oracle(deviation: np.ndarray, missed: np.ndarray, usable: np.ndarray) -> np.ndarray:
    found = np.zeros(usable.shape, bool)
    for scale in SCALES:
        counted = usable & ~found
        excess, enough = np.zeros(usable.shape), np.zeros(usable.shape, bool)
        for y, x in np.ndindex(*usable.shape):
            window = _window(y, x, scale)
            inside = counted[window]
            sums = deviation[(slice(None), *window)][:, inside].sum(1)
            excess[y, x] = (sums**2).sum() / (inside.sum() + missed[window][inside].sum() ** 2 + _EPSILON)
            enough[y, x] = 2 * inside.sum() >= scale**2
        found |= usable & enough & (excess > SIGNIFICANCE**2)
    near = [found[_window(y, x, SCALES[-1])].any() for y, x in np.ndindex(*found.shape)]
    return np.asarray(found | (usable & np.reshape(near, found.shape) & (excess > NEARBY_SIGNIFICANCE**2)))


def _window(y: int, x: int, side: int) -> tuple[slice, slice]:
    reach = side // 2
    return slice(max(y - reach, 0), y + reach + 1), slice(max(x - reach, 0), x + reach + 1)


def _between_oracle(image: np.ndarray, shift: tuple[float, float]) -> np.ndarray:
    for axis, distance in zip((1, 2), shift, strict=True):
        places = np.arange(image.shape[axis])
        lines = [
            np.interp(places + distance, places, line) for line in np.moveaxis(image, axis, -1).reshape(-1, len(places))
        ]
        shape = np.moveaxis(image, axis, -1).shape
        image = np.moveaxis(np.reshape(lines, shape), -1, axis)
    return image


def _range_oracle(image: np.ndarray, shift: tuple[float, float]) -> np.ndarray:
    return np.array(
        [[[_ptp(plane, y, x) for x in range(image.shape[2])] for y in range(image.shape[1])] for plane in image]
    )


def _ptp(plane: np.ndarray, y: int, x: int) -> float:
    return float(np.ptp(plane[_window(y, x, 3)]))


def _range(image: Tensor, shift: tuple[float, float]) -> Tensor:
    return local_range(image)


def _opened_oracle(mask: np.ndarray) -> np.ndarray:
    cross = [(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)]

    def around(image: np.ndarray, outside: bool) -> np.ndarray:
        padded = np.pad(image, 1, constant_values=outside)
        height, width = image.shape
        return np.stack([padded[1 + y : 1 + y + height, 1 + x : 1 + x + width] for y, x in cross])

    eroded = np.asarray(around(mask, True).all(0))
    return np.asarray(around(eroded, False).any(0))


def _loss_oracle(anchor: np.ndarray, target: np.ndarray) -> np.ndarray:
    return np.asarray(
        sum(abs(np.clip(a, 0, 1) ** GAMMA - np.clip(t, 0, 1) ** GAMMA) for a, t in zip(anchor, target, strict=True))
    )


KERNELS = (
    KernelInfo("moved_pixels", moved_pixels, _samples, _moved_oracle),
    KernelInfo("between", between, _image_samples, _between_oracle),
    KernelInfo("local_range", _range, _image_samples, _range_oracle),
    KernelInfo("opened", opened, _mask_samples, _opened_oracle),
    KernelInfo("gamma_loss", gamma_loss, _loss_samples, _loss_oracle),
)
