"""Both stages within a memory budget: views to the coarse mesh, and vertices, some at a time, to the refined one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from math import prod
from typing import ClassVar, Self

import torch
from torch import Tensor

from safelight.core.execute import Executor
from safelight.core.kernel import MapKernel, ModuleKernel
from safelight.core.plan import Plan
from safelight.core.stream import TensorSink, TensorSource
from safelight.pipelines.mesh.cameras import SIDE, Cameras
from safelight.pipelines.mesh.encoder import CHANNELS
from safelight.pipelines.mesh.networks import REFINE_SCALES, CoarseNetwork, RefineNetwork, encode

_SHAPES = tuple((SIDE >> scale, SIDE >> scale, CHANNELS[scale]) for scale in REFINE_SCALES)
_FLAT = sum(map(prod, _SHAPES))
"""Numbers in the maps of one view."""
_VERTICES_ALIGNMENT = 64
IN_CACHE = 128
"""Vertices whose hypotheses are computed together on a CPU, so that they stay in its cache; a GPU wants all at once."""


def deform(network: CoarseNetwork, images: Tensor, cameras: Cameras, executor: Executor) -> Tensor:
    """Return the coarse meshes of some objects, as many at once as memory allows.

    Parameters
    ----------
    network : CoarseNetwork
    images : Tensor
        (samples, views, 3, 224, 224), blue first, 0 to 1.
    cameras : Cameras
        Of the same samples and views.

    Returns
    -------
    Tensor
        (samples, vertices of the last level, 3), in the first camera's frame.

    Raises
    ------
    OutOfMemoryError
        Not even one object fits; says what would have.
    """
    sink = TensorSink(len(images))
    executor.map(_deforming(network, images, cameras), _numbers(len(images)), sink)
    return sink.result


def encode_views(network: RefineNetwork, images: Tensor, executor: Executor) -> Tensor:
    """Return the maps of views (views, 3, 224, 224) for ``refine``, as many at once as memory allows.

    Raises
    ------
    OutOfMemoryError
        Not even one view fits; says what would have.
    """
    sink = TensorSink(len(images))
    executor.map(_encoding(network), TensorSource(images), sink)
    return sink.result


def refine(network: RefineNetwork, points: Tensor, maps: Tensor, cameras: Cameras, executor: Executor) -> Tensor:
    """Return the vertices of one object moved to where its views agree, as many at once as memory allows.

    Parameters
    ----------
    network : RefineNetwork
    points : Tensor
        (n, 3), in the first camera's frame.
    maps : Tensor
        Of its views, by ``encode_views``.
    cameras : Cameras
        Of one sample.

    Returns
    -------
    Tensor
        (n, 3).

    Raises
    ------
    OutOfMemoryError
        Not even a few vertices fit; says what would have.
    """
    sink = TensorSink(len(points))
    kernel = _refining(network, maps, cameras)
    executor.map(kernel, TensorSource(points), sink, most_rows=_most_vertices(executor))
    return sink.result


def plan_deform(network: CoarseNetwork, samples: int, views: int, executor: Executor) -> Plan:
    """Return the memory plan of ``deform``."""
    images, cameras = torch.empty(samples, views, 3, SIDE, SIDE), _no_cameras(samples, views)
    return executor.plan(_deforming(network, images, cameras), _numbers(samples))


def plan_refine(network: RefineNetwork, vertices: int, views: int, executor: Executor) -> tuple[Plan, Plan]:
    """Return the memory plans of ``encode_views`` and of ``refine``."""
    kernel = _refining(network, torch.empty(views, _FLAT), _no_cameras(1, views))
    return (
        executor.plan(_encoding(network), TensorSource(torch.empty(views, 3, SIDE, SIDE))),
        executor.plan(kernel, TensorSource(torch.empty(vertices, 3)), most_rows=_most_vertices(executor)),
    )


def _deforming(network: CoarseNetwork, images: Tensor, cameras: Cameras) -> MapKernel:
    return _Deform(ModuleKernel("deform", network), images, cameras)


def _encoding(network: RefineNetwork) -> MapKernel:
    return _Encode(ModuleKernel("encode", network.cnn))


def _refining(network: RefineNetwork, maps: Tensor, cameras: Cameras) -> MapKernel:
    return _Refine(ModuleKernel("refine", network), maps, cameras)


@dataclass(frozen=True)
class _Deform:
    """Rows are the numbers of samples: each has views and cameras, in other types of numbers."""

    network: ModuleKernel
    images: Tensor
    cameras: Cameras
    name: ClassVar[str] = "deform"
    halo: ClassVar[int] = 0
    alignment: ClassVar[int] = 1

    def __call__(self, chunk: Tensor) -> Tensor:
        deformed: Tensor = self.network.module(self.images[chunk], self.cameras[chunk])[-1]
        return deformed

    def to(self, device: torch.device) -> Self:
        moved = self.network.to(device)
        return replace(self, network=moved, images=self.images.to(device), cameras=self.cameras.to(device))


@dataclass(frozen=True)
class _Encode:
    """The maps of each view, flat and one after the other: a kernel gives one tensor."""

    encoder: ModuleKernel
    name: ClassVar[str] = "encode"
    halo: ClassVar[int] = 0
    alignment: ClassVar[int] = 1

    def __call__(self, chunk: Tensor) -> Tensor:
        maps = encode(self.encoder.module, chunk[None])
        return torch.cat([values[0].flatten(1) for values in maps], dim=1)

    def to(self, device: torch.device) -> Self:
        return replace(self, encoder=self.encoder.to(device))


@dataclass(frozen=True)
class _Refine:
    """Rows are vertices of one object."""

    network: ModuleKernel
    maps: Tensor
    cameras: Cameras
    name: ClassVar[str] = "refine"
    halo: ClassVar[int] = 0
    alignment: ClassVar[int] = _VERTICES_ALIGNMENT

    def __call__(self, chunk: Tensor) -> Tensor:
        moved: Tensor = self.network.module(chunk[None], self._unflattened(), self.cameras)[-1][0]
        return moved

    def to(self, device: torch.device) -> Self:
        moved = self.network.to(device)
        return replace(self, network=moved, maps=self.maps.to(device), cameras=self.cameras.to(device))

    def _unflattened(self) -> Sequence[Tensor]:
        sizes = [prod(shape) for shape in _SHAPES]
        starts = accumulate(sizes, initial=0)
        parts = [self.maps.narrow(1, start, size) for start, size in zip(starts, sizes, strict=False)]
        return [part.reshape(1, len(part), *shape) for part, shape in zip(parts, _SHAPES, strict=True)]


def _numbers(samples: int) -> TensorSource:
    return TensorSource(torch.arange(samples))


def _no_cameras(samples: int, views: int) -> Cameras:
    pairs = torch.empty(samples, views, 2, dtype=torch.float64)
    return Cameras(pairs.new_empty(samples, views, 3, 3), pairs.new_empty(samples, views, 3), pairs, pairs)


def _most_vertices(executor: Executor) -> int | None:
    return IN_CACHE if executor.device.is_cpu else None
