"""How much memory there is, how much a computation takes, and how running out of it looks."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from safelight.core.device import Device, memory_of

MIB = 1 << 20
DEVICE_RESERVE = (700 if sys.platform == "win32" else 400) * MIB
HOST_FRACTION = 0.8
UNLIMITED = 1 << 62

_OUT_OF_MEMORY = (
    "out of memory",  # CUDA, HIP, XPU, MPS, "CUDA error: out of memory"
    "cublas_status_alloc_failed",
    "cusolver_status_alloc_failed",
    "cusparse_status_alloc_failed",
    "cufft_alloc_failed",
    "cudnn_status_alloc_failed",
    "cudnn_status_internal_error_host_allocation_failed",
    "can't allocate memory",  # the CPU allocator
    "not enough memory",
    "cannot allocate memory",
    "std::bad_alloc",
    "failed to allocate",
    "unable to find an engine to execute this computation",  # cuDNN, when no engine's workspace fits
)
_STICKY = (
    "illegal memory access",
    "device-side assert",
    "misaligned address",
    "unspecified launch failure",
    "illegal instruction",
    "hardware stack error",
    "uncorrectable ecc error",
    "gpu has fallen off the bus",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error is one of the many forms of running out of memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _OUT_OF_MEMORY)


def is_sticky(error: BaseException) -> bool:
    """Return whether an error has left the device unusable for this process."""
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _STICKY)


@dataclass(frozen=True)
class Budget:
    """How many bytes may be used, and why.

    Parameters
    ----------
    bytes : int
    reason : str
        What set it: ``memory_limit``, ``free``, ``available``, ``cgroup`` or ``unknown``.
    """

    bytes: int
    reason: str


def device_budget(device: Device, safety_fraction: float = 0.75, memory_limit: int | None = None) -> Budget:
    """Return what may be planned for on a device.

    On a GPU (free + reserved − allocated − reserve) × safety fraction, the fraction clamped to 0.1…0.9; on the CPU the
    host's budget. ``memory_limit`` caps either. A driver that does not answer is trusted (reason ``unknown``).
    """
    if device.is_cpu:
        return host_budget(memory_limit)
    free, _ = memory_of(device.torch_device)
    if free is None:
        return _capped(Budget(UNLIMITED, "unknown"), memory_limit)
    usable = max(free - DEVICE_RESERVE, 0) * min(max(safety_fraction, 0.1), 0.9)
    return _capped(Budget(int(usable), "free"), memory_limit)


def host_budget(memory_limit: int | None = None, workers: int = 1) -> Budget:
    """Return what one of ``workers`` may use of the host: min(available, control group's limit) × 0.8."""
    available = psutil.virtual_memory().available
    group = _cgroup_free()
    least, reason = (available, "available") if group is None or available <= group else (group, "cgroup")
    return _capped(Budget(int(least * HOST_FRACTION) // workers, reason), memory_limit)


def _capped(budget: Budget, limit: int | None) -> Budget:
    return Budget(limit, "memory_limit") if limit is not None and limit < budget.bytes else budget


def _cgroup_free(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return what the control group (a container's limit) leaves; None without one."""
    pairs = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))
    for limit, usage in pairs:
        try:
            most, used = (root / limit).read_text().strip(), (root / usage).read_text().strip()
        except OSError:
            continue
        if most.isdigit() and used.isdigit():
            return max(int(most) - int(used), 0)
    return None


class Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's hooks lack types
    """Adds up the live storage of every tensor made while it is active.

    On the meta device it predicts a computation's peak without computing; on real tensors it measures it.

    Attributes
    ----------
    current, peak : int
        Bytes alive now, and at most so far.
    operations : int
        Operations dispatched so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.current = 0
        self.peak = 0
        self.operations = 0
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run one operation and count what it made."""
        self.operations += 1
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.track(leaf)
        return result

    def track(self, tensor: Tensor) -> None:
        """Count a tensor that was made elsewhere."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._alive:
            return
        size = storage.nbytes()
        self._admit(size)
        self._alive[key] = weakref.ref(storage, self._forget(key, size))
        self.current += size
        self.peak = max(self.peak, self.current)

    def _admit(self, size: int) -> None:
        """Refuse an allocation; the ledger refuses none."""

    def _forget(self, key: int, size: int) -> Callable[[object], None]:
        def forget(_: object) -> None:
            if self._alive.pop(key, None) is not None:
                self.current -= size

        return forget


class VirtualDevice(Ledger):  # type: ignore[no-untyped-call]
    """A device with little memory, played by the CPU: runs out of memory where a real one would.

    Parameters
    ----------
    cap_bytes : int, optional
        Most live storage; more raises ``torch.OutOfMemoryError``.
    fail_at : sequence of int
        Operations, counted from 0, at which it runs out of memory whatever is alive.
    """

    def __init__(self, cap_bytes: int | None = None, fail_at: Sequence[int] = ()) -> None:
        super().__init__()
        self.cap_bytes = cap_bytes
        self._fail_at = frozenset(fail_at)

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run one operation, or fail as a device would."""
        if self.operations in self._fail_at:
            self.operations += 1
            raise torch.OutOfMemoryError("virtual device out of memory (injected)")
        return super().__torch_dispatch__(func, types, args, kwargs)

    def _admit(self, size: int) -> None:
        if self.cap_bytes is not None and self.current + size > self.cap_bytes:
            raise torch.OutOfMemoryError(
                f"virtual device out of memory: {size} bytes more than the {self.current} of {self.cap_bytes} in use"
            )
