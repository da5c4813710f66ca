"""A whole scene on disk: its two images on one grid, read part by part, and what must be known of it beforehand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from safelight.core.errors import InputError
from safelight.formats.geotiff import Grid, Header, Raster
from safelight.kernels.tiles import Layout, reflect
from safelight.pipelines.decloud.clouds import ShadowLevels, shadow_indices
from safelight.pipelines.decloud.network import ALIGNMENT, OPTICAL_BANDS, SAR_BANDS
from safelight.pipelines.decloud.radiometry import (
    CIRRUS,
    FULL_SCALE,
    check_decibels,
    check_optical,
    check_sar,
    declared_offset,
    is_harmonised,
    normalise_optical,
    normalise_sar,
)

_BLOCK = 1024
_SAMPLED = 16
"""Medians are of every so many rows and columns."""
_TOLERANCE = 0.01
"""Pixels by which two grids may differ and still count as one."""


@dataclass(frozen=True)
class Place:
    """Where the pixels of the radar image lie on the scene's grid.

    Parameters
    ----------
    rows, columns : int
        To be added to the scene's to get the radar image's.
    onto : Grid, optional
        Set where the radar image has to be resampled.
    """

    rows: int = 0
    columns: int = 0
    onto: Grid | None = None


class SarOnScene:
    """The radar image by the scene's rows and columns; NaN where it has no data.

    Parameters
    ----------
    path : Path
    place : Place
    """

    def __init__(self, path: Path, place: Place) -> None:
        self._raster = Raster(path, place.onto)
        self._place = place

    def read(self, rows: slice, columns: slice) -> np.ndarray:
        """Return (2, rows, columns), float32, in dB."""
        header = self._raster.header
        wanted = _moved(rows, self._place.rows), _moved(columns, self._place.columns)
        sizes = header.grid.height, header.grid.width
        inside = [slice(max(w.start, 0), min(w.stop, size)) for w, size in zip(wanted, sizes, strict=True)]
        result = np.full((SAR_BANDS, *(w.stop - w.start for w in wanted)), np.nan, np.float32)
        if all(part.start < part.stop for part in inside):
            found = self._raster.read(*inside).astype(np.float32)
            if header.nodata is not None:
                found[found == header.nodata] = np.nan
            target = tuple(_moved(part, -w.start) for part, w in zip(inside, wanted, strict=True))
            result[:, target[0], target[1]] = found
        return result

    def close(self) -> None:
        """Close the file."""
        self._raster.close()


@dataclass(frozen=True)
class Survey:
    """What one pass over the scene tells.

    Parameters
    ----------
    offset : int
        To be taken from the numbers.
    fill : float
        What stands for missing backscatter: the mean of all there is, in dB.
    missing : float
        Share of the radar image that is missing.
    levels : ShadowLevels
        Of the whole scene.
    already : bool
        Whether an offset that the metadata declare is gone.
    """

    offset: int
    fill: float
    missing: float
    levels: ShadowLevels
    already: bool = False


def locate(scene: Path, optical: Header, radar: Path, sar: Header, align: bool) -> Place:
    """Return where the radar image lies on the scene's grid.

    Raises
    ------
    InputError
        One is no image of its kind, they do not overlap, or lie on different grids and must not be aligned.
    """
    check_optical(scene, optical)
    check_sar(radar, sar)
    a, b = optical.grid, sar.grid
    if not (a.is_georeferenced and b.is_georeferenced):
        if a == b:
            return Place()
        raise _other_grid(radar, b, a, "neither image says where it lies, so they must have one size")
    (_, _, left, _, _, top), (across, _, sar_left, _, down, sar_top) = a.transform, b.transform
    same = a.crs == b.crs and np.allclose(_shape(a), _shape(b), rtol=1e-6, atol=0)
    columns, rows = ((left - sar_left) / across, (top - sar_top) / down) if same else (0.5, 0.5)
    if max(abs(columns - round(columns)), abs(rows - round(rows))) > _TOLERANCE:
        if align:
            return Place(onto=a)
        raise _other_grid(radar, b, a, "--align-sar, which resamples it onto the scene's grid")
    place = Place(round(rows), round(columns))
    if not (-a.height < place.rows < b.height and -a.width < place.columns < b.width):
        raise _other_grid(radar, b, a, "radar of the same place")
    return place


def survey(scene: Raster, radar: Path, sar: SarOnScene) -> Survey:
    """Read the scene once, block by block.

    Raises
    ------
    InputError
        The radar image has no data here, is not in decibels, or its polarisations are reversed.
    """
    offset = declared_offset(scene.path, scene.header)
    nodata = scene.header.nodata or 0
    radar_sums, shadow_sums = _Sums(), _ShadowSums()
    cirrus = []
    for rows, columns in _blocks(scene.header.grid):
        radar_sums.add(sar.read(rows, columns))
        numbers = scene.read(rows, columns)
        valid = (numbers != nodata).all(0)
        shadow_sums.add(numbers, valid)
        cirrus.append(numbers[CIRRUS, ::_SAMPLED, ::_SAMPLED][valid[::_SAMPLED, ::_SAMPLED]])
    if not radar_sums.known:
        raise InputError("it has no data where the scene is", path=radar, expected="radar of the same place")
    check_decibels(radar, radar_sums.medians(), radar_sums.negative / radar_sums.known)
    sampled = np.concatenate(cirrus)
    already = offset > 0 and sampled.size > 0 and is_harmonised(float(np.median(sampled)))
    offset = 0 if already else offset
    return Survey(
        offset,
        radar_sums.total / radar_sums.known,
        1 - radar_sums.known / radar_sums.pixels,
        shadow_sums.levels(offset),
        already,
    )


@dataclass
class _Sums:
    """Of backscatter, over both bands."""

    total: float = 0.0
    known: int = 0
    pixels: int = 0
    negative: int = 0
    samples: list[np.ndarray] = field(default_factory=list)

    def add(self, decibels: np.ndarray) -> None:
        finite = np.isfinite(decibels)
        self.total += float(decibels[finite].sum(dtype=np.float64))
        self.known += int(finite.sum())
        self.pixels += decibels.size
        self.negative += int((decibels[finite] < 0).sum())
        self.samples.append(decibels[:, ::_SAMPLED, ::_SAMPLED].reshape(SAR_BANDS, -1))

    def medians(self) -> tuple[float, float]:
        sampled = np.concatenate(self.samples, 1)
        first, second = (float(np.median(band[np.isfinite(band)])) for band in sampled)
        return first, second


@dataclass
class _ShadowSums:
    """Of the two indices that shadows are told by, over pixels with data."""

    least: list[float] = field(default_factory=lambda: [np.inf, np.inf])
    total: list[float] = field(default_factory=lambda: [0.0, 0.0])
    pixels: int = 0

    def add(self, numbers: np.ndarray, valid: np.ndarray) -> None:
        if not valid.any():
            return
        for index, values in enumerate(shadow_indices(torch.from_numpy(numbers[:, valid].astype(np.float32)))):
            self.least[index] = min(self.least[index], values.min().item())
            self.total[index] += values.double().sum().item()
        self.pixels += int(valid.sum())

    def levels(self, offset: int) -> ShadowLevels:
        if not self.pixels:
            return ShadowLevels(0.0, 0.0)
        infrared, blue = (
            ((least - offset) / FULL_SCALE, (total / self.pixels - offset) / FULL_SCALE)
            for least, total in zip(self.least, self.total, strict=True)
        )
        return ShadowLevels.between(infrared, blue)


@dataclass(frozen=True)
class SceneSource:
    """The tiles of a scene as samples of the network, read when they are wanted."""

    scene: Raster
    sar: SarOnScene
    survey: Survey
    layout: Layout

    @property
    def extent(self) -> int:
        """Number of tiles."""
        return len(self.layout)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a tile, (15, Y, X)."""
        return (OPTICAL_BANDS + SAR_BANDS, *self.layout.tile)

    @property
    def dtype(self) -> torch.dtype:
        """Tiles are normalised."""
        return torch.float32

    def read(self, start: int, stop: int) -> Tensor:
        """Return tiles, mirrored where they pass the scene's edge."""
        return torch.stack([self._tile(number) for number in range(start, stop)])

    def _tile(self, number: int) -> Tensor:
        grid = self.scene.header.grid
        spans = self.layout[number]
        rows, columns = (
            slice(span.start, min(span.stop, size)) for span, size in zip(spans, (grid.height, grid.width), strict=True)
        )
        numbers = self.scene.read(rows, columns)
        if self.scene.header.nodata:
            numbers[numbers == self.scene.header.nodata] = 0  # black, as missing pixels mostly are, and no cloud
        optical = normalise_optical(numbers, self.survey.offset)
        tile = torch.cat((optical, normalise_sar(self.sar.read(rows, columns), self.survey.fill)))
        for axis, (span, part) in enumerate(zip(spans, (rows, columns), strict=True), start=1):
            if span.stop > part.stop:
                mirrored = reflect(0, span.stop - span.start, part.stop - part.start)
                tile = tile.index_select(axis, torch.tensor(mirrored))
        return tile


def layout_of(grid: Grid, tile: int, margin: int) -> Layout:
    """Return the tiles of a scene: starts on the grid of the network's windows, cores a margin away from edges."""
    return Layout.of((grid.height, grid.width), (tile, tile), margin, ALIGNMENT)


def _moved(part: slice, by: int) -> slice:
    return slice(part.start + by, part.stop + by)


def _shape(grid: Grid) -> tuple[float, ...]:
    """Return the size and the turn of a grid's pixels, without its corner."""
    a, b, _, d, e, _ = grid.transform
    return a, b, d, e


def _blocks(grid: Grid) -> Iterator[tuple[slice, slice]]:
    for row in range(0, grid.height, _BLOCK):
        for column in range(0, grid.width, _BLOCK):
            yield slice(row, min(row + _BLOCK, grid.height)), slice(column, min(column + _BLOCK, grid.width))


def _other_grid(radar: Path, found: Grid, expected: Grid, remedy: str) -> InputError:
    return InputError(
        f"it lies on another grid than the scene: {found.describe()}",
        path=radar,
        expected=expected.describe(),
        remedy=remedy,
    )
