"""The stack of one group on the disk: a FITS file with one image for each plane."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from astropy.io.fits import Header
from astropy.wcs import WCS
from numpy.typing import NDArray
from torch import Tensor

from safelight.formats.fits import FitsImage, FitsWriter, create_fits, open_planes
from safelight.kernels.combine import PLANES

BAND_ROWS = 512
"""Rows that are read at a time where the Executor does not choose."""

_EXTENSIONS = {"n_eff": "NEFF", "count": "COVERAGE"}
"""The names in the field of those planes whose own are others."""


def bands(rows: slice, size: int = BAND_ROWS) -> Iterator[slice]:
    """Yield the parts of rows that are read at a time."""
    for start in range(rows.start, rows.stop, size):
        yield slice(start, min(start + size, rows.stop))


class StackFile:
    """The planes of a stack, read by rows.

    Parameters
    ----------
    path : Path
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stack = ExitStack()
        self._planes: dict[str, FitsImage] = {}

    def __enter__(self) -> Self:
        self._planes = self._stack.enter_context(open_planes(self.path))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def channels(self) -> int:
        """1 or 3."""
        return self._planes[_extension(PLANES[0])].channels

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        return self._planes[_extension(PLANES[0])].shape[1:]

    def read(self, plane: str, rows: slice = slice(None)) -> NDArray[np.float32]:
        """Return rows of a plane, (channels, rows, width); ``plane`` is a name of ``combine.PLANES``."""
        return self._planes[_extension(plane)].read(rows)

    def window(self, plane: str, channel: int, rows: slice, columns: slice) -> NDArray[np.float32]:
        """Return a part of one channel of a plane, (rows, columns); no more than a band is read besides."""
        return np.concatenate([self.read(plane, band)[channel, :, columns].copy() for band in bands(rows)])


class PlanesSink:
    """Writes rows (rows, planes, channels, width) to the planes of a file."""

    def __init__(self, writer: FitsWriter, planes: tuple[str, ...]) -> None:
        self._writer = writer
        self._planes = planes

    def write(self, start: int, stop: int, result: Tensor) -> None:
        """Write rows ``start`` to ``stop``."""
        for number, name in enumerate(self._planes):
            self._writer.write(_extension(name), start, result[:, number].transpose(0, 1).numpy())


@contextmanager
def create_stack(
    path: Path, planes: tuple[str, ...], shape: tuple[int, int, int], wcs: WCS, facts: dict[str, object]
) -> Iterator[PlanesSink]:
    """Write planes (channels, height, width) by rows, each with the WCS; the file appears whole or not at all.

    Parameters
    ----------
    path : Path
    planes : tuple of str
        Names in the order of the rows that are written; the first is the primary image.
    shape : tuple of int
    wcs : WCS
        Of the pixels.
    facts : dict
        More cards for every header.

    Raises
    ------
    OutputError
        The file cannot be written.
    """
    header = wcs_header(wcs)
    for name, value in facts.items():
        header[name] = value
    with create_fits(path, {_extension(name): (shape, header) for name in planes}) as writer:
        yield PlanesSink(writer, planes)


def wcs_header(wcs: WCS) -> Header:
    """Return the cards of a WCS, SIP included."""
    return wcs.to_header(relax=True)


def _extension(plane: str) -> str:
    """Return the name that a plane has in files."""
    return _EXTENSIONS.get(plane, plane.upper())
