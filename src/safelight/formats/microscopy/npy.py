"""NumPy's ``.npy``: one array, no axes, no metadata."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from safelight.core.errors import UnsafeInputError
from safelight.core.files import Limits
from safelight.formats.microscopy.image import Content
from safelight.formats.microscopy.pixels import RawArray
from safelight.formats.microscopy.writing import Canvas, Layout, Writer

_HEADER_BYTES = 1 << 16


def read(path: Path, limits: Limits, resources: ExitStack) -> Content:
    """Open a ``.npy`` file as a memory map; it says nothing about axes."""
    with path.open("rb") as stream:
        header = read_header(path, stream)
    limits.check_claim(path, header.offset + header.nbytes, compressed=False)
    if 0 in header.shape:
        return Content(np.empty(header.shape, header.dtype), None)
    order: Literal["F", "C"] = "F" if header.fortran else "C"
    return Content(np.memmap(path, header.dtype, "r", header.offset, header.shape, order), None)


@dataclass(frozen=True)
class Header:
    """What the header of an array in NumPy's format says.

    Parameters
    ----------
    offset : int
        Where the pixels begin, in bytes.
    shape : tuple of int
    fortran : bool
        Whether the first axis is the fastest.
    dtype : numpy.dtype
    """

    offset: int
    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """Size of all pixels."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(path: Path, stream: IO[bytes]) -> Header:
    """Return the header of an array in NumPy's format.

    Raises
    ------
    UnsafeInputError
        It holds pickled objects.
    """
    start = io.BytesIO(stream.read(_HEADER_BYTES))  # a header may claim 4 GiB for itself
    version = np.lib.format.read_magic(start)
    parse = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = parse(start)
    if dtype.hasobject:
        raise UnsafeInputError("it holds pickled Python objects, which could run code", path=path)
    return Header(start.tell(), shape, fortran, dtype)


@contextmanager
def _create(path: Path, layout: Layout) -> Iterator[Canvas]:
    header = {"descr": np.lib.format.dtype_to_descr(layout.dtype), "fortran_order": False, "shape": layout.shape}
    with path.open("w+b") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        offset = stream.tell()
        stream.truncate(offset + layout.nbytes)
        yield RawArray(stream, offset, layout.shape, layout.dtype)


def _held(path: Path, layout: Layout) -> set[str]:
    return set()


WRITER = Writer(_create, _held)
