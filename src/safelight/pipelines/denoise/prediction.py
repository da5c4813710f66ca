"""Denoising with a trained model: whole where it fits, otherwise in tiles that give the same result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from safelight.core.errors import InputError
from safelight.core.execute import Executor
from safelight.core.kernel import ModuleKernel
from safelight.core.plan import Plan
from safelight.kernels.tiles import Layout, aligned, reflect
from safelight.pipelines.denoise.frames import Frames, Slices
from safelight.pipelines.denoise.model import DenoiseModel
from safelight.pipelines.denoise.sampling import Symmetries

LARGEST_TILE = {2: 1024, 3: 192}

Write = Callable[[Slices, np.ndarray], None]
"""Takes a region of the result, as slices in the image's own order of axes, and its float32 pixels."""


class Predictor(nn.Module):
    """A model as a function of raw pixels: normalise, denoise, back to the image's units.

    Parameters
    ----------
    model : DenoiseModel
    augmented : bool
        Mean over the flips and transpositions of a plane, up to eight (test-time augmentation); only those that
        leave the model's structural mask as it is.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: DenoiseModel, augmented: bool = False) -> None:
        super().__init__()
        shape = (-1, *(1,) * model.architecture.dims)
        layout = torch.channels_last if model.architecture.dims == 2 else torch.channels_last_3d
        self.network = model.network()
        self.network.to(memory_format=layout)  # type: ignore[call-overload]  # torch's stubs lack it
        self.register_buffer("mean", torch.tensor(model.normalisation.mean).view(shape))
        self.register_buffer("std", torch.tensor(model.normalisation.std).view(shape))
        symmetries = Symmetries.of(model.structure) if augmented else Symmetries(False, False, False)
        self._orientations = symmetries.orientations()

    def forward(self, pixels: Tensor) -> Tensor:
        """Map raw (B, C, [Z,] Y, X) to denoised pixels of the same units; gaps (NaN) are filled in."""
        x = torch.nan_to_num((pixels - self.mean) / self.std, nan=0.0, posinf=0.0, neginf=0.0)
        return self._mean_of_orientations(x) * self.std + self.mean

    def _mean_of_orientations(self, x: Tensor) -> Tensor:
        total = torch.zeros_like(x)
        for flips, transpose in self._orientations:
            view = x.flip(flips)
            y = self.network(view.mT if transpose else view).float()
            total += (y.mT if transpose else y).flip(flips)
        return total / len(self._orientations)


@dataclass(frozen=True)
class TileSource:
    """The tiles of all samples of an image as samples of the network, read lazily."""

    frames: Frames
    layout: Layout

    @property
    def extent(self) -> int:
        """Number of tiles in all."""
        return len(self.frames) * len(self.layout)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a tile, (C, [Z,] Y, X)."""
        return (self.frames.channels, *self.layout.tile)

    @property
    def dtype(self) -> torch.dtype:
        """Tiles are read as float32."""
        return torch.float32

    def read(self, start: int, stop: int) -> Tensor:
        """Return tiles, mirrored where they pass the image's edge."""
        return torch.from_numpy(np.stack([self._tile(number) for number in range(start, stop)]))

    def _tile(self, number: int) -> np.ndarray:
        sample, tile = divmod(number, len(self.layout))
        spans = self.layout[tile]
        sizes = self.frames.spatial
        region = tuple(slice(span.start, min(span.stop, size)) for span, size in zip(spans, sizes, strict=True))
        pixels = self.frames.read(sample, region)
        for axis, (span, part) in enumerate(zip(spans, region, strict=True), start=1):
            if span.stop > part.stop:
                # What lies past the edge mirrors what lies before it, which this tile has read.
                length = part.stop - part.start
                pixels = pixels.take(reflect(0, span.stop - span.start, length), axis)
        return pixels


@dataclass(frozen=True)
class TileSink:
    """Writes the core of each tile to the result."""

    frames: Frames
    layout: Layout
    write_region: Write
    progress: Callable[[int, int], None]

    def write(self, start: int, stop: int, result: Tensor) -> None:
        """Write the cores of tiles ``start`` to ``stop``."""
        for number, pixels in zip(range(start, stop), result.numpy(), strict=True):
            sample, tile = divmod(number, len(self.layout))
            spans = self.layout[tile]
            own = pixels[(slice(None), *(span.core_in_tile for span in spans))]
            where = self.frames.locate(sample, tuple(span.core for span in spans))
            self.write_region(where, self.frames.from_frame(own))
        self.progress(stop, len(self.frames) * len(self.layout))


def check_fits(model: DenoiseModel, frames: Frames) -> None:
    """Refuse an image that the model cannot denoise.

    Raises
    ------
    InputError
        The number of channels differs.
    """
    channels = model.architecture.channels
    if frames.channels != channels:
        raise InputError(
            f"the image has {frames.channels} channel(s)",
            expected=f"{channels}, as the model was trained on",
            remedy="train a model on such images, or say what the axes are with --axes",
        )


def kernel_of(model: DenoiseModel, augmented: bool = False) -> ModuleKernel:
    """Return the model as the Executor runs it."""
    a = model.architecture
    name = f"unet{a.dims}d depth {a.depth} features {a.features}×{a.channels}"
    return ModuleKernel(name + (" augmented" if augmented else ""), Predictor(model, augmented).eval())


def layouts(model: DenoiseModel, frames: Frames, tile: int | None) -> list[Layout]:
    """Return the ways to tile an image, the largest tiles first; tiles of one size where it was asked for."""
    a = model.architecture
    halo, unit = a.receptive_radius, a.alignment
    least = aligned(2 * halo + unit, unit)
    wanted = [max(tile, least)] if tile else []
    side = LARGEST_TILE[a.dims]
    while not tile and side > least:
        wanted.append(side)
        side //= 2
    found = [Layout.of(frames.spatial, (side,) * a.dims, halo, unit) for side in [*wanted, *([] if tile else [least])]]
    return list({layout.tile: layout for layout in found}.values())


def choose_layout(
    model: DenoiseModel, frames: Frames, executor: Executor, tile: int | None = None, augmented: bool = False
) -> tuple[Layout, Plan]:
    """Return the largest tiles that fit the executor's budget, and the plan; the smallest where none fits."""
    kernel = kernel_of(model, augmented)
    for layout in layouts(model, frames, tile):
        plan = executor.plan(kernel, TileSource(frames, layout))
        if plan.fits:
            break
    return layout, plan


def predict(
    model: DenoiseModel,
    frames: Frames,
    write: Write,
    executor: Executor,
    *,
    tile: int | None = None,
    augmented: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Layout:
    """Denoise every sample of an image.

    Tiles overlap by the network's receptive radius and start on its grid, so the result does not depend on them.

    Parameters
    ----------
    model : DenoiseModel
    frames : Frames
    write : callable
        Takes each region of the result once.
    executor : Executor
    tile : int, optional
        Side of a tile; as large as memory allows by default.
    augmented : bool
        Mean over the flips and transpositions of a plane.
    progress : callable
        ``(done, total)`` in tiles.

    Returns
    -------
    Layout
        The tiles that were used.

    Raises
    ------
    InputError
        The image does not fit the model.
    OutOfMemoryError
        Not even the smallest tile fits.
    """
    check_fits(model, frames)
    layout, _ = choose_layout(model, frames, executor, tile, augmented)
    sink = TileSink(frames, layout, write, progress)
    executor.map(kernel_of(model, augmented), TileSource(frames, layout), sink)
    return layout
