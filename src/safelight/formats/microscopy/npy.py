"""NumPy's ``.npy``: one array, no axes, no metadata."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from safelight.core.errors import UnsafeInputError
from safelight.core.files import Limits
from safelight.formats.microscopy.image import Content
from safelight.formats.microscopy.pixels import RawArray
from safelight.formats.microscopy.writing import Canvas, Layout, Writer


def read(path: Path, limits: Limits, resources: ExitStack) -> Content:
    """Open a ``.npy`` file as a memory map; it says nothing about axes."""
    with path.open("rb") as stream:
        shape, fortran, dtype = read_header(path, stream)
        offset = stream.tell()
    limits.check_claim(path, offset + math.prod(shape) * dtype.itemsize, compressed=False)
    if 0 in shape:
        return Content(np.empty(shape, dtype), None)
    return Content(np.memmap(path, dtype, "r", offset, shape, "F" if fortran else "C"), None)


def read_header(path: Path, stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return shape, whether in Fortran order, and type of an array in NumPy's format.

    Raises
    ------
    UnsafeInputError
        It holds pickled objects.
    """
    version = np.lib.format.read_magic(stream)
    parse = {(1, 0): np.lib.format.read_array_header_1_0}.get(version, np.lib.format.read_array_header_2_0)
    shape, fortran, dtype = parse(stream)
    if dtype.hasobject:
        raise UnsafeInputError("it holds pickled Python objects, which could run code", path=path)
    return shape, fortran, dtype


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
