"""PNG of 8 or 16 bits: grey, colour, with or without transparency."""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import imagecodecs
import numpy as np

from safelight.core.errors import InputError, OutputError
from safelight.core.files import Limits
from safelight.formats.microscopy.image import Content, DecodedOnce
from safelight.formats.microscopy.writing import Canvas, Layout, Writer, in_memory

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}


def read(path: Path, limits: Limits, resources: ExitStack) -> Content:
    """Open a PNG of 1 to 16 bits; colour and transparency are the channels of a last axis."""
    shape, dtype = _header(path)
    size = math.prod(shape) * dtype.itemsize
    limits.check_claim(path, size, compressed=True)
    pixels = DecodedOnce(
        shape,
        dtype,
        lambda: imagecodecs.png_decode(path.read_bytes()),
        lambda: limits.check_allocation(path, size),
    )
    return Content(pixels, "YXC" if len(shape) == 3 else "YX")


def _header(path: Path) -> tuple[tuple[int, ...], np.dtype[Any]]:
    with path.open("rb") as stream:
        start = stream.read(33)
        if start[:8] != _SIGNATURE or start[12:16] != b"IHDR" or len(start) < 33:
            raise InputError("it does not begin like a PNG", path=path, expected="a PNG image")
        width, height, bits, colour = struct.unpack(">IIBB", start[16:26])
        transparent = colour not in (4, 6) and _has_transparency(stream)
    channels = _CHANNELS[colour] + transparent
    shape = (height, width) if channels == 1 else (height, width, channels)
    return shape, np.dtype(np.uint16 if bits == 16 else np.uint8)


def _has_transparency(stream: IO[bytes]) -> bool:
    """Return whether a tRNS chunk, which the decoder turns into one more channel, comes before the pixels."""
    while len(head := stream.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind in (b"tRNS", b"IDAT"):
            return bool(kind == b"tRNS")
        stream.seek(length + 4, io.SEEK_CUR)
    return False


@contextmanager
def _create(path: Path, layout: Layout) -> Iterator[Canvas]:
    with in_memory(path, layout, lambda array: bytes(imagecodecs.png_encode(array))) as canvas:
        yield canvas


def _check(path: Path, layout: Layout) -> None:
    if layout.dtype not in (np.uint8, np.uint16):
        raise OutputError(
            f"PNG cannot hold {layout.dtype}",
            path=path,
            expected="uint8 or uint16",
            remedy="use --dtype input where the input is PNG, or --format tif",
        )
    channels = layout.shape[2] if layout.axes == "YXC" else 1
    if layout.axes not in ("YX", "YXC") or channels not in (1, 2, 3, 4):
        raise OutputError(
            f"PNG cannot hold axes {layout.axes} of sizes {layout.shape}",
            path=path,
            expected="YX, or YXC of at most 4 channels",
            remedy="use --format tif",
        )


def _held(path: Path, layout: Layout) -> set[str]:
    return set()


WRITER = Writer(_create, _held, _check)
