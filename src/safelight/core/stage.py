"""One rung of the ladder: a device with its budget, and what a chunk takes on it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from safelight.core.allocator import keep_freed_memory
from safelight.core.device import Device
from safelight.core.kernel import MapKernel
from safelight.core.memory import Budget, Ledger, VirtualDevice

_KEPT = 4
"""Of the host's budget, one part in so many may be memory that was freed and kept."""


@dataclass
class Peak:
    """The peak of one measured chunk, known when its block ends; None where it cannot be measured."""

    bytes: int | None = None


@dataclass(frozen=True)
class Stage:
    """A device to try, with its budget.

    Parameters
    ----------
    device : Device
    budget : Budget
    virtual : VirtualDevice, optional
        Stands in for the device.
    """

    device: Device
    budget: Budget
    virtual: VirtualDevice | None = None

    @property
    def name(self) -> str:
        """As events name it."""
        return "virtual" if self.virtual is not None else str(self.device.torch_device)

    @property
    def is_host(self) -> bool:
        """Whether this is the CPU with the host's own memory."""
        return self.device.is_cpu and self.virtual is None

    def keep_freed_memory(self, planned: int) -> None:
        """Let the host keep some of what a chunk or a step frees for the next one, of what is left beside the plan."""
        if self.is_host:
            keep_freed_memory(max(min(self.budget.bytes // _KEPT, self.budget.bytes - planned), 0))

    def accounting(self) -> AbstractContextManager[object]:
        """Return a context in which allocations are the virtual device's, if this is one."""
        return self.virtual if self.virtual is not None else nullcontext()

    def load(self, kernel: MapKernel) -> Callable[[Tensor], Tensor]:
        """Return the kernel, its constants on the device."""
        if self.virtual is not None:
            kernel = copy.deepcopy(kernel)  # shared with the host's, they would take none of its memory
        return self.device.compile(kernel.to(self.device.torch_device).__call__)

    def take(self, chunk: Tensor) -> Tensor:
        """Return a chunk on the device."""
        return chunk.clone() if self.virtual is not None else chunk.to(self.device.torch_device)

    @contextmanager
    def measuring(self, chunk: Tensor) -> Iterator[Peak]:
        """Measure the peak of a block that computes a chunk: by the driver on CUDA, by a ledger on the CPU."""
        peak = Peak()
        if self.device.kind == "cuda":
            where = self.device.torch_device
            before = torch.cuda.memory_allocated(where)
            torch.cuda.reset_peak_memory_stats(where)
            yield peak
            peak.bytes = torch.cuda.max_memory_allocated(where) - before
        elif self.device.is_cpu and not self.device.compiles:
            ledger = self.virtual if self.virtual is not None else Ledger(chunk.nbytes)
            before = ledger.current if self.virtual is not None else 0
            ledger.peak = ledger.current
            with ledger:
                yield peak
            peak.bytes = ledger.peak - before
        else:
            yield peak
