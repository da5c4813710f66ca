"""What drizzle needs of each frame: its own pixels, and where it was rejected; both wait in scratch files."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from safelight.core.files import output_error
from safelight.kernels.demosaic import sites
from safelight.kernels.verdicts import TOO_HIGH, TOO_LOW
from safelight.pipelines.mosaic.calibration import Calibration
from safelight.pipelines.mosaic.frames import read_calibrated
from safelight.pipelines.mosaic.groups import PlacedFrame
from safelight.pipelines.mosaic.registered import noise_of

Singles = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Drops:
    """A frame's calibrated pixels as the camera took them, in a scratch file of float32 (channels, height, width).

    Parameters
    ----------
    frame : PlacedFrame
    path : Path
    noise : tuple of float
        Standard deviation of one pixel of each colour.
    """

    frame: PlacedFrame
    path: Path
    noise: tuple[float, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        return self.frame.facts.height, self.frame.facts.width

    def read(self, y: slice, x: slice) -> Singles:
        """Return a part of the frame, (colours, rows, columns); NaN at the sites of other colours.

        The part begins at an even row and column, as the pattern does.
        """
        facts = self.frame.facts
        pixels = np.array(np.memmap(self.path, np.float32, "r", shape=(facts.channels, *self.shape))[:, y, x])
        return _by_colour(torch.from_numpy(pixels), self.frame).numpy()


def store_drops(frame: PlacedFrame, calibration: Calibration, path: Path) -> Drops:
    """Write a frame's calibrated pixels to a scratch file.

    Raises
    ------
    InputError
        The frame cannot be read any more.
    OutputError
        The scratch file cannot be written.
    """
    pixels = read_calibrated(frame.facts, calibration)
    try:
        path.write_bytes(pixels.numpy().tobytes())
    except OSError as error:
        raise output_error(path, error) from error
    return Drops(frame, path, noise_of(_by_colour(pixels, frame).transpose(0, 1)))


def _by_colour(pixels: Tensor, frame: PlacedFrame) -> Tensor:
    """Return (colours, height, width) of pixels (channels, height, width)."""
    pattern = frame.facts.pattern
    return torch.where(sites(pattern, *pixels.shape[1:]), pixels, torch.nan) if pattern else pixels


class Judged:
    """What was said of every sample of registered frames, in a scratch file (rows, frames, channels, width).

    Parameters
    ----------
    path : Path
    shape : tuple of int
    """

    def __init__(self, path: Path, shape: tuple[int, int, int, int]) -> None:
        self._path = path
        self._shape = shape

    def write(self, start: int, stop: int, result: Tensor) -> None:
        """Take rows ``start`` to ``stop``, (rows, channels, width, frames), in order."""
        try:
            with self._path.open("ab" if start else "wb") as file:
                file.write(result.permute(0, 3, 1, 2).contiguous().numpy().tobytes())
        except OSError as error:
            raise output_error(self._path, error) from error

    def counts(self, row: int) -> tuple[Singles, Singles]:
        """Return how many samples of each pixel (channels, width) of a row were too low, and too high."""
        said = self._mapped[row]
        return (said == TOO_LOW).sum(0, dtype=np.float32), (said == TOO_HIGH).sum(0, dtype=np.float32)

    def rejects(self, frame: int, y: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return in which channels a frame was rejected at positions (rows, columns); False beyond the grid."""
        height, _, channels, width = self._shape
        with np.errstate(invalid="ignore"):
            inside = (y > -0.5) & (y < height - 0.5) & (x > -0.5) & (x < width - 0.5)
        found = np.zeros((*y.shape, channels), bool)
        rows, columns = (np.rint(at[inside]).astype(np.intp) for at in (y, x))
        found[inside] = self._mapped[rows, frame, :, columns] != 0
        return np.moveaxis(found, -1, 0)

    @cached_property
    def _mapped(self) -> np.memmap:
        return np.memmap(self._path, np.uint8, "r", shape=self._shape)
