"""The Executor: the same answer however it is cut, and records of what it took."""

from __future__ import annotations

import errno
import json
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from safelight.core.device import Device
from safelight.core.errors import OutOfMemoryError
from safelight.core.events import EventLog
from safelight.core.execute import Executor
from safelight.core.kernel import Kernel
from safelight.core.memory import UNLIMITED, Budget, VirtualDevice
from safelight.core.options import CommonOptions
from safelight.core.plan import Corrections
from safelight.core.stream import TensorSink, TensorSource

CPU = Device(torch.device("cpu"))
ROWS = 1000
HALO = 9


def blur_rows(rows: Tensor) -> Tensor:
    """A mean over 19 rows, fewer at the ends."""
    weights = torch.ones(1, 1, 2 * HALO + 1) / (2 * HALO + 1)
    columns = rows.T[:, None]
    kept = torch.nn.functional.conv1d(torch.ones_like(columns), weights.to(rows.device), padding=HALO)
    blurred = torch.nn.functional.conv1d(columns, weights.to(rows.device), padding=HALO)
    return (blurred / kept)[:, 0].T.contiguous().tanh()


BLUR = Kernel("blur", blur_rows, halo=HALO)


@pytest.fixture
def source() -> TensorSource:
    return TensorSource(torch.randn(ROWS, 40, generator=torch.Generator().manual_seed(0)))


@pytest.fixture
def cache(tmp_path: Path) -> Corrections:
    return Corrections(tmp_path)


@pytest.mark.parametrize("rows", [64, 128, 192, 448, 960])
def test_any_chunk_size_gives_the_same_bits_at_the_seams_too(
    source: TensorSource, cache: Corrections, rows: int
) -> None:
    plain = Executor(CPU, EventLog(), corrections=cache)
    cost = plain.plan(BLUR, source).cost
    events, sink = EventLog(), TensorSink(ROWS)
    budget = Budget(cost.bytes(rows + 2 * HALO), "memory_limit")
    Executor(CPU, events, budget=budget, corrections=cache).map(BLUR, source, sink)
    assert next(event.data["rows"] for event in events if event.key == "gpu_chunking_rows") == rows
    assert torch.equal(sink.result, blur_rows(source.tensor))


@pytest.mark.parametrize(("budget", "said"), [(1 << 40, []), (0, ["gpu_chunking_rows"])])
def test_fewer_rows_are_said_only_where_memory_is_why(
    source: TensorSource, cache: Corrections, budget: int, said: list[str]
) -> None:
    smallest = Executor(CPU, EventLog(), corrections=cache).plan(BLUR, source).smallest_bytes
    events, sink = EventLog(), TensorSink(ROWS)
    executor = Executor(CPU, events, budget=Budget(max(budget, smallest), "memory_limit"), corrections=cache)
    executor.map(BLUR, source, sink, most_rows=200)
    assert torch.equal(sink.result, blur_rows(source.tensor))
    assert [key for key in events.keys() if key == "gpu_chunking_rows"] == said


class DeviceSink(TensorSink):
    """Results that stay on the device, which the CPU plays, until they have to leave."""

    on_device = True

    def to_host(self) -> None:
        self.on_device = False  # type: ignore[misc]


def run_accumulating(source: TensorSource, cache: Corrections, budget: int) -> tuple[EventLog, DeviceSink]:
    events, sink = EventLog(), DeviceSink(ROWS)
    executor = Executor(CPU, events, virtual=VirtualDevice(), budget=Budget(budget, "free"), corrections=cache)
    executor.map(BLUR, source, sink)
    assert torch.equal(sink.result, blur_rows(source.tensor))
    return events, sink


def test_accumulators_stay_on_the_device_while_there_is_room(source: TensorSource, cache: Corrections) -> None:
    events, sink = run_accumulating(source, cache, 1 << 30)
    assert sink.on_device
    assert "accumulators_to_host" not in events.keys()


def test_accumulators_make_room_before_the_cpu_takes_over(source: TensorSource, cache: Corrections) -> None:
    smallest = Executor(CPU, EventLog(), virtual=VirtualDevice(), corrections=cache).plan(BLUR, source).smallest_bytes
    events, sink = run_accumulating(source, cache, smallest + smallest // 10)
    assert not sink.on_device
    assert events.keys().count("accumulators_to_host") == 1
    assert "gpu_fallback_insufficient_memory" not in events.keys()


def hungry(rows: Tensor) -> Tensor:
    """Takes twice as much as its dry run says."""
    copies = [rows * number for number in range(4 if rows.is_meta else 9)]
    return copies[0] + copies[-1]


def test_a_wrong_prediction_is_put_right_by_the_first_chunk_and_remembered(cache: Corrections, tmp_path: Path) -> None:
    source, kernel = TensorSource(torch.rand(ROWS, 50)), Kernel("hungry", hungry)
    ratios, chunks = [], []
    for _ in range(2):
        events, sizes = EventLog(), list[int]()

        class Sink:
            def write(self, start: int, stop: int, result: Tensor) -> None:
                sizes.append(stop - start)  # noqa: B023 - used within this turn

        executor = Executor(CPU, events, budget=Budget(800_000, "free"), corrections=Corrections(tmp_path))
        executor.map(kernel, source, Sink())
        (measured,) = executor.measured
        ratios.append(measured.predicted_bytes / measured.measured_bytes)
        chunks.append(sizes)
    assert ratios[0] < 0.65
    assert ratios[1] == pytest.approx(1, abs=0.1)
    assert chunks[0][0] > chunks[0][1] == chunks[1][0], "chunks after the first one, and the next run's, are smaller"


def test_frame_after_frame_is_measured_once(cache: Corrections) -> None:
    executor = Executor(CPU, EventLog(), budget=Budget(1 << 30, "free"), corrections=cache)
    for columns in (50, 50, 60, 50):
        executor.map(Kernel("hungry", hungry), TensorSource(torch.rand(ROWS, columns)), TensorSink(ROWS))
    assert len(executor.measured) == 2, "one of each shape"


def test_what_was_measured_of_another_computation_of_that_name_changes_no_plan_of_this_one(cache: Corrections) -> None:
    def grows(rows: Tensor, copies: int) -> Tensor:
        kept = [rows * number for number in range(2 if rows.is_meta else copies)]
        return kept[0] + kept[-1]

    executor = Executor(CPU, EventLog(), budget=Budget(1 << 30, "free"), corrections=cache)
    source, plans = TensorSource(torch.rand(ROWS, 50)), []
    hungry, frugal = (Kernel("grows", partial(grows, copies=copies)) for copies in (9, 3))
    for kernel in (hungry, frugal, hungry):
        executor.map(kernel, source, TensorSink(ROWS))
        plans.append(executor.plan(kernel, source).predicted_bytes)
    assert plans[0] == plans[2] > plans[1]


def test_a_prediction_that_was_too_high_lets_chunks_grow(tmp_path: Path) -> None:
    def frugal(rows: Tensor) -> Tensor:
        copies = [rows * number for number in range(9 if rows.is_meta else 2)]
        return copies[0] + copies[-1]

    sizes: list[int] = []

    class Sink:
        def write(self, start: int, stop: int, result: Tensor) -> None:
            sizes.append(stop - start)

    executor = Executor(CPU, EventLog(), budget=Budget(600_000, "free"), corrections=Corrections(tmp_path))
    executor.map(Kernel("frugal", frugal), TensorSource(torch.rand(ROWS, 50)), Sink())
    assert sizes[1] > sizes[0]


def test_a_driver_that_does_not_say_what_is_free_is_no_reason_for_small_chunks(
    source: TensorSource, cache: Corrections
) -> None:
    plan = Executor(CPU, EventLog(), budget=Budget(UNLIMITED, "unknown"), corrections=cache).plan(BLUR, source)
    assert (plan.rows, plan.fits, plan.describe()["reason"]) == (ROWS, True, "unknown")


def test_reading_less_at_a_time_where_the_host_runs_short(source: TensorSource, cache: Corrections) -> None:
    class Short(TensorSource):
        def read(self, start: int, stop: int) -> Tensor:
            if stop - start > 300:
                raise OSError(errno.ENOMEM, "Cannot allocate memory")
            return super().read(start, stop)

    events, sink = EventLog(), TensorSink(ROWS)
    Executor(CPU, events, corrections=cache).map(BLUR, Short(source.tensor), sink)
    assert torch.equal(sink.result, blur_rows(source.tensor))
    assert events.keys().count("chunk_shrunk") == 2


def test_a_file_that_cannot_be_read_is_not_taken_for_a_lack_of_memory(source: TensorSource, cache: Corrections) -> None:
    class Broken(TensorSource):
        def read(self, start: int, stop: int) -> Tensor:
            raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError, match="Input/output error"):
        Executor(CPU, EventLog(), corrections=cache).map(BLUR, Broken(source.tensor), TensorSink(ROWS))


def test_a_kernel_that_loses_rows_is_an_error_of_its_author(source: TensorSource, cache: Corrections) -> None:
    kernel = Kernel("shorten", lambda rows: rows[1:])
    with pytest.raises(ValueError, match=f"shorten returned {ROWS - 1} rows for {ROWS}"):
        Executor(CPU, EventLog(), corrections=cache).map(kernel, source, TensorSink(ROWS))


def in_chunks_of_64(cache: Corrections, source: TensorSource, **settings: object) -> Executor:
    smallest = Executor(CPU, EventLog(), corrections=cache).plan(BLUR, source).smallest_bytes
    budget = Budget(smallest + smallest // 10, "free")
    return Executor(CPU, EventLog(), budget=budget, corrections=cache, **settings)


def test_every_chunk_is_timed_but_the_first_ones_do_not_count(source: TensorSource, cache: Corrections) -> None:
    executor = in_chunks_of_64(cache, source, warmup=3)
    for _ in range(2):
        executor.map(BLUR, source, TensorSink(ROWS))
    (record,) = executor.timing_record()
    assert record.items() >= {"kernel": "blur", "device": "cpu", "chunks": 32, "rows": 2000, "warmup_chunks": 3}.items()
    lower, median, upper = (record[f"{name}_seconds"] for name in ("lower_quartile", "median", "upper_quartile"))
    assert 0 < lower <= median <= upper
    assert record["rows_per_second"] == pytest.approx(64 / median, rel=100)
    assert json.loads(json.dumps(record, allow_nan=False)) == record


def test_where_every_chunk_was_warm_up_there_is_no_time_to_tell(source: TensorSource, cache: Corrections) -> None:
    executor = Executor(CPU, EventLog(), corrections=cache, warmup=3)
    assert executor.timing_record() == []
    executor.map(BLUR, source, TensorSink(ROWS))
    (record,) = executor.timing_record()
    assert (record["chunks"], record["warmup_chunks"]) == (1, 1)
    assert record["median_seconds"] is record["rows_per_second"] is None


def test_devices_are_timed_apart_and_failures_not_at_all(source: TensorSource, cache: Corrections) -> None:
    virtual = VirtualDevice(fail_at=range(60, 10_000))
    executor = in_chunks_of_64(cache, source, virtual=virtual)
    executor.map(BLUR, source, TensorSink(ROWS))
    on_device, on_host = executor.timing_record()
    assert (on_device["device"], on_host["device"]) == ("virtual", "cpu")
    assert on_device["chunks"] > 0
    assert on_device["rows"] + on_host["rows"] == ROWS


def test_a_commands_options_reach_the_executor(
    source: TensorSource, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SAFELIGHT_CACHE", str(tmp_path))
    options = CommonOptions(memory_limit=30_000, warmup_iters=1)
    executor = Executor.from_options(CPU, options, EventLog())
    plan = executor.plan(BLUR, source)
    assert (plan.budget.bytes, plan.budget.reason) == (30_000, "memory_limit")
    with pytest.raises(OutOfMemoryError, match="30000"):
        executor.map(BLUR, source, TensorSink(ROWS))
