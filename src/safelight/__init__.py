"""Safelight restores, aligns, stacks and reconstructs images on whatever hardware there is."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from safelight.api import plan, run
    from safelight.core.device import Device, devices
    from safelight.core.errors import InputError, OutOfMemoryError, SafelightError
    from safelight.core.events import EventLog
    from safelight.core.execute import Executor
    from safelight.core.kernel import Kernel
    from safelight.core.memory import VirtualDevice
    from safelight.core.runner import Outcome
    from safelight.core.stream import TensorSink, TensorSource

__version__ = "0.1.0"
__all__ = [
    "Device",
    "EventLog",
    "Executor",
    "InputError",
    "Kernel",
    "OutOfMemoryError",
    "Outcome",
    "SafelightError",
    "TensorSink",
    "TensorSource",
    "VirtualDevice",
    "devices",
    "plan",
    "run",
]

_MODULES = {
    "Device": "core.device",
    "EventLog": "core.events",
    "Executor": "core.execute",
    "InputError": "core.errors",
    "Kernel": "core.kernel",
    "OutOfMemoryError": "core.errors",
    "Outcome": "core.runner",
    "SafelightError": "core.errors",
    "TensorSink": "core.stream",
    "TensorSource": "core.stream",
    "VirtualDevice": "core.memory",
    "devices": "core.device",
    "plan": "api",
    "run": "api",
}
"""Where each public name is; it is imported when it is first used, so that importing Safelight imports no torch."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
