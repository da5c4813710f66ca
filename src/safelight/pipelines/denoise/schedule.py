"""How many steps suit the data, and how fast the network learns at each."""

from __future__ import annotations

import math
from collections.abc import Sequence

from safelight.pipelines.denoise.frames import Frames

WARM_UP = 0.1
SMALLEST_RATE = 1e-3
STEPS_FOR_512 = 2000


def learning_rate_at(share: float, highest: float) -> float:
    """Return the learning rate of the one-cycle policy (Smith 2018) at a share of the training.

    Half a cosine up during the first tenth, half a cosine down to a thousandth until the end. A function of the
    share, so that a time budget and a number of steps use the same schedule.
    """
    if share < WARM_UP:
        return highest * (0.04 + 0.96 * (1 - math.cos(math.pi * share / WARM_UP)) / 2)
    down = (min(share, 1.0) - WARM_UP) / (1 - WARM_UP)
    return highest * (SMALLEST_RATE + (1 - SMALLEST_RATE) * (1 + math.cos(math.pi * down)) / 2)


def default_steps(images: Sequence[Frames]) -> int:
    """Return how many steps suit the data: 2000 for one 512² image, growing with the root of the pixels."""
    pixels = sum(math.prod(image.shape) / image.channels for image in images)
    return int(min(max(STEPS_FOR_512 * math.sqrt(pixels / 512**2), 600), 20_000))
