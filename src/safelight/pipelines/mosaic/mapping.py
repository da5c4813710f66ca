"""Coordinate maps: which position of a frame falls on each pixel of a grid.

The exact transform, with the inverse of SIP, costs more than the resampling. It is smooth, so it is computed in
float64 at the nodes of cells of 32 × 32 pixels and interpolated bilinearly between them. The same transform at the
middle of each cell and of its edges tells how far off that is; a cell that exceeds the bound is divided, down to the
exact transform of every pixel. Cells are counted from the grid's own corner, so a pixel's coordinates do not depend on
the block of rows in which it is computed.

Coordinates are (y, x) with (0, 0) the centre of the first pixel; NaN where the frame has no position.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from astropy.coordinates import SkyCoord
from astropy.wcs import WCS
from astropy.wcs.utils import wcs_to_celestial_frame
from numpy.typing import NDArray
from torch import Tensor

from safelight.kernels.tiles import aligned
from safelight.pipelines.mosaic.wcs import (
    ARCSECONDS,
    Floats,
    pixel_scale,
    pixel_to_sky,
    separation,
    sky_outline,
    sky_to_pixel,
)

Transform = Callable[[Floats, Floats], tuple[Floats, Floats]]
"""Pixels (y, x) of a grid to positions (y, x) in a frame; any shape. Safe to call from several threads."""

CELL = 32
"""Pixels along a side of the cells in which a map is interpolated first."""

SMALLEST_CELL = 8
"""Cells that would have to be smaller are computed pixel by pixel."""

MAP_ERROR = 0.001
"""Default bound of a map's error, in pixels of the frame."""


def sky_transform(grid: WCS, frame: WCS, shape: tuple[int, int]) -> Transform:
    """Return the exact transform from a grid's pixels to a frame's, through the sky, SIP included.

    Parameters
    ----------
    grid, frame : WCS
        Either may have SIP, and they may be of different equinox.
    shape : tuple of int
        Height and width of the frame. Positions far outside are NaN: distortion polynomials mean nothing there, and
        on the far side of the sky a projection may return.
    """
    height, width = shape
    ra0, dec0 = pixel_to_sky(frame, np.array((width - 1) / 2), np.array((height - 1) / 2))
    outline = separation(ra0, dec0, *sky_outline(frame, width, height))
    margin = 2 * CELL * (pixel_scale(grid) + pixel_scale(frame)) / ARCSECONDS
    reach = float(outline.max()) + margin

    def transform(y: Floats, x: Floats) -> tuple[Floats, Floats]:
        ra, dec = pixel_to_sky(grid, x, y)
        ra, dec = change_frame(ra, dec, grid, frame)
        near = separation(ra, dec, ra0, dec0) <= reach  # False for NaN
        source_y, source_x = np.full(ra.shape, np.nan), np.full(ra.shape, np.nan)
        source_x[near], source_y[near] = sky_to_pixel(frame, ra[near], dec[near])
        return source_y, source_x

    return transform


def change_frame(ra: Floats, dec: Floats, before: WCS, after: WCS) -> tuple[Floats, Floats]:
    """Return sky positions (degrees) in another WCS's equinox and system; FK5 and ICRS differ by some 0.02″."""
    old, new = wcs_to_celestial_frame(before), wcs_to_celestial_frame(after)
    if old.is_equivalent_frame(new):
        return ra, dec
    sky = SkyCoord(ra, dec, unit="deg", frame=old).transform_to(new)
    return np.asarray(sky.spherical.lon.deg), np.asarray(sky.spherical.lat.deg)


@dataclass(frozen=True, eq=False)
class CoordinateMap:
    """The coordinates of a block of rows, and how precise they are.

    Parameters
    ----------
    coordinates : Tensor
        (rows, 2, width) float32: y and x in the part of the frame that is read.
    error : float
        In pixels of the frame: the largest seen in the middle of cells and of their edges, and the rounding to
        float32. Cells outside the frame do not count; their coordinates are outside, too, or NaN.
    """

    coordinates: Tensor
    error: float


def coordinate_map(
    transform: Transform,
    rows: tuple[int, int],
    width: int,
    shape: tuple[int, int],
    *,
    origin: tuple[int, int] = (0, 0),
    bound: float = MAP_ERROR,
) -> CoordinateMap:
    """Compute the coordinates of a block of a grid's rows.

    Parameters
    ----------
    transform : callable
        Exact, from the grid to the frame.
    rows : tuple of int
        First row of the block and the one after its last.
    width : int
        Of the grid.
    shape : tuple of int
        Height and width of the part of the frame that is read.
    origin : tuple of int
        Row and column of the frame where that part begins; coordinates are counted from there.
    bound : float
        Largest error in pixels of the frame.

    Raises
    ------
    ValueError
        float32 is too coarse for so large a part; up to 8,192 pixels along a side are fine for the default bound.
    """
    rounding = math.sqrt(0.5) * float(np.spacing(np.float32(max(shape) - 1)))
    if rounding > bound / 2:
        raise ValueError(f"float32 rounds positions in {shape} pixels by {rounding:.2g}, more than half of {bound}")
    exact = _Exact(transform, origin, shape)
    start, stop = rows
    top = start // CELL * CELL
    corners = np.mgrid[top : aligned(stop, CELL) : CELL, 0 : aligned(width, CELL) : CELL].reshape(2, -1)
    points = exact.around(corners, CELL)
    block = _interpolate(points, CELL, columns=aligned(width, CELL) // CELL)
    error = exact.divide(block, corners, points, CELL, bound - rounding, top)
    return CoordinateMap(torch.from_numpy(block[start - top : stop - top, :, :width].copy()), error + rounding)


@dataclass
class CoordinateSource:
    """A frame's coordinate map as a Source of the Executor: its rows are those of the grid.

    Parameters
    ----------
    transform, shape, origin, bound
        As of ``coordinate_map``.
    grid_shape : tuple of int
        Height and width of the grid.

    Attributes
    ----------
    error : float
        The largest error of the blocks that were read so far.
    """

    transform: Transform
    grid_shape: tuple[int, int]
    frame_shape: tuple[int, int]
    origin: tuple[int, int] = (0, 0)
    bound: float = MAP_ERROR
    error: float = field(default=0.0, init=False)

    @property
    def extent(self) -> int:
        """Rows of the grid."""
        return self.grid_shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a row."""
        return (2, self.grid_shape[1])

    @property
    def dtype(self) -> torch.dtype:
        """Type of the coordinates."""
        return torch.float32

    def read(self, start: int, stop: int) -> Tensor:
        """Return the coordinates of rows."""
        block = coordinate_map(
            self.transform, (start, stop), self.grid_shape[1], self.frame_shape, origin=self.origin, bound=self.bound
        )
        self.error = max(self.error, block.error)
        return block.coordinates


@dataclass(frozen=True)
class _Exact:
    """The exact transform at the points that cells need: corners (2, n), sizes in pixels of the grid."""

    transform: Transform
    origin: tuple[int, int]
    shape: tuple[int, int]

    def around(self, corners: NDArray[np.int64], size: int) -> Floats:
        """Return the positions of each cell's corners, edges' middles and middle, (2, n, 3, 3)."""
        return self._at(corners, np.arange(3) * (size / 2))

    def divide(
        self, block: NDArray[np.float32], corners: NDArray[np.int64], points: Floats, size: int, bound: float, top: int
    ) -> float:
        """Divide the cells that are off by more than the bound; return the largest error of those that are not."""
        deviation, reaching = _deviation(points), self._reaching(points)
        fine = deviation <= bound
        error = float(deviation[fine & reaching].max(initial=0.0))
        corners = corners[:, ~fine & reaching]
        if not corners.size:
            return error
        size //= 2
        corners = np.concatenate([corners + np.array([[y], [x]]) for y in (0, size) for x in (0, size)], axis=1)
        if size < SMALLEST_CELL:
            _put(block, corners, self._at(corners, np.arange(size)), top)
            return error
        points = self.around(corners, size)
        _put(block, corners, _cells(points, size), top)
        return max(error, self.divide(block, corners, points, size, bound, top))

    def _at(self, corners: NDArray[np.int64], steps: NDArray[np.generic]) -> Floats:
        """Return the positions at steps from each corner, (2, n, steps, steps)."""
        y, x = corners[:, :, None, None] + np.zeros((2, 1, len(steps), len(steps)))
        y, x = self.transform(y + steps[:, None], x + steps)
        return np.stack([y - self.origin[0], x - self.origin[1]])

    def _reaching(self, points: Floats) -> NDArray[np.bool_]:
        """Return which cells may touch the frame: their points' box, grown by its own size on all sides, does."""
        low, high = np.fmin.reduce(points, axis=(2, 3)), np.fmax.reduce(points, axis=(2, 3))
        beyond = np.array(self.shape)[:, None]
        return np.asarray(((2 * low - high < beyond) & (2 * high - low > -1)).all(axis=0))


def _deviation(points: Floats) -> Floats:
    """Return how far each cell's interpolation is off, where it is checked; NaN with a point that has no position."""
    between = (
        points[..., 1, 1] - points[..., ::2, ::2].mean(axis=(-1, -2)),
        *(points[..., edge, 1] - points[..., edge, ::2].mean(axis=-1) for edge in (0, 2)),
        *(points[..., 1, edge] - points[..., ::2, edge].mean(axis=-1) for edge in (0, 2)),
    )
    return np.asarray(np.hypot(*np.stack(between, axis=1)).max(axis=0))


def _cells(points: Floats, size: int) -> Floats:
    """Return the positions of each cell's pixels, interpolated between its corners, (2, n, size, size)."""
    share = np.arange(size) / size
    left, right = (_between_corners(points[:, :, ::2, side], share) for side in (0, 2))
    return np.asarray(left[..., None] + (right - left)[..., None] * share)


def _between_corners(ends: Floats, share: Floats) -> Floats:
    return np.asarray(ends[..., :1] + (ends[..., 1:] - ends[..., :1]) * share)


def _interpolate(points: Floats, size: int, columns: int) -> NDArray[np.float32]:
    """Return the block (rows, 2, width) of cells that lie in rows of ``columns``."""
    lines = points.shape[1] // columns
    block = np.empty((lines, size, 2, columns, size), np.float32)
    for line, cells in enumerate(np.split(points, lines, axis=1)):  # a line of cells stays in the cache
        block[line] = _cells(cells, size).transpose(2, 0, 1, 3)
    return block.reshape(lines * size, 2, columns * size)


def _put(block: NDArray[np.float32], corners: NDArray[np.int64], cells: Floats, top: int) -> None:
    """Write the pixels of cells (2, n, size, size) into the block that begins at row ``top``."""
    size = cells.shape[-1]
    for y, x, cell in zip(*corners, cells.swapaxes(0, 1), strict=True):
        block[y - top : y - top + size, :, x : x + size] = cell.swapaxes(0, 1)
