"""What the headers of frames say, and which frames cannot be part of a mosaic."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from astropy.coordinates import Angle
from astropy.io.fits import Header
from astropy.units import UnitsError

from safelight.core.errors import InputError, SafelightError
from safelight.core.events import Severity
from safelight.core.pipeline import Refusal
from safelight.formats.fits import is_fits_name, open_planes
from safelight.kernels.demosaic import Pattern, flipped, shifted
from safelight.pipelines.mosaic.options import BayerPattern

ARCSECONDS_PER_RADIAN = 206_264.806
MICRONS_PER_MILLIMETRE = 1000.0
CALIBRATION_TYPES = ("BIAS", "DARK", "FLAT", "OFFSET")
"""Words that IMAGETYP has for frames that show no sky, such as "Dark Frame" or "Master Flat"."""


class UnwantedError(InputError):
    """A frame is sound, but no part of this mosaic: leaving it out is no failure."""


@dataclass(frozen=True)
class FrameFacts:
    """What the header of a frame says.

    Parameters
    ----------
    path : Path
    width, height : int
        In pixels.
    channels : int
        Of the image in the file: 1 for a monochrome or Bayer frame, 3 for colours.
    pattern : str, optional
        Bayer pattern of the first pixels in the file; None without a colour filter array.
    exposure : float
        In seconds, NaN if unknown.
    filter, date, object : str
        FILTER, DATE-OBS and OBJECT, empty if unknown.
    ra, dec : float, optional
        Where the telescope was meant to point, in degrees.
    scale : float, optional
        Arc seconds per pixel, from focal length and pixel size.
    saturation : float, optional
        Level of a full pixel in a frame of whole numbers.
    image_type : str
        IMAGETYP, empty if unknown.
    images : int
        How many images the file has; the first is the frame.
    """

    path: Path
    width: int
    height: int
    channels: int
    pattern: Pattern | None = None
    exposure: float = math.nan
    filter: str = ""
    date: str = ""
    object: str = ""
    ra: float | None = None
    dec: float | None = None
    scale: float | None = None
    saturation: float | None = None
    image_type: str = ""
    images: int = 1

    @property
    def colours(self) -> int:
        """Channels once demosaiced."""
        return 3 if self.pattern else self.channels

    @property
    def kind(self) -> tuple[Hashable, ...]:
        """What all frames of a mosaic have in common."""
        return self.width, self.height, self.colours, self.filter


def find_frames(
    folder: Path, bayer_pattern: BayerPattern, own: Path | None = None
) -> tuple[list[FrameFacts], list[Refusal]]:
    """Read the headers of all FITS files of a folder and its subfolders, or of one file.

    Frames of another size, number of colours or filter than most are left out; of two equal halves the one that holds
    the first frame by name stays.

    Parameters
    ----------
    folder : Path
    bayer_pattern : str
        See ``read_facts``.
    own : Path, optional
        A folder that is not searched: the run's own, which may lie within.

    Returns
    -------
    tuple
        Frames in the order of their paths, and what was left out with the reason.

    Raises
    ------
    InputError
        The folder does not exist.
    """
    if not folder.exists():
        raise InputError("does not exist", path=folder, expected="a folder of FITS frames", remedy="check the path")
    found = [folder] if folder.is_file() else sorted(path for path in folder.rglob("*") if _is_candidate(path, folder))
    paths = [path for path in found if own is None or own.absolute() not in path.absolute().parents]
    frames: list[FrameFacts] = []
    refused: list[Refusal] = []
    seen: dict[Path, Path] = {}
    for path in paths:
        try:
            other = seen.setdefault(path.resolve(), path)
            if other is not path:
                raise UnwantedError(f"is the same file as {other}", path=path)
            frames.append(_light(read_facts(path, bayer_pattern)))
        except SafelightError as error:
            severity = Severity.WARNING if isinstance(error, UnwantedError) else Severity.ERROR
            refused.append(Refusal(path.name, error, severity))
    alike, others = _most_alike(frames)
    return alike, refused + others


def read_facts(path: Path, bayer_pattern: BayerPattern) -> FrameFacts:
    """Read the header of one frame.

    Parameters
    ----------
    path : Path
    bayer_pattern : str
        ``auto`` takes BAYERPAT, with ROWORDER, XBAYROFF and YBAYROFF; ``none`` and patterns overrule the header, a
        pattern as the first pixels in the file have it.

    Raises
    ------
    InputError
        The file is no usable frame, or auto finds signs of a colour camera but no pattern.
    """
    with open_planes(path) as images:
        image = next(iter(images.values()))
        header, (channels, height, width) = image.header, image.shape
    if channels not in (1, 3):
        raise InputError(
            f"an image of {channels} channels", path=path, expected="1 (monochrome or Bayer) or 3 (colour)"
        )
    ra, dec = _pointing(header)
    return FrameFacts(
        path,
        width,
        height,
        channels,
        _pattern(path, header, bayer_pattern, height) if channels == 1 else None,
        _number(header, "EXPTIME", "EXPOSURE"),
        _text(header, "FILTER"),
        _text(header, "DATE-OBS"),
        _text(header, "OBJECT"),
        ra,
        dec,
        _scale(header),
        _saturation(header),
        _text(header, "IMAGETYP"),
        len(images),
    )


def _light(facts: FrameFacts) -> FrameFacts:
    """Refuse calibration frames, which often lie in folders beside the lights."""
    if any(word in facts.image_type.upper() for word in CALIBRATION_TYPES):
        raise UnwantedError(
            f"IMAGETYP is {facts.image_type!r}",
            path=facts.path,
            expected="a light frame",
            remedy="name its folder with --bias, --dark or --flat",
        )
    return facts


def _is_candidate(path: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return is_fits_name(path) and path.is_file() and not hidden


def _most_alike(frames: Sequence[FrameFacts]) -> tuple[list[FrameFacts], list[Refusal]]:
    if not frames:
        return [], []
    counts = Counter(frame.kind for frame in frames)
    kept, _ = counts.most_common(1)[0]
    refused = [
        Refusal(
            frame.path.name,
            UnwantedError(
                f"is {_describe(frame.kind)}, but most frames are {_describe(kept)}",
                path=frame.path,
                remedy="make a mosaic of its own of them",
            ),
            Severity.WARNING,
        )
        for frame in frames
        if frame.kind != kept
    ]
    return [frame for frame in frames if frame.kind == kept], refused


def _describe(kind: tuple[Hashable, ...]) -> str:
    width, height, colours, name = kind
    return f"{width} × {height} pixels, {'colour' if colours == 3 else 'monochrome'}, filter {name or 'unknown'}"


def _pattern(path: Path, header: Header, chosen: BayerPattern, height: int) -> Pattern | None:
    if chosen == "none":
        return None
    if chosen != "auto":
        return chosen
    name = _text(header, "BAYERPAT").upper()
    match name:
        case "RGGB" | "BGGR" | "GRBG" | "GBRG":
            down, right = (int(_number(header, key, default=0)) for key in ("YBAYROFF", "XBAYROFF"))
            pattern = shifted(name, down, right)
            # BAYERPAT is of the picture's top left corner; the first row of a file is its bottom unless ROWORDER
            # says otherwise. Cameras that write no ROWORDER store the top row first, pattern and all.
            return flipped(pattern, height) if _text(header, "ROWORDER").upper() == "BOTTOM-UP" else pattern
        case "" if not _looks_coloured(header):
            return None
    raise InputError(
        f"BAYERPAT is {name!r}" if name else "seems to come from a colour camera, but BAYERPAT is missing",
        path=path,
        expected="RGGB, BGGR, GRBG or GBRG",
        remedy="--bayer-pattern with the camera's pattern, or --bayer-pattern none for monochrome frames",
    )


def _looks_coloured(header: Header) -> bool:
    """Return whether the header has signs of a colour filter array."""
    return any(key in header for key in ("XBAYROFF", "YBAYROFF", "COLORTYP", "CFATYPE")) or any(
        camera in _text(header, "INSTRUME").upper() for camera in ("SEESTAR", " MC", "DWARF")
    )


def _pointing(header: Header) -> tuple[float | None, float | None]:
    ra = _degrees(header, ("RA", "OBJCTRA"), "hourangle")
    dec = _degrees(header, ("DEC", "OBJCTDEC"), "deg")
    return (ra, dec) if ra is not None and dec is not None else (None, None)


def _degrees(header: Header, keys: Iterable[str], unit_of_text: str) -> float | None:
    """Return the first usable angle: numbers are degrees, text is sexagesimal."""
    for key in keys:
        value = header.get(key)
        if isinstance(value, int | float) and math.isfinite(value):
            return float(value)
        if isinstance(value, str):
            try:
                return float(Angle(value, unit=unit_of_text).degree)
            except (ValueError, UnitsError):
                continue
    return None


def _scale(header: Header) -> float | None:
    focal_length, pixel = _number(header, "FOCALLEN"), _number(header, "XPIXSZ", "PIXSIZE1")
    if not (focal_length > 0 and pixel > 0):
        return None
    return ARCSECONDS_PER_RADIAN * pixel / (MICRONS_PER_MILLIMETRE * focal_length)


def _saturation(header: Header) -> float | None:
    bits = header["BITPIX"]
    if "SATURATE" in header:
        return _number(header, "SATURATE")
    return 0.98 * (2.0**bits - 1) if bits in (8, 16) else None


def _number(header: Header, *keys: str, default: float = math.nan) -> float:
    values = (header.get(key) for key in keys)
    return next((float(value) for value in values if isinstance(value, int | float)), default)


def _text(header: Header, key: str) -> str:
    value: Any = header.get(key, "")
    return value.strip() if isinstance(value, str) else ""
