"""The most memory that a computation takes, as the system counts it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from safelight.core.device import Device


class PeakMemory:
    """The most memory that was taken since this was made.

    CUDA's allocator knows its own peak. On the CPU it is that of the process, with what libraries and the C
    library's allocator take beyond the tensors; only Linux tells, and only where /proc is mounted.

    Parameters
    ----------
    device : Device
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._before: int | None = None
        if device.kind == "cuda":
            torch.cuda.reset_peak_memory_stats(device.torch_device)
            self._before = torch.cuda.memory_allocated(device.torch_device)
        elif device.is_cpu:
            _reset_peak_of_process()
            self._before = _resident("VmRSS")

    def bytes(self) -> int | None:
        """Return the growth up to the peak; None where it cannot be told."""
        if self._before is None:
            return None
        if self._device.kind == "cuda":
            peak: int | None = torch.cuda.max_memory_allocated(self._device.torch_device)
        else:
            peak = _resident("VmHWM")
        return None if peak is None else max(peak - self._before, 0)


_PROCESS = Path("/proc/self")


def _reset_peak_of_process() -> None:
    try:
        (_PROCESS / "clear_refs").write_text("5")  # proc(5): VmHWM begins again at VmRSS
    except OSError:  # not Linux, or a container that forbids it: the peak is that since the start of the process
        return


def _resident(name: str) -> int | None:
    """Return a size of the process in bytes, None where the system does not tell."""
    try:
        lines: Sequence[str] = (_PROCESS / "status").read_text().splitlines()
    except OSError:
        return None
    sizes = {key: value for key, _, value in (line.partition(":") for line in lines)}
    return 1024 * int(sizes[name].split()[0]) if name in sizes else None
