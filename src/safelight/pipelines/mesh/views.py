"""A photograph as the networks see it: 224 × 224 pixels on white, blue first, in eight bits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from safelight.core.errors import InputError
from safelight.pipelines.mesh.cameras import SIDE

Bytes = NDArray[np.uint8]

WHITE = 255
BACKGROUND = 250
"""Pixels without transparency that are brighter than this in every channel are background."""
_LARGEST = 20_000
_COEFFICIENT_BITS = 11
"""Of the weights of the reference's resizing in whole numbers."""


@dataclass(frozen=True, eq=False)
class View:
    """One photograph.

    Parameters
    ----------
    pixels : array
        (3, 224, 224) uint8, blue first, on white: the input of the networks.
    silhouette : array
        (height, width) bool: where the object is, in the photograph's own size.
    transparent : bool
        Whether the photograph says itself where the object is; otherwise what is not white is the object.
    """

    pixels: Bytes
    silhouette: NDArray[np.bool_]
    transparent: bool


def read_view(path: Path, blend: bool = False) -> View:
    """Read a photograph with or without transparency, in colour or grey.

    Parameters
    ----------
    path : Path
    blend : bool
        Blend half-transparent pixels with white, and resize as Pillow does: Design B's views.

    Raises
    ------
    InputError
        It is no picture, is too large, or shows no object: all of it is transparent or white.
    """
    rgba, transparent = _read_rgba(path)
    # As the original does: transparent pixels become white, half-transparent ones keep their colour.
    visible: NDArray[np.bool_] = rgba[..., 3] > 0
    colour = np.where(visible[..., None], rgba[..., :3], WHITE).astype(np.uint8)
    silhouette: NDArray[np.bool_] = visible if transparent else np.any(colour <= BACKGROUND, axis=-1)
    if not silhouette.any():
        raise InputError(
            "shows no object: all of it is " + ("transparent" if transparent else "white"),
            path=path,
            expected="an object on a transparent or white background",
        )
    pixels = _blended(rgba) if blend else resize(colour)
    return View(pixels[..., ::-1].transpose(2, 0, 1).copy(), silhouette, transparent)


def picture_size(path: Path) -> tuple[int, int]:
    """Return width and height of a picture in pixels.

    Raises
    ------
    InputError
        It is missing, or cannot be read as a picture.
    """
    with _opened(path) as picture:
        return picture.size


def as_images(views: Sequence[View]) -> Tensor:
    """Return views as the networks take them, (views, 3, 224, 224) from 0 to 1."""
    return torch.from_numpy(np.stack([view.pixels for view in views])).float() / WHITE


def resize(image: Bytes) -> Bytes:
    """Resize to 224 × 224 bilinearly in whole numbers, as the networks' training data were.

    Parameters
    ----------
    image : array
        (height, width, channels) uint8.

    Returns
    -------
    array
        (224, 224, channels) uint8.
    """
    (top, bottom, upper, lower), (left, right, near, far) = (_taps(size) for size in image.shape[:2])
    values = image.astype(np.int64)
    across = values[:, left] * near[:, None] + values[:, right] * far[:, None]
    first, second = across[top] >> 4, across[bottom] >> 4
    upper, lower = upper[:, None, None], lower[:, None, None]
    rounded = (((upper * first) >> 16) + ((lower * second) >> 16) + 2) >> 2
    resized: Bytes = rounded.clip(0, WHITE).astype(np.uint8)
    return resized


def _blended(rgba: Bytes) -> Bytes:
    picture = Image.fromarray(rgba)
    white = Image.new("RGBA", picture.size, (WHITE, WHITE, WHITE, WHITE))
    on_white = Image.alpha_composite(white, picture).convert("RGB")
    return np.asarray(on_white.resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def _taps(size: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return, for each new pixel along an axis, the two old ones it lies between, and their weights."""
    place = (np.arange(SIDE, dtype=np.float64) + 0.5) * (size / SIDE) - 0.5
    before = np.floor(place).astype(np.int64)
    share = (place - before).astype(np.float32)
    share[(before < 0) | (before >= size - 1)] = 0
    before = before.clip(0, size - 1)
    scale = 1 << _COEFFICIENT_BITS
    far = np.rint(share * scale).astype(np.int64)
    near = np.rint((1 - share) * scale).astype(np.int64)
    return before, (before + 1).clip(max=size - 1), near, far


def _in_eight_bits(picture: Image.Image, path: Path) -> Image.Image:
    """Return a picture that Pillow converts without cutting off what is bright."""
    if picture.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(picture).astype(np.uint16) >> 8).astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise InputError("its pixels have no known white", path=path, expected="8 or 16 bits for each channel")
    return picture


def _read_rgba(path: Path) -> tuple[Bytes, bool]:
    with _opened(path) as picture:
        if max(picture.size) > _LARGEST:
            raise InputError(
                f"has {picture.width} × {picture.height} pixels",
                path=path,
                expected=f"at most {_LARGEST} along each side",
            )
        rgba = np.asarray(_in_eight_bits(picture, path).convert("RGBA"))
        # Many programs write opacity that is full everywhere: such a photograph does not say where the object is.
        return rgba, bool((rgba[..., 3] < WHITE).any())


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open a picture; whatever goes wrong while it is read is said of the file."""
    try:
        with Image.open(path) as picture:
            yield picture
    except FileNotFoundError:
        raise InputError("there is no such picture", path=path) from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"cannot be read as a picture ({error})", path=path) from None
