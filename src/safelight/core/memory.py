"""How much memory there is, how much a computation takes, and how running out of it looks."""

from __future__ import annotations

import errno
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from safelight.core.device import RESERVE, Device, memory_of

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
    if isinstance(error, OSError):  # a file that could not be mapped, a thread that could not be started
        return error.errno == errno.ENOMEM
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
    usable = max(free - RESERVE, 0) * min(max(safety_fraction, 0.1), 0.9)
    return _capped(Budget(int(usable), "free"), memory_limit)


def host_budget(memory_limit: int | None = None, workers: int = 1) -> Budget:
    """Return what one of ``workers`` may use of the host: min(available, control group's limit) × 0.8."""
    available = psutil.virtual_memory().available
    group = cgroup_free()
    least, reason = (available, "available") if group is None or available <= group else (group, "cgroup")
    return _capped(Budget(int(least * HOST_FRACTION) // workers, reason), memory_limit)


def _capped(budget: Budget, limit: int | None) -> Budget:
    return Budget(limit, "memory_limit") if limit is not None and limit < budget.bytes else budget


def cgroup_free(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> int | None:
    """Return what the control groups of this process (a container's or a session's limits) leave; None without any.

    A limit of any ancestor binds. Idle pages of the file cache count as used there, but the kernel gives them back
    before it refuses memory: they are free.
    """
    left = (_left_in(folder, *names) for folder, names in _cgroups(root, membership))
    return min((size for size in left if size is not None), default=None)


_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = ("memory.max", "memory.current", "inactive_file")


def _cgroups(root: Path, membership: Path) -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """Yield every control group of this process, with what each version calls limit, usage and idle file cache."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        base, names = (root / "memory", _V1) if controllers else (root, _V2)
        group = PurePosixPath(path.lstrip("/"))
        yield from ((base / ancestor, names) for ancestor in (group, *group.parents))


def _left_in(folder: Path, limit: str, usage: str, cache: str) -> int | None:
    try:
        most, used = (int((folder / name).read_text()) for name in (limit, usage))
    except (OSError, ValueError):  # no limit ("max", or the root group), or not ours to read
        return None
    return max(most - used + _idle_file_cache(folder / "memory.stat", cache), 0)


def _idle_file_cache(statistics: Path, name: str) -> int:
    try:
        return int(dict(line.split() for line in statistics.read_text().splitlines())[name])
    except (OSError, ValueError, KeyError):  # then all of it counts as used
        return 0


class Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's hooks lack types
    """Adds up the live storage of every tensor made while it is active.

    On the meta device it predicts a computation's peak without computing; on real tensors it measures it. Views of
    tensors that were made elsewhere cost nothing; what an operation takes and frees by itself is not seen.

    Parameters
    ----------
    current : int
        Bytes that are alive already.

    Attributes
    ----------
    current, peak : int
        Bytes alive now, and at most so far.
    operations : int
        Operations dispatched so far.
    """

    def __init__(self, current: int = 0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.current = current
        self.peak = current
        self.operations = 0
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run one operation and count what it made."""
        kwargs = kwargs or {}
        result = self._run(func, args, kwargs)
        given = {_storage_id(tensor) for tensor in _tensors((*args, *kwargs.values()))}
        for tensor in _tensors((result,)):
            if _storage_id(tensor) not in given:
                self._count(tensor)
        return result

    def _run(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        self.operations += 1
        return func(*args, **kwargs)

    def _count(self, tensor: Tensor) -> None:
        storage, key = tensor.untyped_storage(), _storage_id(tensor)
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


def _tensors(values: Iterable[object]) -> Iterator[Tensor]:
    """Yield the tensors among an operation's arguments or results, those in lists included."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _storage_id(tensor: Tensor) -> int:
    """Return what tells the storages of live tensors apart."""
    return int(tensor.untyped_storage()._cdata)


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

    def _run(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if self.operations in self._fail_at:
            self.operations += 1
            raise torch.OutOfMemoryError("virtual device out of memory (injected)")
        return super()._run(func, args, kwargs)

    def _admit(self, size: int) -> None:
        if self.cap_bytes is not None and self.current + size > self.cap_bytes:
            raise torch.OutOfMemoryError(
                f"virtual device out of memory: {size} bytes more than the {self.current} of {self.cap_bytes} in use"
            )
