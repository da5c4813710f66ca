"""``safelight doctor``: what hardware there is, what is active, and what would run where."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from importlib.util import find_spec
from typing import Any

from safelight.core.device import DeviceInfo, compiled_graphs, devices, select
from safelight.core.events import EventLog
from safelight.core.memory import device_budget, host_budget
from safelight.core.messages import format_bytes
from safelight.core.options import CommonOptions
from safelight.core.run import versions

EXTRAS = {
    "micro": ("tifffile", "zarr", "imageio", "imagecodecs"),
    "onnx": ("onnx", "onnxruntime", "onnxscript"),
    "bmz": ("bioimageio.core",),
}


def examine() -> dict[str, Any]:
    """Return what ``safelight doctor`` shows, as JSON values."""
    options = CommonOptions()
    device = select(options, EventLog())
    return {
        "versions": versions(),
        "devices": [asdict(info) for info in devices()],
        "chosen": device.active(),
        "budget": asdict(device_budget(device, options.safety_fraction)),
        "host_budget": asdict(host_budget()),
        "precision": precision_of(devices()[0]),
        "extras": {name: all(map(_is_installed, modules)) for name, modules in EXTRAS.items()},
    }


def precision_of(info: DeviceInfo) -> dict[str, str]:
    """Try mixed precision, TF32 and torch.compile on a device, and say what really works."""
    active = select(CommonOptions(device=info.name, amp=True, tf32=True), EventLog()).active()
    select(CommonOptions(), EventLog())  # leaves the process with the default precision
    return {
        "amp": str(active["amp"]),
        "tf32": "works" if active["tf32"] else "not on this device",
        "compile": _try_compile(info.name),
    }


def _try_compile(name: str) -> str:
    import torch

    before = compiled_graphs()
    try:
        torch.compile(lambda x: x * 2 + 1)(torch.ones(8, device=name))
    except (RuntimeError, ImportError, OSError) as error:  # no C compiler, no Triton
        return f"does not work here: {str(error).splitlines()[0]}"
    return "works" if compiled_graphs() > before else "captured no graph"


def show(as_json: bool) -> int:
    """Print the examination and return the exit status."""
    found = examine()
    sys.stdout.write((json.dumps(found, indent=2) if as_json else "\n".join(_lines(found))) + "\n")
    return 0


def _lines(found: dict[str, Any]) -> list[str]:
    budget, host = found["budget"], found["host_budget"]
    return [
        "Versions",
        *(f"  {name:<10} {value}" for name, value in found["versions"].items()),
        "Devices, the preferred first",
        *(_device_line(info) for info in found["devices"]),
        "What would be used",
        f"  device     {found['chosen']['device']}, {found['chosen']['threads']} threads",
        f"  memory     {format_bytes(budget['bytes'])} ({budget['reason']}); "
        f"host {format_bytes(host['bytes'])} ({host['reason']})",
        "What would work when asked for (--amp, --tf32, --compile)",
        *(f"  {name:<10} {value}" for name, value in found["precision"].items()),
        "Extras",
        *(
            f"  {name:<10} {'installed' if there else f'missing: pip install safelight[{name}]'}"
            for name, there in found["extras"].items()
        ),
    ]


def _device_line(info: dict[str, Any]) -> str:
    sizes = [format_bytes(info[key]) if info[key] is not None else "?" for key in ("free_bytes", "total_bytes")]
    return f"  {info['name']:<10} {info['hardware']}, {sizes[0]} free of {sizes[1]}"


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False
