"""FITS images: plain or tile-compressed (.fz), read by rows; large ones written by rows, whole or not at all.

Rows are in the file's order: the first is the first of the file. Files are opened read-only. An image may be read
from several threads as long as each opens its own.
"""

from __future__ import annotations

import math
import os
import struct
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from astropy.io import fits
from astropy.io.fits import Header
from astropy.io.fits.hdu.compressed._compression import CfitsioException  # public nowhere, and what damage raises
from astropy.utils.exceptions import AstropyWarning
from numpy.typing import NDArray

from safelight.core.errors import InputError
from safelight.core.files import Limits, atomic_write

SUFFIXES = (".fit", ".fits", ".fts", ".fit.fz", ".fits.fz", ".fts.fz")

BLOCK = 2880
"""Bytes to which FITS pads headers and data."""

MOST_HEADER_BLOCKS = 4096
"""A header of 12 MB holds 147,000 cards; a file that goes on without END is none."""

MOST_AXES = 999
"""Of the FITS standard."""

_DAMAGE = (
    *(OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, EOFError),
    *(struct.error, zlib.error, fits.VerifyError, CfitsioException),
)
_BEGIN = b"SIMPLE  ="
_END = b"END".ljust(80)
_CARD = 80
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

    Attributes
    ----------
    header : Header
        Without the cards that nobody can read, such as ``CCD-TEMP= NaN``.
    """

    def __init__(self, path: Path, hdu: Any) -> None:
        self.path = path
        self.header = Header([card for card in hdu.header.cards if _is_legible(card)])
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
            values = self._physical(stored)
        return values.reshape(self.channels, stop - start, self.shape[2])

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
    with _reading(path), path.open("rb") as file:
        _check_structure(path, file)
    with ExitStack() as stack:
        with _reading(path):
            hdus = stack.enter_context(_opened(path))
            found = [hdu for hdu in hdus if isinstance(hdu, _IMAGES) and hdu.header.get("NAXIS", 0)]
            images = {hdu.name or f"HDU{number}": FitsImage(path, hdu) for number, hdu in enumerate(found)}
        if not images:
            raise InputError("holds no image", path=path, expected="an image of two axes or three")
        yield images


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


def _is_legible(card: fits.Card) -> bool:
    try:
        return card.value is not None
    except fits.VerifyError:
        return False


def _check_structure(path: Path, file: BinaryIO) -> None:
    """Refuse headers that cannot be true, before a parser allocates or counts what they claim."""
    if file.read(len(_BEGIN)) != _BEGIN:
        raise ValueError("it does not begin like a FITS file")
    size = path.stat().st_size
    end = 0
    while end < size:
        file.seek(end)
        header = _read_header(file)
        needed = file.tell() + _data_bytes(header)
        if needed > size:
            raise InputError(
                f"is cut short: {needed} bytes are needed, there are {size}",
                path=path,
                expected="a whole file",
                remedy="copy it again",
            )
        if header.get("ZIMAGE"):
            Limits().check_claim(path, _pixel_bytes(header, "Z", "ZNAXIS"), compressed=True)
            Limits().check_claim(path, _pixel_bytes(header, "Z", "ZTILE"), compressed=True)
        end = -(-needed // BLOCK) * BLOCK


def _read_header(file: BinaryIO) -> Header:
    blocks = []
    for _ in range(MOST_HEADER_BLOCKS):
        block = file.read(BLOCK)
        if len(block) < BLOCK:
            break
        blocks.append(block)
        if any(block[start : start + _CARD] == _END for start in range(0, BLOCK, _CARD)):
            return Header.fromstring(b"".join(blocks).decode("ascii", "replace").replace("\ufffd", "?"))
    raise ValueError("its header has no end")


def _data_bytes(header: Header) -> int:
    """Return the size of the data behind a header, without padding."""
    heap, groups = int(header.get("PCOUNT", 0)), int(header.get("GCOUNT", 1))
    if heap < 0 or groups < 0:
        raise ValueError(f"PCOUNT is {heap}, GCOUNT is {groups}")
    return groups * (_pixel_bytes(header, "", "NAXIS") + heap * abs(int(header["BITPIX"])) // 8)


def _pixel_bytes(header: Header, prefix: str, name: str) -> int:
    """Return the size of the pixels that axes claim; axes of tiles are 1 where they are not given."""
    bits, axes = int(header[f"{prefix}BITPIX"]), int(header[f"{prefix}NAXIS"])
    if bits not in (8, 16, 32, 64, -32, -64) or not 0 <= axes <= MOST_AXES:
        raise ValueError(f"{prefix}BITPIX is {bits}, {prefix}NAXIS is {axes}")
    keys = [f"{name}{axis}" for axis in range(1, axes + 1)]
    sizes = [int(header.get(key, 1) if name == "ZTILE" else header[key]) for key in keys]
    if any(size < 0 for size in sizes):
        raise ValueError(f"{name} is {sizes}")
    return math.prod(sizes) * abs(bits) // 8 if sizes else 0


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what astropy raises on a damaged file into an InputError that names it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AstropyWarning)  # oddities of headers; damage was looked for before
            yield
    except _DAMAGE as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(
            f"cannot be read: {' '.join(reason.split()) or type(error).__name__}",
            path=path,
            expected="a whole, valid FITS image",
            remedy="check whether it was copied whole",
        ) from error
