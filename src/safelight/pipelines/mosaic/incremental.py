"""Assemble a mosaic one group at a time: however many there are, memory never holds rows of more than one of them.

What is blended so far waits on the disk. It is itself a stack with weight, variance and effective number of frames,
so a group is added by blending two stacks; since weights add up, the order makes no difference but of rounding.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from safelight.core.execute import Executor
from safelight.core.files import output_error
from safelight.core.stream import Sink
from safelight.kernels.coadd import LAYERS
from safelight.pipelines.mosaic.assembly import TilesSource, Window, coadd_kernel, common_window
from safelight.pipelines.mosaic.chunks import enough_rows
from safelight.pipelines.mosaic.stack_file import BAND_ROWS, bands

Floats = NDArray[np.float32]


def blend_one_by_one(source: TilesSource, sink: Sink, path: Path, executor: Executor) -> None:
    """Blend all tiles of a mosaic without rejection, and give its rows to a sink.

    Parameters
    ----------
    source : TilesSource
    sink : Sink
        Takes (rows, layers, channels, width).
    path : Path
        Scratch file for what is blended so far.
    executor : Executor

    Raises
    ------
    OutputError
        The scratch file cannot be written, for instance because the disk is full.
    """
    layers, channels, width, tiles = source.shape
    kernel = coadd_kernel(rejects=False)
    blended = _blank(path, (source.extent, layers, channels, width))
    for number in range(tiles):
        addition = _Addition.of(source, number, blended)
        if addition is not None:
            executor.map(kernel, addition, addition, most_rows=enough_rows(addition))
    for band in bands(slice(0, source.extent)):
        sink.write(band.start, band.stop, torch.from_numpy(np.array(blended[band])))


@dataclass
class _Addition:
    """One tile and what is blended so far in its window: (layers, channels, width, 2); takes what comes of them."""

    tile: TilesSource
    blended: Floats
    dtype: torch.dtype = field(default=torch.float32, init=False)

    @classmethod
    def of(cls, source: TilesSource, number: int, blended: Floats) -> _Addition | None:
        """Return the addition of a tile; None where the mosaic shows nothing of it."""
        window = common_window(source.window, source.tiles[number].window)
        if window is None:
            return None
        tile = replace(
            source,
            tiles=[source.tiles[number]],
            window=window,
            coefficients=source.coefficients[:, [number]],
            feathers=[source.feathers[number]],
        )
        rows, columns = _within(source.window, window)
        return cls(tile, blended[rows, :, :, columns])

    @property
    def extent(self) -> int:
        """Rows of the tile."""
        return self.tile.extent

    @property
    def shape(self) -> tuple[int, ...]:
        """Layers, channels, width, 2."""
        return (*self.tile.shape[:-1], 2)

    def read(self, start: int, stop: int) -> Tensor:
        """Return rows of both."""
        before = torch.from_numpy(np.array(self.blended[start:stop]))
        return torch.cat([before[..., None], self.tile.read(start, stop)], dim=-1)

    def write(self, start: int, stop: int, result: Tensor) -> None:
        """Take rows of both, blended."""
        self.blended[start:stop] = result.numpy()


def _within(outer: Window, inner: Window) -> tuple[slice, slice]:
    """Return rows and columns of a window within another one."""
    top, _, left, _ = outer
    y0, y1, x0, x1 = inner
    return slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)


def _blank(path: Path, shape: tuple[int, ...]) -> Floats:
    """Return an empty mosaic, (rows, layers, channels, width), in a new file."""
    empty = np.zeros((BAND_ROWS, *shape[1:]), np.float32)
    empty[:, [LAYERS.index("image"), LAYERS.index("variance")]] = np.nan
    try:
        with path.open("wb") as file:  # written, not mapped: a full disk then is an error and no crash
            for start in range(0, shape[0], BAND_ROWS):
                file.write(empty[: shape[0] - start].data)
    except OSError as error:
        raise output_error(path, error) from error
    return np.memmap(path, np.float32, "r+", shape=shape)
