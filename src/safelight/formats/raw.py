"""Camera RAW files, read with LibRaw: the mosaic as the sensor measured it, and what is needed to understand it.

Nothing is demosaiced, scaled or rotated. A header is checked against the file before anything of its size is
allocated. LibRaw lets other threads run while it decodes: read in threads, each its own file.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from safelight.core.errors import InputError, UsageError
from safelight.core.files import Limits

Sensor = Literal["bayer", "x-trans"]
PerColour = tuple[float, float, float, float]
"""One number for each of the colours 0 to 3."""

SUFFIXES = (
    *(".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff", ".iiq", ".kdc", ".mef", ".mos", ".mrw"),
    *(".nef", ".nrw", ".orf", ".pef", ".raf", ".rw2", ".rwl", ".sr2", ".srf", ".srw"),
)
"""Without ``.raw`` and ``.bin``: LibRaw guesses what headerless files are by their size, and says nothing."""

EXPANSION = 64.0
"""Most bytes of pixels per byte of a file: a black frame takes one bit of 16 with lossless JPEG, less when zipped."""

_LARGEST_TILE = 6
SRGB_FROM_XYZ = np.array(
    [[3.2404542, -1.5371385, -0.4985314], [-0.9692660, 1.8760108, 0.0415560], [0.0556434, -0.2040259, 1.0572252]]
)
"""IEC 61966-2-1, white D65."""

_MAKE, _MODEL = 271, 272
_ASCII = 2
_MOST_TAGS = 1000
_POINTER = b"version https://git-lfs.github.com/spec/"


@dataclass(frozen=True)
class RawSize:
    """What a header claims, read without decoding.

    Parameters
    ----------
    height, width : int
        Of the visible area, in pixels.
    raw_height, raw_width : int
        Of all that is decoded, masked pixels at the margins included.
    """

    height: int
    width: int
    raw_height: int
    raw_width: int

    @property
    def decoded_bytes(self) -> int:
        """What LibRaw allocates for the pixels."""
        return self.raw_height * self.raw_width * np.dtype(np.uint16).itemsize


@dataclass(frozen=True)
class RawFrame:
    """A decoded frame. Colours are numbers: 0 red, 1 green, 2 blue, 3 the second green of a Bayer sensor.

    Parameters
    ----------
    mosaic : ndarray
        (H, W) uint16, the visible area, unscaled, not rotated.
    pattern : ndarray
        Colours of the first (2, 2) or (6, 6) pixels of ``mosaic``; they repeat.
    black : tuple of float
        Level without light, by colour.
    white : float
        Level of 1 on the linear scale.
    clipping : tuple of float
        Level of a full pixel, by colour; below ``white`` for some cameras.
    white_balance : tuple of float
        Factors by colour as the camera chose them, green 1.
    rgb_xyz_matrix : ndarray
        (4, 3) float, from XYZ to the camera's colours. Of a camera that LibRaw does not know from what the file says,
        each row up to a factor; zero where it says nothing.
    iso : int, optional
    exposure : float, optional
        In seconds.
    camera : str
        Maker and model, empty where the header has none that is known.
    flip : int
        How the picture is to be turned for people, as LibRaw says it.
    """

    mosaic: NDArray[np.uint16]
    pattern: NDArray[np.uint8]
    black: PerColour
    white: float
    clipping: PerColour
    white_balance: PerColour
    rgb_xyz_matrix: NDArray[np.float64]
    iso: int | None = None
    exposure: float | None = None
    camera: str = ""
    flip: int = 0

    @property
    def sensor(self) -> Sensor:
        """Which colour filter array."""
        return "bayer" if len(self.pattern) == 2 else "x-trans"


def is_raw_name(path: Path) -> bool:
    """Return whether a file is called like a RAW file that says what it is."""
    return path.suffix.lower() in SUFFIXES


def read_raw_size(path: Path, limits: Limits | None = None) -> RawSize:
    """Read how large a file claims to be, without decoding it.

    Raises
    ------
    InputError
        The file is missing, empty, cut off in its header, a git-LFS pointer, or no RAW file.
    UnsafeInputError
        Its header claims more pixels than the file can hold or memory allows.
    UsageError
        rawpy is not installed.
    """
    with _opened(path) as raw:
        return _checked_size(path, raw, limits or _limits())


def read_raw(path: Path, limits: Limits | None = None) -> RawFrame:
    """Decode a file.

    Parameters
    ----------
    path : Path
    limits : Limits, optional
        By default what the host's memory allows.

    Raises
    ------
    InputError
        As for ``read_raw_size``; or the pixels are damaged, or of a sensor that is neither Bayer nor X-Trans.
    UnsafeInputError
        As for ``read_raw_size``.
    UsageError
        rawpy is not installed.
    """
    with _opened(path) as raw:
        size = _checked_size(path, raw, limits or _limits())
        return _frame(path, raw, size)


def _limits() -> Limits:
    return Limits(expansion=EXPANSION)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a file; whatever LibRaw finds wrong in the block, at its first look at the pixels too, names the file."""
    rawpy = _rawpy()
    if not path.is_file():
        problem = "is not a file" if path.exists() else "does not exist"
        raise InputError(problem, path=path, expected="a RAW file", remedy="check the path")
    if not is_raw_name(path):
        raise InputError(
            f"{path.suffix or 'no'} suffix of a RAW file", path=path, expected=f"one of {', '.join(SUFFIXES)}"
        )
    _refuse_pointer(path)
    try:
        with rawpy.imread(str(path)) as raw:
            yield raw
    except rawpy.LibRawError as error:
        raise _as_input_error(path, error, rawpy) from error


def _rawpy() -> Any:
    try:
        import rawpy
    except ImportError as error:
        raise UsageError("RAW files need rawpy", remedy="pip install 'safelight[raw]'") from error
    return rawpy


def _refuse_pointer(path: Path) -> None:
    try:
        with path.open("rb") as file:
            begin = file.read(len(_POINTER))
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", path=path) from error
    if not begin:
        raise InputError("is empty", path=path, expected="a RAW file", remedy="copy it again")
    if begin == _POINTER:
        raise InputError("is a git-LFS pointer, not the file itself", path=path, remedy="git lfs pull")


def _as_input_error(path: Path, error: Exception, rawpy: Any) -> InputError:
    if isinstance(error, rawpy.LibRawFileUnsupportedError):
        return InputError("is no RAW file that LibRaw knows", path=path, expected="a RAW file")
    if isinstance(error, rawpy.LibRawTooBigError):
        return InputError("its header claims more pixels than LibRaw allocates (2 GB)", path=path)
    if isinstance(error, rawpy.LibRawIOError):
        return InputError("is cut off", path=path, expected="a whole file", remedy="copy it again")
    reason = error.args[0].decode() if error.args and isinstance(error.args[0], bytes) else str(error)
    return InputError(f"cannot be decoded: {reason}", path=path)


def _checked_size(path: Path, raw: Any, limits: Limits) -> RawSize:
    sizes = raw.sizes
    size = RawSize(sizes.height, sizes.width, sizes.raw_height, sizes.raw_width)
    limits.check_claim(path, size.decoded_bytes, compressed=True)
    limits.check_allocation(path, 2 * size.decoded_bytes)  # LibRaw's and our copy
    return size


def _frame(path: Path, raw: Any, size: RawSize) -> RawFrame:
    if raw.raw_type.name != "Flat" or raw.raw_pattern is None:
        raise InputError(
            "has no mosaic: a linear, sRAW, Foveon or monochrome file", path=path, expected="a Bayer or X-Trans mosaic"
        )
    sizes = raw.sizes
    top, left = sizes.top_margin, sizes.left_margin
    view = raw.raw_image[top : top + size.height, left : left + size.width]
    white = float(raw.white_level)
    clipping = [
        min(float(level), white) if level else white for level in raw.camera_white_level_per_channel or (0,) * 4
    ]
    return RawFrame(
        mosaic=view.copy(),  # a view of what LibRaw frees
        pattern=_pattern(path, raw),
        black=_per_colour(raw.black_level_per_channel),
        white=white,
        clipping=_per_colour(clipping),
        white_balance=_white_balance(raw.camera_whitebalance),
        rgb_xyz_matrix=_rgb_xyz_matrix(raw),
        iso=round(raw.other.iso_speed) or None,
        exposure=raw.other.shutter_speed or None,
        camera=_camera(path),
        flip=sizes.flip,
    )


def _per_colour(levels: Sequence[float]) -> PerColour:
    red, green, blue, second = (float(level) for level in levels)
    return red, green, blue, second


def _rgb_xyz_matrix(raw: Any) -> NDArray[np.float64]:
    known = np.array(raw.rgb_xyz_matrix, np.float64)
    srgb_from_camera = np.array(raw.color_matrix, np.float64)[:3, :3]
    if known.any() or np.linalg.matrix_rank(srgb_from_camera) < 3:
        return known
    return np.vstack([np.linalg.inv(srgb_from_camera) @ SRGB_FROM_XYZ, np.zeros(3)])


def _pattern(path: Path, raw: Any) -> NDArray[np.uint8]:
    """Return the colours of the first visible pixels, two or six rows of them.

    Asked for pixel by pixel: rawpy's own tables are of the whole frame, and wrong for X-Trans with large margins.
    """
    if raw.num_colors != 3:
        raise InputError(
            f"its sensor has {raw.num_colors} colour(s)", path=path, expected="red, green and blue: Bayer or X-Trans"
        )
    top, left = raw.sizes.top_margin, raw.sizes.left_margin
    colours = np.array(
        [[raw.raw_color(top + y, left + x) for x in range(_LARGEST_TILE)] for y in range(_LARGEST_TILE)], np.uint8
    )
    cell = colours[:2, :2]
    if sorted(cell.flat) == [0, 1, 2, 3] and (colours == np.tile(cell, (3, 3))).all():
        return cell.copy()
    if [int((colours == colour).sum()) for colour in range(4)] == [8, 20, 8, 0]:
        return colours
    raise InputError("its colour filter array is neither Bayer nor X-Trans", path=path, expected="one of the two")


def _white_balance(factors: Any) -> PerColour:
    """Return the camera's factors with green 1; all 1 where it says nothing."""
    red, green, blue, second = (float(factor) for factor in factors)
    if min(red, green, blue) <= 0:
        return 1.0, 1.0, 1.0, 1.0
    return red / green, 1.0, blue / green, (second or green) / green


def _camera(path: Path) -> str:
    """Return maker and model from the first directory of a TIFF-like file, or from a RAF's header; else nothing."""
    with path.open("rb") as file:
        begin = file.read(60)
        if begin.startswith(b"FUJIFILM"):
            return f"Fujifilm {_text(begin[28:])}"
        try:
            tags = _ascii_tags(file, begin)
        except (struct.error, UnicodeError):
            return ""
    maker, model = tags.get(_MAKE, ""), tags.get(_MODEL, "")
    return model if model.lower().startswith(maker.lower()) else f"{maker} {model}".strip()


def _ascii_tags(file: BinaryIO, begin: bytes) -> dict[int, str]:
    """Return maker and model of a file that begins like a TIFF; the number after the byte order differs by maker."""
    order = {b"II": "<", b"MM": ">"}.get(begin[:2])
    if order is None:
        return {}
    file.seek(struct.unpack_from(f"{order}I", begin, 4)[0])
    (count,) = struct.unpack(f"{order}H", file.read(2))
    entries = file.read(12 * min(count, _MOST_TAGS))
    found = {}
    for tag, kind, length, place in struct.iter_unpack(f"{order}HHII", entries):
        if tag in (_MAKE, _MODEL) and kind == _ASCII and length > 4:
            file.seek(place)
            found[tag] = _text(file.read(min(length, 64)))
    return found


def _text(stored: bytes) -> str:
    return stored.partition(b"\0")[0].decode("ascii", "replace").strip()
