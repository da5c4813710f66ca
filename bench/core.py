"""What the core costs: planning, the Executor beside a plain loop, and how near predicted memory is to real memory.

    python bench/core.py                  # about two minutes on two cores
    python bench/core.py --repeats 5      # a quick look

bench/README.md says how each is measured.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from machine import describe
from safelight.core.device import Device
from safelight.core.events import EventLog
from safelight.core.execute import Executor
from safelight.core.files import atomic_write
from safelight.core.kernel import Kernel, MapKernel, ModuleKernel
from safelight.core.memory import Budget
from safelight.core.peak import PeakMemory
from safelight.core.plan import Corrections
from safelight.core.stream import TensorSource
from safelight.core.timing import Timing, measure
from safelight.kernels.gaussian import gaussian_filter
from safelight.pipelines.denoise.masking import MaskingSettings
from safelight.pipelines.denoise.model import DenoiseModel
from safelight.pipelines.denoise.network import Architecture
from safelight.pipelines.denoise.prediction import kernel_of
from safelight.pipelines.denoise.setup import Setup
from safelight.pipelines.denoise.training import TrainingSettings

CPU = Device(torch.device("cpu"))
PLENTY = Budget(1 << 60, "memory_limit")
MILLISECONDS_TO_PLAN = 50.0
MOST_OVERHEAD = 0.03
FIRST, LATER = (0.65, 1.05), (0.90, 1.10)
"""Predicted over measured memory of the first chunk ever, and of those after it."""

TIMED = ("denoise N2V2", "denoise N2V2, 3-D", "Gaussian, σ = 2")
"""Workloads that are run beside a plain loop; the others are as these."""

N2V2 = Architecture(dims=2)
N2V2_3D = Architecture(dims=3)
N2V = Architecture(dims=2, residual=True, top_skip=True, blur_pool=False)
LARGE = Architecture(dims=2, channels=2, joint=True, depth=3, features=64)


@dataclass(frozen=True)
class Workload:
    """A kernel over rows of one shape; twice ``rows`` of them are about a full chunk."""

    kernel: MapKernel
    shape: tuple[int, ...]
    rows: int

    def source(self, rows: int) -> TensorSource:
        return TensorSource(torch.rand(rows, *self.shape, generator=torch.Generator().manual_seed(0)))


def workloads() -> dict[str, Workload]:
    """Return the kernels that the project runs through the Executor."""
    return {
        "denoise N2V2": Workload(_network(N2V2), (1, 256, 256), 3),
        "denoise N2V2, 8 orientations": Workload(_network(N2V2, augmented=True), (1, 256, 256), 3),
        "denoise N2V": Workload(_network(N2V), (1, 256, 256), 2),
        "denoise N2V2, 3-D": Workload(_network(N2V2_3D), (1, 32, 32, 32), 6),
        "denoise N2V2, 2 channels, large": Workload(_network(LARGE), (2, 128, 128), 5),
        "Gaussian, σ = 2": Workload(Kernel("gaussian", lambda images: gaussian_filter(images, 2.0)), (256, 256), 120),
    }


def _network(architecture: Architecture, augmented: bool = False) -> ModuleKernel:
    return kernel_of(DenoiseModel.untrained(architecture), augmented)


@dataclass(frozen=True)
class Spent:
    """Seconds of one call, by the clock and of the processor. On a busy machine only the latter can be compared."""

    wall: float
    processor: float

    @classmethod
    def by(cls, function: Callable[[], object]) -> Spent:
        before = time.process_time()
        wall = measure(function, CPU, warmup=0, repeats=1).median
        return cls(wall, time.process_time() - before)


class NoSink:
    """Throws results away."""

    def write(self, start: int, stop: int, result: Tensor) -> None: ...


def executor(folder: Path) -> Executor:
    return Executor(CPU, EventLog(), budget=PLENTY, corrections=Corrections(folder))


def main() -> None:
    """Measure everything and write the tables."""
    options = _arguments()
    if options.peak:
        json.dump(peaks(workloads()[options.peak]), sys.stdout)
        return
    heading = ["# The core: planning, overhead, memory", "", *describe("bench/core.py")]
    sections = [planning(options.repeats), overhead(options.repeats), memory()]
    lines = [
        *heading,
        "",
        "How it is measured: [bench/README.md](../README.md).",
        *(line for s in sections for line in s),
    ]
    with atomic_write(options.out) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9, help="how often each is timed")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "core.md")
    parser.add_argument("--peak", choices=workloads(), help=argparse.SUPPRESS)  # what the child of ``memory`` does
    return parser.parse_args()


def _verdict(met: bool) -> str:
    return "met" if met else "**missed**"


def planning(repeats: int) -> list[str]:
    """Time the plan of every kernel and of every kind of training step, each by an executor that knows no other."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plans: dict[str, Callable[[], object]] = {}
        for title, workload in workloads().items():
            source = workload.source(2 * workload.rows)
            plans[title] = lambda kernel=workload.kernel, source=source: executor(folder).plan(kernel, source)
        for title, architecture in (("2-D", N2V2), ("3-D", N2V2_3D), ("2 channels, large", LARGE)):
            setup = Setup(architecture, MaskingSettings(), TrainingSettings())
            patch = (64,) * architecture.dims
            plans[f"training step, {title}"] = lambda setup=setup, patch=patch: setup.plan(patch, executor(folder))
        first = Spent.by(next(iter(plans.values())))
        spent = {title: [Spent.by(plan) for _ in range(repeats + 1)][1:] for title, plan in plans.items()}
    worst = 1000 * max(Timing.of([one.processor for one in calls]).median for calls in spent.values())
    return [
        "",
        f"## Planning: {_verdict(worst <= MILLISECONDS_TO_PLAN)}, at most {worst:.0f} of {MILLISECONDS_TO_PLAN:.0f} ms",
        "",
        f"The first plan of a process took {1000 * first.processor:.0f} ms: torch then imports what describes its "
        "operations.",
        "",
        "| kernel | processor time | quartiles | by the clock |",
        "|---|---|---|---|",
        *(_planning_row(title, calls) for title, calls in spent.items()),
    ]


def _planning_row(title: str, calls: list[Spent]) -> str:
    timing = Timing.of([one.processor for one in calls])
    lower, median, upper = (f"{1000 * value:.1f}" for value in (timing.lower, timing.median, timing.upper))
    wall = 1000 * statistics.median(one.wall for one in calls)
    return f"| {title} | {median} ms | {lower} … {upper} ms | {wall:.1f} ms |"


def overhead(repeats: int) -> list[str]:
    """Time the Executor and a plain loop in turn, over one full chunk and over many."""
    found = {
        f"{title}, {'one chunk' if chunks == 1 else f'{chunks} chunks'}": _in_turn(workload, chunks, repeats)
        for title, workload in workloads().items()
        if title in TIMED
        for chunks in (1, 4)
    }
    worst = max(_share(pairs).median for title, pairs in found.items() if title.endswith("one chunk"))
    return [
        "",
        f"## The Executor beside a plain loop: {_verdict(worst <= MOST_OVERHEAD)}, "
        f"at most {100 * worst:.1f} of {100 * MOST_OVERHEAD:.0f} % at a full chunk",
        "",
        "| kernel | plain loop | Executor | overhead | quartiles | plain loop, Executor by the clock |",
        "|---|---|---|---|---|---|",
        *(_overhead_row(title, pairs) for title, pairs in found.items()),
    ]


Pair = tuple[Spent, Spent]
"""The Executor, and the plain loop that followed."""


def _share(pairs: list[Pair]) -> Timing:
    return Timing.of([ours.processor / plain.processor - 1 for ours, plain in pairs])


def _overhead_row(title: str, pairs: list[Pair]) -> str:
    share = _share(pairs)
    ours, plain = (statistics.median(one.processor for one in column) for column in zip(*pairs, strict=True))
    walls = [statistics.median(one.wall for one in column) for column in zip(*pairs, strict=True)]
    return (
        f"| {title} | {1000 * plain:.0f} ms | {1000 * ours:.0f} ms | {100 * share.median:+.1f} % "
        f"| {100 * share.lower:+.1f} … {100 * share.upper:+.1f} % | {1000 * walls[1]:.0f}, {1000 * walls[0]:.0f} ms |"
    )


def _in_turn(workload: Workload, chunks: int, repeats: int) -> list[Pair]:
    """Run the Executor and a plain loop with the same chunks in turn."""
    source = workload.source(2 * workload.rows)
    rows = -(-2 * workload.rows // chunks)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        executor(folder).map(workload.kernel, source, NoSink())  # from now on predictions are corrected
        runner = executor(folder)

        def ours() -> None:
            runner.map(workload.kernel, source, NoSink(), most_rows=rows)

        @torch.no_grad()
        def plain() -> None:
            for start in range(0, source.extent, rows):
                NoSink().write(start, start + rows, workload.kernel(source.read(start, start + rows)))

        return [(Spent.by(ours), Spent.by(plain)) for _ in range(repeats)]


def memory() -> list[str]:
    """Compare predicted with real memory, each kernel in a process of its own."""
    found = {title: _peaks_of_child(title) for title in workloads()}
    ratios = [[peak["predicted"] / peak["measured"] for peak in peaks] for peaks in found.values()]
    met = all(
        FIRST[0] <= first <= FIRST[1] and LATER[0] <= min(later) <= max(later) <= LATER[1] for first, *later in ratios
    )
    return [
        "",
        f"## Predicted over real memory: {_verdict(met)}, allowed are "
        f"{FIRST[0]} to {FIRST[1]} at first, {LATER[0]} to {LATER[1]} afterwards",
        "",
        "| kernel | first chunk | smaller, afterwards | larger, afterwards |",
        "|---|---|---|---|",
        *(f"| {title} | {' | '.join(map(_ratio, peaks))} |" for title, peaks in found.items()),
    ]


def _ratio(peak: dict[str, float]) -> str:
    predicted, measured = (f"{peak[name] / 2**20:.0f}" for name in ("predicted", "measured"))
    return f"{predicted} / {measured} MiB: {peak['predicted'] / peak['measured']:.2f}"


def _peaks_of_child(title: str) -> Any:
    # Blocks of any size go back to the system at once, so that its peak is that of live memory.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    child = subprocess.run(
        [sys.executable, __file__, "--peak", title], env=environment, stdout=subprocess.PIPE, check=True
    )
    return json.loads(child.stdout)


def peaks(workload: Workload) -> list[dict[str, float]]:
    """Return predicted and real peaks of a first chunk, of a smaller one after it, and of a larger one."""
    kernel = workload.kernel
    with torch.no_grad():
        kernel(workload.source(1).tensor)  # what libraries keep for good is no part of a chunk
    found = []
    with tempfile.TemporaryDirectory() as name:
        for rows in (workload.rows, math.ceil(workload.rows / 2), 2 * workload.rows):
            source, runner = workload.source(rows), executor(Path(name))
            constants = runner.plan(kernel, source).cost.constants
            grown = _grown(lambda source=source, runner=runner: runner.map(kernel, source, NoSink()))
            (record,) = runner.measured
            measured = grown + source.tensor.nbytes + constants  # these two were there before
            found.append({"predicted": record.predicted_bytes, "measured": measured})
    return found


def _grown(function: Callable[[], object]) -> int:
    """Return by how many bytes the process grew at most during a call, as the system counts."""
    peak = PeakMemory(CPU)
    function()
    grown = peak.bytes()
    if grown is None:
        raise SystemExit("this system does not tell a process's peak memory; measure on Linux")
    return grown


if __name__ == "__main__":
    main()
