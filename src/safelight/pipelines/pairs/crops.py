"""Crops of a pair: the same content of both frames, cut where the colours of both agree.

Coordinates are [x, y] in pixels of the noisy frame's visible mosaic; the pair's mask is on the same grid. Every crop
begins at the same place of the colour filter array: red first for Bayer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from safelight.core.errors import InputError, UsageError
from safelight.core.files import atomic_write
from safelight.formats.arrays import ONLY, read_arrays
from safelight.formats.raw import RawFrame, read_raw
from safelight.kernels.cfa import Offset, Tile, interpolate_colours, moved, normalise, pack, phase_between, tile_of
from safelight.pipelines.pairs.options import CropFormat
from safelight.pipelines.pairs.overlap import Overlap, levels_of

RGGB: Tile = ((0, 1), (3, 2))
XTRANS: Tile = (
    (1, 2, 1, 1, 0, 1),
    (0, 1, 0, 2, 1, 2),
    (1, 2, 1, 1, 0, 1),
    (1, 0, 1, 1, 2, 1),
    (2, 1, 2, 0, 1, 0),
    (1, 0, 1, 1, 2, 1),
)
"""Where crops begin in the two arrays."""

COLOUR_SUFFIXES = (".tiff", ".exr")
"""Of crops in colour; the others are mosaics."""

REC2020_FROM_XYZ = np.array(
    [
        [1.7166511880, -0.3556707838, -0.2533662814],
        [-0.6666843518, 1.6164812366, 0.0157685458],
        [0.0176398574, -0.0427706133, 0.9421031212],
    ]
)
"""ITU-R BT.2020, white D65."""


@dataclass(frozen=True)
class Crop:
    """Where one crop lies.

    Parameters
    ----------
    anchor, target : tuple of int
        Its first pixel (y, x) in the ground truth and in the noisy frame.
    shape : tuple of int
        In pixels of the mosaic.
    """

    anchor: Offset
    target: Offset
    shape: tuple[int, int]

    @property
    def coordinates(self) -> list[int]:
        """[x, y] in the noisy frame, and in the mask."""
        return [self.target[1], self.target[0]]

    def of(self, image: NDArray[Any]) -> NDArray[Any]:
        """Return this part of an image on the noisy frame's grid."""
        (y, x), (height, width) = self.target, self.shape
        return image[y : y + height, x : x + width]


def first_tile(overlap: Overlap) -> tuple[Tile, Offset]:
    """Return the tile with which crops begin, and how far into the overlap the first one is."""
    wanted = RGGB if len(overlap.tile) == 2 else XTRANS
    offset = phase_between(wanted, overlap.tile) or (0, 0)  # a turned X-Trans array begins where the overlap does
    return moved(overlap.tile, offset), offset


def lay_out(overlap: Overlap, size: int, shared: int) -> list[Crop]:
    """Cover an overlap with crops of one size; the last of each row and column ends with it.

    Parameters
    ----------
    overlap : Overlap
    size : int
        Side in pixels, rounded down to whole tiles; an overlap that is smaller is one crop along that side.
    shared : int
        Pixels that neighbours share at least.
    """
    _, offset = first_tile(overlap)
    period = len(overlap.tile)
    axes = [_starts(length - skip, size, shared, period) for length, skip in zip(overlap.shape, offset, strict=True)]
    (rows, height), (columns, width) = axes
    return [
        Crop(
            (overlap.anchor[0] + offset[0] + y, overlap.anchor[1] + offset[1] + x),
            (overlap.target[0] + offset[0] + y, overlap.target[1] + offset[1] + x),
            (height, width),
        )
        for y, x in product(rows, columns)
    ]


def _starts(length: int, size: int, shared: int, period: int) -> tuple[list[int], int]:
    """Return where crops begin along an axis, and how long they are; all multiples of the period."""
    length, size = length // period * period, max(size // period, 1) * period
    if length <= size:
        return [0], length
    step = max((size - shared) // period, 1) * period
    return [*range(0, length - size, step), length - size], size


def write_crops(
    folder: Path, crop: Crop, frames: Mapping[str, RawFrame], tile: Tile, kind: CropFormat
) -> dict[str, Path]:
    """Write a crop of both frames.

    Parameters
    ----------
    folder : Path
    crop : Crop
    frames : mapping
        The ground truth as ``gt`` and the other frame as ``noisy``.
    tile : Tile
        With which crops begin.
    kind : str

    Returns
    -------
    dict
        The path of each by the frame's name.

    Raises
    ------
    OutputError
        The disk refuses.
    UsageError
        What writes the format is not installed.
    """
    x, y = crop.coordinates
    paths = {name: folder / f"{x}_{y}_{name}.{kind}" for name in frames}
    for name, start in (("gt", crop.anchor), ("noisy", crop.target)):
        frame = frames[name]
        (top, left), (height, width) = start, crop.shape
        with atomic_write(paths[name]) as temporary:
            WRITERS[kind](temporary, frame.mosaic[top : top + height, left : left + width], frame, tile)
    return paths


def read_crop(path: Path) -> NDArray[np.float32]:
    """Read a crop, (C, H, W): planes of one colour each from a mosaic, red, green and blue from the other formats.

    Raises
    ------
    InputError
        The file is missing or damaged.
    """
    try:
        crop = _READERS[path.suffix](path)
    except (InputError, OSError, ValueError, KeyError, RuntimeError) as error:
        problem = error.problem if isinstance(error, InputError) else error
        raise InputError(f"is no crop: {problem}", path=path, remedy="run 'pairs run' again") from error
    return np.asarray(crop, np.float32)


def packed(mosaic: NDArray[np.uint16], frame: RawFrame, tile: Tile) -> NDArray[np.float32]:
    """Return a crop as planes of one colour, 0 black and 1 white: (4, H/2, W/2) or (9, H/3, W/3) for X-Trans."""
    return pack(_normalised(mosaic, frame, tile), tile).numpy()


def linear_rgb(mosaic: NDArray[np.uint16], frame: RawFrame, tile: Tile) -> NDArray[np.float32]:
    """Return a crop demosaiced, white-balanced and in linear Rec.2020, (H, W, 3); white stays 1.

    Where the camera's matrix is unknown the camera's own colours stay.
    """
    camera = interpolate_colours(_normalised(mosaic, frame, tile), tile)
    balanced = camera * torch.tensor(frame.white_balance[:3])[:, None, None]
    matrix = torch.from_numpy(rec2020_from_camera(frame.rgb_xyz_matrix)).to(camera.dtype)
    return torch.einsum("rc,chw->hwr", matrix, balanced).contiguous().numpy()


def rec2020_from_camera(rgb_xyz_matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the (3, 3) matrix from white-balanced camera colours to Rec.2020; white goes to white."""
    camera_from_xyz = rgb_xyz_matrix[:3]
    if np.linalg.matrix_rank(camera_from_xyz) < 3:
        return np.eye(3)
    camera_from_rec2020 = camera_from_xyz @ np.linalg.inv(REC2020_FROM_XYZ)
    camera_from_rec2020 /= camera_from_rec2020.sum(axis=1, keepdims=True)
    return np.asarray(np.linalg.inv(camera_from_rec2020), np.float64)


def _normalised(mosaic: NDArray[np.uint16], frame: RawFrame, tile: Tile) -> Tensor:
    rows = torch.from_numpy(np.ascontiguousarray(mosaic)).view(-1, len(tile), mosaic.shape[1])
    black, white, _ = levels_of(frame)[0]
    return normalise(rows, tile, black, white)


def _write_npz(path: Path, mosaic: NDArray[np.uint16], frame: RawFrame, tile: Tile) -> None:
    np.savez(path, packed=packed(mosaic, frame, tile))


def _write_npy(path: Path, mosaic: NDArray[np.uint16], frame: RawFrame, tile: Tile) -> None:
    np.save(path, packed(mosaic, frame, tile))


def _write_tiff(path: Path, mosaic: NDArray[np.uint16], frame: RawFrame, tile: Tile) -> None:
    import tifffile

    tifffile.imwrite(path, linear_rgb(mosaic, frame, tile), photometric="rgb", metadata=None)


def _write_exr(path: Path, mosaic: NDArray[np.uint16], frame: RawFrame, tile: Tile) -> None:
    openexr = _openexr()
    header = {"compression": openexr.ZIP_COMPRESSION, "type": openexr.scanlineimage}
    with openexr.File(header, {"RGB": linear_rgb(mosaic, frame, tile)}) as file:
        file.write(str(path))


def _openexr() -> Any:
    try:
        import OpenEXR
    except ImportError as error:
        raise UsageError("EXR files need OpenEXR", remedy="pip install 'safelight[raw]', or --format tiff") from error
    return OpenEXR


def _write_dng(path: Path, mosaic: NDArray[np.uint16], frame: RawFrame, tile: Tile) -> None:
    from safelight.formats.dng import write_dng

    write_dng(path, mosaic, frame, tile)


WRITERS: Mapping[CropFormat, Callable[[Path, NDArray[np.uint16], RawFrame, Tile], None]] = {
    "npz": _write_npz,
    "npy": _write_npy,
    "tiff": _write_tiff,
    "exr": _write_exr,
    "dng": _write_dng,
}


def _read_npz(path: Path) -> NDArray[Any]:
    return read_arrays(path)["packed"]


def _read_npy(path: Path) -> NDArray[Any]:
    return read_arrays(path)[ONLY]


def _read_tiff(path: Path) -> NDArray[Any]:
    import tifffile

    return np.asarray(tifffile.imread(path)).transpose(2, 0, 1)


def _read_exr(path: Path) -> NDArray[Any]:
    with _openexr().File(str(path)) as file:
        return np.array(file.channels()["RGB"].pixels).transpose(2, 0, 1)


def _read_dng(path: Path) -> NDArray[Any]:
    frame = read_raw(path)
    return packed(frame.mosaic, frame, tile_of(frame.pattern))


_READERS: Mapping[str, Callable[[Path], NDArray[Any]]] = {
    ".npz": _read_npz,
    ".npy": _read_npy,
    ".tiff": _read_tiff,
    ".exr": _read_exr,
    ".dng": _read_dng,
}
