"""What a mosaic takes in memory, from the headers alone: the plans of its computations, and what is needed besides."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, hypot

import torch

from safelight.core.pipeline import Context, Item
from safelight.core.plan import Plan
from safelight.core.stream import TensorSource
from safelight.kernels.coadd import LAYERS
from safelight.kernels.combine import PLANES
from safelight.kernels.resample import resampling
from safelight.pipelines.mosaic.assembly import coadd_kernel
from safelight.pipelines.mosaic.audit import AUDITED_PIXELS
from safelight.pipelines.mosaic.chunks import enough_rows
from safelight.pipelines.mosaic.discovery import FrameFacts
from safelight.pipelines.mosaic.drizzle import drizzle_kernel, judging
from safelight.pipelines.mosaic.options import RunOptions
from safelight.pipelines.mosaic.preview import MOST_PIXELS
from safelight.pipelines.mosaic.registered import has_weights
from safelight.pipelines.mosaic.stack import stacking

_CONSTANTS = 4
"""Scale, offset, weight and noise of every frame."""


_BYTES_TO_MEASURE = 40
"""For each pixel of a frame that is read, demosaiced and searched for stars."""

_BYTES_TO_AUDIT = 40
"""For each pixel of a stack, or of its middle, that is compared with its frames."""

_BYTES_TO_SHOW = (60, 16)
"""For each pixel of the preview: in any case, and for each channel."""


def plan(item: Item, options: RunOptions, context: Context) -> tuple[Plan, ...]:
    """Plan to resample one frame, to stack or drizzle all of them as one group, and to assemble what comes out.

    The groups and how frames are turned are not known yet. Several groups take less, since each has fewer frames; the
    grid is a square that holds a frame at any angle.
    """
    frames: tuple[FrameFacts, ...] = item.payload
    first = frames[0]
    side = ceil(hypot(first.width, first.height))
    context.events.info(
        "stack_planned", frames=len(frames), width=first.width, height=first.height, channels=first.colours, side=side
    )
    fine = ceil(side * (options.drizzle or 1))
    context.events.info("memory_besides", besides_bytes=bytes_besides(frames, (fine, fine)))
    with torch.device("meta"):  # sizes are all that a plan needs
        planes = first.colours + has_weights(options)
        image = torch.empty(planes, first.height, first.width)
        coordinates = torch.empty(side, 2, side)
        samples = torch.empty(side, planes, side, len(frames))
        tiles = torch.empty(side, len(LAYERS), first.colours, side, 1)
        constants = tuple(torch.empty(len(frames), first.colours) for _ in range(_CONSTANTS))
    stack = stacking(constants, options, side)
    coadd = coadd_kernel(rejects=options.final_assembly == "reproject_coadd")
    jobs = [(resampling(image, side, options.interpolation), coordinates), (stack, samples), (coadd, tiles)]
    if options.drizzle:
        with torch.device("meta"):
            drizzled = torch.empty(fine, len(PLANES), first.colours, fine)
            tiles = torch.empty(fine, len(LAYERS), first.colours, fine, 1)
        jobs[1:] = [(judging(stack, options), samples), (drizzle_kernel(drizzled.shape[1:]), drizzled), (coadd, tiles)]
    sources = [(kernel, TensorSource(rows)) for kernel, rows in jobs]
    return tuple(context.executor.plan(kernel, source, most_rows=enough_rows(source)) for kernel, source in sources)


def bytes_besides(frames: Sequence[FrameFacts], shape: tuple[int, int]) -> int:
    """Return what is needed outside the plans of computations, which alone ``--memory-limit`` governs.

    Parameters
    ----------
    frames : sequence of FrameFacts
    shape : tuple of int
        Height and width of the canvas.

    Returns
    -------
    int
        The most of: one frame that is read and measured, the part of a stack that is audited, the preview.
    """
    frame = max(facts.width * facts.height for facts in frames)
    height, width = shape
    factor = max(ceil(max(shape) / MOST_PIXELS), 1)
    always, by_channel = _BYTES_TO_SHOW
    return max(
        _BYTES_TO_MEASURE * frame,
        _BYTES_TO_AUDIT * min(height * width, AUDITED_PIXELS),
        (always + by_channel * frames[0].colours) * (height // factor) * (width // factor),
    )
