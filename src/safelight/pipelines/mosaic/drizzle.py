"""Drizzle: the frames' own pixels, shrunk to drops, fall onto a finer grid (Fruchter & Hook 2002, doi:10.1086/338393).

Nothing is interpolated, neither on the grid nor between the sites of a colour filter array: each site's light falls
into the channel of its colour. Outliers are found before, on registered frames (see ``stack``), and each frame's
pixels that lie where it was rejected stay out.

Pixels keep the frames' unit, light per pixel of a frame: on a grid s times finer the pixels of a star add up to s²
times its light.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from math import ceil, floor, prod
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from drizzle.resample import Drizzle
from numpy.typing import NDArray
from torch import Tensor

from safelight.core.execute import Executor
from safelight.core.kernel import Kernel
from safelight.kernels.combine import PLANES
from safelight.kernels.feather import radial_weights
from safelight.kernels.normalisation import frame_weights
from safelight.kernels.rejection import Rejection
from safelight.kernels.verdicts import verdicts
from safelight.pipelines.mosaic.calibration import Calibration
from safelight.pipelines.mosaic.canvas import Canvas
from safelight.pipelines.mosaic.chunks import enough_rows
from safelight.pipelines.mosaic.drops import Drops, Judged, Singles, store_drops
from safelight.pipelines.mosaic.groups import Group
from safelight.pipelines.mosaic.mapping import CELL, MAP_ERROR, Transform, coordinate_map, sky_transform
from safelight.pipelines.mosaic.options import DrizzleKernel, RunOptions
from safelight.pipelines.mosaic.registered import RegisteredFrame
from safelight.pipelines.mosaic.stack import StackSource, rejection_of
from safelight.pipelines.mosaic.stars import StarField

TILE = 4 * CELL
"""Pixels along a side of the parts of a frame that are mapped and drizzled at a time."""

BAND_BYTES = 64 * 2**20
"""What a band of rows of the grid may take. It depends on nothing but the grid: so results do not on memory."""

BAND_ALIGNMENT = 64
"""Bands are multiples of this many rows."""

REACH = 2.0
"""Pixels of a frame by which a drop may reach beyond the middle of its pixel, more than any does."""


def coarser(group: Group, factor: float) -> Group:
    """Return the group on pixels so many times larger, which begin where its own do: where outliers are looked for."""
    height, width = (ceil(size / factor) for size in group.shape)
    wcs = group.wcs.deepcopy()
    wcs.wcs.cd = wcs.pixel_scale_matrix * factor
    wcs.wcs.crpix = (np.array(wcs.wcs.crpix) - 0.5) / factor + 0.5
    wcs.pixel_shape = (width, height)
    wcs.wcs.set()
    return Group(group.frames, (0, height, 0, width), Canvas(wcs, (height, width)))


def drizzle_source(
    group: Group,
    registered: Sequence[RegisteredFrame],
    stacking: Kernel,
    calibration: Calibration,
    options: RunOptions,
    scratch: Path,
    executor: Executor,
) -> DrizzleSource:
    """Find the outliers among registered frames, and return what the frames' own pixels give without them.

    Parameters
    ----------
    group : Group
        With the grid to drizzle onto.
    registered : sequence of RegisteredFrame
        The group's frames on ``coarser(group, options.drizzle)``, where outliers are found.
    stacking : Kernel
        ``stack_kernel`` of them, which brings them to one level.
    calibration : Calibration
    options : RunOptions
    scratch : Path
        Folder for pixels and rejection maps of all frames.
    executor : Executor

    Raises
    ------
    InputError
        A frame cannot be read any more.
    OutputError
        A scratch file cannot be written.
    """
    assert options.drizzle is not None
    frames = zip(group.frames, registered, strict=True)
    drops = [store_drops(frame, calibration, other.path.with_suffix(".drops")) for frame, other in frames]
    scale, offset, *_ = stacking.constants
    noise = torch.tensor([one.noise for one in drops]) * scale.abs()
    weights = frame_weights(noise, torch.tensor([frame.fwhm for frame in registered]), options.weighting)
    shares = Shares(scale, offset, weights, noise)
    source = StackSource(registered)
    channels, width, count = source.shape
    judged = Judged(scratch / "judged.raw", (source.extent, count, channels, width))
    executor.map(judging(stacking, options), source, judged, most_rows=enough_rows(source))
    facts = group.frames[0].facts
    radial = torch.ones(facts.height, facts.width)
    if options.radial_weight:
        radial = radial_weights(facts.height, facts.width, options.radial_feather, options.radial_power)
    shape = (options.drizzle, options.pixfrac, options.drizzle_kernel)
    return DrizzleSource(group, drops, shares, judged, radial.numpy(), *shape)


def judging(stacking: Kernel, options: RunOptions) -> Kernel:
    """Return ``judge_rows`` as a kernel, for the frames that the kernel of a stack would combine."""
    function = partial(judge_rows, rejection=rejection_of(options))
    return Kernel("judge", function, stacking.constants[:2], alignment=stacking.alignment)


def judge_rows(samples: Tensor, scale: Tensor, offset: Tensor, rejection: Rejection) -> Tensor:
    """Return the verdicts on rows (rows, channels, width, frames), each channel with its (frames, channels)."""
    judged = torch.empty(samples.shape, dtype=torch.uint8, device=samples.device)
    for channel in range(samples.shape[1]):
        judged[:, channel] = verdicts(samples[:, channel], scale[:, channel], offset[:, channel], rejection)
    return judged


class Shares(NamedTuple):
    """How a frame's samples enter, ``scale * x + offset``, and what they count for; (frames, channels) each."""

    scale: Tensor
    offset: Tensor
    weights: Tensor
    noise: Tensor


@dataclass
class DrizzleSource:
    """Rows of the grid with what falls onto them: (planes, channels, width), finished by ``drizzle_kernel``.

    The C library computes while rows are "read", a band of a fixed number of rows at a time whatever the Executor
    asks for: so the same bits come out for chunks of any size. It adds up in the very rows that are returned, which
    the plan counts; besides there are only copies of a band's weights. Frames fall in order of their noise, not of
    their names.

    Parameters
    ----------
    group : Group
        With the grid.
    drops : sequence of Drops
    shares : Shares
    judged : Judged
        On the grid of ``coarser(group, factor)``.
    radial : ndarray, (height, width)
        What each pixel of a frame counts for by its place.
    factor : float
        How many times finer than the frames the grid is.
    pixfrac : float
        Side of a drop over that of its pixel.
    kernel : str
        Shape of the drops.
    """

    group: Group
    drops: Sequence[Drops]
    shares: Shares
    judged: Judged
    radial: NDArray[np.float32]
    factor: float
    pixfrac: float
    kernel: DrizzleKernel
    dtype: torch.dtype = field(default=torch.float32, init=False)

    @property
    def extent(self) -> int:
        """Rows of the grid."""
        return self.group.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Planes, channels, width."""
        return (len(PLANES), self.shares.scale.shape[1], self.group.shape[1])

    @property
    def band_rows(self) -> int:
        """Rows of the grid that are drizzled at a time."""
        return band_rows(self.shape)

    def read(self, start: int, stop: int) -> Tensor:
        """Return rows of the grid; where nothing fell all planes are 0, and ``n_eff`` still is its inverse."""
        first = start // self.band_rows * self.band_rows
        last = min(-(-stop // self.band_rows) * self.band_rows, self.extent)
        planes, channels, width = self.shape
        block = np.zeros((planes, channels, last - first, width), np.float32)
        for band in range(first, last, self.band_rows):
            self._drizzle(band, block[:, :, band - first : band - first + self.band_rows])
        return torch.from_numpy(block)[:, :, start - first : stop - first].permute(2, 0, 1, 3)

    def on_frames(self, stars: StarField) -> StarField:
        """Return stars of the grid in pixels of the frames, with the light that they have there."""
        x, y = ((at + 0.5) / self.factor - 0.5 for at in (stars.x, stars.y))
        return replace(stars, x=x, y=y, flux=stars.flux / self.factor**2, fwhm=stars.fwhm / self.factor)

    def _drizzle(self, start: int, band: Singles) -> None:
        """Let all frames fall onto the band (planes, channels, rows, width) that begins at row ``start``."""
        _, channels, rows, width = band.shape
        stop = start + rows
        layers = dict(zip(PLANES, band, strict=True))
        targets = [
            Drizzle(
                self.kernel,
                out_img=layers["image"][channel],
                out_wht=layers["weight"][channel],
                out_img2=[layers["variance"][channel], layers["n_eff"][channel]],
                exptime=1.0,  # the library's own count of frames; it looks for an empty weight where it is 0
                disable_ctx=True,
            )
            for channel in range(channels)
        ]
        for number in self._in_order:
            before = layers["weight"].copy()
            for part in self._parts[number]:
                if part.low < stop and part.high >= start:
                    self._let_fall(targets, number, part, start)
            layers["count"] += layers["weight"] != before
        columns = ((np.arange(width) + 0.5) / self.factor).astype(np.intp)
        for row in range(start, stop):
            counts = self.judged.counts(int((row + 0.5) / self.factor))
            layers["low"][:, row - start], layers["high"][:, row - start] = (each[:, columns] for each in counts)

    def _let_fall(self, targets: Sequence[Drizzle], number: int, part: _Part, start: int) -> None:
        """Drizzle a part of a frame onto the band that begins at row ``start``."""
        scale, offset, weights, noise = (of[number].tolist() for of in self.shares)
        y, x = part.positions(self.factor)
        values = self.drops[number].read(part.rows, part.columns)
        rejected = self.judged.rejects(number, *((at + 0.5) / self.factor - 0.5 for at in (y, x)))
        usable = np.isfinite(values) & ~rejected
        pixmap = np.stack([x, y - start], axis=-1)
        ones = np.ones(y.shape, np.float32)
        radial = self.radial[part.rows, part.columns]
        for channel, target in enumerate(targets):
            target.add_image(
                np.where(usable[channel], values[channel] * scale[channel] + offset[channel], 0),
                1.0,
                pixmap,
                data2=[noise[channel] ** 2 * ones, ones],
                weight_map=usable[channel] * radial,
                wht_scale=weights[channel],
                pixfrac=self.pixfrac,
                pixel_scale_ratio=1 / self.factor,
            )

    @cached_property
    def _in_order(self) -> list[int]:
        return sorted(range(len(self.drops)), key=lambda number: [of[number].tolist() for of in reversed(self.shares)])

    @cached_property
    def _parts(self) -> list[list[_Part]]:
        return [list(_parts(drops, self.group, REACH * self.factor)) for drops in self.drops]


@dataclass(frozen=True, eq=False)
class _Part:
    """A part of a frame, and the rows of the grid, from ``low`` to ``high``, that its drops may reach."""

    transform: Transform
    rows: slice
    columns: slice
    corner: tuple[int, int]
    size: tuple[int, int]
    low: float
    high: float

    def positions(self, factor: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return where its pixels lie on the grid: y and x, (rows, columns) each."""
        left, right = self.columns.start, self.columns.stop
        mapped = coordinate_map(
            lambda y, x: self.transform(y, x + left),
            (self.rows.start, self.rows.stop),
            right - left,
            self.size,
            origin=self.corner,
            bound=MAP_ERROR * factor,
        )
        y, x = np.moveaxis(mapped.coordinates.double().numpy(), 1, 0)
        return y + self.corner[0], x + self.corner[1]


def _parts(drops: Drops, group: Group, reach: float) -> Iterator[_Part]:
    """Cut a frame into parts."""
    height, width = drops.shape
    transform = sky_transform(drops.frame.wcs, group.wcs, group.shape)
    for top in range(0, height, TILE):
        for left in range(0, width, TILE):
            rows, columns = slice(top, min(top + TILE, height)), slice(left, min(left + TILE, width))
            corners = np.meshgrid([top, rows.stop - 1], [left, columns.stop - 1], indexing="ij")
            y, x = transform(*(at.astype(np.float64) for at in corners))
            corner = (floor(y.min() - reach), floor(x.min() - reach))
            size = (ceil(y.max() + reach) - corner[0] + 1, ceil(x.max() + reach) - corner[1] + 1)
            yield _Part(transform, rows, columns, corner, size, corner[0], corner[0] + size[0])


def band_rows(row_shape: tuple[int, ...]) -> int:
    """Return how many rows, of float32, are drizzled at a time."""
    return max(BAND_BYTES // (4 * prod(row_shape)) // BAND_ALIGNMENT, 1) * BAND_ALIGNMENT


def drizzle_kernel(row_shape: tuple[int, ...]) -> Kernel:
    """Return the kernel that turns rows of a ``DrizzleSource`` into planes of a stack; its chunks are whole bands."""
    return Kernel("drizzle", finish_rows, alignment=band_rows(row_shape))


def finish_rows(rows: Tensor) -> Tensor:
    """Return rows (rows, planes, channels, width) with NaN where nothing fell and the effective number of samples."""
    planes = dict(zip(PLANES, rows.unbind(1), strict=True))
    empty = planes["weight"] <= 0
    planes["image"] = planes["image"].masked_fill(empty, torch.nan)
    planes["variance"] = planes["variance"].masked_fill(empty, torch.nan)
    planes["n_eff"] = torch.where(empty, 0, 1 / planes["n_eff"])
    return torch.stack([planes[name] for name in PLANES], dim=1)
