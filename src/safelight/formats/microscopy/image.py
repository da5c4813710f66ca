"""What an image file is: lazy pixels, axes, and the metadata that survives from file to file."""

from __future__ import annotations

import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Literal, Protocol, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from safelight.core.errors import InputError, UnsafeInputError
from safelight.core.events import Event
from safelight.core.files import Limits

Slices = tuple[slice, ...]
Micrometres = Annotated[float, Field(gt=0, allow_inf_nan=False)]

# What the parsers of tifffile, zarr, imagecodecs and NumPy raise on a damaged file.
PARSER_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


class Channel(BaseModel):
    """One channel: its name, its display colour (``RRGGBB``) and its wavelengths in nanometres."""

    model_config = ConfigDict(frozen=True)

    name: str = ""
    color: Annotated[str, Field(pattern="^[0-9A-Fa-f]{6}$")] | None = None
    emission: Annotated[float, Field(gt=0)] | None = None
    excitation: Annotated[float, Field(gt=0)] | None = None


class Metadata(BaseModel):
    """What is known about an image besides its pixels and axes.

    Parameters
    ----------
    name : str
    description : str
        Free text of the microscope or the user.
    acquired : str
        Date and time of the acquisition, ISO 8601.
    pixel_size : mapping
        Micrometres per pixel, for those of the axes Z, Y and X where it is known.
    time_interval : float, optional
        Seconds between time points.
    channels : tuple of Channel
    flavour : str
        The variant of the format that the file has: ``imagej``, ``ome`` or ``shaped`` TIFF; ``0.4`` or ``0.5``
        OME-Zarr. A result is written in the same one where it can be.
    imagej : mapping
        ImageJ's display settings; kept from ImageJ file to ImageJ file.
    """

    model_config = ConfigDict(frozen=True)

    name: str = ""
    description: str = ""
    acquired: str = ""
    pixel_size: Mapping[Literal["Z", "Y", "X"], Micrometres] = Field(default_factory=dict)
    time_interval: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    channels: tuple[Channel, ...] = ()
    flavour: str = Field("", exclude=True)
    imagej: Mapping[str, Any] = Field(default_factory=dict, exclude=True)

    def known(self) -> set[str]:
        """Return the names of the entries that say something."""
        return {
            name
            for name, entry in type(self).model_fields.items()
            if name != "flavour" and getattr(self, name) != entry.get_default(call_default_factory=True)
        }


class Pixels(Protocol):
    """An array of which regions can be read: a memory map, a zarr array."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Size of each axis."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the pixels."""

    def __getitem__(self, slices: Slices) -> Any:
        """Return a region."""


class DecodedOnce:
    """Pixels that can only be decoded all at once: the first region decodes them."""

    def __init__(
        self, shape: tuple[int, ...], dtype: np.dtype[Any], decode: Callable[[], np.ndarray], check: Callable[[], None]
    ) -> None:
        self.shape = shape
        self.dtype = dtype
        self._decode = decode
        self._check = check

    @cached_property
    def _array(self) -> np.ndarray:
        self._check()
        array = self._decode()
        if array.shape != self.shape or array.dtype != self.dtype:
            raise ValueError(f"it holds {array.dtype} {array.shape}, its header says {self.dtype} {self.shape}")
        return array

    def __getitem__(self, slices: Slices) -> np.ndarray:
        return self._array[slices]


class Expanded:
    """Pixels with further axes of size 1, which a format implies rather than stores.

    Parameters
    ----------
    pixels : Pixels
    axes : tuple of int
        Where the further axes are in the result.
    """

    def __init__(self, pixels: Pixels, axes: tuple[int, ...]) -> None:
        shape = list(pixels.shape)
        for axis in axes:
            shape.insert(axis, 1)
        self.shape = tuple(shape)
        self.dtype = pixels.dtype
        self._pixels = pixels
        self._axes = axes

    def __getitem__(self, slices: Slices) -> np.ndarray:
        stored = tuple(part for axis, part in enumerate(slices) if axis not in self._axes)
        added = tuple(part if axis in self._axes else slice(None) for axis, part in enumerate(slices))
        return np.expand_dims(self._pixels[stored], self._axes)[added]


@dataclass(frozen=True)
class Content:
    """What a reader found in a file.

    Parameters
    ----------
    pixels : Pixels
    axes : str, optional
        One letter per axis as the file names them; letters that STCZYX lacks are unknown. None: it does not say.
    metadata : Metadata
    notices : tuple of Event
        What had to be decided or left out.
    """

    pixels: Pixels
    axes: str | None
    metadata: Metadata = field(default_factory=Metadata)
    notices: tuple[Event, ...] = ()


class ImageFile:
    """An open image file. Its pixels are read in parts; it is a context manager that closes the file.

    Attributes
    ----------
    path : Path
    shape : tuple of int
        Size of each axis, in the file's own order.
    axes : str
        One letter of STCZYX per axis: sample, time, channel, depth, row, column.
    dtype : numpy.dtype
        Type of the pixels in native byte order; one-bit images are uint8.
    metadata : Metadata
    notices : tuple of Event
        What was decided about this file without being asked (axes assumed, further images left out, ...). Whoever
        opens the file emits them.
    """

    def __init__(self, path: Path, content: Content, axes: str, limits: Limits) -> None:
        self.path = path
        self.shape = tuple(int(size) for size in content.pixels.shape)
        self.axes = axes
        self.dtype = _pixel_type(path, content.pixels.dtype)
        self.metadata = content.metadata
        self.notices = content.notices
        self._pixels: Pixels | None = content.pixels
        self._limits = limits
        self._resources = ExitStack()

    def own(self, resources: ExitStack) -> None:
        """Take over what has to be closed with the image."""
        self._resources = resources

    @property
    def pixel_size(self) -> Mapping[Literal["Z", "Y", "X"], float]:
        """Micrometres per pixel, for those of the axes Z, Y and X where it is known."""
        return self.metadata.pixel_size

    @property
    def nbytes(self) -> int:
        """Size of all pixels."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self, slices: Slices | None = None) -> np.ndarray:
        """Return a region, or all of the image, as a new array in native byte order.

        Parameters
        ----------
        slices : tuple of slice, optional
            One per axis, of step 1. The region keeps all axes.

        Raises
        ------
        InputError
            The file is damaged.
        UnsafeInputError
            The region is larger than memory.
        """
        if self._pixels is None:
            raise ValueError(f"{self.path} is closed")
        region = whole(self.shape) if slices is None else within(slices, self.shape)
        size = math.prod(part.stop - part.start for part in region) * self.dtype.itemsize
        self._limits.check_allocation(self.path, size)
        with reading(self.path):
            return np.array(self._pixels[region], dtype=self.dtype, order="C")

    def close(self) -> None:
        """Close the file; it cannot be read any more."""
        self._pixels = None
        self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def parse_metadata(path: Path, text: str | None) -> Metadata:
    """Return the metadata that a file of ours holds as JSON.

    Raises
    ------
    InputError
        It is not what we wrote.
    """
    if text is None:
        return Metadata()
    try:
        return Metadata.model_validate_json(text)
    except ValidationError as error:
        raise InputError(f"its metadata are damaged: {error.errors()[0]['msg']}", path=path) from error


def _pixel_type(path: Path, dtype: np.dtype[Any]) -> np.dtype[Any]:
    if dtype.hasobject:
        raise UnsafeInputError(f"it holds Python objects ({dtype}), which could run code", path=path)
    if dtype.kind not in "buif":
        raise InputError(
            f"pixels of type {dtype}", path=path, expected="whole or real numbers", remedy="convert it first"
        )
    return np.dtype(np.uint8) if dtype.kind == "b" else dtype.newbyteorder("=")


def whole(shape: tuple[int, ...]) -> Slices:
    """Return the slices of everything."""
    return tuple(slice(0, size) for size in shape)


def within(slices: Slices, shape: tuple[int, ...]) -> Slices:
    """Return slices with explicit ends, as NumPy would clip them to a shape."""
    if len(slices) != len(shape) or any(part.step not in (None, 1) for part in slices):
        raise ValueError(f"{slices} is not one slice of step 1 for each axis of {shape}")
    ends = [part.indices(size) for part, size in zip(slices, shape, strict=True)]
    return tuple(slice(start, max(start, stop)) for start, stop, _ in ends)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what parsers raise on a damaged file into an InputError that names it."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except PARSER_ERRORS as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(
            f"cannot be read: {reason or type(error).__name__}",
            path=path,
            expected="a whole, valid image file",
            remedy="check whether it was copied whole and opens in ImageJ",
        ) from error
