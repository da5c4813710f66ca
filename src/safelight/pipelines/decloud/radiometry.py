"""From the numbers in the files to what the network sees, and back; and what files must be for that to be right."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from safelight.core.errors import InputError
from safelight.formats.geotiff import Header
from safelight.pipelines.decloud.network import OPTICAL_BANDS, SAR_BANDS

BANDS = ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B10", "B11", "B12")
"""In the order of Sentinel-2 L1C."""
CIRRUS = BANDS.index("B10")
FULL_SCALE = 10_000.0
"""Digital number of reflectance 1."""
SAR_FLOORS = (-25.0, -32.5)
"""Decibels of VV and VH that become 0; 0 dB becomes 1."""
OFFSET = 1000
"""What processing baseline 04.00 adds to all numbers."""

_BASELINE_WITH_OFFSET = 4.0
_L2A_BANDS = 12
_DARK_CIRRUS = OFFSET - 100
"""A clear sky has hardly any light in B10: with the offset its median is about 1000, without it about 10."""


def check_optical(path: Path, header: Header) -> None:
    """Refuse what is no Sentinel-2 L1C image.

    Raises
    ------
    InputError
        The number of bands or the type of the pixels is wrong.
    """
    if header.bands == _L2A_BANDS:
        raise InputError(
            f"it has {header.bands} bands, as Sentinel-2 L2A has, which lacks B10",
            path=path,
            expected=f"the {OPTICAL_BANDS} bands of L1C, {BANDS[0]} to {BANDS[-1]}",
            remedy="take the L1C product of the same scene",
        )
    if header.bands != OPTICAL_BANDS:
        raise InputError(
            f"it has {header.bands} band(s)",
            path=path,
            expected=f"the {OPTICAL_BANDS} bands of Sentinel-2 L1C, {BANDS[0]} to {BANDS[-1]}",
        )
    if header.dtype.kind not in "ui":
        raise InputError(
            f"its pixels are {header.dtype}", path=path, expected="whole numbers, reflectance × 10000, usually uint16"
        )


def check_sar(path: Path, header: Header) -> None:
    """Refuse what has not the two bands VV and VH.

    Raises
    ------
    InputError
        The number of bands or their order is wrong, or they are no real numbers.
    """
    if header.bands != SAR_BANDS or header.dtype.kind != "f":
        raise InputError(
            f"it has {header.bands} band(s) of {header.dtype}",
            path=path,
            expected="Sentinel-1 backscatter in dB, real numbers, two bands: VV, VH",
        )
    if [name.strip().upper() for name in header.names] == ["VH", "VV"]:
        raise _reversed(path)


def check_decibels(path: Path, medians: tuple[float, float], negative_share: float) -> None:
    """Refuse backscatter that is not in decibels, or whose polarisations are reversed.

    Parameters
    ----------
    path : Path
    medians : tuple of float
        Of the first and the second band.
    negative_share : float
        Of the values below zero: nearly all of decibels, none of power.

    Raises
    ------
    InputError
        It is.
    """
    if negative_share < 0.5:
        raise InputError(
            f"{100 * (1 - negative_share):.0f} % of its values are not negative: this is linear power, not decibels",
            path=path,
            expected="Sentinel-1 backscatter in dB",
            remedy="take 10·log10 of it",
        )
    if medians[1] > medians[0]:
        raise _reversed(path)


def check_sar_values(path: Path, sar: np.ndarray) -> None:
    """Check (2, Y, X) of backscatter, see ``check_decibels``."""
    known = [band[np.isfinite(band) & (band != 0)] for band in sar]
    if all(band.size for band in known):
        negative = float(np.mean(np.concatenate(known) < 0))
        check_decibels(path, (float(np.median(known[0])), float(np.median(known[1]))), negative)


def _reversed(path: Path) -> InputError:
    return InputError(
        "its polarisations are reversed: the second band is brighter than the first, or named VV",
        path=path,
        expected="VV first, then VH",
        remedy="swap the bands",
    )


def declared_offset(path: Path, header: Header) -> int:
    """Return what the metadata say was added to the numbers: 1000 from processing baseline 04.00 on, else 0.

    The metadata are the tags ``PROCESSING_BASELINE`` and ``RADIO_ADD_OFFSET``, the bands' own offsets, and the
    product's name in the tags or of the file (``…_N0400_…``).
    """
    tags = {name.upper(): value for name, value in header.tags.items()}
    for name, value in tags.items():
        if name.startswith("RADIO_ADD_OFFSET"):
            return abs(round(float(value)))
    if any(header.offsets):
        return abs(round(header.offsets[0] / header.scales[0]))
    baseline = tags.get("PROCESSING_BASELINE", "")
    for text in (tags.get("PRODUCT_URI", ""), path.name):
        named = re.search(r"_N(\d{2})(\d{2})_", text)
        baseline = baseline or (f"{named[1]}.{named[2]}" if named else "")
    return OFFSET if re.fullmatch(r"\d+(\.\d+)?", baseline) and float(baseline) >= _BASELINE_WITH_OFFSET else 0


def is_harmonised(cirrus_median: float) -> bool:
    """Return whether the offset is gone already, by the median of B10's valid numbers."""
    return cirrus_median < _DARK_CIRRUS


def normalise_optical(numbers: np.ndarray, offset: int = 0) -> Tensor:
    """Return digital numbers as the network takes them: float32, 0 to 1."""
    reflectance = (torch.from_numpy(numbers.astype(np.float32)) - offset) / FULL_SCALE
    return reflectance.clamp(0, 1)


def normalise_sar(decibels: np.ndarray, fill: float | None = None) -> Tensor:
    """Return backscatter (2, Y, X) in dB as the network takes it: float32, 0 to 1.

    Parameters
    ----------
    decibels : ndarray
    fill : float, optional
        What stands for NaN; the mean of all finite values, of both bands, by default.
    """
    values = torch.from_numpy(decibels.astype(np.float32))
    missing = values.isnan()
    if fill is None and bool(missing.any()):
        known = values[values.isfinite()].double()
        fill = known.mean().item() if len(known) else 0.0
    if fill is not None:
        values = values.masked_fill(missing, fill)
    floors = torch.tensor(SAR_FLOORS).view(-1, 1, 1)
    return (values.clamp(max=0.0).maximum(floors) - floors) / -floors
