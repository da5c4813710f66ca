"""The report's pictures: before and after at the same contrast, and what was removed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from safelight.core.files import atomic_write, inside
from safelight.kernels.noise import block_spectra
from safelight.pipelines.denoise.diagnostics import Diagnostics

FOLDER = "pictures"
LARGEST_SIDE = 640
CROP = 96
CROP_SCALE = 3
CROPS = 2
_GAP = 6

_YELLOW, _RED = (250, 204, 21), (220, 38, 38)


def draw_pictures(
    folder: Path,
    name: str,
    noisy: np.ndarray,
    denoised: np.ndarray,
    clean: np.ndarray | None = None,
    diagnostics: Diagnostics | None = None,
) -> dict[str, Path]:
    """Draw one image's pictures.

    Parameters
    ----------
    folder : Path
        The run's folder; they go to ``pictures/<name>/*.png`` in it.
    name : str
        The item's name.
    noisy, denoised, clean : ndarray
        (Y, X), or (Z, Y, X), of which the middle plane is shown.
    diagnostics : Diagnostics, optional
        Of the same image: where structure was found is outlined.

    Returns
    -------
    dict
        Each picture's path, ``folder`` first, by its name.

    Raises
    ------
    UnsafeInputError
        The name leads out of the folder.
    OutputError
        A picture cannot be written.
    """
    inside(folder / FOLDER, name)
    target = folder / FOLDER / name
    planes = {"noisy": _middle(noisy), "denoised": _middle(denoised)}
    if clean is not None:
        planes["clean"] = _middle(clean)
    pictures = _draw_planes(planes, diagnostics)
    return {key: _save(picture, target / f"{key}.png") for key, picture in pictures.items()}


def draw_pair(path: Path, noisy: np.ndarray, denoised: np.ndarray) -> None:
    """Draw a part of an image before and after, side by side at the same contrast, enlarged; channels downwards.

    Parameters
    ----------
    path : Path
        Of the PNG, which is written whole.
    noisy, denoised : ndarray
        (C, Y, X), or (C, Z, Y, X), of which the middle plane is shown.

    Raises
    ------
    OutputError
        The picture cannot be written.
    """
    rows = []
    for before, after in zip(noisy, denoised, strict=True):
        low, high = _window(_middle(after))
        rows.append([_enlarge(_middle(plane), low, high) for plane in (before, after)])
    width, height = rows[0][0].size
    picture = Image.new("L", (2 * width + _GAP, len(rows) * (height + _GAP) - _GAP), 255)
    for number, row in enumerate(rows):
        for column, part in enumerate(row):
            picture.paste(part, (column * (width + _GAP), number * (height + _GAP)))
    _save(picture, path)


def _draw_planes(planes: Mapping[str, np.ndarray], diagnostics: Diagnostics | None) -> dict[str, Image.Image]:
    low, high = _window(planes.get("clean", planes["denoised"]))
    residual = _residual(planes["noisy"], planes["denoised"])
    reach = 3 * float(residual.std()) or 1.0
    places = diagnostics.structure.places if diagnostics else ()
    crops = _choose_crops(planes["denoised"])
    drawn: dict[str, Image.Image] = {}
    for key, plane in planes.items():
        drawn[key] = _mark_crops(_whole(plane, low, high), crops, plane.shape)
        for number, corner in enumerate(crops, start=1):
            drawn[f"crop{number}_{key}"] = _enlarge(_cut(plane, corner), low, high)
    drawn["residual"] = _mark_tiles(_whole(residual, -reach, reach), places)
    for number, corner in enumerate(crops, start=1):
        drawn[f"crop{number}_residual"] = _enlarge(_cut(residual, corner), -reach, reach)
    drawn["spectrum2d"] = _spectrum_picture(residual)
    return drawn


def _middle(image: np.ndarray) -> np.ndarray:
    """Return the plane to show, float64."""
    planes = image.reshape(-1, *image.shape[-2:])
    return np.asarray(planes[len(planes) // 2], dtype=np.float64)


def _residual(noisy: np.ndarray, denoised: np.ndarray) -> np.ndarray:
    """Return what was removed with the mean 0, and 0 where it is not finite."""
    residual = np.zeros_like(noisy)
    finite = np.isfinite(noisy) & np.isfinite(denoised)
    residual[finite] = noisy[finite] - denoised[finite]
    residual[finite] -= residual[finite].mean() if finite.any() else 0.0
    return residual


def _window(plane: np.ndarray) -> tuple[float, float]:
    """Return the contrast window: all but the darkest 0.5 % and the brightest 0.3 %."""
    finite = plane[np.isfinite(plane)]
    if finite.size == 0:
        return 0.0, 1.0
    low, high = np.percentile(finite, (0.5, 99.7))
    return float(low), float(high if high > low else low + 1)


def _grey(plane: np.ndarray, low: float, high: float) -> Image.Image:
    scaled = np.nan_to_num((plane - low) / (high - low), nan=0.0, posinf=1.0, neginf=0.0)
    return Image.fromarray((255 * scaled.clip(0, 1) + 0.5).astype(np.uint8))


def _whole(plane: np.ndarray, low: float, high: float) -> Image.Image:
    """Return the whole plane, means of pixels where it is too large to show."""
    picture = _grey(plane, low, high)
    scale = max(picture.size) / LARGEST_SIDE
    if scale <= 1:
        return picture
    width, height = (max(1, round(side / scale)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BOX)


def _choose_crops(plane: np.ndarray) -> list[tuple[int, int]]:
    """Return the corners of the crops with most detail that do not overlap."""
    height, width = plane.shape
    step = CROP // 2
    corners = [
        (y, x) for y in range(0, max(height - CROP, 0) + 1, step) for x in range(0, max(width - CROP, 0) + 1, step)
    ]
    detail = {corner: float(np.nansum(np.abs(np.diff(_cut(plane, corner))))) for corner in corners}
    chosen: list[tuple[int, int]] = []
    for corner in sorted(corners, key=lambda corner: -detail[corner]):
        if all(max(abs(corner[0] - y), abs(corner[1] - x)) >= CROP for y, x in chosen):
            chosen.append(corner)
        if len(chosen) == CROPS:
            break
    return chosen


def _cut(plane: np.ndarray, corner: tuple[int, int]) -> np.ndarray:
    y, x = corner
    return plane[y : y + CROP, x : x + CROP]


def _enlarge(plane: np.ndarray, low: float, high: float) -> Image.Image:
    picture = _grey(plane, low, high)
    size = picture.width * CROP_SCALE, picture.height * CROP_SCALE
    return picture.resize(size, Image.Resampling.NEAREST)


def _mark_crops(picture: Image.Image, crops: Sequence[tuple[int, int]], shape: tuple[int, ...]) -> Image.Image:
    """Outline where the crops are, in yellow."""
    scale = picture.width / shape[1]
    return _outline(picture, [(x * scale, y * scale, CROP * scale, CROP * scale) for y, x in crops], _YELLOW)


def _mark_tiles(picture: Image.Image, places: Sequence[Sequence[bool]]) -> Image.Image:
    """Outline the tiles in which structure was found, in red."""
    boxes = [
        (column * picture.width / len(line), row * picture.height / len(places), width, height)
        for row, line in enumerate(places)
        for column, structured in enumerate(line)
        for width, height in [(picture.width / len(line), picture.height / len(places))]
        if structured
    ]
    return _outline(picture, boxes, _RED)


def _outline(
    picture: Image.Image, boxes: Sequence[tuple[float, float, float, float]], colour: tuple[int, int, int]
) -> Image.Image:
    """Draw boxes (x, y, width, height) on a grey picture; with a palette, which stays as small as grey."""
    marked = picture.point(lambda grey: min(grey, 254)).convert("L")
    marked.putpalette([*(level for level in range(255) for _ in "RGB"), *colour])
    draw = ImageDraw.Draw(marked)
    for x, y, width, height in boxes:
        draw.rectangle([x, y, x + width - 1, y + height - 1], outline=255, width=2)
    return marked


def _spectrum_picture(residual: np.ndarray) -> Image.Image:
    """Return the residual's mean power spectrum, frequency 0 in the middle, from 1/8 to 8 times its mean."""
    filled = torch.from_numpy(residual)
    block = min(64, *residual.shape)
    power = torch.fft.fftshift(block_spectra(filled, block).mean(0)).numpy()
    mean = float(power.mean())
    scaled = np.log2(np.maximum(power / mean, 1e-9)) if mean > 0 else np.zeros_like(power)
    return _grey(scaled, -3, 3).resize((256, 256), Image.Resampling.NEAREST)


def _save(picture: Image.Image, path: Path) -> Path:
    with atomic_write(path) as temporary:
        picture.save(temporary, format="PNG", optimize=True)
    return path
