"""What workers are given, and what becomes of what they tell; how they die is in tests/faults."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from safelight.core import workers
from safelight.core.books import Books, Outcome
from safelight.core.cluster import check_cluster
from safelight.core.device import Device, DeviceInfo
from safelight.core.errors import InputError, UsageError, WorkerError
from safelight.core.events import Event, EventLog, Severity
from safelight.core.execute import Executor
from safelight.core.memory import host_budget
from safelight.core.options import CommonOptions
from safelight.core.pipeline import Context, Found, Item, Record, deferred
from safelight.core.run import Run
from safelight.core.sharing import share_out
from safelight.core.worker import Done, Failed, Lost, Share, Told, Work, Worker, packed, shared_with_workers
from safelight.core.workers import TakeItem, devices_for_workers

CPU = Device(torch.device("cpu"))


@pytest.mark.parametrize(
    ("options", "device", "expected"),
    [
        ({"workers": 3}, "cpu", ("cpu", "cpu", "cpu")),
        ({"workers": 3}, "cuda:0", ("cuda:0", "cuda:1")),
        ({"workers": 1}, "cuda:0", ("cuda:0",)),
        ({"workers": 3, "device": "cuda"}, "cuda:0", ("cuda:0", "cuda:1")),
        ({"workers": 3, "device": "cuda:1"}, "cuda:1", ("cuda:1",)),
    ],
)
def test_every_worker_has_a_gpu_of_its_own(
    options: dict[str, Any], device: str, expected: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = tuple(DeviceInfo(name, "", None, None) for name in ("cuda:0", "cuda:1", "cpu"))
    monkeypatch.setattr(workers, "devices", lambda: machine)
    assert devices_for_workers(Device(torch.device(device)), CommonOptions(**options)) == expected


def test_workers_share_the_memory_of_their_machine_and_the_limit() -> None:
    limited = Executor.from_options(CPU, CommonOptions(memory_limit="1GiB"), EventLog(), workers=4)
    assert limited.budget.bytes == 1 << 28
    shared = Executor.from_options(CPU, CommonOptions(), EventLog(), workers=1000)
    assert shared.budget.bytes < host_budget().bytes / 500


def test_a_pipeline_that_cannot_be_sent_is_refused_with_what_to_do() -> None:
    with pytest.raises(UsageError, match="--workers 1"):
        packed(lambda: None)
    assert packed(deferred("module:function"))


def obey(item: Item, options: CommonOptions, context: Context, shared: Any) -> Record:
    if item.payload == "fail":
        raise InputError("is bad")
    if item.payload == "lose":
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")
    if item.payload == "err":
        raise RuntimeError("a mistake")
    context.events.info("toy", shared=shared)
    context.progress(1, 4, "toy_progress")
    return Record((), {"x": 1.0})


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def work(tmp_path: Path, one_thread: None) -> Iterator[Work]:
    with shared_with_workers(obey, CommonOptions(device="cpu"), tmp_path, "a model", 2) as work:
        yield work
    assert not work.shared.exists()


def test_a_worker_tells_what_happens_and_how_it_ended(work: Work) -> None:
    told: list[Told] = []
    worker = Worker(work, told.append)
    assert torch.get_num_threads() == 1
    assert told == [], "the parent has said already where it computes"
    result = worker.do(Item("a", ()))
    assert isinstance(result, Done)
    assert result.record.metrics == {"x": 1.0}
    assert [each.key for each in told if isinstance(each, Event)] == ["item_started", "toy"]
    assert [each.data["shared"] for each in told if isinstance(each, Event) and each.key == "toy"] == ["a model"]
    assert Share(0.25) in told
    failed = worker.do(Item("b", (), "fail"))
    assert isinstance(failed, Failed)
    assert failed.error.problem == "is bad"
    lost = worker.do(Item("c", (), "lose"))
    assert lost == Lost("cpu", "CUDA error: an illegal memory access was encountered")
    with pytest.raises(RuntimeError, match="a mistake"):
        worker.do(Item("d", (), "err"))


def test_a_worker_unpickles_nothing_but_what_the_run_has_written(work: Work) -> None:
    work.shared.write_bytes(packed("another model"))
    with pytest.raises(WorkerError, match="not what the run has written"):
        Worker(work, lambda _: None)


class Played:
    """Workers that tell what they were given to tell."""

    size, where = 2, list[Any](["cpu"])

    def __init__(self, *told: tuple[str, Told]) -> None:
        self._told = told
        self.taken: list[str] = []

    def run(self, take: TakeItem) -> Iterator[tuple[Item, Told]]:
        items: dict[str, Item] = {}
        for name, told in self._told:
            while name not in items:
                item = take()
                assert item is not None
                items[item.name] = item
                self.taken.append(item.name)
            yield items[name], told
            if isinstance(told, Lost):
                del items[name]


@pytest.fixture
def books(tmp_path: Path) -> Iterator[Books]:
    events, run = EventLog(), Run(tmp_path / "out", "toy run")
    with run.open():
        yield Books(run, Outcome(run.folder, Found(())), events, Executor(CPU, events), [])


ITEMS = tuple(Item(name, ()) for name in "abc")
DONE = Done(Record((), {"x": 1.0}), 2.0)


def test_what_workers_tell_is_said_with_its_item_and_journalled_in_order(books: Books) -> None:
    warning = Event("chunk_shrunk", Severity.WARNING, {"rows": 3}, 12.5)
    shown: list[float] = []
    pool = Played(
        ("b", warning),
        ("b", Share(0.5)),
        ("a", Share(0.5)),
        ("b", Share(0.1)),
        ("b", DONE),
        ("c", Failed(InputError("is bad"))),
        ("a", DONE),
    )
    share_out(ITEMS, pool, books, lambda done, total, *_, **__: shown.append(done / total))
    assert list(books.outcome.records) == ["a", "b"]
    assert list(books.outcome.failed) == ["c"]
    assert books.outcome.seconds == {"b": 2.0, "a": 2.0}
    relayed = next(event for event in books.events if event.key == "chunk_shrunk")
    assert (relayed.time, relayed.severity, relayed.data) == (12.5, Severity.WARNING, {"item": "b", "rows": 3})
    assert shown == sorted(shown), "progress does not go back"
    assert shown[-1] == 1
    assert not books.is_to_do(ITEMS[0])


def test_an_item_that_lost_the_device_is_given_once_more(books: Books) -> None:
    pool = Played(("a", Lost("cuda:1", "why")), ("b", DONE), ("c", DONE), ("a", Lost("cuda:1", "why")))
    share_out(ITEMS, pool, books, lambda *_, **__: None)
    assert pool.taken == ["a", "b", "c", "a"]
    assert books.lost == ["a", "a"]
    assert not books.is_to_do(ITEMS[0])
    assert "lost 2 times at a" in str(books.outcome.failed["a"])


@pytest.mark.parametrize("address", ["", "nowhere", "10.0.0.1", "foo://10.0.0.1:8786", "tcp://10.0.0.1:port", "a b:1"])
def test_what_is_no_address_is_refused_before_dask_is_asked(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safelight.core.cluster._dask", lambda: pytest.fail("Dask was asked"))
    with pytest.raises(UsageError, match="this is no address"):
        check_cluster(address)
