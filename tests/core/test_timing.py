"""Durations: what counts, what does not, and that a GPU is not made to wait."""

from __future__ import annotations

import pytest
import torch

from safelight.core import timing
from safelight.core.device import Device
from safelight.core.timing import Stopwatch, Timing, measure

CPU = Device(torch.device("cpu"))


class Clock:
    """A clock that stands still until someone moves it."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timing, "time", clock)
    return clock


def test_quartiles_are_of_the_single_durations() -> None:
    assert Timing.of([4.0, 1.0, 2.0, 3.0, 5.0]) == Timing(median=3.0, lower=2.0, upper=4.0, repeats=5)
    with pytest.raises(ValueError, match="no duration"):
        Timing.of([])


def test_warm_up_is_done_and_does_not_count(clock: Clock) -> None:
    durations = iter([50.0, 40.0, 1.0, 2.0, 3.0])

    def work() -> None:
        clock.now += next(durations)

    assert measure(work, CPU, warmup=2, repeats=3) == Timing(2.0, 1.5, 2.5, 3)
    assert next(durations, None) is None


def test_a_block_that_fails_does_not_count(clock: Clock) -> None:
    stopwatch = Stopwatch(CPU)
    for failure in (None, ValueError("broken"), None):
        try:
            with stopwatch.lap():
                clock.now += 2.0
                if failure is not None:
                    raise failure
        except ValueError:
            clock.now += 7.0
    assert stopwatch.seconds() == [2.0, 2.0]


class FakeGpu:
    """A GPU that takes 3 s for whatever it is given, and works while the host goes on."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.done_at = clock.now
        self.waits = 0

    def work(self) -> None:
        self.done_at = max(self.done_at, self.clock.now) + 3.0

    def synchronize(self, _: object = None) -> None:
        self.waits += 1
        self.clock.now = max(self.clock.now, self.done_at)


class FakeEvent:
    gpu: FakeGpu

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self, stream: object) -> None:
        assert stream == "stream of cuda:1"
        self.at = self.gpu.done_at

    def elapsed_time(self, stop: FakeEvent) -> float:
        assert self.gpu.clock.now >= stop.at, "asked before the device was there"
        return 1000 * (stop.at - self.at)


@pytest.fixture
def gpu(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    gpu = FakeGpu(clock)
    monkeypatch.setattr(FakeEvent, "gpu", gpu, raising=False)
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    monkeypatch.setattr(torch.cuda, "synchronize", gpu.synchronize)
    monkeypatch.setattr(torch.mps, "synchronize", gpu.synchronize)
    return gpu


def test_cuda_is_timed_by_its_own_clock_and_waited_for_once(gpu: FakeGpu) -> None:
    timed = measure(gpu.work, Device(torch.device("cuda:1")), warmup=1, repeats=4)
    assert timed == Timing(3.0, 3.0, 3.0, 4)
    assert gpu.waits == 1


def test_other_accelerators_are_waited_for(gpu: FakeGpu) -> None:
    assert measure(gpu.work, Device(torch.device("mps")), warmup=1, repeats=4) == Timing(3.0, 3.0, 3.0, 4)
