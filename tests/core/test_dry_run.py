"""Dry runs: what a kernel takes is known before it runs, and asked for once per kernel and shape."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from safelight.core import dry_run as dry_run_module
from safelight.core.dry_run import DryRuns, predict_cost, signature
from safelight.core.kernel import Kernel, MapKernel, ModuleKernel
from safelight.core.memory import Ledger
from safelight.core.stream import TensorSource


class Net(nn.Sequential):
    """Convolution, batch normalisation and a jump in size: as networks are."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__(
            nn.Conv2d(1, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Upsample(scale_factor=2),
        )


class TrainingStep(Net):
    def forward(self, rows: Tensor) -> Tensor:
        with torch.enable_grad():
            result = super().forward(rows)
            result.sum().backward()
        return result.detach()


class Rolled(Net):
    def forward(self, rows: Tensor) -> Tensor:
        return super().forward(rows.roll((2, 3), (2, 3)).mT.roll(1, -1))


KERNELS = [
    Kernel("sort", lambda rows: rows.sort(-1).values),
    Kernel("spectrum", lambda rows: torch.fft.rfft2(rows).abs()),
    Kernel("weigh", lambda rows, weights: (rows.flatten(1) @ weights).relu(), (torch.rand(32 * 32, 50),)),
    ModuleKernel("evaluated", Net().eval()),
    ModuleKernel("rolled", Rolled().eval()),
    ModuleKernel("trained", TrainingStep()),
]


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("rows", [1, 64, 150])
def test_the_dry_run_predicts_the_peak_of_any_number_of_rows(kernel: MapKernel, rows: int) -> None:
    chunk = torch.rand(rows, 1, 32, 32)
    cost = predict_cost(kernel, TensorSource(torch.empty(300, 1, 32, 32)), shared=True)
    there = kernel.to(torch.device("cpu"))
    with torch.no_grad(), Ledger(chunk.nbytes + cost.constants) as ledger:
        there(chunk)
    assert cost.peak(rows) == pytest.approx(ledger.peak, rel=0.05, abs=2000)


@pytest.mark.parametrize("kernel", KERNELS[3:], ids=lambda kernel: kernel.name)
def test_shapes_taken_for_speed_are_those_that_torch_gives(kernel: MapKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    source = TensorSource(torch.empty(300, 1, 32, 32))
    quick = predict_cost(kernel, source, shared=True)
    monkeypatch.setattr(dry_run_module, "_SHAPES", {})
    assert predict_cost(kernel, source, shared=True) == quick


def test_planning_takes_no_memory_however_large_the_data() -> None:
    class Huge:
        extent, shape, dtype = 1 << 20, (1, 8192, 8192), torch.float32

        def read(self, start: int, stop: int) -> Tensor:
            raise AssertionError("a plan reads nothing")

    cost = predict_cost(ModuleKernel("evaluated", Net().eval(), alignment=64), Huge(), shared=True)
    assert cost.peak(64) > 64 * 8 * 4 * 8192**2, "more than a hundred gigabytes"


@dataclass(frozen=True)
class Window:
    """What a function may be given, tensors within."""

    width: int
    weights: Tensor


def widen(rows: Tensor, *constants: Tensor, window: Window | None = None, factor: float = 1.0) -> Tensor:
    """Take as much as the window is wide, and as the constants are long."""
    width = 1 if window is None else window.width
    return rows.repeat(1, width * (1 + sum(len(constant) for constant in constants))) * factor


def tried(function: Callable[..., Tensor]) -> tuple[Callable[..., Tensor], list[int]]:
    """Return a function that notes when it runs on the meta device."""
    times: list[int] = []

    def noting(rows: Tensor, *arguments: Any, **named: Any) -> Tensor:
        if rows.is_meta:
            times.append(len(rows))
        return function(rows, *arguments, **named)

    return noting, times


def test_a_kernel_is_tried_once_for_frames_of_one_shape() -> None:
    function, times = tried(widen)
    dry_runs, frames = DryRuns(), TensorSource(torch.empty(300, 4))
    first, again = (
        dry_runs.cost(Kernel("widen", partial(function, factor=2.0), (torch.rand(3),)), frames, shared=True)
        for _ in range(2)
    )
    assert first == again == predict_cost(Kernel("widen", widen, (torch.rand(3),)), frames, shared=True)
    assert len(times) == 2, "a few rows and twice as many, once"


@pytest.mark.parametrize(
    ("kernel", "source"),
    [
        (Kernel("widen", widen, (torch.rand(9),)), TensorSource(torch.empty(300, 4))),
        (Kernel("widen", partial(widen, window=Window(7, torch.rand(3)))), TensorSource(torch.empty(300, 4))),
        (Kernel("widen", widen, halo=90), TensorSource(torch.empty(300, 4))),
        (Kernel("widen", widen), TensorSource(torch.empty(300, 9))),
        (Kernel("widen", widen), TensorSource(torch.empty(300, 4, dtype=torch.float64))),
        (Kernel("widen", widen), TensorSource(torch.empty(20, 4))),
    ],
)
def test_a_plan_is_not_that_of_another_computation(kernel: Kernel, source: TensorSource) -> None:
    dry_runs = DryRuns()
    dry_runs.cost(Kernel("widen", widen), TensorSource(torch.empty(300, 4)), shared=True)
    assert dry_runs.cost(kernel, source, shared=True) == predict_cost(kernel, source, shared=True)


def test_values_count_and_of_tensors_the_shape() -> None:
    assert signature(Window(3, torch.zeros(5))) == signature(Window(3, torch.ones(5)))
    assert signature(Window(3, torch.zeros(5))) != signature(Window(4, torch.zeros(5)))
    assert signature(Window(3, torch.zeros(5))) != signature(Window(3, torch.zeros(6)))
    assert signature({"a": [1, 2.0]}) == signature({"a": [1, 2.0]}) != signature({"a": [1, 3.0]})
    assert signature(1) != signature(True) != signature(1.0)
    assert signature("rows".upper) != signature("rows".upper), "what cannot be told apart is tried again"
    assert signature(Net().double) != signature(Net().double)
    net = Net()
    assert signature(net.forward) == signature(net.forward)


def test_networks_are_told_apart_and_not_kept_alive() -> None:
    first, second = Net(4), Net(8)
    known = {signature(first): "first"}
    assert signature(second) not in known
    assert signature(first) in known
    dry_runs, gone = DryRuns(), weakref.ref(second)
    dry_runs.cost(ModuleKernel("net", second), TensorSource(torch.empty(30, 1, 8, 8)), shared=True)
    del second
    gc.collect()
    assert gone() is None
