"""A pair's maths: the shift between a clean and a noisy frame, the gain, and what of the pair can be trusted.

Convention: ``anchor[y + dy, x + dx] ≈ target[y, x]`` for the shift (dy, dx), in pixels of the visible mosaics; the
anchor is the ground truth. Mosaics stay 16-bit on the host; every computation takes them by rows, or a bounded part.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from safelight.core.execute import Executor
from safelight.core.kernel import Kernel
from safelight.core.stream import TensorSink, TensorSource
from safelight.formats.raw import RawFrame
from safelight.kernels.cfa import (
    Offset,
    Tile,
    cell_origin,
    cell_side,
    grey,
    light_cells,
    moved,
    nearest_lattice_shift,
    phase_between,
    tile_of,
)
from safelight.kernels.exposure import PoissonGaussian, block_light, fit_poisson_gaussian, gain_between, offset_by_level
from safelight.kernels.register import coarse_shift, despeckle, fine_shift, shared_variance, spectrum
from safelight.pipelines.pairs.options import MIN_CONFIDENCE
from safelight.pipelines.pairs.overlap import BLACK, WHITE, Overlap, PairRows, levels_of, pair_cells

Status = Literal["ok", "suspect", "failed"]
Reason = Literal[
    "other_sensor", "other_phase", "clipped", "no_signal", "small_overlap", "wrong_scene", "no_light", "uneven_shift"
]

MIN_CORRELATION = 0.5
"""Least correlation of aligned tiles."""
CLEAR_UNCERTAINTY, MAX_UNCERTAINTY = 0.6, 1.5
"""Spread of the tiles' shifts in pixels from which on a pair is suspect, and has failed: a turned frame, parallax."""
MIN_OVERLAP = 0.25
"""Least share of the target that the anchor covers."""
MIN_SIDE = 32
"""Least height and width of the overlap in cells."""
ALL_USABLE = 0.98
"""Share of sampled cells clipped in neither frame, below which both frames are cut at the same light."""
MIN_USABLE = 0.5
"""Least share of sampled cells that are clipped in neither frame."""

COARSE_PIXELS = 750_000
"""Most grey pixels of the first search; larger frames are binned further."""
FINE_SIDE = 1024
"""Longest side, in cells, of the middle part from which the fine shift is found."""
TILES, TILE_SIDE = 3, 256
"""Tiles along each axis, and their longest side in cells: their shifts' spread is the uncertainty."""
BANDS, BAND_ROWS = 8, 20
"""How many bands of so many rows of tiles, a block and its context, are sampled for gain, noise and loss."""
GREY_ROWS = 128
"""Rows of tiles that are made grey at once: they stay in a cache."""
BANDS_AT_ONCE = 2
CONTEXT = 2
"""Rows of tiles at either end of a band from which the others are interpolated."""
BLOCK = 16
"""Side in cells of the blocks whose light is compared."""
SMALL_BLOCK, LEVELS = 4, 16
"""Side in cells of the blocks that tell the offset at each of so many levels."""
NOISE_SAMPLES = 40_000
"""Pixels of each colour that the noise is fitted to."""


@dataclass(frozen=True, eq=False)
class Anchor:
    """A ground truth, prepared once for all its noisy frames.

    Parameters
    ----------
    frame : RawFrame
    tile : Tile
        Colours from the first whole cell on.
    origin : tuple of int
        Where the first whole cell is.
    grey : Tensor
        (height, width) of cells, on the CPU.
    spectrum : Tensor
        Of the binned grey image, on the executor's device.
    """

    frame: RawFrame
    tile: Tile
    origin: Offset
    grey: Tensor
    spectrum: Tensor


@dataclass(frozen=True)
class PairAlignment:
    """What is known about a pair.

    Parameters
    ----------
    status : str
        ``ok``; ``suspect``: to be looked at; ``failed``: not to be used, and what was not found is NaN or 0.
    reason : str, optional
        Why it is not ok.
    shift : tuple of float
        (dy, dx) in pixels.
    shift_integer, shift_lattice : tuple of int
        The nearest whole one, and the nearest one that brings every colour onto itself.
    lattice_residual : float
        Distance between the shift and the lattice shift in pixels.
    uncertainty : float
        Median distance of the tiles' shifts from the shift, in pixels.
    confidence : float
        Height of the correlation's peak over the deviation away from it.
    correlation : float
        Of the aligned tiles, at reduced resolution.
    raw_gain : float
        By what the target is multiplied to be as bright as the anchor, all colours together.
    rgb_gain : tuple of float
        The same for red, green and blue; that of all for a colour that is clipped or dark everywhere.
    noise : tuple of PoissonGaussian
        Of the difference between anchor and target times gain, for red, green and blue, at the anchor's level.
    offsets : Tensor
        (3, 2, n): for each colour, levels of the anchor and what the target times gain is brighter by at them.
    alignment_loss : float
        Mean absolute difference of the sampled cells after gain, 1 being white.
    overlap : Overlap, optional
        None where there is none.
    """

    status: Status
    reason: Reason | None
    shift: tuple[float, float] = (math.nan, math.nan)
    shift_integer: Offset = (0, 0)
    shift_lattice: Offset = (0, 0)
    lattice_residual: float = math.nan
    uncertainty: float = math.nan
    confidence: float = 0.0
    correlation: float = 0.0
    raw_gain: float = math.nan
    rgb_gain: tuple[float, float, float] = (math.nan,) * 3
    noise: tuple[PoissonGaussian, ...] = ()
    offsets: Tensor = field(default_factory=lambda: torch.zeros(3, 2, 2), compare=False)
    alignment_loss: float = math.nan
    overlap: Overlap | None = None


def prepare(frame: RawFrame, executor: Executor) -> Anchor:
    """Prepare a ground truth: its grey image and spectrum."""
    tile = tile_of(frame.pattern)
    origin = cell_origin(tile)
    tile = moved(tile, origin)
    image = _grey(frame, tile, origin, executor)
    binned = _binned(image[None], _bin_factor(image.shape))
    kernel = Kernel("pair_spectrum", spectrum, alignment=1)
    return Anchor(frame, tile, origin, image, _run(kernel, binned, executor, keep=True))


def align(
    anchor: Anchor, target: RawFrame, executor: Executor, min_confidence: float = MIN_CONFIDENCE
) -> PairAlignment:
    """Find shift and gain of a noisy frame, and whether they can be trusted.

    Parameters
    ----------
    anchor : Anchor
    target : RawFrame
        May begin elsewhere in the colour filter array than the anchor, and have another size.
    executor : Executor
    min_confidence : float
        Least confidence of a shift that is one.
    """
    origin = phase_between(anchor.tile, tile_of(target.pattern))
    if origin is None:
        sensors = {anchor.frame.sensor, target.sensor}
        return PairAlignment("failed", "other_sensor" if len(sensors) > 1 else "other_phase")
    image = _grey(target, anchor.tile, origin, executor)
    coarse, confidence = _coarse(anchor, image, executor)
    if confidence < min_confidence:
        return PairAlignment("failed", "no_signal", confidence=confidence)
    found = _fine(anchor.grey, image, coarse, executor)
    if found is None:
        return PairAlignment("failed", "small_overlap", confidence=confidence)
    overlap, lattice, residual = _overlap(anchor, target, origin, found.shift)
    sampled = _sample(anchor.frame, target, overlap, executor)
    if sampled.usable < ALL_USABLE and math.isfinite(sampled.raw_gain):
        found = _fine_alike(anchor, target, origin, coarse, sampled.rgb_gain, executor) or found
        overlap, lattice, residual = _overlap(anchor, target, origin, found.shift)
        sampled = _sample(anchor.frame, target, overlap, executor)
    side = cell_side(anchor.tile)
    difference = [a - t for a, t in zip(anchor.origin, origin, strict=True)]
    shift = tuple(side * cells + offset for cells, offset in zip(found.shift, difference, strict=True))
    status, reason = _judge(side * found.spread, found.correlation, sampled)
    return PairAlignment(
        status,
        reason,
        shift=(shift[0], shift[1]),
        shift_integer=(round(shift[0]), round(shift[1])),
        shift_lattice=(lattice[0] + difference[0], lattice[1] + difference[1]),
        lattice_residual=residual,
        uncertainty=side * found.spread,
        confidence=confidence,
        correlation=found.correlation,
        raw_gain=sampled.raw_gain,
        rgb_gain=sampled.rgb_gain,
        noise=sampled.noise,
        offsets=sampled.offsets,
        alignment_loss=sampled.loss,
        overlap=overlap,
    )


@dataclass(frozen=True)
class _Fine:
    """A shift in cells, the spread of the tiles' shifts in cells, and the tiles' correlation."""

    shift: tuple[float, float]
    spread: float
    correlation: float


@dataclass(frozen=True)
class _Sampled:
    """What sampled bands of the overlap tell."""

    usable: float
    raw_gain: float
    rgb_gain: tuple[float, float, float]
    noise: tuple[PoissonGaussian, ...]
    offsets: Tensor
    loss: float


@dataclass(frozen=True)
class _MosaicRows:
    """A mosaic by rows of tiles, (period, width) each."""

    mosaic: NDArray[np.uint16]
    period: int
    dtype: torch.dtype = field(default=torch.uint16, init=False)

    @property
    def extent(self) -> int:
        return int(self.mosaic.shape[0]) // self.period

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.period, self.mosaic.shape[1] // self.period * self.period)

    def read(self, start: int, stop: int) -> Tensor:
        rows = self.mosaic[start * self.period : stop * self.period, : self.shape[1]]
        return torch.from_numpy(np.ascontiguousarray(rows)).view(-1, *self.shape)


@dataclass(frozen=True)
class _Bands:
    """Bands of rows of tiles, spread evenly over a pair, with ``CONTEXT`` above and below."""

    rows: PairRows
    dtype: torch.dtype = field(default=torch.uint16, init=False)

    @property
    def extent(self) -> int:
        return BANDS if self.rows.extent > BANDS * BAND_ROWS else 1

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.rows.extent if self.extent == 1 else BAND_ROWS, *self.rows.shape)

    def read(self, start: int, stop: int) -> Tensor:
        length = self.shape[0]
        gap = (self.rows.extent - length) / max(self.extent - 1, 1)
        starts = [round(number * gap) for number in range(start, stop)]
        return torch.stack([self.rows.read(first, first + length) for first in starts])


def _run(kernel: Kernel, values: Tensor, executor: Executor, keep: bool = False) -> Tensor:
    """Return a kernel's result for a tensor, on the CPU, or on the device where it is kept."""
    sink = TensorSink(len(values), executor.device.torch_device if keep else None)
    executor.map(kernel, TensorSource(values), sink)
    return sink.result


def _grey(
    frame: RawFrame, tile: Tile, origin: Offset, executor: Executor, most: tuple[float, ...] | None = None
) -> Tensor:
    """Return the grey image of a frame from a cell's first pixel on, raw values cut, without hot pixels."""
    rows = _MosaicRows(frame.mosaic[origin[0] :, origin[1] :], len(tile))
    constants = (levels_of(frame)[0], *(() if most is None else (torch.tensor(most),)))
    kernel = Kernel("pair_grey", partial(_grey_rows, tile=tile), constants, halo=1)
    sink = TensorSink(rows.extent)
    executor.map(kernel, rows, sink, most_rows=GREY_ROWS)
    return sink.result.flatten(0, 1)


def _grey_rows(rows: Tensor, levels: Tensor, most: Tensor | None = None, *, tile: Tile) -> Tensor:
    image = despeckle(light_cells(rows, tile, levels[BLACK], levels[WHITE], most))
    return image.view(len(rows), len(tile) // cell_side(tile), -1)


def _bin_factor(shape: torch.Size) -> int:
    """Return by what the grey image is binned for the first search."""
    return max(1, math.ceil(math.sqrt(shape[0] * shape[1] / COARSE_PIXELS)))


def _binned(images: Tensor, factor: int) -> Tensor:
    return images if factor == 1 else grey(images, factor)


def _coarse(anchor: Anchor, image: Tensor, executor: Executor) -> tuple[Offset, float]:
    """Return the whole shift in cells, and its confidence."""
    factor = _bin_factor(anchor.grey.shape)
    same_size = _resized(image, anchor.grey.shape)
    kernel = Kernel("pair_coarse_shift", coarse_shift, (anchor.spectrum,), alignment=1)
    dy, dx, confidence = _run(kernel, _binned(same_size[None], factor), executor)[0].tolist()
    return (int(dy) * factor, int(dx) * factor), confidence


def _resized(image: Tensor, shape: torch.Size) -> Tensor:
    """Return an image cut, and filled with its mean, to a shape."""
    if image.shape == shape:
        return image
    result = torch.full(shape, float(image.mean()))
    height, width = (min(sizes) for sizes in zip(image.shape, shape, strict=True))
    result[:height, :width] = image[:height, :width]
    return result


def _fine(anchor: Tensor, target: Tensor, coarse: Offset, executor: Executor) -> _Fine | None:
    """Return the shift to a fraction of a cell from the overlap at a whole shift; None where this is small."""
    starts = [(max(shift, 0), max(-shift, 0)) for shift in coarse]
    sizes = [min(a - start[0], t - start[1]) for a, t, start in zip(anchor.shape, target.shape, starts, strict=True)]
    if min(sizes) < MIN_SIDE or sizes[0] * sizes[1] < MIN_OVERLAP * target.numel():
        return None
    (ay, ty), (ax, tx) = starts
    both = (anchor[ay : ay + sizes[0], ax : ax + sizes[1]], target[ty : ty + sizes[0], tx : tx + sizes[1]])
    kernel = Kernel("pair_fine_shift", fine_shift, alignment=1)
    whole = _run(kernel, _tiles(both, FINE_SIDE, 1), executor)[0]
    tiles = _run(Kernel("pair_tiles", _tile_facts, alignment=1), _tiles(both, TILE_SIDE, TILES), executor)
    spread = float((tiles[:, :2] - whole[:2]).square().sum(1).sqrt().median())
    shared = tiles[:, 3:].double().sum(0)
    correlation = float(shared[0] / (shared[1] * shared[2]).sqrt().clamp(min=1e-30))
    dy, dx = whole[:2].tolist()
    return _Fine((coarse[0] + dy, coarse[1] + dx), spread, correlation)


def _tile_facts(pairs: Tensor) -> Tensor:
    return torch.cat((fine_shift(pairs), shared_variance(pairs)), dim=1)


def _fine_alike(
    anchor: Anchor,
    target: RawFrame,
    origin: Offset,
    coarse: Offset,
    gain: tuple[float, float, float],
    executor: Executor,
) -> _Fine | None:
    """Return the fine shift of frames that are cut at the same light: an edge that one frame clips, both have."""
    gains = (*gain, gain[1])
    cuts: list[list[float]] = [[], []]
    for colour in range(4):
        spans = [frame.white - frame.black[colour] for frame in (anchor.frame, target)]
        full = [
            (frame.clipping[colour] - frame.black[colour]) / span
            for frame, span in zip((anchor.frame, target), spans, strict=True)
        ]
        light = min(full[0], full[1] * gains[colour])
        cuts[0].append(anchor.frame.black[colour] + light * spans[0])
        cuts[1].append(target.black[colour] + light / gains[colour] * spans[1])
    images = [
        _grey(frame, anchor.tile, start, executor, tuple(cut))
        for frame, start, cut in zip((anchor.frame, target), (anchor.origin, origin), cuts, strict=True)
    ]
    return _fine(images[0], images[1], coarse, executor)


def _tiles(both: tuple[Tensor, Tensor], longest: int, number: int) -> Tensor:
    """Return tiles spread evenly over two images, (number², 2, height, width); a single one is in the middle."""
    shape = both[0].shape
    sides = [min(size // number, longest) for size in shape]
    starts = [
        [round((size - side) * (2 * i + 1) / (2 * number)) for i in range(number)]
        for size, side in zip(shape, sides, strict=True)
    ]
    places = [(slice(y, y + sides[0]), slice(x, x + sides[1])) for y, x in product(*starts)]
    return torch.stack([torch.stack([image[place] for image in both]) for place in places])


def _overlap(
    anchor: Anchor, target: RawFrame, origin: Offset, cells: tuple[float, float]
) -> tuple[Overlap, Offset, float]:
    """Return the overlap, the lattice shift between the origins, and its residual in pixels."""
    side, period = cell_side(anchor.tile), len(anchor.tile)
    shift = (side * cells[0], side * cells[1])
    lattice, residual = nearest_lattice_shift(shift, target.sensor)
    starts, shape = [], []
    for axis in (0, 1):
        first, second = max(lattice[axis], 0), max(-lattice[axis], 0)
        sizes = (
            anchor.frame.mosaic.shape[axis] - anchor.origin[axis] - first,
            target.mosaic.shape[axis] - origin[axis] - second,
        )
        starts.append((first, second))
        shape.append(min(sizes) // period * period)
    overlap = Overlap(
        tile=moved(anchor.tile, (starts[0][0], starts[1][0])),
        anchor=(anchor.origin[0] + starts[0][0], anchor.origin[1] + starts[1][0]),
        target=(origin[0] + starts[0][1], origin[1] + starts[1][1]),
        shape=(shape[0], shape[1]),
        residual=((shift[0] - lattice[0]) / side, (shift[1] - lattice[1]) / side),
    )
    return overlap, lattice, residual


def _sample(anchor: RawFrame, target: RawFrame, overlap: Overlap, executor: Executor) -> _Sampled:
    """Return gain, noise and loss from bands of rows, spread evenly."""
    bands = _Bands(PairRows.of(anchor, target, overlap))
    constants = (levels_of(anchor, target), overlap.weights)
    sink = TensorSink(bands.extent)
    kernel = Kernel("pair_sample", partial(_band_cells, tile=overlap.tile), constants, alignment=1)
    executor.map(kernel, bands, sink, most_rows=BANDS_AT_ONCE)
    cells = sink.result.transpose(0, 1).flatten(1, 2)
    del sink
    first, second, usable = cells[:3], cells[3:6], cells[6:] > 0
    gains, together = _gains(first, second, usable)
    difference = second * gains.view(3, 1, 1) - first
    noise = tuple(_fit_noise(*colour) for colour in zip(first, difference, usable, strict=True))
    loss = (difference.abs() * usable).sum(dtype=torch.float64) / usable.sum().clamp(min=1)
    red, green, blue = gains.tolist()
    return _Sampled(
        float(usable.double().mean()),
        together,
        (red, green, blue),
        noise,
        _offsets(first, difference, usable),
        float(loss),
    )


def _gains(first: Tensor, second: Tensor, usable: Tensor) -> tuple[Tensor, float]:
    """Return the gain of each colour and of all together; a colour that is nowhere usable has that of all."""
    anchor, target, number = block_light(first, second, usable, BLOCK).flatten(2)
    # Noise that is cut off at black makes the dark too bright: the brighter half of the blocks counts.
    level = anchor / number
    bright = level >= level.nanmedian(1, keepdim=True).values
    anchor, target = anchor * bright, target * bright
    gains, together = gain_between(anchor, target), gain_between(anchor.flatten(), target.flatten())
    return torch.where(gains.isfinite(), gains, together), float(together)


def _offsets(first: Tensor, difference: Tensor, usable: Tensor) -> Tensor:
    """Return the curves of ``PairAlignment.offsets``."""
    curves = torch.zeros(3, 2, LEVELS)
    light = block_light(first, difference, usable, SMALL_BLOCK).flatten(2)
    for colour, (level, offset, number) in enumerate(light.transpose(0, 1)):
        most = number == SMALL_BLOCK**2
        if int(most.sum()) >= LEVELS:
            curves[colour] = offset_by_level((level / number)[most], (offset / number)[most], LEVELS)
    return curves


def _band_cells(bands: Tensor, levels: Tensor, weights: Tensor, *, tile: Tile) -> Tensor:
    """Return (n, 9, cells down, cells across): colours of the anchor, of the target, and whether neither is clipped."""
    context = CONTEXT * len(tile) // cell_side(tile)
    cells = torch.cat([part.float() for part in pair_cells(bands.flatten(0, 1), levels, weights, tile)])
    return cells.view(len(cells), len(bands), -1, cells.shape[2]).transpose(0, 1)[:, :, context:-context]


def _fit_noise(level: Tensor, difference: Tensor, usable: Tensor) -> PoissonGaussian:
    """Fit the noise to differences between neighbours, in which what moved slowly cancels."""
    every = max(1, level.numel() // NOISE_SAMPLES)
    columns = [slice(first, level.shape[1] - 1 + first, every) for first in (0, 1)]
    inside = usable[:, columns[0]] & usable[:, columns[1]]
    step = (difference[:, columns[1]] - difference[:, columns[0]])[inside] / math.sqrt(2)
    levels = 0.5 * (level[:, columns[1]] + level[:, columns[0]])[inside]
    return fit_poisson_gaussian(levels, step) if len(step) else PoissonGaussian(0.0, 1.0)


def _judge(uncertainty: float, correlation: float, sampled: _Sampled) -> tuple[Status, Reason | None]:
    if sampled.usable < MIN_USABLE:
        return "failed", "clipped"
    if not math.isfinite(sampled.raw_gain):
        return "failed", "no_light"
    if correlation < MIN_CORRELATION:
        return "failed", "wrong_scene"
    if uncertainty > CLEAR_UNCERTAINTY:
        return "failed" if uncertainty > MAX_UNCERTAINTY else "suspect", "uneven_shift"
    return "ok", None
