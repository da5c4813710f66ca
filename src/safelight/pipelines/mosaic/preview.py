"""The picture that a person shows to friends: background neutral, faint structure visible, stars not burnt."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from safelight.core.files import atomic_write

MOST_PIXELS = 3000
"""Longest side of a preview; a larger mosaic is averaged down."""

_BACKGROUND = 0.12
"""Grey of the sky."""

_SOFTENING = 6.0
"""Standard deviations of noise from which asinh turns from linear to logarithmic (Lupton et al. 2004)."""

_WHITE = 99.95
"""Percentile that becomes white."""


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
    pixels = stretch(_averaged(image))
    picture = Image.fromarray(np.moveaxis(pixels, 0, -1)[::-1] if len(pixels) == 3 else pixels[0, ::-1])
    with atomic_write(path) as temporary:
        picture.save(temporary, format="png")


def stretch(image: np.ndarray) -> np.ndarray:
    """Return an image stretched with asinh, after Lupton et al., PASP 116 (2004), 133.

    All channels share one curve, a function of their mean, so that colours keep their hue; each channel's own sky
    becomes the same grey.

    Parameters
    ----------
    image : ndarray, (channels, height, width)

    Returns
    -------
    ndarray of uint8, (channels, height, width)
        NaN becomes black.
    """
    sky = np.nanmedian(image, axis=(1, 2), keepdims=True)
    above = image - sky
    noise = 1.4826 * float(np.nanmedian(np.abs(above))) or 1.0
    mean = above.mean(axis=0, keepdims=True)
    softening = _SOFTENING * noise
    white = max(float(np.nanpercentile(mean, _WHITE)), softening)
    curve = np.arcsinh(mean / softening) / np.arcsinh(white / softening)
    with np.errstate(invalid="ignore", divide="ignore"):
        gain = np.where(np.abs(mean) > noise, curve / mean, 1 / (softening * np.arcsinh(white / softening)))
    shown = _BACKGROUND + (1 - _BACKGROUND) * above * gain
    pixels: np.ndarray = np.nan_to_num(np.clip(shown, 0, 1) * 255, nan=0).round().astype(np.uint8)
    return pixels


def _averaged(image: np.ndarray) -> np.ndarray:
    """Return the image averaged over squares of pixels, small enough for a preview."""
    factor = -(-max(image.shape[1:]) // MOST_PIXELS)
    if factor == 1:
        return np.asarray(image, np.float32)
    channels, height, width = (image.shape[0], *(size // factor * factor for size in image.shape[1:]))
    squares = image[:, :height, :width].reshape(channels, height // factor, factor, width // factor, factor)
    return np.asarray(squares.mean(axis=(2, 4)), np.float32)
