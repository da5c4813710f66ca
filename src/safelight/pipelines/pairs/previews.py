"""A strip of pictures per pair: ground truth, noisy frame, mask, and both on top of each other in detail."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from safelight.core.files import atomic_write
from safelight.formats.raw import RawFrame
from safelight.kernels.cfa import Tile
from safelight.kernels.loss_mask import CLIPPED_ANCHOR, CLIPPED_TARGET, MOVED
from safelight.pipelines.pairs.alignment import PairAlignment
from safelight.pipelines.pairs.overlap import Overlap

WIDTH = 300
"""Of one picture in pixels, at most."""
_GAP = 6
_GAMMA = 1 / 2.2
_WHITE_PERCENTILE = 99.0
_COLOURS = {MOVED: (220, 38, 38), CLIPPED_ANCHOR: (250, 204, 21), CLIPPED_TARGET: (37, 99, 235)}
"""Of the bits of a mask: red, yellow, blue."""


def write_preview(
    path: Path, anchor: RawFrame, target: RawFrame, alignment: PairAlignment, mask: NDArray[np.uint8]
) -> None:
    """Draw a pair: ground truth, noisy frame at its brightness, mask over the ground truth, and the middle in detail.

    In the last picture the ground truth is red and the noisy frame cyan: where they agree it is grey.

    Raises
    ------
    OutputError
        The picture cannot be written.
    """
    overlap = alignment.overlap
    assert overlap is not None, "a pair that failed has no preview"
    step = max(1, -(-overlap.shape[1] // (WIDTH * len(overlap.tile))))
    clean, noisy = _both(anchor, target, overlap, alignment.rgb_gain, step)
    white = max(float(np.percentile(clean, _WHITE_PERCENTILE)), 1e-6)
    pictures = [
        _shown(clean / white),
        _shown(noisy / white),
        _masked(clean / white, _on_overlap(mask, overlap, step)),
        _anaglyph(anchor, target, overlap, alignment.rgb_gain, clean.shape[:2]),
    ]
    strip = np.full((clean.shape[0], 4 * clean.shape[1] + 3 * _GAP, 3), 255, np.uint8)
    for number, picture in enumerate(pictures):
        left = number * (clean.shape[1] + _GAP)
        strip[: picture.shape[0], left : left + picture.shape[1]] = picture
    with atomic_write(path) as temporary:
        Image.fromarray(strip).save(temporary, format="png")


def _both(
    anchor: RawFrame, target: RawFrame, overlap: Overlap, gain: tuple[float, ...], step: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    clean = _colours(_part(anchor, overlap.anchor, overlap), anchor, overlap.tile, step)
    noisy = _colours(_part(target, overlap.target, overlap), target, overlap.tile, step)
    balance = np.array(anchor.white_balance[:3], np.float32)
    return clean * balance, noisy * balance * np.array(gain, np.float32)


def _part(frame: RawFrame, start: tuple[int, int], overlap: Overlap) -> NDArray[np.uint16]:
    return frame.mosaic[start[0] : start[0] + overlap.shape[0], start[1] : start[1] + overlap.shape[1]]


def _colours(mosaic: NDArray[np.uint16], frame: RawFrame, tile: Tile, step: int) -> NDArray[np.float32]:
    """Return every so many-th tile as one pixel, (height, width, 3) with 0 black and 1 white."""
    period = len(tile)
    height, width = mosaic.shape
    tiles = mosaic.reshape(height // period, period, width // period, period)[::step, :, ::step]
    levels = tiles.transpose(0, 2, 1, 3).reshape(*tiles.shape[0:3:2], -1).astype(np.float32)
    colours = np.array(tile).ravel()
    black = np.array(frame.black, np.float32)
    levels = (levels - black[colours]) / (frame.white - black[colours])
    plain = np.where(colours == 3, 1, colours)
    return np.stack([levels[..., plain == colour].mean(axis=-1) for colour in range(3)], axis=-1)


def _on_overlap(mask: NDArray[np.uint8], overlap: Overlap, step: int) -> NDArray[np.uint8]:
    """Return the bits of every so many-th tile of the overlap, (height, width, sites)."""
    period = len(overlap.tile)
    (y, x), (height, width) = overlap.target, overlap.shape
    tiles = mask[y : y + height, x : x + width].reshape(height // period, period, width // period, period)
    kept = tiles[::step, :, ::step].transpose(0, 2, 1, 3)
    return kept.reshape(*kept.shape[:2], -1)


def _shown(linear: NDArray[np.floating]) -> NDArray[np.uint8]:
    return np.asarray((255 * np.clip(linear, 0, 1) ** _GAMMA).round(), np.uint8)


def _masked(linear: NDArray[np.floating], bits: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a picture in grey, coloured as far as sites of a tile are marked."""
    shown = _shown(np.repeat(linear.mean(axis=-1, keepdims=True), 3, axis=-1))
    for bit, colour in _COLOURS.items():
        share = ((bits & bit) > 0).mean(axis=-1, keepdims=True)
        shown = (shown * (1 - share) + np.array(colour) * share).round().astype(np.uint8)
    return shown


def _anaglyph(
    anchor: RawFrame, target: RawFrame, overlap: Overlap, gain: tuple[float, ...], shape: tuple[int, int]
) -> NDArray[np.uint8]:
    """Return the middle of the overlap, a tile per pixel: the anchor's green in red, the target's in cyan."""
    period = len(overlap.tile)
    tiles = [min(length // period, size) for length, size in zip(overlap.shape, shape, strict=True)]
    skip = [(length // period - count) // 2 * period for length, count in zip(overlap.shape, tiles, strict=True)]
    middle = Overlap(
        overlap.tile,
        (overlap.anchor[0] + skip[0], overlap.anchor[1] + skip[1]),
        (overlap.target[0] + skip[0], overlap.target[1] + skip[1]),
        (tiles[0] * period, tiles[1] * period),
        overlap.residual,
    )
    clean, noisy = (part[..., 1] for part in _both(anchor, target, middle, gain, 1))
    white = max(float(np.percentile(clean, _WHITE_PERCENTILE)), 1e-6)
    return _shown(np.stack((clean, noisy, noisy), axis=-1) / white)
