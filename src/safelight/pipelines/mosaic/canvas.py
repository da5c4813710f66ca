"""The grids that frames are brought to, and which frames belong together.

A canvas is a gnomonic (TAN) grid without distortion. All sizes are known before anything is allocated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from astropy.wcs import WCS, Sip
from astropy.wcs.utils import wcs_to_celestial_frame
from numpy.typing import NDArray

from safelight.core.errors import InputError
from safelight.pipelines.mosaic.mapping import change_frame
from safelight.pipelines.mosaic.wcs import (
    ARCSECONDS,
    Floats,
    pixel_scale,
    pixel_to_sky,
    separation,
    sky_of_vectors,
    sky_outline,
    sky_to_pixel,
    unit_vectors,
)

LARGEST_RADIUS = 30.0
"""Degrees from the middle of a canvas to its frames: a TAN grid there is stretched by a third."""

MOST_PIXELS = 2**30
"""Most pixels of a canvas: 4 GiB for each of its planes."""

_POINTS_PER_SIDE = 16


@dataclass(frozen=True, eq=False)
class Footprint:
    """Where a frame lies on the sky.

    Parameters
    ----------
    name : str
        For messages, and to tell frames apart whatever their order.
    wcs : WCS
    shape : tuple of int
        Height and width.
    """

    name: str
    wcs: WCS
    shape: tuple[int, int]

    def outline(self) -> tuple[Floats, Floats]:
        """Return right ascensions and declinations (degrees) along the outer edge.

        Raises
        ------
        InputError
            Part of the frame is not on the sky.
        """
        height, width = self.shape
        ra, dec = sky_outline(self.wcs, width, height, _POINTS_PER_SIDE)
        if not np.isfinite(ra).all():
            raise InputError(
                "parts of the frame lie beyond the sky of its WCS", path=self.name, remedy="solve it again"
            )
        return ra, dec


@dataclass(frozen=True, eq=False)
class Canvas:
    """A grid on the sky: its WCS, height and width."""

    wcs: WCS
    shape: tuple[int, int]


def position_angle(wcs: WCS) -> float:
    """Return where a WCS's +y axis points at the reference pixel, in degrees from north through east, 0 to 360."""
    (_, east), (_, north) = wcs.pixel_scale_matrix
    return math.degrees(math.atan2(east, north)) % 360


def common_canvas(
    footprints: Sequence[Footprint],
    *,
    scale: float | None = None,
    angle: float = 0.0,
    most_pixels: int = MOST_PIXELS,
) -> Canvas:
    """Return the TAN grid that holds every frame; the same for any order of the frames.

    The equinox is that of the frames, or ICRS where they differ.

    Parameters
    ----------
    footprints : sequence of Footprint
        At least one.
    scale : float, optional
        Arc seconds per pixel; that of the finest frame by default.
    angle : float
        Position angle of the grid's +y axis in degrees; 0 has north at the top of a picture whose last row is above.
    most_pixels : int
        Largest size of the grid.

    Raises
    ------
    InputError
        The frames lie too far apart for one tangent plane, or their grid is too large.
    """
    footprints = sorted(footprints, key=_place)  # by what they are, not by name: sums of floats depend on the order
    scale = scale or min(pixel_scale(footprint.wcs) for footprint in footprints)
    grid = _blank_grid(footprints, scale, angle)
    outlines = [change_frame(*footprint.outline(), footprint.wcs, grid) for footprint in footprints]
    grid.wcs.crval = _middle(footprints, outlines)
    grid.wcs.set()
    corners = np.array([sky_to_pixel(grid, ra, dec) for ra, dec in outlines])
    low, high = corners.min(axis=(0, 2)), corners.max(axis=(0, 2))
    # Whole pixels from the lowest edge on; an edge that misses one by rounding does not take another.
    width, height = (max(math.ceil(size - 1e-6), 1) for size in high - low)
    if width * height > most_pixels:
        raise InputError(
            f"a mosaic of {len(footprints)} frames at {scale:.3g} arc seconds per pixel has {width} × {height} pixels",
            expected=f"at most {most_pixels} pixels",
            remedy="a larger --pixel-scale, or fewer frames",
        )
    x, y = low + 0.5
    return Canvas(_moved(grid, x, y, (height, width)), (height, width))


def bounding_box(canvas: Canvas, footprint: Footprint) -> tuple[int, int, int, int]:
    """Return the rows and columns (y0, y1, x0, x1) of a canvas that a frame covers; empty where it misses."""
    x, y = sky_to_pixel(canvas.wcs, *change_frame(*footprint.outline(), footprint.wcs, canvas.wcs))
    if not np.isfinite(x).all():
        return 0, 0, 0, 0
    # The outline is the pixels' outer edge; between its points it may bulge by a fraction of a pixel.
    (y0, y1), (x0, x1) = (
        (int(np.clip(math.floor(edge.min()), 0, size)), int(np.clip(math.ceil(edge.max()) + 1, 0, size)))
        for edge, size in zip((y, x), canvas.shape, strict=True)
    )
    return y0, max(y1, y0), x0, max(x1, x0)


def crop(wcs: WCS, y0: int, y1: int, x0: int, x1: int) -> WCS:
    """Return the WCS of ``image[y0:y1, x0:x1]``; edges beyond the image pad it instead, also before its first pixel.

    The sky stays where it is to the last bit that CRPIX holds. CRPIX may become negative, and the origin of SIP moves
    with it.

    Raises
    ------
    ValueError
        Nothing is left.
    """
    if y1 <= y0 or x1 <= x0:
        raise ValueError(f"rows {y0} to {y1}, columns {x0} to {x1} hold no pixel")
    return _moved(wcs, x0, y0, (y1 - y0, x1 - x0))


def group_frames(
    footprints: Sequence[Footprint], *, least_overlap: float = 0.5, largest_turn: float = 20.0
) -> list[tuple[int, ...]]:
    """Group the frames that are stacked on one grid: the same field at nearly the same orientation.

    The frame with the most neighbours leads the first group, the one with the most among the rest the next, and so on;
    then every frame joins the leader that it overlaps most. So nobody is further from the leader than the limits
    allow, and strips of overlapping fields do not chain into one. Upside down is the same orientation.

    Parameters
    ----------
    footprints : sequence of Footprint
        At least one, with different names. Frames of different filters or cameras are grouped apart by the caller.
    least_overlap : float
        Share of the leader's area, 0 to 1.
    largest_turn : float
        Degrees between the frame and its leader.

    Returns
    -------
    list of tuple of int
        Indices of the frames, each once; members and groups in the order of the names. The order of the frames
        changes nothing but the indices.
    """
    order = sorted(range(len(footprints)), key=lambda index: footprints[index].name)
    overlaps = _overlaps([footprints[index] for index in order], largest_turn)
    overlaps[overlaps < least_overlap] = 0
    leaders = _leaders(overlaps > 0)
    leader_of = np.argmax(overlaps[leaders], axis=0)
    leader_of[leaders] = np.arange(len(leaders))
    groups = [np.flatnonzero(leader_of == number) for number in range(len(leaders))]
    groups.sort(key=lambda members: int(members[0]))
    return [tuple(order[member] for member in members) for members in groups]


def _leaders(neighbours: NDArray[np.bool_]) -> list[int]:
    free = np.ones(len(neighbours), bool)
    leaders = []
    while free.any():
        counts = np.where(free, (neighbours & free).sum(axis=1), -1)
        leaders.append(int(np.argmax(counts)))
        free &= ~neighbours[leaders[-1]]
    return leaders


def _overlaps(footprints: Sequence[Footprint], largest_turn: float) -> NDArray[np.float32]:
    """Return which share of each frame (row) every frame (column) covers, were they parallel; 0 for turned ones."""
    centres, right, down, sizes = (np.array(part) for part in zip(*map(_axes, footprints), strict=True))
    overlaps = np.empty((len(footprints),) * 2, np.float32)
    for row, (centre, x_axis, y_axis, (width, height)) in enumerate(zip(centres, right, down, sizes, strict=True)):
        towards = centres @ centre
        dx, dy = np.abs(centres @ x_axis) / (towards * width), np.abs(centres @ y_axis) / (towards * height)
        share = np.clip(1 - dx, 0, 1) * np.clip(1 - dy, 0, 1)
        parallel = np.abs(right @ x_axis) >= math.cos(math.radians(largest_turn))
        overlaps[row] = np.where((towards > 0) & parallel, share, 0)
        overlaps[row, row] = 1
    return overlaps


def _axes(footprint: Footprint) -> tuple[Floats, Floats, Floats, tuple[float, float]]:
    """Return the unit vectors to the middle and along x and y there, and the size (width, height) in radians."""
    height, width = footprint.shape
    x, y = (width - 1) / 2 + np.array([0, -1, 1, 0, 0]), (height - 1) / 2 + np.array([0, 0, 0, -1, 1])
    centre, left, right, above, below = unit_vectors(*pixel_to_sky(footprint.wcs, x, y))
    (x_axis, x_step), (y_axis, y_step) = (
        (difference / np.linalg.norm(difference), float(np.linalg.norm(difference)) / 2)
        for difference in (right - left, below - above)
    )
    return centre, x_axis, y_axis, (width * x_step, height * y_step)


def _place(footprint: Footprint) -> list[float]:
    """Return where a frame lies, as numbers that differ wherever frames do."""
    wcs = footprint.wcs
    return [*wcs.wcs.crval, *wcs.wcs.crpix, *wcs.pixel_scale_matrix.ravel()]


def _blank_grid(footprints: Sequence[Footprint], scale: float, angle: float) -> WCS:
    """Return a TAN grid that still has no place on the sky, in the equinox that the frames share or in ICRS."""
    grid = WCS(naxis=2)
    grid.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    grid.wcs.cd = np.array([[-cosine, sine], [sine, cosine]]) * scale / ARCSECONDS
    first = footprints[0].wcs
    system = wcs_to_celestial_frame(first)
    shared = all(system.is_equivalent_frame(wcs_to_celestial_frame(footprint.wcs)) for footprint in footprints)
    grid.wcs.radesys, grid.wcs.equinox = (first.wcs.radesys, first.wcs.equinox) if shared else ("ICRS", math.nan)
    grid.wcs.set()
    return grid


def _middle(footprints: Sequence[Footprint], outlines: Sequence[tuple[Floats, Floats]]) -> tuple[float, float]:
    """Return the middle of the frames, from which none is too far."""
    ra0, dec0 = sky_of_vectors(np.mean([unit_vectors(ra, dec).mean(axis=0) for ra, dec in outlines], axis=0))
    distances = [float(separation(ra, dec, ra0, dec0).max()) for ra, dec in outlines]
    furthest = int(np.argmax(distances))
    if distances[furthest] > LARGEST_RADIUS:
        raise InputError(
            f"the frame reaches {distances[furthest]:.1f}° from the middle of all {len(footprints)} frames",
            path=footprints[furthest].name,
            expected=f"frames within {LARGEST_RADIUS:.0f}° of RA {ra0:.2f}°, Dec {dec0:.2f}°",
            remedy="one mosaic for each region of the sky; if the frame belongs here, its WCS is wrong",
        )
    return float(ra0), float(dec0)


def _moved(wcs: WCS, x: float, y: float, shape: tuple[int, int]) -> WCS:
    """Return the WCS with pixel (x, y) as its first, and a size."""
    moved = wcs.deepcopy()
    moved.wcs.crpix = np.array(wcs.wcs.crpix) - (x, y)
    if (sip := wcs.sip) is not None:
        moved.sip = Sip(sip.a, sip.b, sip.ap, sip.bp, np.array(sip.crpix) - (x, y))
    moved.pixel_shape = shape[::-1]
    moved.wcs.set()
    return moved
