"""What a scene will take, from the sizes that its headers tell: nothing is decoded."""

from __future__ import annotations

import numpy as np

from safelight.core.pipeline import Context, Item
from safelight.core.plan import Plan
from safelight.formats.raw import RawFrame, RawSize
from safelight.kernels.exposure import PoissonGaussian
from safelight.pipelines.pairs.alignment import PairAlignment
from safelight.pipelines.pairs.crops import RGGB, XTRANS
from safelight.pipelines.pairs.decoding import anchor_groups, frames_ahead
from safelight.pipelines.pairs.items import FrameFile, Scene
from safelight.pipelines.pairs.masks import PART_ROWS, noise_kernel
from safelight.pipelines.pairs.options import RunOptions
from safelight.pipelines.pairs.overlap import Overlap, PairRows, levels_of
from safelight.pipelines.pairs.sampling import BANDS_AT_ONCE, Bands, sample_kernel
from safelight.pipelines.pairs.shifts import GREY_ROWS, MosaicRows, grey_kernel

_ANCHOR, _DECODED, _WORKED_ON = 1.5, 2, 2
"""Mosaics' worth of memory that a ground truth takes with its grey image, a frame while it is decoded (LibRaw's copy
and ours), and a frame while it is worked on (with its grey image and its mask)."""


def plan(item: Item, options: RunOptions, context: Context) -> tuple[Plan, ...]:
    """Plan the grey image, the samples and the mask of a scene's largest frames, and say the peak of all.

    Headers do not tell the colour filter array: it is X-Trans where the dataset's tree says so.
    """
    scene: Scene = item.payload
    files = (*scene.gt, *scene.noisy)
    largest = max(files, key=lambda file: file.size.decoded_bytes)
    plans = _plans(_blank(largest.size, "x-trans" in scene.name.lower().split("/")), context)
    peak = _held_bytes(scene, largest) + max(plan.predicted_bytes for plan in plans)
    size = {"width": largest.size.width, "height": largest.size.height}
    context.events.info("scene_planned", gt=len(scene.gt), noisy=len(scene.noisy), **size, peak_bytes=peak)
    return plans


def _held_bytes(scene: Scene, largest: FrameFile) -> int:
    """Return what frames take at most while a pair is worked on, besides the computation."""
    anchors = max(sum(file.size.decoded_bytes for file in group) for group in anchor_groups(scene.gt))
    others = _WORKED_ON + _DECODED * frames_ahead(largest)
    return round(_ANCHOR * anchors + others * largest.size.decoded_bytes)


def _blank(size: RawSize, is_xtrans: bool) -> RawFrame:
    """Return a frame of a size that takes no memory."""
    return RawFrame(
        mosaic=np.broadcast_to(np.uint16(0), (size.height, size.width)),
        pattern=np.array(XTRANS if is_xtrans else RGGB, np.uint8),
        black=(0.0,) * 4,
        white=1.0,
        clipping=(1.0,) * 4,
        white_balance=(1.0,) * 4,
        rgb_xyz_matrix=np.zeros((4, 3)),
    )


def _plans(frame: RawFrame, context: Context) -> tuple[Plan, ...]:
    tile = RGGB if frame.sensor == "bayer" else XTRANS
    whole = [length // len(tile) * len(tile) for length in frame.mosaic.shape]
    overlap = Overlap(tile, (0, 0), (0, 0), (whole[0], whole[1]), (0.0, 0.0))
    rows, levels = PairRows.of(frame, frame, overlap), levels_of(frame, frame)
    alignment = PairAlignment("ok", None, rgb_gain=(1.0,) * 3, noise=(PoissonGaussian(0.0, 1.0),) * 3, overlap=overlap)
    jobs = (
        (grey_kernel(frame, tile), MosaicRows(frame.mosaic, len(tile)), GREY_ROWS),
        (sample_kernel(levels, overlap), Bands(rows), BANDS_AT_ONCE),
        (noise_kernel(levels, alignment, overlap), rows, PART_ROWS),
    )
    return tuple(context.executor.plan(kernel, source, most_rows=most) for kernel, source, most in jobs)
