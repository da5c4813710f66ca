"""Which pixels of a pair must not be learnt from: what moved between the frames, beyond what noise explains."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from safelight.core.kernel import KernelInfo, Sample

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


def shift_weights(shift: tuple[float, float], reach: int) -> Tensor:
    """Return the weights for ``between`` that interpolate linearly at a shift (dy, dx) of at most ``reach``."""
    places = np.arange(-reach, reach + 1)
    return torch.from_numpy(np.stack([np.clip(1 - abs(places - distance), 0, None) for distance in shift])).float()


def between(image: Tensor, weights: Tensor) -> Tensor:
    """Return an image at a shift: ``image[…, y + dy, x + dx]``; the edge is repeated outside.

    Parameters
    ----------
    image : Tensor
        (…, height, width), floating point.
    weights : Tensor
        (2, 2 · reach + 1): of the rows and of the columns around, see ``shift_weights``. Numbers that change from
        pair to pair are a tensor, so that a kernel's dry run serves them all.
    """
    reach = weights.shape[1] // 2
    for axis, along in zip((-2, -1), weights, strict=True):
        size = image.shape[axis]
        places = torch.arange(-reach, size + reach, device=image.device).clamp(0, size - 1)
        image = _weighted(image.index_select(axis, places), along, axis)
    return image


def _weighted(values: Tensor, weights: Tensor, axis: int) -> Tensor:
    """Return the weighted sum of neighbours along an axis, without padding."""
    size = values.shape[axis] - len(weights) + 1
    total = values.narrow(axis, 0, size) * weights[0]
    for place, weight in enumerate(weights[1:], start=1):
        total.addcmul_(values.narrow(axis, place, size), weight)
    return total


def local_range(image: Tensor) -> Tensor:
    """Return the largest difference within each pixel's 3 × 3 neighbourhood, (channels, height, width)."""
    padded = nn.functional.pad(image[None], (1, 1, 1, 1), mode="replicate")[0]
    return _along_both(padded, torch.maximum).sub_(_along_both(padded, torch.minimum))


def _along_both(padded: Tensor, extreme: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Return the extreme of three rows and three columns; row by row, which is fast where pooling is not."""
    rows = extreme(extreme(padded[:, :-2], padded[:, 1:-1]), padded[:, 2:])
    return extreme(extreme(rows[..., :-2], rows[..., 1:-1]), rows[..., 2:])


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
        yield Sample((image.to(device, dtype), shift_weights(shift, 2).to(device, dtype)))


def _images(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    yield from (Sample(sample.arguments[:1]) for sample in _image_samples(device, dtype))


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


def _between_oracle(image: np.ndarray, weights: np.ndarray) -> np.ndarray:
    reach = weights.shape[1] // 2
    for axis, distance in zip((1, 2), weights @ np.arange(-reach, reach + 1), strict=True):
        places = np.arange(image.shape[axis])
        lines = [
            np.interp(places + distance, places, line) for line in np.moveaxis(image, axis, -1).reshape(-1, len(places))
        ]
        shape = np.moveaxis(image, axis, -1).shape
        image = np.moveaxis(np.reshape(lines, shape), -1, axis)
    return image


def _range_oracle(image: np.ndarray) -> np.ndarray:
    return np.array(
        [[[_ptp(plane, y, x) for x in range(image.shape[2])] for y in range(image.shape[1])] for plane in image]
    )


def _ptp(plane: np.ndarray, y: int, x: int) -> float:
    return float(np.ptp(plane[_window(y, x, 3)]))


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
    KernelInfo("local_range", local_range, _images, _range_oracle),
    KernelInfo("opened", opened, _mask_samples, _opened_oracle),
    KernelInfo("gamma_loss", gamma_loss, _loss_samples, _loss_oracle),
)
