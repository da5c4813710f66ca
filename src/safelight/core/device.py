"""Where to compute and how precisely. Precision is set here and nowhere else."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import psutil
import torch

from safelight.core.errors import DeviceError, UsageError
from safelight.core.events import EventLog, Value
from safelight.core.options import CommonOptions, CompileMode

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

_ORDER = ("cuda", "mps", "xpu", "cpu")


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
        Mixed precision in ``autocast``.
    amp_dtype : torch.dtype
    tf32 : bool
    compiles : bool
        Whether ``compile`` compiles.
    compile_mode : str
    """

    torch_device: torch.device
    amp: bool = False
    amp_dtype: torch.dtype = torch.bfloat16
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
        return torch.autocast(self.kind, dtype=self.amp_dtype)

    @contextmanager
    def precise(self) -> Iterator[None]:
        """Compute in full float32 in this block: no mixed precision, no TF32. For metrics and geometry."""
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            with torch.autocast(self.kind, enabled=False):
                yield
        finally:
            torch.set_float32_matmul_precision(before)

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
            "amp": str(self.amp_dtype).removeprefix("torch.") if amp else "off",
            "tf32": self.kind == "cuda" and torch.get_float32_matmul_precision() != "highest",
            "compile": f"{self.compile_mode} ({compiled_graphs()} graphs)" if compiled_graphs() else "off",
            "threads": torch.get_num_threads(),
        }


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
    return platform.processor() or platform.machine()


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
    kind = torch_device.type
    tf32 = options.tf32 and kind == "cuda"
    amp = options.amp and (kind != "cuda" or torch.cuda.get_device_capability(torch_device) >= (7, 0))
    half = torch.float16 if kind == "mps" or (kind == "cuda" and not torch.cuda.is_bf16_supported()) else torch.bfloat16
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    if kind == "cuda":
        torch.backends.cudnn.allow_tf32 = tf32
        torch.backends.cuda.cufft_plan_cache[torch_device].max_size = 8  # plans are never freed otherwise
    for name, wanted, given in (("tf32", options.tf32, tf32), ("amp", options.amp, amp)):
        if wanted and not given:
            events.warning("precision_unavailable", setting=name, device=str(torch_device))
    return Device(torch_device, amp, half, tf32, options.compile, options.compile_mode)


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
    events.info("gpu_info_summary", device=name, hardware=info.hardware, free_bytes=info.free_bytes or 0)
    return torch.device(name)


def _fallback(wanted: str, known: dict[str, DeviceInfo], options: CommonOptions, events: EventLog) -> str:
    if wanted.split(":")[0] not in _ORDER:
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
