"""``safelight doctor``: what hardware there is, what is active, and what would run where."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Any

from safelight.core.device import Device, DeviceInfo, compiled_graphs, devices, select
from safelight.core.events import EventLog
from safelight.core.memory import device_budget, host_budget
from safelight.core.messages import format_bytes
from safelight.core.options import CommonOptions
from safelight.core.run import versions

_OF_EXTRA = re.compile(r"""(?P<package>[\w.-]+).*extra == ['"](?P<extra>[\w-]+)['"]""")
_NOT_FOR_USERS = {"all", "dev", "docs"}


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
        "extras": missing_packages(),
    }


def precision_of(info: DeviceInfo) -> dict[str, str]:
    """Try mixed precision, TF32 and torch.compile on a device, and say what really works."""
    device = select(CommonOptions(device=info.name, amp=True, tf32=True), EventLog())
    found = {"amp": _try_amp(device), "tf32": _try_tf32(device), "compile": _try_compile(info.name)}
    select(CommonOptions(), EventLog())  # leaves the process with the default precision
    return found


def _try_amp(device: Device) -> str:
    import torch

    with device.autocast():
        product = torch.ones(8, 8, device=device.torch_device).matmul(torch.ones(8, 8, device=device.torch_device))
    kind = str(product.dtype).removeprefix("torch.")
    return f"works, in {kind}" if product.dtype != torch.float32 else f"not on this device: computed in {kind}"


def _try_tf32(device: Device) -> str:
    """Multiply numbers that differ from 1 by less than TF32 holds: there it comes out as the product of ones."""
    import torch

    if not device.tf32:
        return "not on this device"
    almost_one = torch.full((256, 256), 1 + 2**-13, device=device.torch_device)
    product = almost_one @ torch.ones_like(almost_one)
    return "works" if float(product[0, 0]) == 256 else "allowed, but this device computes in full precision"


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
        *(f"  {name:<10} {_extra_line(name, missing)}" for name, missing in found["extras"].items()),
    ]


def _device_line(info: dict[str, Any]) -> str:
    sizes = [format_bytes(info[key]) if info[key] is not None else "?" for key in ("free_bytes", "total_bytes")]
    return f"  {info['name']:<10} {info['hardware']}, {sizes[0]} free of {sizes[1]}"


def missing_packages() -> dict[str, list[str]]:
    """Return what is not installed of each extra."""
    try:
        found = list(filter(None, map(_OF_EXTRA.match, requires("safelight") or ())))
    except PackageNotFoundError:  # run from its source
        return {}
    extras = sorted({match["extra"] for match in found} - _NOT_FOR_USERS)
    return {
        extra: [match["package"] for match in found if match["extra"] == extra and not _is_installed(match["package"])]
        for extra in extras
    }


def _extra_line(name: str, missing: list[str]) -> str:
    return f"{', '.join(missing)} missing: pip install 'safelight[{name}]'" if missing else "installed"


def _is_installed(package: str) -> bool:
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False
