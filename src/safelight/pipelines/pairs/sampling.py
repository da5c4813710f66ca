"""What bands of rows, spread evenly over a pair, tell of it: gain, noise, what is clipped, and the loss."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from safelight.core.execute import Executor
from safelight.core.kernel import Kernel
from safelight.core.stream import TensorSink
from safelight.formats.raw import RawFrame
from safelight.kernels.cfa import Tile, cell_side
from safelight.kernels.exposure import (
    PoissonGaussian,
    block_light,
    block_sums,
    fit_poisson_gaussian,
    gain_between,
    offset_by_level,
)
from safelight.pipelines.pairs.overlap import Overlap, PairRows, levels_of, pair_cells

BANDS, BAND_ROWS = 6, 18
"""How many bands of so many rows of tiles, a block and its context, are sampled for gain, noise and loss."""
BANDS_AT_ONCE = 2
CONTEXT = 1
"""Row of tiles at either end of a band from which the others are interpolated."""
BLOCK = 16
"""Side in cells of the blocks whose light is compared."""
SMALL_BLOCK, LEVELS = 4, 16
"""Side in cells of the blocks that tell the offset at each of so many levels."""
NOISE_SAMPLES = 12_000
"""Pixels of each colour that the noise is fitted to."""
CLEAR_LIGHT = 0.25
"""Noise at white, as a share of it, up to which frames are cut: of stronger noise a cut takes the light, too."""


@dataclass(frozen=True)
class Sampled:
    """What sampled bands of the overlap tell."""

    usable: float
    raw_gain: float
    rgb_gain: tuple[float, float, float]
    noise: tuple[PoissonGaussian, ...]
    offsets: Tensor
    loss: float

    @property
    def is_clear(self) -> bool:
        """Whether light at white can be told: there is a gain, and noise does not hide it."""
        at_white = max(fit.slope + fit.floor for fit in self.noise)
        return math.isfinite(self.raw_gain) and at_white < CLEAR_LIGHT**2


def sample(anchor: RawFrame, target: RawFrame, overlap: Overlap, executor: Executor) -> Sampled:
    """Return gain, noise and loss from bands of rows, spread evenly."""
    bands = Bands(PairRows.of(anchor, target, overlap))
    sink = TensorSink(bands.extent)
    executor.map(sample_kernel(levels_of(anchor, target), overlap), bands, sink, most_rows=BANDS_AT_ONCE)
    cells = sink.result.transpose(0, 1).flatten(1, 2)
    del sink
    first, second, usable = cells[:3], cells[3:6], cells[6:] > 0
    light = block_light(first, second, usable, SMALL_BLOCK)
    gains, together = _gains(block_sums(light, BLOCK // SMALL_BLOCK))
    difference = second * gains.view(3, 1, 1) - first
    noise = tuple(_fit_noise(*colour) for colour in zip(first, difference, usable, strict=True))
    loss = (difference.abs() * usable).sum(dtype=torch.float64) / usable.sum().clamp(min=1)
    red, green, blue = gains.tolist()
    return Sampled(
        float(usable.double().mean()),
        together,
        (red, green, blue),
        noise,
        _offsets(light, gains),
        float(loss),
    )


@dataclass(frozen=True)
class Bands:
    """Bands of rows of tiles, spread evenly over a pair, with ``CONTEXT`` above and below."""

    rows: PairRows
    dtype: torch.dtype = field(default=torch.uint16, init=False)

    @property
    def extent(self) -> int:
        """Number of bands; one of small frames, which is all of them."""
        return BANDS if self.rows.extent > BANDS * BAND_ROWS else 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a band."""
        return (self.rows.extent if self.extent == 1 else BAND_ROWS, *self.rows.shape)

    def read(self, start: int, stop: int) -> Tensor:
        """Return some bands."""
        length = self.shape[0]
        gap = (self.rows.extent - length) / max(self.extent - 1, 1)
        starts = [round(number * gap) for number in range(start, stop)]
        return torch.stack([self.rows.read(first, first + length) for first in starts])


def sample_kernel(levels: Tensor, overlap: Overlap) -> Kernel:
    """Return the kernel of ``Bands``; what changes from pair to pair are its constants."""
    return Kernel("pair_sample", partial(_band_cells, tile=overlap.tile), (levels, overlap.weights), alignment=1)


def _band_cells(bands: Tensor, levels: Tensor, weights: Tensor, *, tile: Tile) -> Tensor:
    """Return (n, 9, cells down, cells across): colours of the anchor, of the target, and whether neither is clipped."""
    context = CONTEXT * len(tile) // cell_side(tile)
    cells = torch.cat([part.float() for part in pair_cells(bands.flatten(0, 1), levels, weights, tile)])
    return cells.view(len(cells), len(bands), -1, cells.shape[2]).transpose(0, 1)[:, :, context:-context]


def _gains(light: Tensor) -> tuple[Tensor, float]:
    """Return the gain of each colour and of all together; a colour that is nowhere usable has that of all."""
    anchor, target, number = light.flatten(2)
    # Noise that is cut off at black makes the dark too bright: the brighter half of the blocks counts.
    level = anchor / number
    bright = level >= level.nanmedian(1, keepdim=True).values
    anchor, target = anchor * bright, target * bright
    gains, together = gain_between(anchor, target), gain_between(anchor.flatten(), target.flatten())
    return torch.where(gains.isfinite(), gains, together), float(together)


def _offsets(light: Tensor, gains: Tensor) -> Tensor:
    """Return the curves of ``PairAlignment.offsets``."""
    curves = torch.zeros(3, 2, LEVELS)
    for colour, (anchor, target, number) in enumerate(light.flatten(2).transpose(0, 1)):
        whole = number == SMALL_BLOCK**2
        if int(whole.sum()) >= LEVELS:
            level, brightened = (part[whole] / SMALL_BLOCK**2 for part in (anchor, gains[colour] * target))
            curves[colour] = offset_by_level(level, brightened - level, LEVELS)
    return curves


def _fit_noise(level: Tensor, difference: Tensor, usable: Tensor) -> PoissonGaussian:
    """Fit the noise to differences between neighbours, in which what moved slowly cancels."""
    every = max(1, level.numel() // NOISE_SAMPLES)
    columns = [slice(first, level.shape[1] - 1 + first, every) for first in (0, 1)]
    inside = usable[:, columns[0]] & usable[:, columns[1]]
    step = (difference[:, columns[1]] - difference[:, columns[0]])[inside] / math.sqrt(2)
    levels = 0.5 * (level[:, columns[1]] + level[:, columns[0]])[inside]
    return fit_poisson_gaussian(levels, step) if len(step) else PoissonGaussian(0.0, 1.0)
