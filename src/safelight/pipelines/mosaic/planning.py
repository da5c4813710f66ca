"""What a mosaic takes in memory, from the headers alone."""

from __future__ import annotations

from math import ceil

import torch

from safelight.core.pipeline import Context, Item
from safelight.core.plan import Plan
from safelight.core.stream import TensorSource
from safelight.kernels.combine import PLANES
from safelight.kernels.resample import resampling
from safelight.pipelines.mosaic.discovery import FrameFacts
from safelight.pipelines.mosaic.drizzle import drizzle_kernel, judging
from safelight.pipelines.mosaic.options import RunOptions
from safelight.pipelines.mosaic.stack import stacking

_CONSTANTS = 4
"""Scale, offset, weight and noise of every frame."""


def plan(item: Item, options: RunOptions, context: Context) -> tuple[Plan, ...]:
    """Plan to resample one frame, and to stack or drizzle all of them as one group on a grid of their own size.

    The groups are not known yet; several take less, since each has fewer frames. Where the frames are turned or
    shifted the grid is wider, and the chunks have fewer rows.
    """
    frames: tuple[FrameFacts, ...] = item.payload
    first = frames[0]
    context.events.info(
        "stack_planned", frames=len(frames), width=first.width, height=first.height, channels=first.colours
    )
    with torch.device("meta"):  # sizes are all that a plan needs
        image = torch.empty(first.colours, first.height, first.width)
        coordinates = torch.empty(first.height, 2, first.width)
        samples = torch.empty(first.height, first.colours, first.width, len(frames))
        constants = tuple(torch.empty(len(frames), first.colours) for _ in range(_CONSTANTS))
    stack = stacking(constants, options, first.width)
    jobs = [(resampling(image, first.width, options.interpolation), coordinates), (stack, samples)]
    if options.drizzle:
        with torch.device("meta"):
            height, width = (ceil(size * options.drizzle) for size in (first.height, first.width))
            planes = torch.empty(height, len(PLANES), first.colours, width)
        jobs[1:] = [(judging(stack, options), samples), (drizzle_kernel(planes.shape[1:]), planes)]
    return tuple(context.executor.plan(kernel, TensorSource(rows)) for kernel, rows in jobs)
