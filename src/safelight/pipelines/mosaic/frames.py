"""Read one frame as the stack takes it, and measure its stars; what was measured is kept in case the run is stopped."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from safelight.core.errors import InputError
from safelight.core.files import atomic_write, digest
from safelight.formats.arrays import read_arrays
from safelight.formats.fits import open_fits
from safelight.kernels.demosaic import demosaic
from safelight.pipelines.mosaic.calibration import Calibration
from safelight.pipelines.mosaic.discovery import FrameFacts
from safelight.pipelines.mosaic.stars import StarField, measure_stars

GREEN = 1
"""The channel that stars are measured in: it has most sites of a Bayer array and most light."""

_ARRAYS = ("x", "y", "flux", "fwhm", "saturated")
_NUMBERS = ("width", "height", "background", "noise")


def read_frame(facts: FrameFacts, calibration: Calibration) -> Tensor:
    """Return a frame calibrated and demosaiced, (channels, height, width) float32 with NaN where nothing was measured.

    Raises
    ------
    InputError
        The frame is damaged, or does not fit its calibration.
    """
    pixels = read_calibrated(facts, calibration)
    return demosaic(pixels[0], facts.pattern) if facts.pattern else pixels


def read_calibrated(facts: FrameFacts, calibration: Calibration) -> Tensor:
    """Return a frame calibrated, its colours still in one array: (channels, height, width) float32.

    Raises
    ------
    InputError
        As ``read_frame``.
    """
    with open_fits(facts.path) as image:
        return torch.from_numpy(calibration.apply(image.read(), facts))


def luminance_channel(channels: int) -> int:
    """Return the channel that stars are measured in."""
    return GREEN if channels == 3 else 0


def luminance(image: Tensor) -> np.ndarray:
    """Return the picture that stars are measured in, (height, width)."""
    return image[luminance_channel(len(image))].numpy()


def stars_of(facts: FrameFacts, calibration: Calibration, cache: Path) -> StarField:
    """Return the stars of a frame, from the cache where they were measured before.

    Parameters
    ----------
    facts : FrameFacts
    calibration : Calibration
    cache : Path
        Folder of what was measured.

    Raises
    ------
    InputError
        The frame is damaged or holds no stars.
    """
    key = json.dumps([digest(facts.path), facts.pattern, calibration.digest])
    path = cache / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz"
    if (known := _load(path)) is not None:
        return known
    field = measure_stars(luminance(read_frame(facts, calibration)), saturation=facts.saturation)
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **{name: getattr(field, name) for name in (*_ARRAYS, *_NUMBERS)})
    return field


def _load(path: Path) -> StarField | None:
    """Return what was measured before; None where nothing was, or where it is damaged and must be measured again."""
    try:
        stored = read_arrays(path)
        x, y, flux, fwhm, saturated = (stored[name] for name in _ARRAYS)
        width, height, background, noise = (stored[name].item() for name in _NUMBERS)
    except (InputError, KeyError, ValueError):
        return None
    return StarField(x, y, flux, fwhm, saturated, width, height, background, noise)
