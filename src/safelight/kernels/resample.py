"""An image's values between its pixels, at coordinates that a map gives for every output pixel.

Coordinates are (rows, 2, width) in the order y, x, in pixels of the source; (0, 0) is the centre of its first pixel.
Their axis 0 is that of the output, so that the Executor cuts the output into chunks of rows while the source, with
its border, stays on the device as a constant. No row depends on another: chunks of any size give the same bits.

Where a source pixel is invalid (NaN):

* bilinear leaves it out and divides by the weight of the others, if these hold at least half of the weight; else the
  result is NaN. So an invalid pixel touches only the positions less than a pixel away, and a hole neither grows nor
  shrinks by more than half a pixel. The outside counts as invalid.
* bicubic and lanczos3 have negative weights, which no division makes good: a position with an invalid pixel in its
  reach takes the bilinear value.

NaN coordinates, and those outside the source, give NaN. Values are surface brightness, light per source pixel: on a
grid s times finer the pixels of a star add up to s² times its light.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from safelight.core.kernel import Kernel, KernelInfo, Sample
from safelight.kernels.rejection import positions_of

Interpolation = Literal["bilinear", "bicubic", "lanczos3"]
INTERPOLATIONS: tuple[Interpolation, ...] = get_args(Interpolation)

BLOCK_PIXELS = 1 << 15
"""Pixels that are computed at a time: what a processor's cache holds. A GPU would be quicker with more, which its plan,
made without a device, could not know."""

BORDER = 3
LEAST_VALID_WEIGHT = 0.5
_BEYOND = 0.75  # past the outermost pixel's centre: no pixel there holds half of the weight


def with_border(image: Tensor) -> Tensor:
    """Return an image (channels, height, width) within the border of invalid pixels that ``resample`` reads."""
    return nn.functional.pad(image, (BORDER,) * 4, value=torch.nan)


def resample(coordinates: Tensor, bordered: Tensor, interpolation: Interpolation = "bilinear") -> Tensor:
    """Interpolate an image at coordinates.

    Parameters
    ----------
    coordinates : Tensor
        (rows, 2, width), floating point: y, x of the source for every output pixel.
    bordered : Tensor
        (channels, height + 6, width + 6), floating point, from ``with_border``.
    interpolation : str
        ``bilinear``, ``bicubic`` (Keys 1981 with a = −1/2, Catmull-Rom) or ``lanczos3`` (weights divided by their
        sum, so that a constant stays one).

    Returns
    -------
    Tensor
        (rows, channels, width) in the image's dtype, NaN where there is no value; a view.
    """
    rows, _, width = coordinates.shape
    planes = bordered.new_full((bordered.shape[0], rows * width), torch.nan)
    step = rows_of_block(width)
    starts = range(0, rows, step)
    for start in starts[:1] if coordinates.is_meta else starts:  # all blocks take as much memory as the first
        block = slice(start * width, (start + step) * width)
        _fill(planes[:, block], coordinates[start : start + step], bordered, interpolation)
    return planes.view(-1, rows, width).transpose(0, 1)


def rows_of_block(width: int) -> int:
    """Return how many rows are computed at a time."""
    return max(BLOCK_PIXELS // width, 1)


def resampling(image: Tensor, width: int, interpolation: Interpolation = "bilinear") -> Kernel:
    """Return ``resample`` of one image (channels, height, width) as a kernel over coordinates of a width.

    Any number of rows gives the same bits. One block is the least that is worth while, and the least from which a dry
    run can tell what further rows take.
    """
    return Kernel(
        f"resample_{interpolation}",
        partial(resample, interpolation=interpolation),
        constants=(with_border(image),),
        alignment=rows_of_block(width),
    )


class _Reader:
    """One plane's pixels around every position.

    Parameters
    ----------
    plane : Tensor
        The bordered plane, flat.
    first : Tensor
        Where the 6 × 6 pixels around each position start in it.
    stride : int
        Pixels in a bordered row.
    """

    def __init__(self, plane: Tensor, first: Tensor, stride: int) -> None:
        self._plane, self._first, self._stride = plane, first, stride

    def __call__(self, row: int, column: int) -> Tensor:
        """Return the pixel ``row``, ``column`` (−2 to 3) after the one at or before the position."""
        return self._plane[(row + 2) * self._stride + column + 2 :].index_select(0, self._first)

    def at(self, positions: Tensor) -> _Reader:
        """Return a reader for some of the positions."""
        return _Reader(self._plane, self._first.index_select(0, positions), self._stride)


def _fill(planes: Tensor, coordinates: Tensor, bordered: Tensor, interpolation: Interpolation) -> None:
    """Write the values at a block of coordinates into (channels, pixels); what has none is left."""
    height, width = (size - 2 * BORDER for size in bordered.shape[1:])
    y, x = coordinates.unbind(1)
    pixels = positions_of((_is_near(y, height) & _is_near(x, width)).flatten())
    whole_y, y = _split(y.flatten().index_select(0, pixels), bordered.dtype)
    whole_x, x = _split(x.flatten().index_select(0, pixels), bordered.dtype)
    first = (whole_y + (BORDER - 2)) * bordered.shape[2] + (whole_x + (BORDER - 2))
    weights_y, weights_x = _WEIGHTS[interpolation](y), _WEIGHTS[interpolation](x)
    for into, plane in zip(planes, bordered.flatten(1), strict=True):
        read = _Reader(plane, first, bordered.shape[2])
        values = _separable(read, weights_y, weights_x)
        holed = positions_of(values.isnan())
        near_holes = _bilinear_of_valid(read.at(holed), y.index_select(0, holed), x.index_select(0, holed))
        into.index_copy_(0, pixels, values.index_copy_(0, holed, near_holes))


def _is_near(position: Tensor, size: int) -> Tensor:
    """Return where there may be a value along an axis; NaN is nowhere."""
    return (position > -_BEYOND) & (position < size - 1 + _BEYOND)


def _split(position: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the whole and the fractional part."""
    whole = position.floor()
    return whole.long(), (position - whole).to(dtype)


def _separable(read: _Reader, weights_y: list[Tensor], weights_x: list[Tensor]) -> Tensor:
    """Return the weighted sum; NaN where any pixel in reach is invalid."""
    first = 1 - len(weights_y) // 2
    total = torch.zeros_like(weights_y[0])
    for row, weight_y in enumerate(weights_y, start=first):
        line = torch.zeros_like(total)
        for column, weight_x in enumerate(weights_x, start=first):
            line.addcmul_(read(row, column), weight_x)
        total.addcmul_(line, weight_y)
    return total


def _bilinear_of_valid(read: _Reader, y: Tensor, x: Tensor) -> Tensor:
    """Return the weighted mean of those of the next four pixels that are valid."""
    total, mass = torch.zeros_like(y), torch.zeros_like(y)
    for row, weight_y in enumerate(_linear(y)):
        for column, weight_x in enumerate(_linear(x)):
            value = read(row, column)
            invalid = value.isnan()
            weight = (weight_y * weight_x).masked_fill_(invalid, 0)
            total += value.masked_fill_(invalid, 0).mul_(weight)
            mass += weight
    return total.div_(mass.masked_fill_(mass < LEAST_VALID_WEIGHT, torch.nan))


def _linear(t: Tensor) -> list[Tensor]:
    """Return the weights of the pixels 0 and 1 for positions t past pixel 0."""
    return [1 - t, t]


def _catmull_rom(t: Tensor) -> list[Tensor]:
    """Return the weights of the pixels −1, 0, 1, 2 for positions t past pixel 0."""
    return [
        ((2 - t) * t - 1) * t / 2,
        ((3 * t - 5) * t * t + 2) / 2,
        ((4 - 3 * t) * t + 1) * t / 2,
        (t - 1) * t * t / 2,
    ]


def _lanczos3(t: Tensor) -> list[Tensor]:
    """Return the weights of the pixels −2 to 3 for positions t past pixel 0."""
    # sinc(d) sinc(d/3) with d = t − k; sin(π d) = ±sin(π t), taken from the nearer end, where it is small and precise.
    sine = torch.sin(math.pi * torch.minimum(t, 1 - t))
    weights = []
    for k in range(-2, 4):
        distance = t - k
        raw = 3 * (-1) ** k / math.pi**2 * sine * torch.sin(math.pi / 3 * distance) / distance.square()
        weights.append(torch.where(distance == 0, 1, raw))
    total = torch.zeros_like(t)
    for weight in weights:
        total += weight
    return [weight / total for weight in weights]


_WEIGHTS = {"bilinear": _linear, "bicubic": _catmull_rom, "lanczos3": _lanczos3}


def _map(height: int, width: int) -> np.ndarray:
    """Return a turned and scaled map that leaves the source on all sides, with a NaN."""
    y, x = np.mgrid[-2.0 : height + 2 : 0.61, -2.0 : width + 2 : 0.83]
    coordinates = np.stack([y + 0.02 * x, x - 0.03 * y], axis=1)
    coordinates[3, :, 4] = np.nan
    return coordinates


def _samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(0)
    for shape in ((1, 12, 17), (3, 9, 8)):
        image = 100 + 20 * torch.rand(shape, generator=generator, dtype=torch.float64)
        image[..., 4, 5] = torch.nan
        # Eighths are the same numbers in either precision, and so are the taps.
        coordinates = torch.from_numpy(np.round(_map(*shape[1:]) * 8) / 8)
        for interpolation in INTERPOLATIONS:
            yield Sample((coordinates.to(device, dtype), image.to(device, dtype), interpolation))


def _from_image(coordinates: Tensor, image: Tensor, interpolation: Interpolation) -> Tensor:
    return resample(coordinates, with_border(image), interpolation)


def _resample_oracle(coordinates: np.ndarray, image: np.ndarray, interpolation: str) -> np.ndarray:
    reach = {"bilinear": 1, "bicubic": 2, "lanczos3": 3}[interpolation]
    result = np.full((coordinates.shape[0], image.shape[0], coordinates.shape[2]), np.nan)
    for row, column in np.ndindex(*coordinates.shape[::2]):
        if np.isfinite(coordinates[row, :, column]).all():
            y, x = coordinates[row, :, column]
            for channel, plane in enumerate(image):
                result[row, channel, column] = _value_oracle(plane, y, x, reach)
    return result


def _value_oracle(plane: np.ndarray, y: float, x: float, reach: int) -> float:
    rows, columns = (np.arange(math.floor(at) + 1 - reach, math.floor(at) + 1 + reach) for at in (y, x))
    weights = np.outer(_weights_oracle(rows - y, reach), _weights_oracle(columns - x, reach))
    inside = np.outer((rows >= 0) & (rows < plane.shape[0]), (columns >= 0) & (columns < plane.shape[1]))
    values = np.where(inside, plane[np.ix_(rows % plane.shape[0], columns % plane.shape[1])], np.nan)
    valid = ~np.isnan(values)
    if reach > 1 and not valid.all():
        return _value_oracle(plane, y, x, 1)
    mass = weights[valid].sum()
    return float((weights[valid] * values[valid]).sum() / mass) if mass >= 0.5 else math.nan


def _weights_oracle(distance: np.ndarray, reach: int) -> np.ndarray:
    d = np.abs(distance)
    if reach == 1:
        weights = 1 - d
    elif reach == 2:
        weights = np.where(d <= 1, 1.5 * d**3 - 2.5 * d**2 + 1, -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2)
    else:
        weights = np.sinc(d) * np.sinc(d / 3)
    return np.asarray(weights / weights.sum())


KERNELS = (KernelInfo("resample", _from_image, _samples, _resample_oracle),)
