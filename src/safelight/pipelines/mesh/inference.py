"""Both stages within a memory budget: views to the coarse mesh, and vertices, some at a time, to the refined one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from math import prod

import torch
from torch import Tensor, nn

from safelight.core.execute import Executor
from safelight.core.kernel import ModuleKernel
from safelight.core.stream import TensorSink, TensorSource
from safelight.pipelines.mesh.cameras import SIDE, Cameras
from safelight.pipelines.mesh.encoder import CHANNELS
from safelight.pipelines.mesh.networks import REFINE_SCALES, CoarseNetwork, RefineNetwork, encode

_SHAPES = tuple((SIDE >> scale, SIDE >> scale, CHANNELS[scale]) for scale in REFINE_SCALES)
_VERTICES_ALIGNMENT = 64
_IN_CACHE = 256
"""Vertices whose hypotheses are computed together on a CPU; a multiple of the alignment."""


def deform(network: CoarseNetwork, images: Tensor, cameras: Cameras, executor: Executor) -> Tensor:
    """Return the coarse mesh of one object.

    Parameters
    ----------
    network : CoarseNetwork
    images : Tensor
        (views, 3, 224, 224), blue first, 0 to 1.
    cameras : Cameras
        Of one sample.

    Returns
    -------
    Tensor
        (vertices of the last level, 3), in the first camera's frame.

    Raises
    ------
    OutOfMemoryError
        One object does not fit; says what would have.
    """
    return _map(ModuleKernel("deform", _Deform(network, cameras)), images[None], executor)[0]


def refine(network: RefineNetwork, points: Tensor, images: Tensor, cameras: Cameras, executor: Executor) -> Tensor:
    """Return vertices (n, 3) moved to where the views agree; other arguments as for ``deform``."""
    maps = _map(ModuleKernel("encode", _Encode(network)), images, executor)
    kernel = ModuleKernel("refine", _Refine(network, maps, cameras), alignment=_VERTICES_ALIGNMENT)
    return _map(kernel, points, executor)


class _Posed(nn.Module):
    """A network with the cameras of one sample."""

    def __init__(self, cameras: Cameras) -> None:
        super().__init__()
        for name in ("axes", "origin", "focal", "centre"):
            self.register_buffer(name, getattr(cameras, name))

    @property
    def cameras(self) -> Cameras:
        return Cameras(*(self.get_buffer(name) for name in ("axes", "origin", "focal", "centre")))


class _Deform(_Posed):
    def __init__(self, network: CoarseNetwork, cameras: Cameras) -> None:
        super().__init__(cameras)
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        deformed: Tensor = self.network(images, self.cameras)[-1]
        return deformed


class _Encode(nn.Module):
    """The maps of each view, flat and one after the other: a kernel gives one tensor."""

    def __init__(self, network: RefineNetwork) -> None:
        super().__init__()
        self.cnn = network.cnn

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([values[0].flatten(1) for values in encode(self.cnn, images[None], REFINE_SCALES)], dim=1)


class _Refine(_Posed):
    def __init__(self, network: RefineNetwork, maps: Tensor, cameras: Cameras) -> None:
        super().__init__(cameras)
        self.network = network
        self.register_buffer("maps", maps)

    def forward(self, points: Tensor) -> Tensor:
        maps, cameras = self._unflattened(), self.cameras
        # On a CPU what is computed must stay in its cache; a GPU wants all at once.
        size = _IN_CACHE if points.device.type == "cpu" else max(len(points), 1)
        parts = (points[start : start + size] for start in range(0, len(points), size))
        return torch.cat([self.network(part[None], maps, cameras)[-1][0] for part in parts])

    def _unflattened(self) -> Sequence[Tensor]:
        maps = self.get_buffer("maps")
        sizes = [prod(shape) for shape in _SHAPES]
        parts = [maps.narrow(1, start, size) for start, size in zip(accumulate(sizes, initial=0), sizes, strict=False)]
        return [part.reshape(1, len(part), *shape) for part, shape in zip(parts, _SHAPES, strict=True)]


def _map(kernel: ModuleKernel, values: Tensor, executor: Executor) -> Tensor:
    sink = TensorSink(len(values))
    executor.map(kernel, TensorSource(values), sink)
    return sink.result
