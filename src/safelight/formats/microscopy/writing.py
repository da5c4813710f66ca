"""What every writer is given, and what it gives back."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from safelight.core.errors import InputError, OutputError
from safelight.core.events import Event
from safelight.core.files import Limits
from safelight.formats.microscopy.image import Metadata, Slices, within


@dataclass(frozen=True)
class Layout:
    """The image that is to be written.

    Parameters
    ----------
    shape : tuple of int
    axes : str
        One letter of STCZYX per axis.
    dtype : numpy.dtype
    metadata : Metadata
    """

    shape: tuple[int, ...]
    axes: str
    dtype: np.dtype[Any]
    metadata: Metadata = field(default_factory=Metadata)

    @property
    def nbytes(self) -> int:
        """Size of all pixels."""
        return math.prod(self.shape) * self.dtype.itemsize


class Canvas(Protocol):
    """An array of which regions can be written."""

    def __setitem__(self, region: Slices, array: np.ndarray, /) -> None:
        """Write a region."""


class ImageWriter:
    """An image that is being written, region by region, in any order; regions never written are 0.

    Attributes
    ----------
    notices : tuple of Event
        What the format cannot hold. Whoever writes the file emits them.
    """

    def __init__(self, layout: Layout, canvas: Canvas, notices: tuple[Event, ...]) -> None:
        self._layout = layout
        self._canvas = canvas
        self.notices = notices

    def write(self, slices: Slices, array: np.ndarray) -> None:
        """Write a region.

        Parameters
        ----------
        slices : tuple of slice
            One per axis, of step 1.
        array : ndarray
            Of the region's shape and of the image's type: convert it with ``to_dtype`` first.
        """
        region = within(slices, self._layout.shape)
        shape = tuple(part.stop - part.start for part in region)
        if array.shape != shape or array.dtype != self._layout.dtype:
            raise ValueError(f"{array.dtype} {array.shape} does not fit a region of {self._layout.dtype} {shape}")
        self._canvas[region] = array


@dataclass(frozen=True)
class Writer:
    """How one format is written.

    Parameters
    ----------
    create : callable
        ``(temporary, layout)``: a context that yields the canvas and completes the file when it ends.
    held : callable
        ``(path, layout) -> set of str``: the entries of the metadata that the format keeps.
    check : callable
        ``(path, layout)``: raises OutputError when the format cannot hold the image.
    folder : bool
        Whether an image is a folder.
    """

    create: Callable[[Path, Layout], AbstractContextManager[Canvas]]
    held: Callable[[Path, Layout], set[str]]
    check: Callable[[Path, Layout], None] = lambda path, layout: None
    folder: bool = False

    def notices(self, path: Path, layout: Layout) -> tuple[Event, ...]:
        """Return an event for metadata that gets lost."""
        lost = sorted(layout.metadata.known() - self.held(path, layout))
        if not lost:
            return ()
        return (Event("metadata_not_kept", data={"file": str(path), "entries": list(lost)}),)


@contextmanager
def in_memory(path: Path, layout: Layout, encode: Callable[[np.ndarray], bytes]) -> Iterator[Canvas]:
    """Yield an array; when it is filled, write its encoding."""
    try:
        Limits().check_allocation(path, layout.nbytes)
    except InputError as error:
        raise OutputError(error.problem, path=path, remedy="write OME-Zarr or TIFF") from error
    array = np.zeros(layout.shape, layout.dtype)
    yield array
    path.write_bytes(encode(array))
