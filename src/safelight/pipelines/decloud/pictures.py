"""True-colour pictures: bands 4, 3, 2 with one stretch for all that are compared."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from safelight.core.files import atomic_write, inside

FOLDER = "pictures"
RED_GREEN_BLUE = (3, 2, 1)
SHOWN_PIXELS = 1000
"""Longest side of the picture of a scene."""
_BLACK, _WHITE = 1.0, 99.0
"""Percentiles of the reference that become black and white."""


def draw_pictures(folder: Path, name: str, images: Mapping[str, Tensor], reference: str) -> dict[str, str]:
    """Draw images of one place.

    Parameters
    ----------
    folder : Path
        The run's folder; the pictures go to ``pictures/<name>_<key>.png`` in it.
    name : str
        The item's name.
    images : mapping of str to Tensor
        (13, Y, X), reflectances.
    reference : str
        Key of the image whose brightness all are stretched by.

    Returns
    -------
    dict
        Each picture's path, relative to the folder, by its key.

    Raises
    ------
    OutputError
        A picture cannot be written.
    """
    low, high = np.percentile(_true_colour(images[reference]), (_BLACK, _WHITE))
    paths = {}
    for key, image in images.items():
        path = inside(folder / FOLDER, f"{name}_{key}.png")
        grey = (_true_colour(image) - low) / max(high - low, np.finfo(np.float32).eps)
        with atomic_write(path) as temporary:
            Image.fromarray((255 * grey.clip(0, 1)).astype(np.uint8)).save(temporary, format="png")
        paths[key] = f"{FOLDER}/{path.name}"
    return paths


def _true_colour(image: Tensor) -> np.ndarray:
    colours: np.ndarray = image[list(RED_GREEN_BLUE)].permute(1, 2, 0).numpy()
    return colours
