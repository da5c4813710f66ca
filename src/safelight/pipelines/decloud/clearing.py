"""A scene cleared tile by tile: blended, back in the file's numbers, clear pixels as they were where that is wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from safelight.core.errors import InputError
from safelight.core.execute import Executor
from safelight.core.kernel import ModuleKernel
from safelight.core.plan import Plan
from safelight.formats.geotiff import Header, Raster, RasterWriter
from safelight.kernels.tiles import Layout
from safelight.pipelines.decloud.blending import Blender
from safelight.pipelines.decloud.clouds import REACH, cloud_mask
from safelight.pipelines.decloud.network import OPTICAL_BANDS
from safelight.pipelines.decloud.options import PredictOptions, smallest_tile
from safelight.pipelines.decloud.patches import check_one_grid
from safelight.pipelines.decloud.radiometry import FULL_SCALE
from safelight.pipelines.decloud.scene import Place, SarOnScene, SceneSource, Survey, layout_of

_TILES_AT_ONCE = 8

TILES = (512, 384, 256)
"""Sides that are tried, the largest that fits is taken."""

SEAM_ERRORS = {16: 1.3e-2, 32: 2.5e-3, 48: 3e-4, 64: 6e-5}
"""Largest error of reflectance, by how far a seam is from the edges of its tiles; measured with weights for tests."""

CloudsOf = Callable[[slice, slice], np.ndarray]
"""Returns where in a window there are clouds or shadows, (rows, columns) bool."""


def seam_error(margin: int) -> float:
    """Return the largest error to expect at seams."""
    return SEAM_ERRORS[max(known for known in SEAM_ERRORS if known <= margin)]


def choose_layout(
    kernel: ModuleKernel, source: SceneSource, options: PredictOptions, executor: Executor
) -> tuple[Layout, Plan]:
    """Return the largest tiles that fit the executor's budget, and the plan; the smallest where none fits."""
    grid = source.scene.header.grid
    least = smallest_tile(options.margin)
    sides = [options.tile_size] if options.tile_size else [*(side for side in TILES if side > least), least]
    for side in sides:
        layout = layout_of(grid, side, options.margin)
        tiles = SceneSource(source.scene, source.sar, source.survey, layout)
        plan = executor.plan(kernel, tiles, most_rows=tiles_at_once(executor))
        if plan.fits:
            break
    return layout, plan


def tiles_at_once(executor: Executor) -> int:
    """Return how many tiles are enough at once, however many would fit: results are to flow to the file.

    On the CPU one tile fills the caches already; a GPU wants some more.
    """
    return _TILES_AT_ONCE if executor.device.kind == "cuda" else 1


@dataclass
class Counts:
    """Pixels of the result.

    Parameters
    ----------
    written, kept : int
        In all, and of these kept because the sky is clear.
    clipped : int
        Numbers that the file's type could not hold.
    """

    written: int = 0
    kept: int = 0
    clipped: int = 0


class SceneSink:
    """Writes what the tiles say.

    Parameters
    ----------
    scene : Raster
        Opened for this alone: tiles are read by another thread.
    survey : Survey
    layout : Layout
    writer : RasterWriter
    clouds : callable, optional
        Where the result counts; everywhere by default.
    progress : callable
        ``(done, total)`` in tiles.
    """

    def __init__(
        self,
        scene: Raster,
        survey: Survey,
        layout: Layout,
        writer: RasterWriter,
        clouds: CloudsOf | None,
        progress: Callable[[int, int], None],
    ) -> None:
        self.counts = Counts()
        self._scene, self._survey, self._writer, self._clouds = scene, survey, writer, clouds
        self._layout, self._progress = layout, progress
        self._blender = Blender(layout, OPTICAL_BANDS)

    def write(self, start: int, stop: int, result: Tensor) -> None:
        """Take tiles ``start`` to ``stop``."""
        for number, tile in zip(range(start, stop), result, strict=True):
            self._finish(*self._blender.add(number, tile))
        self._progress(stop, len(self._layout))

    def _finish(self, row: int, column: int, reflectance: Tensor) -> None:
        rows, columns = (slice(at, at + size) for at, size in zip((row, column), reflectance.shape[1:], strict=True))
        before = self._scene.read(rows, columns)
        kept = before == (self._scene.header.nodata or 0)
        if self._clouds is not None:
            clear = ~self._clouds(rows, columns)
            self.counts.kept += int(clear.sum())
            kept |= clear
        numbers, clipped = self._to_numbers(reflectance, self._scene.header)
        self.counts.clipped += int((clipped & ~kept).sum())
        self.counts.written += numbers[0].size
        self._writer.write(row, column, np.where(kept, before, numbers))

    def _to_numbers(self, reflectance: Tensor, header: Header) -> tuple[np.ndarray, np.ndarray]:
        """Return reflectances as the file has them, and which were clipped; none becomes the value of missing data."""
        numbers = (reflectance * FULL_SCALE + self._survey.offset).round().numpy()
        limits: Any = np.iinfo(header.dtype)
        low, high = (1 if not header.nodata else 0), limits.max - (header.nodata == limits.max)
        clipped = (numbers < low) | (numbers > high)
        return numbers.clip(low, high).astype(header.dtype), clipped


@contextmanager
def clouds_of(options: PredictOptions, scene: Raster, survey: Survey) -> Iterator[CloudsOf | None]:
    """Yield what tells where clouds are: the mask's file or the scene itself; None where every pixel is to change.

    Raises
    ------
    InputError
        The mask is no mask of this scene.
    """
    with ExitStack() as opened:
        if not options.keep_clear:
            yield None
        elif options.mask is None:
            yield lambda rows, columns: _told(scene, survey, options.cloud_threshold, rows, columns)
        else:
            mask = opened.enter_context(Raster(options.mask))
            _check_mask(scene, mask)
            yield lambda rows, columns: _looked_up(mask, options.mask_probability, rows, columns)


def _told(scene: Raster, survey: Survey, threshold: float, rows: slice, columns: slice) -> np.ndarray:
    """Return the mask of a window, made from as much around it as it depends on."""
    grid = scene.header.grid
    wide = [
        slice(max(part.start - REACH, 0), min(part.stop + REACH, size))
        for part, size in zip((rows, columns), (grid.height, grid.width), strict=True)
    ]
    reflectance = (torch.from_numpy(scene.read(*wide).astype(np.float32)) - survey.offset) / FULL_SCALE
    mask = cloud_mask(reflectance, threshold, survey.levels).numpy()
    inner = (slice(part.start - w.start, part.stop - w.start) for part, w in zip((rows, columns), wide, strict=True))
    cloudy: np.ndarray = mask[tuple(inner)] != 0
    return cloudy


def _looked_up(mask: Raster, probability: float, rows: slice, columns: slice) -> np.ndarray:
    values = mask.read(rows, columns)[0]
    if mask.header.dtype.kind == "f":
        values = ~(values < probability)  # a probability that is missing is no clear sky
    cloudy: np.ndarray = values != 0
    return cloudy


def _check_mask(scene: Raster, mask: Raster) -> None:
    check_one_grid(scene.path, scene.header, {mask.path: mask.header})
    if mask.header.bands != 1:
        raise InputError(f"it has {mask.header.bands} bands", path=mask.path, expected="a mask of one band")


@contextmanager
def open_scene(scene: Path, radar: Path, place: Place) -> Iterator[tuple[Raster, SarOnScene]]:
    """Yield both images, opened for one thread."""
    with ExitStack() as opened:
        optical = opened.enter_context(Raster(scene))
        sar = SarOnScene(radar, place)
        opened.callback(sar.close)
        yield optical, sar
