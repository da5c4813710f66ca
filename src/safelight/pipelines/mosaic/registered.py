"""Registered frames: each is resampled once onto the grid of its group and waits in a scratch file to be stacked.

Hundreds of frames so never are in memory at once.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from safelight.core.execute import Executor
from safelight.core.files import output_error
from safelight.kernels.feather import radial_weights
from safelight.kernels.normalisation import MAD_TO_SIGMA
from safelight.kernels.resample import resampling
from safelight.pipelines.mosaic.calibration import Calibration
from safelight.pipelines.mosaic.frames import read_frame
from safelight.pipelines.mosaic.groups import Group, PlacedFrame
from safelight.pipelines.mosaic.mapping import CoordinateSource, sky_transform
from safelight.pipelines.mosaic.options import RunOptions

BACKGROUND_SAMPLES = 1 << 16
"""Pixels of a frame that its level is taken from."""

STAR_LIMIT = 3.0
"""Standard deviations above the level from which a sample is star and not background."""

_NOISE_LAG = 4
"""Pixels between the samples of a difference: nearer ones share measured pixels since demosaicing and resampling."""

_NOISE_SAMPLES = 1 << 18

_ROWS_AT_A_TIME = 256
"""Rows that are resampled together: more would be no faster."""


@dataclass(frozen=True)
class RegisteredFrame:
    """A frame on the grid of its group, in a scratch file of float32 (rows, planes, width).

    Its planes are the channels and, with radial weights, how much each pixel counts.

    Parameters
    ----------
    name : str
    path : Path
    shape : tuple of int
        (rows, planes, width).
    noise : tuple of float
        Standard deviation of one resampled pixel, per channel: as many as there are channels.
    fwhm : float
        Of its stars, in pixels of the frame.
    """

    name: str
    path: Path
    shape: tuple[int, int, int]
    noise: tuple[float, ...]
    fwhm: float

    def read_into(self, rows: NDArray[np.float32], start: int) -> None:
        """Fill (rows, planes, width) from row ``start`` on."""
        with self.path.open("rb") as file:
            file.seek(start * rows[0].nbytes)
            file.readinto(rows.data)

    def window(self, channel: int, rows: slice, columns: slice) -> NDArray[np.float32]:
        """Return a part of one channel, (rows, columns)."""
        return np.array(self._mapped()[rows, channel, columns])

    def background(self) -> Tensor:
        """Return evenly spread samples of each channel, (channels, n), NaN where there is nothing or a star."""
        rows, _, width = self.shape
        channels = len(self.noise)
        step = max(round((rows * width / BACKGROUND_SAMPLES) ** 0.5), 1)
        spread_out = self._mapped()[::step, :channels, ::step]
        samples = torch.from_numpy(np.moveaxis(spread_out, 1, 0).reshape(channels, -1).copy())
        level = samples.nanmedian(1, keepdim=True).values
        spread = MAD_TO_SIGMA * (samples - level).abs().nanmedian(1, keepdim=True).values
        return samples.masked_fill(samples > level + STAR_LIMIT * spread, torch.nan)

    def _mapped(self) -> np.memmap:
        return np.memmap(self.path, np.float32, "r", shape=self.shape)


class _RegisteredSink:
    """Appends rows (rows, planes, width) to a scratch file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, start: int, stop: int, result: Tensor) -> None:
        """Take rows ``start`` to ``stop``, in order."""
        self._file.write(result.contiguous().numpy().data)


def register_frame(
    frame: PlacedFrame,
    group: Group,
    calibration: Calibration,
    options: RunOptions,
    path: Path,
    executor: Executor,
) -> RegisteredFrame:
    """Resample a frame, with its radial weights if there are any, onto the grid of its group, into a scratch file.

    Raises
    ------
    InputError
        The frame cannot be read any more.
    OutputError
        The scratch file cannot be written.
    """
    image = read_frame(frame.facts, calibration)
    channels = len(image)
    size = (frame.facts.height, frame.facts.width)
    if has_weights(options):
        weights = radial_weights(*size, options.radial_feather, options.radial_power)
        image = torch.cat([image, weights[None]])
    source = CoordinateSource(sky_transform(group.wcs, frame.wcs, size), group.shape, size)
    try:
        with path.open("wb") as file:
            kernel = resampling(image, group.shape[1], options.interpolation)
            executor.map(kernel, source, _RegisteredSink(file), most_rows=_ROWS_AT_A_TIME)
    except OSError as error:
        raise output_error(path, error) from error
    shape = (group.shape[0], len(image), group.shape[1])
    noise = noise_of(torch.from_numpy(np.memmap(path, np.float32, "c", shape=shape))[:, :channels])
    return RegisteredFrame(frame.name, path, shape, noise, frame.field.median_fwhm)


def has_weights(options: RunOptions) -> bool:
    """Return whether registered frames carry radial weights; to drizzle, the frames' own pixels are weighed."""
    return options.radial_weight and options.drizzle is None


def noise_of(rows: Tensor) -> tuple[float, ...]:
    """Return the standard deviation of one pixel of each channel of (rows, channels, width).

    It is taken from differences of pixels in a row, so that gradients do not count, and robustly, so that stars do
    not.
    """
    height, _, width = rows.shape
    differences = height * (width - _NOISE_LAG)
    y, x = np.divmod(np.arange(0, differences, max(differences // _NOISE_SAMPLES, 1)), width - _NOISE_LAG)
    samples = (rows[y, :, x + _NOISE_LAG] - rows[y, :, x]).transpose(0, 1)
    deviations = (samples - samples.nanmedian(1, keepdim=True).values).abs()
    return tuple(float(value) for value in MAD_TO_SIGMA * deviations.nanmedian(1).values / 2**0.5)


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder for registered frames, gone afterwards however the work ends."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
