"""FITS images: plain or tile-compressed (.fz), read by rows; large ones written by rows, whole or not at all.

Rows are in the file's order: the first is the first of the file. Files are opened read-only. An image may be read
from several threads as long as each opens its own.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from astropy.io import fits
from astropy.io.fits import Header
from astropy.utils.exceptions import AstropyUserWarning, AstropyWarning
from numpy.typing import NDArray

from safelight.core.errors import InputError
from safelight.core.files import Limits, atomic_write

SUFFIXES = (".fit", ".fits", ".fts", ".fit.fz", ".fits.fz", ".fts.fz")

BLOCK = 2880
"""Bytes to which FITS pads headers and data."""

_PARSER_ERRORS = (OSError, ValueError, TypeError, KeyError, IndexError, OverflowError, EOFError, fits.VerifyError)
_IMAGES = (fits.PrimaryHDU, fits.ImageHDU, fits.CompImageHDU)


def is_fits_name(path: Path) -> bool:
    """Return whether a file is called like a FITS image."""
    return path.name.lower().endswith(SUFFIXES)


class FitsImage:
    """One image of an open file.

    Parameters
    ----------
    path : Path
    hdu : HDU of astropy
    """

    def __init__(self, path: Path, hdu: Any) -> None:
        self.path = path
        self.header: Header = hdu.header
        self._hdu = hdu
        self.shape: tuple[int, int, int] = _shape(path, hdu)

    @property
    def channels(self) -> int:
        """1, or the length of the third axis."""
        return self.shape[0]

    def read(self, rows: slice = slice(None)) -> NDArray[np.float32]:
        """Return rows as physical values, (channels, rows, width) float32; NaN where BLANK or NaN.

        Raises
        ------
        InputError
            The pixels are damaged or missing.
        UnsafeInputError
            There are more than fit in memory.
        """
        start, stop, _ = rows.indices(self.shape[1])
        Limits().check_allocation(self.path, self.channels * (stop - start) * self.shape[2] * 8)
        with _reading(self.path):
            stored = np.asarray(self._hdu.section[..., start:stop, :])
        return self._physical(stored).reshape(self.channels, stop - start, self.shape[2])

    def _physical(self, stored: NDArray[np.generic]) -> NDArray[np.float32]:
        """Return physical values: BSCALE, BZERO and BLANK applied, in double precision."""
        scale, zero, blank = (self.header.get(name) for name in ("BSCALE", "BZERO", "BLANK"))
        values = np.asarray(stored, np.float64) * (1 if scale is None else scale) + (zero or 0)
        if blank is not None and stored.dtype.kind in "iu":
            values[stored == blank] = np.nan
        return values.astype(np.float32)


@contextmanager
def open_fits(path: Path) -> Iterator[FitsImage]:
    """Open the first image of a file.

    Raises
    ------
    InputError
        The file is missing, is no FITS file, is cut short, or holds no image of two axes or three.
    UnsafeInputError
        Its header claims more pixels than the file can hold.
    """
    with open_planes(path) as images:
        yield next(iter(images.values()))


@contextmanager
def open_planes(path: Path) -> Iterator[dict[str, FitsImage]]:
    """Open all images of a file by their EXTNAME, in the file's order.

    Raises
    ------
    InputError, UnsafeInputError
        As for ``open_fits``.
    """
    if not path.is_file():
        problem = "is not a file" if path.exists() else "does not exist"
        raise InputError(problem, path=path, expected="a FITS image", remedy="check the path")
    with ExitStack() as stack:
        with _reading(path):
            hdus = stack.enter_context(_opened(path))
            found = [hdu for hdu in hdus if isinstance(hdu, _IMAGES) and hdu.header.get("NAXIS", 0)]
        if not found:
            raise InputError("holds no image", path=path, expected="an image of two axes or three")
        for hdu in found:
            _check_size(path, hdu)
        yield {hdu.name or f"HDU{number}": FitsImage(path, hdu) for number, hdu in enumerate(found)}


def _opened(path: Path) -> fits.HDUList:
    # Without a memory map resident memory stays what is read; values are scaled here, exactly.
    return fits.open(path, mode="readonly", memmap=False, lazy_load_hdus=True, do_not_scale_image_data=True)


@dataclass(frozen=True)
class Plane:
    """Where an image of float32 lies in the file that is being written."""

    shape: tuple[int, ...]
    offset: int


class FitsWriter:
    """Images of float32 that are written by rows."""

    def __init__(self, file: BinaryIO, planes: Mapping[str, Plane]) -> None:
        self._file = file
        self._planes = planes

    def write(self, name: str, start: int, block: NDArray[np.float32]) -> None:
        """Write rows (channels, rows, width) of an image, ``start`` being the first."""
        plane = self._planes[name]
        height, width = plane.shape[-2:]
        for channel, rows in enumerate(block.reshape(-1, *block.shape[-2:])):
            self._file.seek(plane.offset + (channel * height + start) * width * 4)
            self._file.write(np.ascontiguousarray(rows, ">f4").tobytes())


@contextmanager
def create_fits(path: Path, images: Mapping[str, tuple[tuple[int, ...], Header]]) -> Iterator[FitsWriter]:
    """Write a file of float32 images by rows. It appears whole, at the end, or not at all.

    Parameters
    ----------
    path : Path
    images : mapping
        Shape, (height, width) or (channels, height, width), and header of each image by its EXTNAME; the first one
        is the primary.

    Raises
    ------
    OutputError
        The file cannot be written, for instance because the disk is full; its space is taken before the first row.
    """
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        planes = {}
        for number, (name, (shape, header)) in enumerate(images.items()):
            file.write(_header_bytes(name, shape, header, first=number == 0, extended=len(images) > 1))
            planes[name] = Plane(shape, file.tell())
            _reserve(file, math.prod(shape) * 4)
        yield FitsWriter(file, planes)


def _header_bytes(name: str, shape: tuple[int, ...], header: Header, *, first: bool, extended: bool) -> bytes:
    """Return the header of a float32 image, padded."""
    full = Header()
    full["SIMPLE" if first else "XTENSION"] = True if first else "IMAGE"
    full["BITPIX"] = -32
    full["NAXIS"] = len(shape)
    for axis, size in enumerate(reversed(shape), start=1):
        full[f"NAXIS{axis}"] = size
    if first:
        full["EXTEND"] = extended
    else:
        full["PCOUNT"], full["GCOUNT"] = 0, 1
    full["EXTNAME"] = name
    structure = {*full, "BSCALE", "BZERO", "BLANK", "XTENSION", "SIMPLE", "EXTEND", "PCOUNT", "GCOUNT"}
    full.extend((card for card in header.cards if card.keyword not in structure), strip=False)
    text: str = full.tostring(sep="", endcard=True, padding=True)
    return text.encode("ascii")


def _reserve(file: BinaryIO, size: int) -> None:
    """Take the space of an image and go behind it, so that a full disk shows now and not after hours."""
    padded = -(-size // BLOCK) * BLOCK
    start = file.tell()
    file.flush()
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), start, padded)
    else:
        file.truncate(start + padded)
    file.seek(start + padded)


def _shape(path: Path, hdu: Any) -> tuple[int, int, int]:
    shape = tuple(hdu.shape)
    if len(shape) == 2:
        shape = (1, *shape)
    if len(shape) != 3 or min(shape) < 1:
        raise InputError(f"an image of shape {shape}", path=path, expected="two axes, or three with the channels")
    return shape


def _check_size(path: Path, hdu: Any) -> None:
    """Refuse what cannot be true before anything is allocated."""
    header = hdu.header
    claimed = math.prod(hdu.shape) * abs(int(header["BITPIX"])) // 8
    compressed = isinstance(hdu, fits.CompImageHDU)
    Limits().check_claim(path, claimed, compressed)
    end = 0 if compressed else hdu.fileinfo()["datLoc"] + claimed
    if end > path.stat().st_size:
        raise InputError(
            f"is cut short: {end} bytes are needed, there are {path.stat().st_size}",
            path=path,
            expected="a whole file",
            remedy="copy it again",
        )


class _Quiet:
    """astropy's warnings about a file: those of damage become errors, the others say nothing that matters here."""

    def __enter__(self) -> Self:
        self._caught = warnings.catch_warnings()
        self._caught.__enter__()
        warnings.simplefilter("ignore", AstropyWarning)
        warnings.filterwarnings("error", ".*truncated.*", AstropyUserWarning)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._caught.__exit__(kind, error, trace)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what astropy raises on a damaged file into an InputError that names it."""
    try:
        with _Quiet():
            yield
    except (InputError, MemoryError):
        raise
    except (*_PARSER_ERRORS, AstropyUserWarning) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(
            f"cannot be read: {' '.join(reason.split()) or type(error).__name__}",
            path=path,
            expected="a whole, valid FITS image",
            remedy="check whether it was copied whole",
        ) from error
