"""A disk that is full or cannot be written is said with the way out; nothing half written stays, no record is lost."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from safelight.core import history
from safelight.core.errors import OutputError
from safelight.core.events import EventLog
from safelight.core.files import atomic_folder, atomic_write, digest, is_temporary
from safelight.core.lines import read_lines
from safelight.core.options import CommonOptions
from safelight.core.pipeline import Command, Context, Found, Item, Pipeline, Record
from safelight.core.run import EVENTS, JOURNAL, RECORD, Run
from safelight.core.runner import run_command

LIMITED = '''
"""Runs what the parent says in a process whose files may not grow past LIMIT bytes, as on a disk that fills up."""
import resource, signal, sys
from pathlib import Path
from safelight.core import history
from safelight.core.errors import OutputError
from safelight.core.files import atomic_folder, atomic_write
from safelight.core.pipeline import Item, Record
from safelight.core.run import Run
import filelock

where, limit, action = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
ENTRY = {"timestamp": "2026-11-21T12:00:00+01:00", "model_name": "full", "averages": {}, "notes": "n" * 3000}
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    if action == "file":
        with atomic_write(where / "image.tif") as part:
            part.write_bytes(bytes(100_000))
    elif action == "folder":
        with atomic_folder(where / "volume.zarr") as part:
            (part / "small").write_bytes(bytes(10))
            (part / "large").write_bytes(bytes(100_000))
    elif action == "journal":
        with Run(where, "denoise run").open() as run:
            for number in range(1000):
                run.finish(Item(f"item {number}", ()), Record(details={"text": "n" * 100}))
    elif action == "record":
        with Run(where, "denoise run").open() as run:
            run.write_record({"text": "n" * 100_000})
    elif action == "history":
        for _ in range(1000):
            history.append(where, ENTRY)
except OutputError as error:
    sys.exit(str(error))
'''
LIMIT = 20_000


def entry(name: str) -> dict[str, Any]:
    return {"timestamp": "2026-11-21T12:00:00+01:00", "model_name": name, "averages": {"psnr": 30.0}, "notes": ""}


def limited(where: Path, action: str) -> str:
    """Run an action on a disk that is about to be full and return what the user is told."""
    pytest.importorskip("resource", reason="only POSIX limits the size of files")
    command = [sys.executable, "-c", LIMITED, str(where), str(LIMIT), action]
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    assert outcome.returncode == 1, "nothing was refused"
    assert "Traceback" not in outcome.stderr
    return outcome.stderr


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if is_temporary(path)]


def full_after(allowed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let so many bytes be written through ``os.write``, then none: as a disk does, part of the last line fits."""
    write, left = os.write, [allowed]

    def write_what_fits(descriptor: int, content: bytes) -> int:
        if not left[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fits = min(len(content), left[0])
        left[0] -= fits
        return write(descriptor, content[:fits])

    monkeypatch.setattr(os, "write", write_what_fits)


@pytest.mark.parametrize(("action", "name"), [("file", "image.tif"), ("folder", "volume.zarr")])
def test_an_output_that_does_not_fit_is_named_and_the_old_one_stays(tmp_path: Path, action: str, name: str) -> None:
    maker: Callable[[Path], Any] = Path.touch if action == "file" else Path.mkdir
    maker(tmp_path / name)
    before = digest(tmp_path / name)
    told = limited(tmp_path, action)
    assert told.startswith(f"{tmp_path / name}: cannot be written: ")
    assert "Try: choose another disk or format." in told
    assert digest(tmp_path / name) == before
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_record_that_does_not_fit_leaves_the_journal(tmp_path: Path) -> None:
    told = limited(tmp_path, "record")
    assert told.startswith(f"{tmp_path / RECORD}: cannot be written: ")
    assert not (tmp_path / RECORD).exists()
    assert leftovers(tmp_path) == []
    with Run(tmp_path, "denoise run").open() as run:
        assert run.write_record({"now": "there is space"}).exists()


def test_a_journal_that_fills_the_disk_keeps_what_was_finished(tmp_path: Path) -> None:
    told = limited(tmp_path, "journal")
    assert told.startswith(f"{tmp_path / JOURNAL}: cannot be written: ")
    written = (tmp_path / JOURNAL).read_text()
    assert written.endswith("\n")
    items = [json.loads(line) for line in written.splitlines()][1:]
    assert LIMIT - 1000 < len(written) <= LIMIT
    with Run(tmp_path, "denoise run").open() as run:
        assert all(run.finished(Item(line["item"], ())) for line in items)
        assert run.finished(Item(f"item {len(items)}", ())) is None
        run.finish(Item("next", ()), Record())
    with Run(tmp_path, "denoise run").open() as run:
        assert run.finished(Item("next", ())) is not None


def test_a_history_that_fills_the_disk_keeps_every_run_that_it_has(tmp_path: Path) -> None:
    told = limited(tmp_path, "history")
    assert told.startswith(str(tmp_path))
    assert "cannot be written: " in told
    assert "Try: " in told
    runs = history.read(tmp_path)
    assert (tmp_path / history.TRUTH).read_text().endswith("\n")
    assert runs
    assert leftovers(tmp_path) == []
    json.loads((tmp_path / history.ALL_RUNS).read_text())

    own = history.append(tmp_path, entry("there is space"))
    assert json.loads(own.read_text())["model_name"] == "there is space"
    assert len(json.loads((tmp_path / history.ALL_RUNS).read_text())) == len(runs) + 1
    assert all((tmp_path / run["result_file"]).exists() for run in runs)


@pytest.mark.parametrize("allowed", [0, 1, 40, 150])
def test_a_journal_line_that_fits_in_part_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: int
) -> None:
    with Run(tmp_path, "denoise run").open() as run:
        run.finish(Item("first", ()), Record())
        before = (tmp_path / JOURNAL).read_bytes()
        with monkeypatch.context() as patch:
            full_after(allowed, patch)
            with pytest.raises(OutputError, match=rf"{JOURNAL}: .*the disk is full\. Try: free some space"):
                run.finish(Item("second", ()), Record(details={"text": "n" * 200}))
        assert (tmp_path / JOURNAL).read_bytes() == before
        run.finish(Item("third", ()), Record())
    assert [line["item"] for line in read_lines(tmp_path / JOURNAL)[1:]] == ["first", "third"]


@pytest.mark.parametrize("allowed", [0, 1, 40])
def test_a_history_line_that_fits_in_part_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: int
) -> None:
    history.append(tmp_path, entry("first"))
    before = {path.name: digest(path) for path in tmp_path.iterdir()}
    with monkeypatch.context() as patch:
        full_after(allowed, patch)
        with pytest.raises(OutputError, match=r"the disk is full\. Try: free some space") as caught:
            history.append(tmp_path, entry("second"))
    assert caught.value.path == tmp_path
    assert {path.name: digest(path) for path in tmp_path.iterdir()} == before
    history.append(tmp_path, entry("third"))
    assert [run["model_name"] for run in history.read(tmp_path)] == ["first", "third"]


def test_events_that_do_not_fit_are_said_once_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = EventLog()
    with events.recorded(tmp_path / EVENTS):
        events.info("item_started", name="first")
        with monkeypatch.context() as patch:
            full_after(10, patch)
            events.info("item_started", name="second")
        events.info("item_started", name="third")
    assert events.keys() == ["item_started", "item_started", "events_not_recorded", "item_started"]
    assert [json.loads(line)["data"]["name"] for line in (tmp_path / EVENTS).read_text().splitlines()] == ["first"]


def write_file(below: Path) -> None:
    with atomic_write(below / "image.tif") as part:
        part.write_text("pixels")


def write_folder(below: Path) -> None:
    with atomic_folder(below / "volume.zarr") as part:
        (part / "chunk").write_text("pixels")


def open_run(below: Path) -> None:
    with Run(below / "out", "denoise run").open():
        pass


def append_history(below: Path) -> None:
    history.append(below / "results", entry("lost"))


@pytest.mark.parametrize("deep", ["", "sub", "sub/sub"])
@pytest.mark.parametrize("write", [write_file, write_folder, open_run, append_history], ids=lambda f: f.__name__)
def test_an_output_below_a_file_is_named(tmp_path: Path, write: Callable[[Path], None], deep: str) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("mine")
    with pytest.raises(OutputError, match=r"a file, not a folder\. Try: choose another output folder") as caught:
        write(file / deep)
    assert caught.value.path is not None
    assert caught.value.path.is_relative_to(file)
    assert file.read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real disk of 300 kB; where none may be mounted the test is skipped, the ones above run everywhere."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(tmp_path)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only an administrator may mount a disk")
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def save_array(path: Path) -> None:
    np.save(path, np.zeros(100_000))


def save_checkpoint(path: Path) -> None:
    torch.save({"weights": torch.zeros(100_000)}, path)


def save_weights(path: Path) -> None:
    save_file({"weights": torch.zeros(100_000)}, path)


WRITERS = {"array.npy": save_array, "checkpoint.pt": save_checkpoint, "model.safetensors": save_weights}


@pytest.mark.parametrize("name", WRITERS)
def test_every_writer_s_full_disk_is_told(small_disk: Path, name: str) -> None:
    with (
        pytest.raises(OutputError, match=rf"{name}: cannot be written: the disk is full"),
        atomic_write(small_disk / name) as part,
    ):
        WRITERS[name](part)
    assert list(small_disk.iterdir()) == []


class Sizes(CommonOptions):
    """Options of a job that writes files of given sizes."""

    out: Path


def write_zeros(item: Item, options: Sizes, context: Context, prepared: object) -> Record:
    path = options.out / item.name
    with atomic_write(path) as part:
        part.write_bytes(bytes(item.payload))
    return Record((path,), {"size": float(item.payload)})


def test_the_items_that_fit_are_done_and_the_others_named(small_disk: Path) -> None:
    found = Found((Item("large", (), 1_000_000), Item("small", (), 1000)))
    command = Command("run", "Write zeros.", Sizes, lambda options: options.out, lambda options: found, write_zeros)
    pipeline, events = Pipeline("zeros", "Write zeros.", (command,)), EventLog()
    options = Sizes(out=small_disk / "out", results=small_disk / "results", device="cpu")
    outcome = run_command(pipeline, command, options, events, lambda *_, **__: None)
    assert outcome.exit_status == 1
    assert (list(outcome.failed), list(outcome.records)) == (["large"], ["small"])
    (failure,) = (event for event in events if event.key == "item_failed")
    assert f"{small_disk / 'out' / 'large'}: cannot be written: the disk is full" in str(failure.data["error"])
    (run,) = history.read(small_disk / "results")
    assert (run["num_done"], run["num_failed"]) == (1, 1)
    assert leftovers(small_disk) == []
