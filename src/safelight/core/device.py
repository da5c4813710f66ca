"""Where to compute and how precisely. Precision is set here and nowhere else."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import psutil
import torch

from safelight.core.errors import DeviceError, UsageError
from safelight.core.events import EventLog, Value
from safelight.core.options import CommonOptions, CompileMode

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

RESERVE = (700 if sys.platform == "win32" else 400) << 20
"""Bytes of a device that are left to the driver, to libraries and to the screen."""

_KINDS = ("cuda", "mps", "xpu", "cpu")
_AMPERE = (8, 0)
_CUFFT_PLANS = 8


@dataclass(frozen=True)
class DeviceInfo:
    """One device of this machine.

    Parameters
    ----------
    name : str
        As ``--device`` takes it: ``cpu``, ``cuda:0``, ``mps``.
    hardware : str
        What it is.
    total_bytes, free_bytes : int, optional
        Its memory; None where the driver does not say.
    """

    name: str
    hardware: str
    total_bytes: int | None
    free_bytes: int | None


@dataclass(frozen=True)
class Device:
    """Where to compute and how precisely.

    Parameters
    ----------
    torch_device : torch.device
    amp : bool
        Mixed precision in ``autocast``: bfloat16, whose range is float32's, so that no gradient has to be scaled.
    tf32 : bool
    compiles : bool
        Whether ``compile`` compiles.
    compile_mode : str
    """

    torch_device: torch.device
    amp: bool = False
    tf32: bool = False
    compiles: bool = False
    compile_mode: CompileMode = "default"

    @property
    def kind(self) -> str:
        """``cpu``, ``cuda``, ``mps`` or ``xpu``."""
        return self.torch_device.type

    @property
    def is_cpu(self) -> bool:
        """Whether this is the host's processor."""
        return self.kind == "cpu"

    def autocast(self) -> AbstractContextManager[Any]:
        """Return a context in which networks compute in mixed precision, if that is asked for."""
        if not self.amp:
            return nullcontext()
        return torch.autocast(self.kind, dtype=torch.bfloat16)

    def synchronize(self) -> None:
        """Wait until everything given to the device is done. On the CPU it always is."""
        if self.kind == "cuda":
            torch.cuda.synchronize(self.torch_device)
        elif self.kind == "mps":
            torch.mps.synchronize()
        elif self.kind == "xpu":
            torch.xpu.synchronize(self.torch_device)

    def empty_cache(self) -> None:
        """Give the allocator's unused blocks back to the driver."""
        if self.kind == "cuda":
            torch.cuda.empty_cache()
        elif self.kind == "mps":
            torch.mps.empty_cache()
        elif self.kind == "xpu":
            torch.xpu.empty_cache()

    def compile(self, function: FunctionT) -> FunctionT:
        """Return the function compiled, if that is asked for; ``compiled_graphs`` says whether it was."""
        if not self.compiles:
            return function
        return cast(FunctionT, torch.compile(function, mode=self.compile_mode))

    def active(self) -> dict[str, Value]:
        """Return what is active now, read back from torch rather than from the options."""
        with self.autocast():
            amp = torch.is_autocast_enabled(self.kind)
        return {
            "device": str(self.torch_device),
            "hardware": hardware_name(self.torch_device),
            "amp": "bfloat16" if amp else "off",
            "tf32": self.kind == "cuda" and torch.get_float32_matmul_precision() != "highest",
            "compile": f"{self.compile_mode} ({compiled_graphs()} graphs)" if compiled_graphs() else "off",
            "threads": torch.get_num_threads(),
        }


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Return a context without mixed precision, for the parts of a network that cannot do with less."""
    if not torch.amp.is_autocast_available(device.type):  # meta
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


@contextmanager
def threads_beside(others: int) -> Iterator[None]:
    """Compute on the CPU with the threads that so many busy ones leave, with one at least.

    More threads than cores spend their time waiting for each other: computations took twice as long.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(max(threads - others, 1))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def compiled_graphs() -> int:
    """Return how many graphs torch.compile has captured in this process."""
    dynamo = sys.modules.get("torch._dynamo.utils")  # not loaded before anything was compiled, and slow to load
    return int(dynamo.counters["stats"]["unique_graphs"]) if dynamo else 0


def devices() -> tuple[DeviceInfo, ...]:
    """Return every device of this machine, the preferred first."""
    found = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append(torch.device("mps"))
    if hasattr(torch, "xpu"):
        found += [torch.device("xpu", index) for index in range(torch.xpu.device_count())]
    found.append(torch.device("cpu"))
    return tuple(_describe(device) for device in found)


def _describe(device: torch.device) -> DeviceInfo:
    free, total = memory_of(device)
    return DeviceInfo(str(device), hardware_name(device), total, free)


def hardware_name(device: torch.device) -> str:
    """Return what a device is, in the maker's words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "xpu":
        return str(torch.xpu.get_device_name(device))
    return _processor_name()


@cache
def _processor_name() -> str:
    """Return the processor's model; Linux says it only in a file, and there not for all processors."""
    try:
        described = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        described = ""
    models = (line.partition(":")[2].strip() for line in described.splitlines() if line.startswith("model name"))
    return next(models, "") or platform.processor() or platform.machine()


def memory_of(device: torch.device) -> tuple[int | None, int | None]:
    """Return the free and total bytes of a device; None where the driver does not say.

    Blocks that the allocator holds but does not use count as free: it will use them first.
    """
    try:
        if device.type == "cuda":
            free, total = torch.cuda.mem_get_info(device)
            unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
            return free + unused, total
        if device.type == "mps":
            total = torch.mps.recommended_max_memory()
            return total - torch.mps.current_allocated_memory(), total
        if device.type == "xpu":
            free, total = torch.xpu.mem_get_info(device)
            return free, total
    except RuntimeError:  # drivers in virtual machines refuse this query
        return None, None
    memory = psutil.virtual_memory()
    return memory.available, memory.total


def select(options: CommonOptions, events: EventLog) -> Device:
    """Choose the device that the options ask for, set its precision, and say so.

    Raises
    ------
    UsageError
        The name is not a device's.
    DeviceError
        The device is not there and ``cpu_fallback`` is off.
    """
    torch_device = _choose(options, events)
    tf32 = options.tf32 and _has_tf32(torch_device)
    amp = options.amp and _has_bfloat16(torch_device)
    _set_tf32(tf32)
    if torch_device.type == "cuda":
        _prepare_cuda(torch_device)
    for name, wanted, given in (("tf32", options.tf32, tf32), ("amp", options.amp, amp)):
        if wanted and not given:
            events.warning("precision_unavailable", setting=name, device=str(torch_device))
    return Device(torch_device, amp, tf32, options.compile, options.compile_mode)


def _has_tf32(device: torch.device) -> bool:
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) >= _AMPERE


def _has_bfloat16(device: torch.device) -> bool:
    """Return whether the device computes in bfloat16 by itself, rather than emulates it slowly."""
    if device.type == "cuda":
        return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= _AMPERE
    return device.type != "mps" or torch.backends.mps.is_macos_or_newer(14, 0)


def _set_tf32(allowed: bool) -> None:
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed


def _prepare_cuda(device: torch.device) -> None:
    """Bound what the driver would otherwise take without limit."""
    torch.backends.cuda.cufft_plan_cache[device].max_size = _CUFFT_PLANS  # plans are never freed otherwise
    if sys.platform == "win32":
        # Windows' driver does not run out of memory: it goes on in the host's, many times slower.
        free, total = memory_of(device)
        if free is not None and total:
            torch.cuda.set_per_process_memory_fraction(max(free - RESERVE, 0) / total, device)


def _choose(options: CommonOptions, events: EventLog) -> torch.device:
    known = {info.name: info for info in devices()}
    wanted = options.device.lower()
    if wanted == "auto":
        name = next(iter(known))
    else:
        name = next((n for n in known if n == wanted or n.split(":")[0] == wanted), "")
        if not name:
            name = _fallback(wanted, known, options, events)
    info = known[name]
    if info.free_bytes is None:
        events.warning("free_memory_unknown", device=name, hardware=info.hardware)
    else:
        events.info("gpu_info_summary", device=name, hardware=info.hardware, free_bytes=info.free_bytes)
    return torch.device(name)


def _fallback(wanted: str, known: dict[str, DeviceInfo], options: CommonOptions, events: EventLog) -> str:
    if wanted.split(":")[0] not in _KINDS:
        raise UsageError(
            f"--device {options.device}: there is no such kind of device",
            expected="auto, cpu, cuda, cuda:1, mps or xpu",
        )
    if not options.cpu_fallback:
        raise DeviceError(
            f"the device {options.device} is not there",
            expected=f"one of {', '.join(known)}",
            remedy="check the driver with 'safelight doctor', or allow the CPU",
        )
    events.warning("gpu_fallback_unavailable", wanted=wanted, device="cpu")
    return "cpu"
