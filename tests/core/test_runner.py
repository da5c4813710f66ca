"""A run: what stops it before it begins, what does not stop it, and what it says when it is stopped."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from safelight.core.errors import CancelledError, DeviceError, InputError, OutputError
from safelight.core.events import EventLog
from safelight.core.handover import VARIABLE, Handover
from safelight.core.history import read
from safelight.core.options import CommonOptions
from safelight.core.pipeline import Command, Context, Found, Item, Pipeline, Prepared, Record
from safelight.core.runner import PREPARATION, Outcome, run_command

Process = Callable[[str], None]
ILLEGAL_ACCESS = RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with TORCH_USE_CUDA_DSA")


class Job:
    """A pipeline of three items in a folder; ``at`` is called at the preparation and at each item with its name."""

    def __init__(self, folder: Path, at: Process) -> None:
        self.folder, self.done, self.events = folder, list[str](), EventLog()
        self._at = at
        for name in "abc":
            (folder / name).write_text(name)
        items = tuple(Item(name, (folder / name,)) for name in "abc")
        self._command: Command[CommonOptions] = Command(
            "do", "Do.", CommonOptions, lambda _: folder / "out", lambda _: Found(items), self._process, self._prepare
        )

    def _prepare(self, *_: object) -> Prepared:
        self._at(PREPARATION)
        return Prepared()

    def _process(self, item: Item, options: CommonOptions, context: Context, prepared: None) -> Record:
        self._at(item.name)
        self.done.append(item.name)
        (context.folder / item.name).write_text(item.name)
        return Record((context.folder / item.name,), {"letters": 1.0})

    def run(self, before: Handover | None = None, **more: Any) -> Outcome:
        options = CommonOptions(device="cpu", results=self.folder / "results", **more)
        pipeline = Pipeline("toy", "Toy.", (self._command,))
        return run_command(pipeline, self._command, options, self.events, lambda *_, **__: None, before)

    def document(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((self.folder / "out" / "run.json").read_text())
        return document


def taken(outcome: Outcome, monkeypatch: pytest.MonkeyPatch) -> Handover:
    """Return what a fresh process would be given."""
    monkeypatch.setenv(VARIABLE, str(outcome.handover))
    return Handover.take()


class Losing:
    """Loses the device at an item, as often as told."""

    def __init__(self, name: str, times: int) -> None:
        self.name, self.left = name, times

    def __call__(self, name: str) -> None:
        if name == self.name and self.left:
            self.left -= 1
            raise ILLEGAL_ACCESS


def test_a_lost_device_ends_this_process_and_a_fresh_one_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(tmp_path, Losing("b", 1))
    lost = job.run(fresh=True)
    assert lost.exit_status == 1
    assert job.done == ["a"], "nothing may follow on a lost device"
    assert read(tmp_path / "results") == [], "the run is not over"
    outcome = job.run(taken(lost, monkeypatch), fresh=True)
    assert outcome.handover is None
    assert outcome.exit_status == 0
    assert job.done == ["a", "b", "c"]
    (entry,) = read(tmp_path / "results")
    assert (entry["num_done"], entry["num_skipped"], entry["num_failed"]) == (3, 0, 0)
    document = job.document()
    assert all(item["seconds"] is not None for item in document["items"])
    keys = [event["key"] for event in document["events"]]
    assert keys.index("run_started") < keys.index("device_lost") < keys.index("run_continued")
    assert not list((tmp_path / "out").glob("*handover*"))


def test_an_item_that_loses_the_device_again_has_failed_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(tmp_path, Losing("b", 9))
    outcome, processes = job.run(), 1
    while outcome.handover is not None:
        outcome, processes = job.run(taken(outcome, monkeypatch)), processes + 1
    assert processes == 3
    assert job.done == ["a", "c"]
    assert outcome.exit_status == 1
    assert "lost 2 times at b" in str(outcome.failed["b"])
    assert [failure["name"] for failure in job.document()["failed"]] == ["b"]
    (entry,) = read(tmp_path / "results")
    assert (entry["num_done"], entry["num_failed"]) == (2, 1)


def test_a_run_that_failed_for_its_device_may_try_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(tmp_path, Losing("b", 2))
    outcome = job.run()
    while outcome.handover is not None:
        outcome = job.run(taken(outcome, monkeypatch))
    assert outcome.failed
    assert job.run().exit_status == 0


def test_a_preparation_that_loses_the_device_twice_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(tmp_path, Losing(PREPARATION, 2))
    outcome = job.run()
    outcome = job.run(taken(outcome, monkeypatch))
    with pytest.raises(DeviceError, match="lost 2 times"):
        job.run(taken(outcome, monkeypatch))
    assert job.done == []


def test_an_ordinary_error_of_the_program_is_not_taken_for_a_lost_device(tmp_path: Path) -> None:
    def fail(_: str) -> None:
        raise RuntimeError("The size of tensor a (3) must match the size of tensor b (4)")

    with pytest.raises(RuntimeError, match="size of tensor"):
        Job(tmp_path, fail).run()


def test_a_handover_that_is_gone_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "handover.json"))
    with pytest.raises(InputError, match="run the same command again"):
        Handover.take()
    assert Handover.take() == Handover(), "it must not be tried twice"


def test_a_stop_by_the_user_says_what_is_kept_and_how_to_go_on(tmp_path: Path) -> None:
    def stop(name: str) -> None:
        if name == "b":
            raise KeyboardInterrupt

    with pytest.raises(CancelledError, match=r"1 of 3 item.*out.*same command again: it goes on") as stopped:
        Job(tmp_path, stop).run()
    assert stopped.value.exit_status == 130
    with pytest.raises(CancelledError, match="without --fresh"):
        Job(tmp_path, stop).run(fresh=True)
    job = Job(tmp_path, lambda _: None)
    job.run()
    assert job.done == ["b", "c"]


def test_a_history_that_cannot_be_written_is_said_before_anything_is_computed(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file")
    job = Job(tmp_path, lambda _: None)
    with pytest.raises(OutputError, match=r"results.*--results"):
        job.run()
    assert job.done == []
    assert not (tmp_path / "out").exists()
    assert job.run(dry_run=True).exit_status == 0


@pytest.mark.parametrize("error", [MemoryError("7 GiB"), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_an_item_for_which_memory_ran_out_does_not_stop_the_others(tmp_path: Path, error: Exception) -> None:
    def fail_at_b(name: str) -> None:
        if name == "b":
            raise error

    job = Job(tmp_path, fail_at_b)
    outcome = job.run()
    assert job.done == ["a", "c"]
    assert "memory ran out" in str(outcome.failed["b"])
    assert outcome.exit_status == 1


def test_what_the_system_refuses_outside_of_items_is_an_error_for_people(tmp_path: Path) -> None:
    def fail(_: str) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path / "secret"))

    with pytest.raises(InputError, match="secret: Permission denied") as caught:
        Job(tmp_path, fail).run()
    assert caught.value.path == tmp_path / "secret"
