"""The job: register all frames, stack each group on the common canvas, assemble the stacks, audit the result."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from astropy.wcs import WCS
from torch import Tensor

from safelight.core.errors import InputError, NothingToDoError
from safelight.core.events import Severity, Value
from safelight.core.pipeline import Context, Item, Prepared, Record, Refusal
from safelight.core.stream import Source
from safelight.formats.fits import open_fits
from safelight.kernels.coadd import LAYERS
from safelight.kernels.combine import PLANES
from safelight.kernels.matching import Overlap
from safelight.pipelines.mosaic.assembly import (
    Feather,
    Tile,
    TilesSource,
    Window,
    coadd_kernel,
    find_overlaps,
    match,
    seam_step,
    unmatched,
    well_covered,
)
from safelight.pipelines.mosaic.audit import (
    check_noise,
    check_seam,
    check_stars,
    evenly_covered,
    measure_part,
    middle_of,
)
from safelight.pipelines.mosaic.calibration import Calibration, read_calibration
from safelight.pipelines.mosaic.canvas import Canvas, common_canvas, crop
from safelight.pipelines.mosaic.chunks import enough_rows
from safelight.pipelines.mosaic.discovery import FrameFacts
from safelight.pipelines.mosaic.drizzle import DrizzleSource, coarser, drizzle_kernel, drizzle_source
from safelight.pipelines.mosaic.frames import luminance_channel, stars_of
from safelight.pipelines.mosaic.groups import Group, PlacedFrame, make_groups
from safelight.pipelines.mosaic.incremental import blend_one_by_one
from safelight.pipelines.mosaic.items import frame_names
from safelight.pipelines.mosaic.options import RunOptions
from safelight.pipelines.mosaic.photometry import star_gains
from safelight.pipelines.mosaic.planning import bytes_besides
from safelight.pipelines.mosaic.preview import averaged, write_preview
from safelight.pipelines.mosaic.refinement import Alignment
from safelight.pipelines.mosaic.registered import RegisteredFrame, register_frame, scratch_folder
from safelight.pipelines.mosaic.registration import align
from safelight.pipelines.mosaic.solutions import find_solutions
from safelight.pipelines.mosaic.stack import StackSource, stack_kernel
from safelight.pipelines.mosaic.stack_file import StackFile, bands, create_stack, wcs_header
from safelight.pipelines.mosaic.stars import NoStarsError, StarField
from safelight.pipelines.mosaic.wcs import pixel_scale

FRAMES = "frames"
TILES = "tiles"
SCRATCH = "scratch"
SCIENCE = "mosaic_science.fits"
PREVIEW = "mosaic_preview.png"

MATCH_TOLERANCE = 2.0
"""Pixels within which two detections are one star, once frames are registered."""

SAMPLES = ("low", "high", "count")
"""The planes that add up to the frames that lie on a pixel."""

AUDITED_FRAMES = 9
"""Single frames that a stack is compared with."""

FEWEST_CONFIRMING = 6
"""Stars that a frame shares with others, from which its place counts as confirmed."""

PLAUSIBLE_GAIN = 2.0
"""Factor between groups that clouds and exposures explain."""

MOST_HOLES = 1e-3
"""Share of a drizzled stack that may be empty without a word."""

_REASONS = {
    "too_few_stars": "it has too few stars",
    "no_match": "its stars match those of no other frame",
    "not_connected": "no chain of overlapping frames joins it to the others",
    None: "for no known reason",
}


def register(items: Sequence[Item], options: RunOptions, context: Context) -> Prepared:
    """Measure and place every frame; return the groups to stack."""
    frames: tuple[FrameFacts, ...] = items[0].payload
    names = frame_names(frames, options.input)
    calibration = read_calibration(options.bias, options.dark, options.flat, frames[0], context.executor)
    refused: list[Refusal] = []
    fields = _measure_all(dict(zip(names, frames, strict=True)), calibration, refused, context)
    facts = {name: frame for name, frame in zip(names, frames, strict=True) if name in fields}
    if not fields:
        raise _nothing_left(refused, options)
    solutions = find_solutions(facts, fields, calibration, options, context)
    scale = next((frame.scale for frame in facts.values() if frame.scale), 1.0)
    alignments = align(fields, solutions, scale)
    placed = _placed(facts, fields, alignments, options, refused)
    if not placed:
        raise _nothing_left(refused, options)
    _say_places(placed, alignments, solutions, context)
    canvas = _canvas(placed, options)
    context.events.info("memory_besides", besides_bytes=bytes_besides([frame.facts for frame in placed], canvas.shape))
    groups = make_groups(placed, canvas)
    if options.drizzle:
        context.events.info("drizzling", factor=options.drizzle, pixfrac=options.pixfrac, kernel=options.drizzle_kernel)
        if pattern := placed[0].facts.pattern:
            context.events.info("drizzling_colours", pattern=pattern)
    context.events.info(
        "frames_registered",
        frames=len(placed),
        groups=len(groups),
        width=canvas.shape[1],
        height=canvas.shape[0],
        residual=float(np.nanmedian([frame.alignment.residual for frame in placed] or [np.nan])),
    )
    stacks = tuple(
        Item(f"group-{number:02}", tuple(frame.facts.path for frame in group.frames), group)
        for number, group in enumerate(groups, start=1)
    )
    return Prepared((canvas, calibration), _digest(placed, canvas, calibration), stacks, tuple(refused))


def stack(item: Item, options: RunOptions, context: Context, prepared: tuple[Canvas, Calibration]) -> Record:
    """Stack the frames of one group on its window of the canvas."""
    group: Group = item.payload
    _, calibration = prepared
    path = context.folder / TILES / f"{item.name}.fits"
    path.parent.mkdir(exist_ok=True)
    with scratch_folder(context.folder / SCRATCH / item.name) as scratch:
        grid = coarser(group, options.drizzle) if options.drizzle else group
        registered = list(_registered(grid, calibration, options, scratch, item.name, context))
        kernel = stack_kernel(registered, options)
        scale = kernel.constants[0]
        source: Source = StackSource(registered)
        drizzled = None
        if options.drizzle:
            source = drizzled = drizzle_source(
                group, registered, kernel, calibration, options, scratch, context.executor
            )
            kernel = drizzle_kernel(drizzled.shape)
        shape = (grid.frames[0].facts.colours, *group.shape)
        with create_stack(path, PLANES, shape, group.wcs, {"NFRAMES": len(registered)}) as sink:
            context.executor.map(kernel, source, sink, most_rows=enough_rows(source))
        with StackFile(path) as planes:
            checks = _audit_group(item.name, registered, scale, planes, drizzled)
            metrics = _shares_rejected(planes, group.shape[0])
            if drizzled is not None:
                _say_holes(item.name, planes, group.shape[0], context)
    details: dict[str, Any] = {
        "frames": [_frame_record(frame) for frame in group.frames],
        "window": list(group.window),
        "noise": float(np.median([frame.noise for frame in registered])),
        "checks": checks,
    }
    return Record((path,), metrics, details)


def assemble(item: Item, options: RunOptions, context: Context, prepared: tuple[Canvas, Calibration]) -> Record:
    """Match the stacks of all groups, blend them into the mosaic, and audit it."""
    canvas, _ = prepared
    records: Mapping[str, Any] = item.payload
    path = context.folder / SCIENCE
    with ExitStack() as opened:
        tiles = [
            Tile(name, opened.enter_context(StackFile(record.outputs[0])), tuple(record.details["window"]))
            for name, record in records.items()
        ]
        channels = tiles[0].file.channels
        overlaps = find_overlaps(tiles)
        coefficients = unmatched(channels, len(tiles))
        if options.match_background:
            gains, unknown = star_gains(tiles, channels)
            for name in unknown:
                context.events.warning("gain_unknown", name=name)
            coefficients = match(overlaps, gains)
            _say_gains(tiles, coefficients, context)
        window = _crop_window(tiles, canvas, options.min_coverage, context)
        source = TilesSource(tiles, window, coefficients, [Feather(tile, options.feather) for tile in tiles])
        shape = (channels, source.extent, source.shape[2])
        frames = sum(len(record.details["frames"]) for record in records.values())
        with create_stack(path, LAYERS, shape, crop(canvas.wcs, *window), {"NFRAMES": frames}) as sink:
            if options.final_assembly == "incremental":
                with scratch_folder(context.folder / SCRATCH / item.name) as scratch:
                    blend_one_by_one(source, sink, scratch / "blended.raw", context.executor)
            else:
                context.executor.map(coadd_kernel(rejects=True), source, sink, most_rows=enough_rows(source))
        noise = float(np.median([record.details["noise"] for record in records.values()]))
        seams = _audit_seams(tiles, overlaps, coefficients, noise)
    preview = context.folder / PREVIEW
    with open_fits(path) as image:
        write_preview(preview, averaged(image))
    shutil.rmtree(context.folder / SCRATCH, ignore_errors=True)  # what stopped runs left included
    details: dict[str, Any] = {"checks": seams}
    return Record((path, preview), details=details)


def _canvas(placed: Sequence[PlacedFrame], options: RunOptions) -> Canvas:
    """Return the grid of the mosaic: as fine as asked for, or as the finest frame, so many times finer to drizzle."""
    finest = min(pixel_scale(frame.wcs) for frame in placed)
    scale = options.pixel_scale or finest / (options.drizzle or 1)
    return common_canvas([frame.footprint for frame in placed], scale=scale)


def _nothing_left(refused: Sequence[Refusal], options: RunOptions) -> NothingToDoError:
    first = refused[0]
    return NothingToDoError(
        f"none of {len(refused)} frame(s) can be used; {first.name}: {first.error.problem}",
        path=options.input,
        expected="frames of one field of stars, in focus",
    )


def _measure_all(
    frames: Mapping[str, FrameFacts], calibration: Calibration, refused: list[Refusal], context: Context
) -> dict[str, StarField]:
    """Return the stars of every frame that has some; the others are refused."""
    cache = context.folder / FRAMES
    cache.mkdir(exist_ok=True)
    fields = {}
    for number, (name, facts) in enumerate(frames.items()):
        context.progress(number, len(frames), "measuring_progress")
        try:
            fields[name] = stars_of(facts, calibration, cache)
        except InputError as error:
            error.path = facts.path
            severity = Severity.WARNING if isinstance(error, NoStarsError) else Severity.ERROR
            refused.append(Refusal(facts.path.name, error, severity))
    return fields


def _placed(
    facts: Mapping[str, FrameFacts],
    fields: Mapping[str, StarField],
    alignments: Mapping[str, Alignment],
    options: RunOptions,
    refused: list[Refusal],
) -> tuple[PlacedFrame, ...]:
    """Return the frames that have their place; those without one, or with stars too far off, are refused."""
    placed = []
    for name, alignment in alignments.items():
        problem = None
        if alignment.wcs is None:
            problem = f"could not be placed: {_REASONS[alignment.reason]}"
        elif alignment.residual > options.max_residual:
            problem = f"its stars are {alignment.residual:.2f} pixels off"
        if problem is None:
            placed.append(PlacedFrame(name, facts[name], fields[name], alignment))
            continue
        path = facts[name].path
        refused.append(Refusal(path.name, InputError(problem, path=path), Severity.WARNING))
    return tuple(placed)


def _say_places(
    placed: Sequence[PlacedFrame],
    alignments: Mapping[str, Alignment],
    solutions: Mapping[str, WCS],
    context: Context,
) -> None:
    """Say what was decided where frames leave a choice: which image, which sky, which set; and what is unsure."""
    for frame in placed:
        if frame.facts.images > 1:
            context.events.warning("first_image_used", name=frame.name, images=frame.facts.images)
        if frame.alignment.matched < FEWEST_CONFIRMING and len(placed) > 1:
            context.events.warning("weak_alignment", name=frame.name, stars=frame.alignment.matched)
    if not solutions:
        context.events.warning("relative_grid", frames=len(placed))
        apart = sum(alignment.reason == "not_connected" for alignment in alignments.values())
        if apart:
            context.events.warning("largest_set_kept", kept=len(placed), left_out=apart)


def _digest(placed: Sequence[PlacedFrame], canvas: Canvas, calibration: Calibration) -> str:
    """Return what changes whenever a stack would come out different for other reasons than its frames."""
    places = [[frame.name, wcs_header(frame.wcs).tostring()] for frame in placed]
    whole = json.dumps([places, wcs_header(canvas.wcs).tostring(), canvas.shape, calibration.digest])
    return hashlib.sha256(whole.encode()).hexdigest()


def _registered(
    group: Group, calibration: Calibration, options: RunOptions, scratch: Path, name: str, context: Context
) -> Iterator[RegisteredFrame]:
    for number, frame in enumerate(group.frames):
        context.progress(number, len(group.frames), "registering_progress", group=name)
        path = scratch / f"{number:05}.raw"
        yield register_frame(frame, group, calibration, options, path, context.executor)


def _audit_group(
    name: str,
    registered: Sequence[RegisteredFrame],
    scale: Tensor,
    planes: StackFile,
    drizzled: DrizzleSource | None = None,
) -> list[dict[str, Value]]:
    """Compare a stack with some of its frames, evenly chosen: their noise, and their stars."""
    channel = luminance_channel(planes.channels)
    numbers = np.unique(np.linspace(0, len(registered) - 1, min(len(registered), AUDITED_FRAMES)).round().astype(int))
    middle = middle_of(registered[0].shape[0], registered[0].shape[2])
    frames = [measure_part(registered[n].window(channel, *middle) * float(scale[n, channel]), middle) for n in numbers]
    middle = middle_of(*planes.shape)
    covered = evenly_covered(np.sum([planes.window(name, channel, *middle) for name in SAMPLES], axis=0))
    n_eff = float(np.median(planes.window("n_eff", channel, *middle)[covered]))
    stacked = measure_part(np.where(covered, planes.window("image", channel, *middle), np.nan), middle)
    noises = [field.noise for field in frames]
    if drizzled is not None:
        stacked = drizzled.on_frames(stacked)
        noises = drizzled.shares.noise[numbers, channel].tolist()
    noise = check_noise(name, noises, stacked.noise, n_eff)
    return [check.as_json() for check in (noise, *check_stars(name, frames, stacked, MATCH_TOLERANCE))]


def _say_gains(tiles: Sequence[Tile], coefficients: Tensor, context: Context) -> None:
    """Say which groups differ from the others by more than their skies can."""
    for number, tile in enumerate(tiles):
        gains = coefficients[:, number, 0].tolist()
        furthest = max(gains, key=lambda gain: abs(np.log(gain)) if gain > 0 else np.inf)
        if not 1 / PLAUSIBLE_GAIN <= furthest <= PLAUSIBLE_GAIN:
            context.events.warning("implausible_gain", name=tile.name, gain=furthest)


def _audit_seams(
    tiles: Sequence[Tile], overlaps: Sequence[Sequence[Overlap]], coefficients: Tensor, noise: float
) -> list[dict[str, Value]]:
    channel = luminance_channel(len(coefficients))
    checks = []
    for pair in overlaps:
        overlap = pair[channel]
        where = f"{tiles[overlap.first].name} / {tiles[overlap.second].name}"
        checks.append(check_seam(where, seam_step(overlap, coefficients[channel]), noise).as_json())
    return checks


def _shares_rejected(planes: StackFile, height: int) -> dict[str, float]:
    """Return which share of the samples was rejected as too low, and as too high."""
    low, high, count = (
        sum(float(planes.read(name, band).sum(dtype=np.float64)) for band in bands(slice(0, height)))
        for name in SAMPLES
    )
    return {"rejected_low": low / (low + high + count), "rejected_high": high / (low + high + count)}


def _say_holes(name: str, planes: StackFile, height: int, context: Context) -> None:
    """Say how many pixels no drop reached in some colour, although drops lie to both sides of them."""
    holes = inside = 0
    for band in bands(slice(0, height)):
        reached = planes.read("count", band).min(axis=0) > 0
        between = np.maximum.accumulate(reached, axis=1) & np.maximum.accumulate(reached[:, ::-1], axis=1)[:, ::-1]
        holes += int((between & ~reached).sum())
        inside += int(between.sum())
    if holes > MOST_HOLES * inside:
        context.events.warning("drizzle_holes", name=name, share=holes / inside)


def _crop_window(tiles: Sequence[Tile], canvas: Canvas, share: float, context: Context) -> Window:
    """Return what the mosaic shows of the canvas: all of it, or what enough frames cover."""
    height, width = canvas.shape
    window = well_covered(tiles, canvas.shape, share) if share else (0, height, 0, width)
    y0, y1, x0, x1 = window
    if (y1 - y0, x1 - x0) != canvas.shape:
        context.events.info(
            "mosaic_cropped", width=width, height=height, cropped_width=x1 - x0, cropped_height=y1 - y0, share=share
        )
    return window


def _frame_record(frame: PlacedFrame) -> dict[str, Value]:
    """Return what the report says about a frame."""
    return {
        "name": frame.name,
        "stars": len(frame.field),
        "fwhm": frame.field.median_fwhm,
        "background": frame.field.background,
        "noise": frame.field.noise,
        "residual": frame.alignment.residual,
        "source": frame.alignment.source,
    }
