"""DNG files: a mosaic with what makes it readable, after Adobe's DNG 1.4 specification."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

from safelight.formats.raw import SRGB_FROM_XYZ, RawFrame

_CFA = 32803
_BYTE, _ASCII, _SHORT, _LONG, _RATIONAL, _SIGNED_RATIONAL = "B", "s", "H", "I", "2I", "2i"
_DENOMINATOR = 1_000_000
_D65 = 21


def write_dng(path: Path, mosaic: NDArray[np.uint16], frame: RawFrame, tile: Sequence[Sequence[int]]) -> None:
    """Write a mosaic with the levels, white balance and colours of the frame that it was cut from.

    Parameters
    ----------
    path : Path
    mosaic : ndarray
        (H, W) uint16.
    frame : RawFrame
    tile : sequence of sequence of int
        Colours of the first pixels of ``mosaic``.
    """
    colours = [colour for row in tile for colour in row]
    matrix = frame.rgb_xyz_matrix[:3] if frame.rgb_xyz_matrix.any() else SRGB_FROM_XYZ
    model = frame.camera or "unknown camera"
    size = (len(tile), len(tile))
    tags = (
        (271, _ASCII, 0, model),
        (272, _ASCII, 0, model),
        (33421, _SHORT, 2, size),
        (33422, _BYTE, len(colours), bytes(1 if colour == 3 else colour for colour in colours)),
        (50706, _BYTE, 4, bytes((1, 4, 0, 0))),
        (50707, _BYTE, 4, bytes((1, 1, 0, 0))),
        (50708, _ASCII, 0, model),
        (50710, _BYTE, 3, bytes((0, 1, 2))),
        (50711, _SHORT, 1, 1),
        (50713, _SHORT, 2, size),
        (50714, _RATIONAL, len(colours), _rationals([frame.black[colour] for colour in colours])),
        (50717, _LONG, 1, round(frame.white)),
        (50721, _SIGNED_RATIONAL, 9, _rationals(matrix.ravel().tolist())),
        (50728, _RATIONAL, 3, _rationals([1 / factor for factor in frame.white_balance[:3]])),
        (50778, _SHORT, 1, _D65),
    )
    extra = [(*tag, True) for tag in tags]
    with tifffile.TiffWriter(path) as writer:
        writer.write(mosaic, photometric=_CFA, planarconfig=None, metadata=None, extratags=extra, subfiletype=0)


def _rationals(values: Sequence[float]) -> tuple[int, ...]:
    fractions = [Fraction(value).limit_denominator(_DENOMINATOR) for value in values]
    return tuple(part for fraction in fractions for part in fraction.as_integer_ratio())
