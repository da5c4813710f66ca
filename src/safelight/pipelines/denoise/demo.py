"""The demo's input: a real confocal image that a dependency ships."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np

from safelight.core.errors import UsageError
from safelight.formats.microscopy import open_image, write_image

PACKAGE = "PartSegData"
STACK = "PartSegData/static_files/initial_images/stack.tif"
CHANNEL = 3
EVERY = 3
"""The stack was deconvolved: its grain is three pixels wide. Every third pixel has noise that N2V2 can tell apart."""


def arguments(folder: Path) -> list[str]:
    """Write one channel of the stack as ``nuclei.tif`` into a folder; return the command that denoises it.

    Raises
    ------
    UsageError
        The package with the image is not installed.
    """
    try:
        stack = Path(str(distribution(PACKAGE).locate_file(STACK)))
    except PackageNotFoundError:
        raise UsageError(
            f"{PACKAGE}, which holds the image, is missing", remedy="pip install safelight[demo]"
        ) from None
    target = folder / "nuclei.tif"
    with open_image(stack) as image:
        channel = image.read((slice(CHANNEL, CHANNEL + 1), *(slice(0, size) for size in image.shape[1:])))[0]
        coarse = {axis: EVERY * size for axis, size in image.pixel_size.items() if axis != "Z"}
        metadata = image.metadata.model_copy(update={"channels": (), "pixel_size": coarse})
        write_image(target, np.ascontiguousarray(channel[::EVERY, ::EVERY]), "YX", metadata)
    return [
        "run",
        str(target),
        "--out",
        str(folder / "denoised"),
        "--time-budget",
        "90s",
        "--results",
        str(folder / "results"),
    ]
