"""The picture that a person shows to friends: the sky neutral, faint structure visible, stars white in the middle.

It is for looking at only: nothing of what is done here is done to the science file.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter, maximum_filter
from torch import nn

from safelight.core.files import atomic_write
from safelight.formats.fits import FitsImage
from safelight.pipelines.mosaic.stack_file import BAND_ROWS, bands

Floats = NDArray[np.floating]
Mask = NDArray[np.bool_]

MOST_PIXELS = 3000
"""Longest side of a preview; a larger mosaic is averaged down."""

_COMPRESSION = 4
"""Of the PNG, 0 to 9: half the time of the usual 6 for 6 % more bytes."""

_SKY = 0.12
"""Grey of the sky."""

_WHITE = 99.97
"""Percentile that becomes white."""

_SOFTENING = 5.0
"""Standard deviations of smoothed noise from which asinh turns from linear to logarithmic."""

_SMOOTHINGS = (2.0, 4.0, 8.0)
"""σ in pixels of the Gaussians that calm the sky: the first where most frames lie, the others where it is noisier."""

_NOISE_AROUND = 24.0
"""σ in pixels of the Gaussian within which noise is measured."""

_SHARPEST = 1.5
"""σ in averaged pixels from which a Gaussian is smooth enough to be computed on them."""

_NOISE_CLIP = 4.0
"""Standard deviations above which a pixel is a star's and no noise."""

_SHARP_FROM = 6.0
"""Standard deviations of smoothed noise at which the picture is half smoothed and half as it was."""

_COLOURED_FROM = 4.0
"""Standard deviations of smoothed noise at which a colour is half as strong as it was measured."""

_STAR = 40.0
"""Standard deviations of smoothed noise that a star must have to tell the white balance."""

_STAR_SIZE = 15
"""Pixels within which there is one star."""

_APERTURE = 3.0
"""σ in pixels of the Gaussian that gathers the light of a star: lenses focus one colour better than another."""

_FEWEST_STARS = 5
"""Fewer stars say nothing about white."""

_BOXES = 32
"""Boxes along the longer side, whose medians the sky is fitted to."""

_SKY_TERMS = 6
"""Terms of a polynomial of second order in x and y."""


def averaged(image: FitsImage) -> NDArray[np.float32]:
    """Return an image (channels, height, width) averaged over squares of pixels, small enough for a preview."""
    factor = -(-max(image.shape[1:]) // MOST_PIXELS)
    height, width = (size // factor for size in image.shape[1:])
    small = np.empty((image.channels, height, width), np.float32)
    for band in bands(slice(0, height), max(BAND_ROWS // factor, 1)):
        rows = image.read(slice(factor * band.start, factor * band.stop))[:, :, : factor * width]
        squares = rows.reshape(image.channels, -1, factor, width, factor)
        small[:, band] = squares.mean(axis=(2, 4))
    return small


def write_preview(path: Path, image: np.ndarray) -> None:
    """Write a stretched PNG of a mosaic.

    Parameters
    ----------
    path : Path
    image : ndarray, (channels, height, width)
        One or three channels, NaN where nothing was seen; the first row is the bottom one, as in FITS.

    Raises
    ------
    OutputError
        The file cannot be written.
    """
    pixels = stretch(image)
    picture = Image.fromarray(np.moveaxis(pixels, 0, -1)[::-1] if len(pixels) == 3 else pixels[0, ::-1])
    with atomic_write(path) as temporary:
        picture.save(temporary, format="png", compress_level=_COMPRESSION)


def stretch(image: Floats) -> NDArray[np.uint8]:
    """Return a picture of an image, the same for a·image + b with any a > 0 and b.

    The sky, a polynomial of second order, becomes grey; the median star becomes white; what is left is stretched with
    asinh after Lupton et al., PASP 116 (2004), 133: all channels share one curve, so that colours keep their hue.
    Where there is little but noise the picture is smoothed and its colour fades.

    Parameters
    ----------
    image : ndarray, (channels, height, width)

    Returns
    -------
    ndarray of uint8, (channels, height, width)
        Pixels that are NaN in any channel are black.
    """
    seen: Mask = np.asarray(np.isfinite(image).all(axis=0))
    if not seen.any():
        return np.zeros(image.shape, np.uint8)
    above = np.empty(image.shape, np.float32)
    for flat, channel in zip(above, image, strict=True):
        flat[:] = np.where(seen, channel - _sky(channel, seen), 0)
    above *= _white_balance(above, seen)
    bright = above.mean(axis=0)
    smooth = _calmed(above, _noise_around(bright, seen), seen)
    calm = smooth.mean(axis=0)
    noise = _noise(calm[seen]) or float(np.ptp(calm)) or 1.0
    sharp, coloured = _trust(calm, _SHARP_FROM * noise), _trust(calm, _COLOURED_FROM * noise)
    softening = _SOFTENING * noise
    white = max(float(np.percentile(bright[seen], _WHITE)), softening)
    curve = np.arcsinh((sharp * bright + (1 - sharp) * calm) / softening) / np.arcsinh(white / softening)
    pixels = np.empty(image.shape, np.uint8)
    for shown, channel in zip(pixels, smooth, strict=True):
        colour = 1 + coloured * (channel / np.maximum(calm, noise) - 1)
        grey = np.where(seen, _SKY + (1 - _SKY) * curve * colour, 0)
        shown[:] = (255 * np.clip(grey, 0, 1)).round()
    return pixels


def _sky(channel: Floats, seen: Mask) -> Floats:
    """Return the sky (height, width): a polynomial through the medians of boxes that lie on no nebula."""
    y, x, medians = _box_medians(channel, seen)
    if len(medians) < 2 * _SKY_TERMS:
        return np.full_like(channel, np.median(channel[seen]))
    kept = np.ones(len(medians), bool)
    for _ in range(5):
        coefficients = np.linalg.lstsq(_sky_terms(y, x)[kept], medians[kept], rcond=None)[0]
        off = medians - _sky_terms(y, x) @ coefficients
        closer = np.abs(off) <= 3 * _noise(off[kept])
        if closer.sum() < 2 * _SKY_TERMS:
            break
        kept = closer
    rows, columns = (np.linspace(-1, 1, size) for size in channel.shape)
    sky = np.empty(channel.shape, np.float32)
    for line, row in zip(sky, rows, strict=True):
        line[:] = _sky_terms(np.full_like(columns, row), columns) @ coefficients
    return sky


def _box_medians(channel: Floats, seen: Mask) -> tuple[Floats, Floats, Floats]:
    """Return where the boxes are that are seen whole, from −1 to 1 along each axis, and their medians."""
    height, width = channel.shape
    size = max(8, max(height, width) // _BOXES)
    corners = [
        (y, x)
        for y in range(0, height - size + 1, size)
        for x in range(0, width - size + 1, size)
        if seen[y : y + size, x : x + size].all()
    ]
    medians = [float(np.median(channel[y : y + size, x : x + size])) for y, x in corners]
    y, x = (np.asarray(corners, np.float64).reshape(-1, 2) + (size - 1) / 2).T
    return 2 * y / (height - 1) - 1, 2 * x / (width - 1) - 1, np.asarray(medians)


def _sky_terms(y: Floats, x: Floats) -> Floats:
    return np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1)


def _white_balance(above: Floats, seen: Mask) -> Floats:
    """Return factors (channels, 1, 1) that make the median star white; ones where there are too few stars."""
    calm = _smoothed(above.mean(axis=0), seen, _SMOOTHINGS[0])
    peaks = (calm == maximum_filter(calm, _STAR_SIZE)) & (calm > _STAR * _noise(calm[seen])) & seen
    if np.count_nonzero(peaks) < _FEWEST_STARS:
        return np.ones((len(above), 1, 1), np.float32)
    light = np.stack([_gaussian(channel, _APERTURE)[peaks] for channel in above])
    shares = np.median(light / light.mean(axis=0), axis=1)
    return np.asarray(shares.mean() / np.maximum(shares, 0.1), np.float32)[:, None, None]


def _noise_around(bright: Floats, seen: Mask) -> Floats:
    """Return how noisy the picture is around each pixel, as a multiple of what is usual; at least 1."""
    rough = np.abs(bright - _smoothed(bright, seen, _SMOOTHINGS[0]))
    usual = _noise(rough[seen]) or 1.0
    clipped = np.where(seen, np.minimum(rough, _NOISE_CLIP * usual), 0)
    around = _smoothed(clipped, seen, _NOISE_AROUND)
    return np.asarray(np.maximum(around / (float(np.median(around[seen])) or 1.0), 1), np.float32)


def _calmed(above: Floats, noise: Floats, seen: Mask) -> Floats:
    """Return channels smoothed more where it is noisier: a Gaussian of s times the σ leaves 1/s of the noise."""
    steps = np.minimum(np.log2(noise), len(_SMOOTHINGS) - 1)
    calm = np.zeros_like(above)
    for number, sigma in enumerate(_SMOOTHINGS):
        share = np.clip(1 - np.abs(steps - number), 0, 1) / _seen_around(seen, sigma)
        for into, channel in zip(calm, above, strict=True):
            into += share * _gaussian(channel, sigma)
    return calm


def _smoothed(plane: Floats, seen: Mask, sigma: float) -> Floats:
    """Return a plane smoothed over the pixels that were seen."""
    return np.asarray(_gaussian(plane, sigma) / _seen_around(seen, sigma))


def _seen_around(seen: Mask, sigma: float) -> Floats:
    """Return which share of a pixel's surroundings was seen; never 0, for it is divided by."""
    return np.asarray(np.maximum(_gaussian(seen.astype(np.float32), sigma), 1e-3))


def _gaussian(plane: Floats, sigma: float) -> Floats:
    """Return a plane smoothed by a Gaussian; by a wide one on averages of pixels, which looks the same."""
    factor = int(sigma / _SHARPEST)
    if factor <= 1:
        return np.asarray(gaussian_filter(plane, sigma))
    squares = nn.functional.avg_pool2d(torch.from_numpy(plane)[None], factor, ceil_mode=True)
    added = factor**2 / 4  # variance of the squares, factor² / 12, and of the interpolation between them, factor² / 6
    smooth = gaussian_filter(squares[0].numpy(), (sigma**2 - added) ** 0.5 / factor)
    whole = nn.functional.interpolate(torch.from_numpy(smooth)[None, None], scale_factor=factor, mode="bilinear")[0, 0]
    height, width = plane.shape
    return np.asarray(whole[:height, :width].numpy())


def _noise(values: NDArray[np.floating]) -> float:
    return 1.4826 * float(np.median(np.abs(values)))


def _trust(signal: Floats, half: float) -> Floats:
    """Return 0 without signal, ½ at ``half``, towards 1 above."""
    square = np.square(np.maximum(signal, 0) / half)
    return np.asarray(square / (1 + square), np.float32)
