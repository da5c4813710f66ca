"""What the network costs: operations counted while it runs, and the time of each of its parts."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from safelight.core.device import Device
from safelight.core.kernel import ModuleKernel
from safelight.core.pipeline import Context
from safelight.core.timing import Stopwatch, Timing
from safelight.pipelines.decloud.network import GLFCR
from safelight.pipelines.decloud.prediction import empty_batch

_REPEATS = 3


@dataclass(frozen=True)
class PartCost:
    """The cost of one part of the network on one image.

    Parameters
    ----------
    part : str
    operations : int
        Multiplications and additions, two for each fused pair.
    seconds : float
        Median.
    """

    part: str
    operations: int
    seconds: float


def profile(kernel: ModuleKernel, side: int, context: Context) -> None:
    """Say what each part of the network costs on a square image."""
    for cost in measure_parts(kernel, side, context.device):
        context.events.info("part_profiled", part=cost.part, gflop=cost.operations / 1e9, seconds=cost.seconds)


def measure_parts(kernel: ModuleKernel, side: int, device: Device) -> list[PartCost]:
    """Return the cost of each part, the whole network last; what is outside of parts counts there only."""
    network = kernel.to(device.torch_device).module.network
    assert isinstance(network, GLFCR)
    image = empty_batch(side).to(device.torch_device)
    cloudy, sar = image[:, :-2], image[:, -2:]
    parts = _parts(network)
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addcmul_: _two_per_value})
    watches: dict[str, list[Stopwatch]] = defaultdict(list)
    with torch.no_grad(), device.autocast():
        with counter:
            network(cloudy, sar)
        for _ in range(_REPEATS):
            with _timed(parts, watches, device):
                network(cloudy, sar)
    counts = counter.get_flop_counts()
    prefix = type(network).__name__
    return [
        PartCost(
            name,
            sum(counts[prefix if module is network else f"{prefix}.{path}"].values()),
            Timing.of([sum(watch.seconds()) for watch in watches[name]]).median,
        )
        for name, (path, module) in parts.items()
    ]


def _parts(network: GLFCR) -> dict[str, tuple[str, nn.Module]]:
    """Return the parts by name, each with its path."""
    found: dict[str, tuple[str, nn.Module]] = {}
    for name in ("SFENet1", "SFENet2", "SFENet1_SAR", "SFENet2_SAR"):
        found[name] = (name, network.get_submodule(name))
    for stage in range(network.architecture.stages):
        for name in (f"RDBs.{stage}", f"DF.{stage}"):
            found[name] = (name, network.get_submodule(name))
    for name in ("GFF", "UPNet"):
        found[name] = (name, network.get_submodule(name))
    found["GLF-CR"] = ("", network)
    return found


@contextmanager
def _timed(
    parts: dict[str, tuple[str, nn.Module]], watches: dict[str, list[Stopwatch]], device: Device
) -> Iterator[None]:
    """Time every call of each part; a watch of its own for each pass."""
    with ExitStack() as hooks:
        for name, (_, module) in parts.items():
            watch = Stopwatch(device)
            watches[name].append(watch)
            hooks.enter_context(_laps(module, watch))
        yield


@contextmanager
def _laps(module: nn.Module, watch: Stopwatch) -> Iterator[None]:
    running = ExitStack()
    before = module.register_forward_pre_hook(lambda *_: _start(running, watch))
    after = module.register_forward_hook(lambda *_: running.close())
    try:
        yield
    finally:
        before.remove()
        after.remove()


def _start(running: ExitStack, watch: Stopwatch) -> None:
    running.enter_context(watch.lap())


def _two_per_value(*shapes: Any, out_shape: Any = None, **_: Any) -> int:
    """Return the operations of ``addcmul_``: one multiplication and one addition per value."""
    return 2 * int(math.prod(shapes[0]))
