"""Colour filter arrays: where each colour is measured, and bilinear interpolation of the others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from safelight.core.kernel import KernelInfo, Sample
from safelight.kernels.gaussian import weigh_neighbours

Pattern = Literal["RGGB", "BGGR", "GRBG", "GBRG"]
"""Colours of the first two rows, each two pixels, as they lie in memory."""

COLOURS = "RGB"
HALO = 1
"""Rows of context that a row needs."""

BLOCK_PIXELS = 1 << 16
"""Pixels that are computed at a time: what a processor's cache holds, whatever the size of the frame."""

# Along each axis. Their product weighs by distance: red and blue lie on a grid of 2, green on the diagonals between.
_WEIGHTS = (0.5, 1.0, 0.5)


def flipped(pattern: Pattern, rows: int) -> Pattern:
    """Return the pattern of an image of so many rows when its last row comes first."""
    top, bottom = pattern[:2], pattern[2:]
    return _pattern(bottom + top) if rows % 2 == 0 else pattern


def shifted(pattern: Pattern, down: int, right: int) -> Pattern:
    """Return the pattern of an image that begins so many rows and columns into the array."""
    lines = [pattern[:2], pattern[2:]]
    if down % 2:
        lines.reverse()
    return _pattern("".join(line[::-1] if right % 2 else line for line in lines))


def sites(pattern: Pattern, height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Return which pixels measure which colour, (3, height, width) bool: red, green, blue."""
    cell = torch.tensor([[[letter == colour for letter in pattern]] for colour in COLOURS], device=device)
    return cell.view(3, 2, 2).repeat(1, -(-height // 2), -(-width // 2))[:, :height, :width]


def demosaic(mosaic: Tensor, pattern: Pattern) -> Tensor:
    """Interpolate the three colours bilinearly.

    A colour's value at its own sites is the measured one; between them the mean of the nearest sites, weighted by
    distance. Sites beyond the edge and invalid (NaN) ones do not count, so edges and holes keep their level.

    Parameters
    ----------
    mosaic : Tensor
        (height, width), floating point.
    pattern : str
        Of the first pixels in memory.

    Returns
    -------
    Tensor
        (3, height, width): red, green, blue. NaN where the mosaic is, and where no site of a colour is near.
    """
    height, width = mosaic.shape
    colours = mosaic.new_empty((len(COLOURS), height, width))
    step = max(BLOCK_PIXELS // width // 2, 1) * 2
    for start in range(0, height, step):
        first, stop = max(start - 2, 0), start + step  # an even number of rows of context: the pattern stays
        part = _demosaic(mosaic[first : stop + HALO], pattern)
        colours[:, start:stop] = part[:, start - first : stop - first]
    return colours


def _demosaic(mosaic: Tensor, pattern: Pattern) -> Tensor:
    height, width = mosaic.shape
    measured = sites(pattern, height, width, mosaic.device) & mosaic.isfinite()
    values = torch.where(measured, mosaic, 0)
    weight = _sum_near(measured.to(mosaic.dtype))
    between = _sum_near(values) / weight.masked_fill(weight == 0, torch.nan)
    return torch.where(measured, mosaic, between).masked_fill(mosaic.isnan(), torch.nan)


def _sum_near(planes: Tensor) -> Tensor:
    """Return the weighted sum over each pixel and its eight neighbours; beyond the edge is 0."""
    padded = nn.functional.pad(planes, (1, 1, 1, 1))
    return weigh_neighbours(weigh_neighbours(padded, _WEIGHTS, -2), _WEIGHTS, -1)


def _pattern(letters: str) -> Pattern:
    match letters:
        case "RGGB" | "BGGR" | "GRBG" | "GBRG":
            return letters
    raise ValueError(f"{letters!r} is no Bayer pattern; expected RGGB, BGGR, GRBG or GBRG")


def _samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(0)
    for pattern in ("RGGB", "BGGR", "GRBG", "GBRG"):
        mosaic = 100 + 50 * torch.rand((9, 12), generator=generator, dtype=torch.float64)
        mosaic[4, 5] = mosaic[0, 0] = torch.nan
        yield Sample((mosaic.to(device, dtype), pattern))


def _oracle(mosaic: np.ndarray, pattern: str) -> np.ndarray:
    height, width = mosaic.shape
    result = np.full((3, height, width), np.nan)
    for y, x in np.ndindex(height, width):
        if np.isnan(mosaic[y, x]):
            continue
        for number, colour in enumerate(COLOURS):
            if pattern[2 * (y % 2) + x % 2] == colour:
                result[number, y, x] = mosaic[y, x]
                continue
            near = [
                (mosaic[v, u], 1 / 2 ** (abs(v - y) + abs(u - x)))
                for v in range(max(y - 1, 0), min(y + 2, height))
                for u in range(max(x - 1, 0), min(x + 2, width))
                if pattern[2 * (v % 2) + u % 2] == colour and not np.isnan(mosaic[v, u])
            ]
            if near:
                values, weights = np.array(near).T
                result[number, y, x] = (values * weights).sum() / weights.sum()
    return result


KERNELS = (KernelInfo("demosaic", demosaic, _samples, _oracle),)
