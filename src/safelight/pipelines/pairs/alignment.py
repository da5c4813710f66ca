"""A pair's maths: the shift between a clean and a noisy frame, the gain, and what of the pair can be trusted.

Convention: ``anchor[y + dy, x + dx] ≈ target[y, x]`` for the shift (dy, dx), in pixels of the visible mosaics; the
anchor is the ground truth. Mosaics stay 16-bit on the host; every computation takes them by rows, or a bounded part.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from safelight.core.execute import Executor
from safelight.formats.raw import RawFrame
from safelight.kernels.cfa import (
    Offset,
    Tile,
    cell_origin,
    cell_side,
    moved,
    nearest_lattice_shift,
    phase_between,
    tile_of,
)
from safelight.kernels.exposure import PoissonGaussian
from safelight.pipelines.pairs.options import MIN_CONFIDENCE, Method
from safelight.pipelines.pairs.overlap import Overlap
from safelight.pipelines.pairs.sampling import Sampled, sample
from safelight.pipelines.pairs.shifts import anchor_spectrum, exact_shift, grey_image, whole_shift

Status = Literal["ok", "suspect", "failed"]
Reason = Literal[
    "other_sensor", "other_phase", "clipped", "no_signal", "small_overlap", "wrong_scene", "no_light", "uneven_shift"
]

MIN_CORRELATION = 0.5
"""Least correlation of aligned tiles."""
CLEAR_UNCERTAINTY, MAX_UNCERTAINTY = 0.6, 1.5
"""Spread of the tiles' shifts in pixels from which on a pair is suspect, and has failed: a turned frame, parallax."""
ALL_USABLE = 0.98
"""Share of sampled cells clipped in neither frame, below which both frames are cut at the same light."""
MIN_USABLE = 0.5
"""Least share of sampled cells that are clipped in neither frame."""


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
    image = grey_image(frame, tile, origin, executor)
    return Anchor(frame, tile, origin, image, anchor_spectrum(image, executor))


def align(
    anchor: Anchor,
    target: RawFrame,
    executor: Executor,
    min_confidence: float = MIN_CONFIDENCE,
    method: Method = "phase",
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
    method : {"phase", "ecc"}
        How the fraction of the shift is found: by the phases of the spectra, or from there on by maximising the
        correlation.
    """
    origin = phase_between(anchor.tile, tile_of(target.pattern))
    if origin is None:
        sensors = {anchor.frame.sensor, target.sensor}
        return PairAlignment("failed", "other_sensor" if len(sensors) > 1 else "other_phase")
    image = grey_image(target, anchor.tile, origin, executor)
    whole, confidence = whole_shift(anchor.spectrum, anchor.grey.shape, image, executor)
    if confidence < min_confidence:
        return PairAlignment("failed", "no_signal", confidence=confidence)
    found = exact_shift(anchor.grey, image, whole, executor, method)
    if found is None:
        return PairAlignment("failed", "small_overlap", confidence=confidence)
    overlap, lattice, residual = _overlap(anchor, target, origin, found.shift)
    sampled = sample(anchor.frame, target, overlap, executor)
    if sampled.usable < ALL_USABLE and sampled.is_clear:
        images = _cut_alike(anchor, target, origin, sampled.rgb_gain, executor)
        found = exact_shift(*images, whole, executor, method) or found
        overlap, lattice, residual = _overlap(anchor, target, origin, found.shift)
        sampled = sample(anchor.frame, target, overlap, executor)
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


def _cut_alike(
    anchor: Anchor, target: RawFrame, origin: Offset, gain: tuple[float, float, float], executor: Executor
) -> tuple[Tensor, Tensor]:
    """Return the grey images of frames that are cut at the same light: an edge that one frame clips, both have."""
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
        grey_image(frame, anchor.tile, start, executor, tuple(cut))
        for frame, start, cut in zip((anchor.frame, target), (anchor.origin, origin), cuts, strict=True)
    ]
    return images[0], images[1]


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


def _judge(uncertainty: float, correlation: float, sampled: Sampled) -> tuple[Status, Reason | None]:
    if sampled.usable < MIN_USABLE:
        return "failed", "clipped"
    if not math.isfinite(sampled.raw_gain):
        return "failed", "no_light"
    if correlation < MIN_CORRELATION:
        return "failed", "wrong_scene"
    if uncertainty > CLEAR_UNCERTAINTY:
        return "failed" if uncertainty > MAX_UNCERTAINTY else "suspect", "uneven_shift"
    return "ok", None
