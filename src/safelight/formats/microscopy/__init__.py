"""Microscopy images: TIFF, OME-TIFF, ImageJ hyperstacks, OME-Zarr, PNG and NumPy, with axes and metadata.

``open_image`` knows shape, axes and pixel size without reading the pixels, which come by regions; ``create_image``
writes by regions; both work on images larger than memory. ``find_images`` says which files an input names. What was
decided without being asked comes back as events (``notices``) for the caller to emit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from safelight.core.errors import InputError, OutputError, SafelightError, UsageError
from safelight.core.events import Event
from safelight.core.files import Limits, atomic_folder, atomic_write
from safelight.formats.microscopy.axes import check, implied, settle
from safelight.formats.microscopy.discovery import SUFFIXES, FoundImages, find_images, is_image
from safelight.formats.microscopy.image import Channel, Content, Expanded, ImageFile, Metadata, Slices, reading, whole
from safelight.formats.microscopy.pixels import Conversion, to_dtype
from safelight.formats.microscopy.writing import ImageWriter, Layout, Writer

__all__ = [
    "Channel",
    "Conversion",
    "FoundImages",
    "ImageFile",
    "ImageWriter",
    "Metadata",
    "Slices",
    "check_output",
    "create_image",
    "find_images",
    "open_image",
    "to_dtype",
    "write_image",
]

_Reader = Callable[[Path, Limits, ExitStack], Content]


_FORMATS = {".tif": "tiff", ".tiff": "tiff", ".png": "png", ".npy": "npy", ".npz": "npz", ".zarr": "ome_zarr"}


def open_image(path: str | Path, axes: str | None = None, *, limits: Limits | None = None) -> ImageFile:
    """Open an image; its pixels are read later, by regions. Use it as a context manager.

    Parameters
    ----------
    path : str or Path
        A file, or the folder of an OME-Zarr.
    axes : str, optional
        One letter of STCZYX per axis, in the file's order; the file's own by default. Axes of size 1 that the file
        does not have may be named too.
    limits : Limits, optional
        How large it may claim to be.

    Raises
    ------
    InputError
        It is missing, damaged or of another kind, or its axes are unknown.
    UnsafeInputError
        It claims more than it holds, needs code to be run, or leads out of its folder.
    UsageError
        A package that this format needs is missing.
    """
    path, limits = Path(path), limits or Limits()
    if not path.exists():
        raise InputError("does not exist", path=path, expected="an image", remedy="check the path")
    read: _Reader = _format(path, InputError).read
    with ExitStack() as resources, reading(path):
        content = read(path, limits, resources)
        if further := implied(content.axes, axes):
            content = replace(content, pixels=Expanded(content.pixels, further))
        settled, assumed = settle(path, tuple(content.pixels.shape), content.axes, axes)
        image = ImageFile(path, content, settled, limits)
        image.notices += assumed
        image.own(resources.pop_all())
    return image


def check_output(
    path: str | Path,
    shape: tuple[int, ...],
    axes: str,
    dtype: np.dtype[Any] | type | str,
    metadata: Metadata | None = None,
) -> tuple[Event, ...]:
    """Refuse, before anything is computed, an image that the format named by the suffix cannot hold.

    Parameters
    ----------
    path : str or Path
        Ends in ``.tif``, ``.tiff``, ``.ome.tif``, ``.zarr``, ``.ome.zarr``, ``.npy``, ``.npz`` or ``.png``.
    shape : tuple of int
    axes : str
        One letter of STCZYX per axis.
    dtype : dtype
    metadata : Metadata, optional

    Returns
    -------
    notices : tuple of Event
        What the format will not keep.

    Raises
    ------
    OutputError
        The format cannot hold the image, or there is no such format.
    UsageError
        A package that this format needs is missing.
    """
    path, layout = Path(path), Layout(shape, axes, np.dtype(dtype), metadata or Metadata())
    check(path, shape, axes)
    writer: Writer = _format(path, OutputError).WRITER
    writer.check(path, layout)
    return writer.notices(path, layout)


@contextmanager
def create_image(
    path: str | Path,
    shape: tuple[int, ...],
    axes: str,
    dtype: np.dtype[Any] | type | str,
    metadata: Metadata | None = None,
) -> Iterator[ImageWriter]:
    """Write an image by regions; it appears under its name, whole, when the block succeeds, else not at all.

    A ``.tif`` gets the flavour of ``metadata`` (ImageJ by default), or one that can hold the image: ImageJ knows 8 and
    16-bit whole and 32-bit real numbers up to 4 GiB, OME-TIFF no axis S; above 4 GiB it is a BigTIFF. Both imply axes
    of size 1 rather than keep them. OME-Zarr, TIFF and ``.npy`` may be larger than memory.

    Parameters
    ----------
    path, shape, axes, dtype, metadata
        As for ``check_output``.

    Yields
    ------
    ImageWriter

    Raises
    ------
    OutputError
        The format cannot hold the image, or the file cannot be written.
    """
    notices = check_output(path, shape, axes, dtype, metadata)
    path, layout = Path(path), Layout(shape, axes, np.dtype(dtype), metadata or Metadata())
    writer: Writer = _format(path, OutputError).WRITER
    atomic = atomic_folder if writer.folder else atomic_write
    with atomic(path) as temporary, writer.create(temporary, layout) as canvas:
        yield ImageWriter(layout, canvas, notices)


def write_image(path: str | Path, array: np.ndarray, axes: str, metadata: Metadata | None = None) -> tuple[Event, ...]:
    """Write an image in one go; see ``create_image``.

    Parameters
    ----------
    path : str or Path
    array : ndarray
        In the type to be written: convert it with ``to_dtype`` first.
    axes : str
        One letter of STCZYX per axis.
    metadata : Metadata, optional

    Returns
    -------
    notices : tuple of Event
        What the format did not keep.

    Raises
    ------
    OutputError
        The format cannot hold the image, or the file cannot be written.
    """
    with create_image(path, array.shape, axes, array.dtype, metadata) as image:
        image.write(whole(array.shape), array)
    return image.notices


def _format(path: Path, error: type[SafelightError]) -> Any:
    """Return the module of a path's format; it is imported now, with the packages that it needs."""
    name = "ome_zarr" if path.is_dir() and is_image(path) else _FORMATS.get(path.suffix.lower())
    if name is None:
        raise error(
            f"{path.suffix or 'no suffix'!r} is not a format that is known",
            path=path,
            expected=", ".join(SUFFIXES),
            remedy="use OME-TIFF or OME-Zarr",
        )
    try:
        return import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as missing:
        if str(missing.name).startswith("safelight"):
            raise
        raise UsageError(
            f"reading and writing {path.suffix} needs the package {missing.name}, which is not installed",
            path=path,
            remedy="pip install 'safelight[micro]'",
        ) from missing
