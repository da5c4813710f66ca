"""NumPy's ``.npz``: the array ``image``, and its ``axes`` and ``metadata`` where Safelight wrote it."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from safelight.core.errors import InputError
from safelight.core.files import Limits
from safelight.formats.microscopy.image import Content, DecodedOnce, Metadata, parse_metadata
from safelight.formats.microscopy.npy import read_header
from safelight.formats.microscopy.writing import Canvas, Layout, Writer, in_memory

_TEXT_BYTES = 1 << 20


def read(path: Path, limits: Limits, resources: ExitStack) -> Content:
    """Open the array called ``image``, or the only one; ``axes`` and ``metadata`` where it has them."""
    archive = resources.enter_context(zipfile.ZipFile(path))
    names = [name.removesuffix(".npy") for name in archive.namelist()]
    name = _image_name(path, names)
    with archive.open(f"{name}.npy") as stream:
        header = read_header(path, stream)
    limits.check_claim(path, header.nbytes, compressed=True)

    def decode() -> np.ndarray:
        with archive.open(f"{name}.npy") as stream:
            return np.lib.format.read_array(stream, allow_pickle=False)

    pixels = DecodedOnce(header.shape, header.dtype, decode, lambda: limits.check_allocation(path, header.nbytes))
    axes = _text(archive, "axes") if "axes" in names else None
    metadata = _text(archive, "metadata") if "metadata" in names else None
    return Content(pixels, axes, parse_metadata(path, metadata))


def _image_name(path: Path, names: list[str]) -> str:
    if "image" in names:
        return "image"
    if len(names) == 1:
        return names[0]
    raise InputError(
        f"it holds {len(names)} arrays: {', '.join(sorted(names)[:5])}{', ...' if len(names) > 5 else ''}",
        path=path,
        expected="one array, or one called image",
        remedy="save each image in a file of its own",
    )


def _text(archive: zipfile.ZipFile, name: str) -> str:
    with archive.open(f"{name}.npy") as stream:
        text = io.BytesIO(stream.read(_TEXT_BYTES))
    return str(np.lib.format.read_array(text, allow_pickle=False))


@contextmanager
def _create(path: Path, layout: Layout) -> Iterator[Canvas]:
    def encode(array: np.ndarray) -> bytes:
        target = io.BytesIO()
        np.savez(target, image=array, axes=layout.axes, metadata=layout.metadata.model_dump_json(exclude_defaults=True))
        return target.getvalue()

    with in_memory(path, layout, encode) as canvas:
        yield canvas


def _held(path: Path, layout: Layout) -> set[str]:
    return set(Metadata.model_fields) - {"imagej"}


WRITER = Writer(_create, _held)
