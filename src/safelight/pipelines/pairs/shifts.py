"""The shift between two frames in cells: whole from small grey images, its fraction from the middle."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from safelight.core.execute import Executor
from safelight.core.kernel import Kernel
from safelight.core.stream import TensorSink, TensorSource
from safelight.formats.raw import RawFrame
from safelight.kernels.cfa import Offset, Tile, cell_side, grey, light_cells
from safelight.kernels.ecc import ecc_shift
from safelight.kernels.register import coarse_shift, despeckle, fine_shift, shared_variance, spectrum
from safelight.pipelines.pairs.options import Method
from safelight.pipelines.pairs.overlap import BLACK, WHITE, levels_of

GREY_ROWS = 128
"""Rows of tiles that are made grey at once: they stay in a cache."""
COARSE_PIXELS = 750_000
"""Most grey pixels of the first search; larger frames are binned further."""
ROUGH_SIDE, FINE_SIDE = 288, 768
"""Longest side, in cells, of the middle from which the shift is found roughly, and exactly."""
NEAR = 0.75
"""Cells from the whole shift within which the exact one is not drawn to it."""
TILES, TILE_SIDE = 3, 192
"""Tiles along each axis, and their longest side in cells: their shifts' spread is the uncertainty."""
MIN_OVERLAP = 0.25
"""Least share of the target that the anchor covers."""
MIN_SIDE = 32
"""Least height and width of the overlap in cells."""


@dataclass(frozen=True)
class Fine:
    """A shift in cells, the spread of the tiles' shifts in cells, and the tiles' correlation."""

    shift: tuple[float, float]
    spread: float
    correlation: float


def grey_image(
    frame: RawFrame, tile: Tile, origin: Offset, executor: Executor, most: tuple[float, ...] | None = None
) -> Tensor:
    """Return the grey image of a frame from a cell's first pixel on, raw values cut, without hot pixels."""
    rows = MosaicRows(frame.mosaic[origin[0] :, origin[1] :], len(tile))
    sink = TensorSink(rows.extent)
    executor.map(grey_kernel(frame, tile, most), rows, sink, most_rows=GREY_ROWS)
    return sink.result.flatten(0, 1)


def grey_kernel(frame: RawFrame, tile: Tile, most: tuple[float, ...] | None = None) -> Kernel:
    """Return the kernel of a grey image; what changes from frame to frame are its constants."""
    constants = (levels_of(frame)[0], *(() if most is None else (torch.tensor(most),)))
    return Kernel("pair_grey", partial(_grey_rows, tile=tile), constants, halo=1)


def anchor_spectrum(image: Tensor, executor: Executor) -> Tensor:
    """Return the spectrum of a ground truth's grey image, for ``whole_shift``; it stays on the executor's device."""
    return _run(Kernel("pair_spectrum", spectrum, alignment=1), _binned(image, image.shape), executor, keep=True)


def whole_shift(known: Tensor, shape: torch.Size, image: Tensor, executor: Executor) -> tuple[Offset, float]:
    """Return the whole shift in cells, to what the search is binned by, and its confidence.

    Parameters
    ----------
    known : Tensor
        The ground truth's spectrum.
    shape : torch.Size
        Of the ground truth's grey image.
    image : Tensor
        Grey image of the noisy frame.
    executor : Executor
    """
    kernel = Kernel("pair_coarse_shift", coarse_shift, (known,), alignment=1)
    dy, dx, confidence = _run(kernel, _binned(_resized(image, shape), shape), executor)[0].tolist()
    factor = _bin_factor(shape)
    return (int(dy) * factor, int(dx) * factor), confidence


def exact_shift(anchor: Tensor, target: Tensor, whole: Offset, executor: Executor, method: Method) -> Fine | None:
    """Return the shift to a fraction of a cell from what both grey images show; None where this is little."""
    rough = _middle_shift(anchor, target, whole, ROUGH_SIDE, executor)
    if rough is None:
        return None
    # Away from zero a window, which does not move with the content, draws the shift: cut anew at the nearest one.
    is_near = max(abs(found - near) for found, near in zip(rough, whole, strict=True)) < NEAR
    nearest = whole if is_near else (round(rough[0]), round(rough[1]))
    middle = _middle_shift(anchor, target, nearest, FINE_SIDE, executor)
    if middle is None:
        return None
    rest = torch.tensor(middle) - torch.tensor(nearest)
    tiles = _tiles(_shared(anchor, target, nearest), TILE_SIDE, TILES)
    facts = _run(Kernel("pair_tiles", _tile_facts, alignment=1), tiles, executor)
    spread = float((facts[:, :2] - rest).square().sum(1).sqrt().median())
    shared = facts[:, 3:].double().sum(0)
    correlation = float(shared[0] / (shared[1] * shared[2]).sqrt().clamp(min=1e-30))
    shift = middle if method == "phase" else _by_correlation(anchor, target, nearest, rest, executor)
    return Fine(shift, spread, correlation)


def _middle_shift(
    anchor: Tensor, target: Tensor, whole: Offset, longest: int, executor: Executor
) -> tuple[float, float] | None:
    """Return the shift by the phases of the middle, the frames being cut at a whole shift; None for small overlaps."""
    both = _shared(anchor, target, whole)
    if min(both[0].shape) < MIN_SIDE or both[0].numel() < MIN_OVERLAP * target.numel():
        return None
    kernel = Kernel("pair_fine_shift", fine_shift, alignment=1)
    dy, dx, _ = _run(kernel, _tiles(both, longest, 1), executor)[0].tolist()
    return whole[0] + dy, whole[1] + dx


def _by_correlation(
    anchor: Tensor, target: Tensor, whole: Offset, rest: Tensor, executor: Executor
) -> tuple[float, float]:
    """Return the shift that maximises the correlation of the middle."""
    kernel = Kernel("pair_ecc", ecc_shift, (rest[None],), alignment=1)
    middle = _tiles(_shared(anchor, target, whole), FINE_SIDE, 1)
    dy, dx, _ = _run(kernel, middle, executor)[0].tolist()
    return whole[0] + dy, whole[1] + dx


@dataclass(frozen=True)
class MosaicRows:
    """A mosaic by rows of tiles, (period, width) each."""

    mosaic: NDArray[np.uint16]
    period: int
    dtype: torch.dtype = field(default=torch.uint16, init=False)

    @property
    def extent(self) -> int:
        """Rows of tiles."""
        return int(self.mosaic.shape[0]) // self.period

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a row of tiles, whole ones."""
        return (self.period, self.mosaic.shape[1] // self.period * self.period)

    def read(self, start: int, stop: int) -> Tensor:
        """Return rows of tiles."""
        rows = self.mosaic[start * self.period : stop * self.period, : self.shape[1]]
        return torch.from_numpy(np.ascontiguousarray(rows)).view(-1, *self.shape)


def _grey_rows(rows: Tensor, levels: Tensor, most: Tensor | None = None, *, tile: Tile) -> Tensor:
    image = despeckle(light_cells(rows, tile, levels[BLACK], levels[WHITE], most))
    return image.view(len(rows), len(tile) // cell_side(tile), -1)


def _run(kernel: Kernel, values: Tensor, executor: Executor, keep: bool = False) -> Tensor:
    """Return a kernel's result for a tensor, on the CPU, or on the device where it is kept."""
    sink = TensorSink(len(values), executor.device.torch_device if keep else None)
    executor.map(kernel, TensorSource(values), sink)
    return sink.result


def _bin_factor(shape: torch.Size) -> int:
    """Return by what the grey image of a ground truth, and with it the other's, is binned for the first search."""
    return max(1, math.ceil(math.sqrt(shape[0] * shape[1] / COARSE_PIXELS)))


def _binned(image: Tensor, shape: torch.Size) -> Tensor:
    factor = _bin_factor(shape)
    return image[None] if factor == 1 else grey(image[None], factor)


def _resized(image: Tensor, shape: torch.Size) -> Tensor:
    """Return an image cut, and filled with its mean, to a shape."""
    if image.shape == shape:
        return image
    result = torch.full(shape, float(image.mean()))
    height, width = (min(sizes) for sizes in zip(image.shape, shape, strict=True))
    result[:height, :width] = image[:height, :width]
    return result


def _shared(anchor: Tensor, target: Tensor, shift: Offset) -> tuple[Tensor, Tensor]:
    """Return what both grey images show at a whole shift."""
    parts = []
    for axis, distance in enumerate(shift):
        first, second = max(distance, 0), max(-distance, 0)
        size = max(min(anchor.shape[axis] - first, target.shape[axis] - second), 0)
        parts.append((slice(first, first + size), slice(second, second + size)))
    (ay, ty), (ax, tx) = parts
    return anchor[ay, ax], target[ty, tx]


def _tile_facts(pairs: Tensor) -> Tensor:
    return torch.cat((fine_shift(pairs), shared_variance(pairs)), dim=1)


def _tiles(both: tuple[Tensor, Tensor], longest: int, number: int) -> Tensor:
    """Return tiles spread evenly over two images, (number², 2, height, width); a single one is in the middle."""
    shape = both[0].shape
    sides = [min(size // number, longest) for size in shape]
    starts = [
        [round((size - side) * (2 * i + 1) / (2 * number)) for i in range(number)]
        for size, side in zip(shape, sides, strict=True)
    ]
    places = [(slice(y, y + sides[0]), slice(x, x + sides[1])) for y, x in product(*starts)]
    return torch.stack([torch.stack([image[place] for image in both]) for place in places])
