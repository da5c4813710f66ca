"""What the Executor runs, and how a kernel declares what proves it right."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor, nn

ROWS_ALIGNMENT = 64
"""Chunks are multiples of this many rows, so that the tails of vector instructions do not change bits."""


class MapKernel(Protocol):
    """A computation along axis 0: as many rows (or samples) come out as went in.

    ``halo`` rows of context on each side change a row's result; chunks are multiples of ``alignment`` rows.
    """

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def halo(self) -> int: ...  # noqa: D102
    @property
    def alignment(self) -> int: ...  # noqa: D102

    def __call__(self, chunk: Tensor) -> Tensor:
        """Return the result of a chunk, which stays as it is: the chunk may be computed again."""
        ...

    def to(self, device: torch.device) -> Self:
        """Return the same kernel with its constants on a device; it may be meta."""
        ...


@dataclass(frozen=True)
class Kernel:
    """A function of a chunk and of constants as a MapKernel.

    Parameters
    ----------
    name : str
    function : callable
        ``function(chunk, *constants) -> Tensor``, row by row along axis 0.
    constants : tuple of Tensor
    halo, alignment : int
        In rows.
    """

    name: str
    function: Callable[..., Tensor]
    constants: tuple[Tensor, ...] = ()
    halo: int = 0
    alignment: int = ROWS_ALIGNMENT

    def __call__(self, chunk: Tensor) -> Tensor:
        """Compute one chunk."""
        return self.function(chunk, *self.constants)

    def to(self, device: torch.device) -> Self:
        """Return the kernel with its constants on a device."""
        return replace(self, constants=tuple(constant.to(device) for constant in self.constants))


@dataclass(frozen=True)
class ModuleKernel:
    """A network in evaluation mode as a MapKernel over samples, run without gradients."""

    name: str
    module: nn.Module
    halo: int = 0
    alignment: int = 1

    def __call__(self, chunk: Tensor) -> Tensor:
        """Compute one batch of samples."""
        result: Tensor = self.module(chunk)
        return result

    def to(self, device: torch.device) -> Self:
        """Return the kernel with its network on a device; weights that are there already are shared, not copied."""
        # Copied straight to where they go: a copy beside the original might not fit, least of all for a dry run.
        moved: dict[int, Tensor] = {
            id(weight): nn.Parameter(weight.detach().to(device), weight.requires_grad)
            for weight in self.module.parameters()
        }
        moved |= {id(constant): constant.to(device) for constant in self.module.buffers()}
        return replace(self, module=copy.deepcopy(self.module, moved))


@dataclass(frozen=True)
class TrainingStep:
    """A step of training as a MapKernel, to plan it by a dry run: rows are the samples of a batch.

    What stays from step to step counts among the constants: the weights with their copies, and whatever else is kept.

    Parameters
    ----------
    name : str
        As plans and corrections name it.
    network : nn.Module
        On the meta device.
    loss : callable
        ``(chunk) -> Tensor``: the network's loss for some samples, with gradients.
    copies_of_weights : int
        The network's own and the optimiser's, for instance; gradients are counted by the dry run.
    kept_bytes : int
        What stays on the device beside the weights.
    """

    name: str
    network: nn.Module
    loss: Callable[[Tensor], Tensor]
    copies_of_weights: int
    kept_bytes: int = 0
    halo: int = 0
    alignment: int = 1
    _constants: tuple[Tensor, ...] = field(default=(), repr=False)

    def to(self, device: torch.device) -> Self:
        """Return the step with what stays from step to step on a device."""
        weights = sum(tensor.nbytes for tensor in self.network.state_dict().values())
        size = self.copies_of_weights * weights + self.kept_bytes
        return replace(self, _constants=(torch.empty(size, dtype=torch.uint8, device=device),))

    def __call__(self, chunk: Tensor) -> Tensor:
        """Go forward and backward on the meta device."""
        self.network.zero_grad(set_to_none=True)
        with torch.enable_grad():
            torch.autograd.backward(self.loss(chunk))
        return chunk.new_empty((len(chunk), 0))


@dataclass(frozen=True)
class Sample:
    """One set of arguments of a kernel function."""

    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class KernelInfo:
    """What proves a kernel function right, after PyTorch's OpInfo.

    Parameters
    ----------
    name : str
    function : callable
        Tensors in, tensor out.
    samples : callable
        ``(device, dtype) -> iterable of Sample``, seeded; the same on every device.
    oracle : callable
        The same computation in NumPy float64, written independently; takes arrays where the function takes tensors.
    tolerances : mapping
        (rtol, atol) by dtype: the dtypes that are tested.
    """

    name: str
    function: Callable[..., Tensor]
    samples: Callable[[torch.device, torch.dtype], Iterable[Sample]]
    oracle: Callable[..., np.ndarray]
    tolerances: Mapping[torch.dtype, tuple[float, float]] = field(
        default_factory=lambda: {torch.float32: (1e-5, 1e-5), torch.float64: (1e-12, 1e-12)}
    )
