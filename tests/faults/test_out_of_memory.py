"""Running out of memory anywhere: no escape, no hang, the same result, and events that say what happened."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from safelight.core.device import Device
from safelight.core.errors import OutOfMemoryError
from safelight.core.events import EventLog
from safelight.core.execute import Executor
from safelight.core.kernel import Kernel
from safelight.core.memory import Budget, VirtualDevice, is_out_of_memory, is_sticky
from safelight.core.plan import Corrections
from safelight.core.stream import TensorSink, TensorSource

ROWS = 640
UNBOUNDED = Budget(1 << 40, "unknown")
CPU = Device(torch.device("cpu"))


def smooth(rows: Tensor, weights: Tensor) -> Tensor:
    """A kernel with temporaries much larger than its input."""
    spread = torch.nn.functional.conv2d(rows[:, None], weights, padding=1)
    return (spread.relu() * 2 - spread.tanh()).sum(1)


@pytest.fixture(scope="module")
def kernel() -> Kernel:
    generator = torch.Generator().manual_seed(1)
    return Kernel("smooth", smooth, (torch.randn(4, 1, 3, 3, generator=generator),))


@pytest.fixture(scope="module")
def source() -> TensorSource:
    return TensorSource(torch.randn(ROWS, 24, 24, generator=torch.Generator().manual_seed(2)))


class CountingSink(TensorSink):
    """Remembers how often each row was written."""

    def __init__(self) -> None:
        super().__init__(ROWS)
        self.times = torch.zeros(ROWS, dtype=torch.int64)

    def write(self, start: int, stop: int, result: Tensor) -> None:
        self.times[start:stop] += 1
        super().write(start, stop, result)


@pytest.fixture
def cache(tmp_path: Path) -> Corrections:
    return Corrections(tmp_path)


def run(
    kernel: Kernel,
    source: TensorSource,
    cache: Corrections,
    virtual: VirtualDevice | None = None,
    budget: Budget | None = None,
    cpu_fallback: bool = True,
) -> tuple[Tensor, EventLog, Executor]:
    events, sink = EventLog(), CountingSink()
    executor = Executor(CPU, events, virtual=virtual, budget=budget, cpu_fallback=cpu_fallback, corrections=cache)
    executor.map(kernel, source, sink)
    assert sink.times.tolist() == [1] * ROWS, "a row was done twice or never"
    return sink.result, events, executor


@pytest.fixture(scope="module")
def unconstrained(kernel: Kernel, source: TensorSource, tmp_path_factory: pytest.TempPathFactory) -> Tensor:
    return run(kernel, source, Corrections(tmp_path_factory.mktemp("cache")))[0]


@pytest.fixture(scope="module")
def full_need(kernel: Kernel, source: TensorSource, tmp_path_factory: pytest.TempPathFactory) -> int:
    virtual = VirtualDevice()
    run(kernel, source, Corrections(tmp_path_factory.mktemp("cache")), virtual)
    return virtual.peak


def seeded_operations(count: int = 200) -> Iterator[list[int]]:
    """Sets of one to three operations at which memory runs out, spread over a whole run of small chunks."""
    generator = torch.Generator().manual_seed(3)
    for number in range(count):
        drawn = torch.randint(0, 30, (1 + number % 3,), generator=generator)
        yield sorted(set(drawn.tolist()))


@pytest.mark.parametrize("fail_at", list(seeded_operations()), ids=str)
def test_out_of_memory_at_any_operation_changes_nothing(
    kernel: Kernel, source: TensorSource, cache: Corrections, unconstrained: Tensor, fail_at: list[int]
) -> None:
    virtual = VirtualDevice(fail_at=fail_at)
    result, events, _ = run(kernel, source, cache, virtual, Budget(5_500_000, "memory_limit"))
    assert torch.equal(result, unconstrained)
    reached = sum(operation < virtual.operations for operation in fail_at)
    steps = [key for key in events.keys() if key in ("chunk_shrunk", "gpu_fallback_insufficient_memory")]
    assert len(steps) == reached, "one event per change"


@pytest.mark.parametrize("percent", [100, 50, 25, 10, 5, 1])
@pytest.mark.parametrize("known", [True, False], ids=["planned", "surprised"])
def test_any_cap_gives_the_same_result(
    kernel: Kernel,
    source: TensorSource,
    cache: Corrections,
    unconstrained: Tensor,
    full_need: int,
    percent: int,
    known: bool,
) -> None:
    virtual = VirtualDevice(cap_bytes=full_need * percent // 100)
    result, events, _ = run(kernel, source, cache, virtual, None if known else UNBOUNDED)
    assert torch.equal(result, unconstrained)
    assert virtual.peak <= full_need * percent // 100
    if known:
        assert "chunk_shrunk" not in events.keys(), "a plan that knows the cap meets no out-of-memory"


@pytest.mark.parametrize("percent", [10, 5, 1])
def test_the_error_names_the_smallest_amount_and_it_works(
    kernel: Kernel, source: TensorSource, cache: Corrections, unconstrained: Tensor, full_need: int, percent: int
) -> None:
    with pytest.raises(OutOfMemoryError) as caught:
        run(kernel, source, cache, VirtualDevice(cap_bytes=full_need * percent // 100), cpu_fallback=False)
    needed = caught.value.needed
    assert f"at least {-(-needed // 2**20)} MiB" in str(caught.value)
    result, _, _ = run(kernel, source, cache, VirtualDevice(cap_bytes=needed), cpu_fallback=False)
    assert torch.equal(result, unconstrained)
    with pytest.raises(OutOfMemoryError):
        run(kernel, source, cache, VirtualDevice(cap_bytes=needed - 1), cpu_fallback=False)


def test_a_device_that_always_fails_hands_over_to_the_cpu(
    kernel: Kernel, source: TensorSource, cache: Corrections, unconstrained: Tensor
) -> None:
    virtual = VirtualDevice(fail_at=range(10_000))
    result, events, _ = run(kernel, source, cache, virtual, UNBOUNDED)
    assert torch.equal(result, unconstrained)
    assert events.keys().count("gpu_fallback_insufficient_memory") == 1


def test_chunks_finished_before_a_failure_are_kept(
    kernel: Kernel, source: TensorSource, cache: Corrections, unconstrained: Tensor
) -> None:
    virtual = VirtualDevice(fail_at=range(14, 10_000))
    result, events, _ = run(kernel, source, cache, virtual, Budget(5_500_000, "memory_limit"))
    assert torch.equal(result, unconstrained)  # CountingSink has seen every row once
    assert "gpu_fallback_insufficient_memory" in events.keys()


def test_predictions_are_near_what_is_measured(kernel: Kernel, source: TensorSource, cache: Corrections) -> None:
    for lowest, highest in ((0.65, 1.05), (0.90, 1.10)):
        _, _, executor = run(kernel, source, cache, VirtualDevice())
        (measured,) = executor.measured
        assert lowest <= measured.predicted_bytes / measured.measured_bytes <= highest


@pytest.mark.timeout(20)
@pytest.mark.parametrize("failure", [ValueError("broken"), RuntimeError("no such file"), KeyboardInterrupt()])
def test_a_failing_reader_ends_the_run_with_its_error(
    kernel: Kernel, source: TensorSource, cache: Corrections, failure: BaseException
) -> None:
    class Failing(TensorSource):
        def read(self, start: int, stop: int) -> Tensor:
            if start >= ROWS // 2:
                raise failure
            return super().read(start, stop)

    with pytest.raises(type(failure)):
        run(kernel, Failing(source.tensor), cache, budget=Budget(5_500_000, "memory_limit"))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("MPS backend out of memory (MPS allocated: 5.00 GB)"),
        RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("HIP out of memory. Tried to allocate 1 GiB"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED"),
        RuntimeError("Unable to find an engine to execute this computation"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
    ids=str,
)
def test_every_form_of_out_of_memory_is_known(error: BaseException) -> None:
    assert is_out_of_memory(error)
    assert not is_sticky(error)


@pytest.mark.parametrize(
    "message", ["shape '[3]' is invalid", "expected scalar type Float", "CUDA error: invalid argument"]
)
def test_an_ordinary_error_is_none(message: str) -> None:
    assert not is_out_of_memory(RuntimeError(message))
    assert not is_out_of_memory(ValueError("out of memory"))
    assert not is_out_of_memory(OSError(errno.ENOSPC, "No space left on device"))


@pytest.mark.parametrize(
    "message", ["CUDA error: an illegal memory access was encountered", "device-side assert triggered"]
)
def test_a_lost_device_is_not_tried_again(source: TensorSource, cache: Corrections, message: str) -> None:
    calls = []

    def fail(rows: Tensor) -> Tensor:
        if rows.device.type != "meta":
            calls.append(len(rows))
            raise RuntimeError(message)
        return rows

    with pytest.raises(RuntimeError, match=message) as lost:
        run(Kernel("failing", fail), source, cache)
    assert is_sticky(lost.value)
    assert len(calls) == 1


def test_training_splits_a_batch_and_the_gradient_is_the_same(cache: Corrections) -> None:
    inputs = torch.randn(12, 5, generator=torch.Generator().manual_seed(4))

    def gradient(virtual: VirtualDevice | None, at_once: int = 12) -> tuple[Tensor, float, EventLog]:
        weights = torch.ones(5, requires_grad=True)
        events = EventLog()
        executor = Executor(CPU, events, virtual=virtual, corrections=cache)

        def reset() -> None:
            weights.grad = None

        def share(start: int, stop: int) -> Tensor:
            return (inputs[start:stop] @ weights).square().sum() / 12

        loss, fitted = executor.step(share, 12, reset, at_once)
        assert weights.grad is not None
        assert fitted == min(at_once, 6 if virtual else 12)
        return weights.grad, float(loss), events

    whole, loss, quiet = gradient(None)
    planned, planned_loss, without_failure = gradient(None, at_once=5)
    torch.testing.assert_close(planned, whole)
    assert planned_loss == pytest.approx(loss)
    assert without_failure.keys() == []
    split, split_loss, events = gradient(VirtualDevice(fail_at=[3]))
    torch.testing.assert_close(split, whole)
    assert split_loss == pytest.approx(loss)
    assert quiet.keys() == []
    assert events.keys() == ["micro_batch"]
