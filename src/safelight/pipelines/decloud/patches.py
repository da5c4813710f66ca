"""A triplet as tensors: read, checked, harmonised, normalised and cropped."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from safelight.core.errors import InputError
from safelight.formats.geotiff import Header, Raster
from safelight.pipelines.decloud.radiometry import (
    CIRRUS,
    FULL_SCALE,
    check_optical,
    check_sar,
    check_sar_values,
    declared_offset,
    is_harmonised,
    normalise_optical,
    normalise_sar,
)
from safelight.pipelines.decloud.triplets import Triplet


@dataclass(frozen=True)
class Patch:
    """One triplet, whole.

    Parameters
    ----------
    cloudy, clear : Tensor
        (13, Y, X), normalised.
    sar : Tensor
        (2, Y, X), normalised.
    reflectance : Tensor
        (13, Y, X): the cloudy image, not clipped, from which clouds are told.
    harmonised : tuple of str
        Names of the files whose offset was taken away.
    already : tuple of str
        Names of the files whose offset was gone, though their metadata declare one.
    """

    cloudy: Tensor
    clear: Tensor
    sar: Tensor
    reflectance: Tensor
    harmonised: tuple[str, ...]
    already: tuple[str, ...]

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.cloudy.shape[-2], self.cloudy.shape[-1]


def read_patch(triplet: Triplet, least: int) -> Patch:
    """Read a triplet.

    Parameters
    ----------
    triplet : Triplet
    least : int
        Side in pixels that it must have.

    Raises
    ------
    InputError
        A file is missing, damaged or no image of its kind, or the three do not lie on one grid.
    """
    sar_header, sar = _read(triplet.sar)
    clear_header, clear = _read(triplet.clear)
    cloudy_header, cloudy = _read(triplet.cloudy)
    check_sar(triplet.sar, sar_header)
    check_optical(triplet.clear, clear_header)
    check_optical(triplet.cloudy, cloudy_header)
    check_one_grid(triplet.cloudy, cloudy_header, {triplet.sar: sar_header, triplet.clear: clear_header})
    if min(cloudy.shape[1:]) < least:
        raise InputError(
            f"it has {cloudy.shape[1]}×{cloudy.shape[2]} pixels",
            path=triplet.cloudy,
            expected=f"at least {least}×{least}",
            remedy="a smaller --crop-size",
        )
    check_sar_values(triplet.sar, sar)
    offset, already = offset_of(triplet.cloudy, cloudy_header, cloudy)
    clear_offset, clear_already = offset_of(triplet.clear, clear_header, clear)
    return Patch(
        normalise_optical(cloudy, offset),
        normalise_optical(clear, clear_offset),
        normalise_sar(sar),
        (torch.from_numpy(cloudy.astype(np.float32)) - offset) / FULL_SCALE,
        tuple(path.name for path, taken in ((triplet.cloudy, offset), (triplet.clear, clear_offset)) if taken),
        tuple(path.name for path, gone in ((triplet.cloudy, already), (triplet.clear, clear_already)) if gone),
    )


def offset_of(path: Path, header: Header, numbers: np.ndarray) -> tuple[int, bool]:
    """Return what must be taken from the numbers, and whether it is gone though the metadata say that it was added."""
    offset = declared_offset(path, header)
    valid = numbers[CIRRUS][numbers[CIRRUS] > 0]
    already = offset > 0 and valid.size > 0 and is_harmonised(float(np.median(valid)))
    return (0 if already else offset), already


def check_one_grid(path: Path, header: Header, others: dict[Path, Header]) -> None:
    """Refuse images that do not lie pixel on pixel.

    Raises
    ------
    InputError
        One does not.
    """
    for other, its in others.items():
        if its.grid != header.grid:
            raise InputError(
                f"it lies on another grid than {path.name}: {its.grid.describe()}",
                path=other,
                expected=header.grid.describe(),
                remedy="resample it onto that grid first",
            )


def middle(image: Tensor, side: int) -> Tensor:
    """Return the middle of (…, Y, X), as GLF-CR is tested: 64 to 192 of 256 pixels."""
    top, left = (image.shape[-2] - side) // 2, (image.shape[-1] - side) // 2
    return image[..., top : top + side, left : left + side]


def _read(path: Path) -> tuple[Header, np.ndarray]:
    with Raster(path) as raster:
        return raster.header, raster.read_all()
