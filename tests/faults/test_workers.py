"""Workers that die, hang on to the device, or are stopped: only their item is lost, and nothing is left running."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil
import pytest

from prompt import Answer, prompt
from safelight.core.files import digest, is_temporary
from safelight.core.run import JOURNAL, RECORD

pytestmark = pytest.mark.skipif(os.name == "nt", reason="kills with a signal")

# What an item does is what its file says. Every item writes which process did it.
TOY = """
import os, signal, time
from pathlib import Path
import torch
from safelight.core.files import atomic_write
from safelight.core.options import CommonOptions
from safelight.core.pipeline import Command, Found, Item, Pipeline, Record

class Options(CommonOptions):
    input: Path
    out: Path

def find_items(options):
    return Found(tuple(Item(path.stem, (path,), path) for path in sorted(options.input.iterdir())))

def process(item, options, context, prepared):
    order = item.payload.read_text()
    home = options.input.parent
    (home / f"{item.name}.begun").write_text(str(os.getpid()))
    with atomic_write(context.folder / f"{item.name}.out") as part:
        part.write_text(order)
        context.events.warning("toy_begun", text=order)
        if order == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if order == "crashed":
            os.kill(os.getpid(), signal.SIGSEGV)
        if order == "exited":
            os._exit(3)
        if order == "wrong":
            raise ValueError("a mistake in the program")
        if order == "lost once" and not (home / "lost").exists():
            (home / "lost").touch()
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if order == "lost":
            raise RuntimeError("CUDA error: device-side assert triggered")
        while order == "long":
            time.sleep(0.1)
    threads = {"torch": torch.get_num_threads(), "openmp": os.environ.get("OMP_NUM_THREADS", "")}
    return Record((context.folder / f"{item.name}.out",), {"letters": float(len(order))}, threads)

RUN = Command("run", "Obey.", Options, lambda options: options.out, find_items, process)
PIPELINE = Pipeline("obey", "Obey files.", (RUN,))
"""
OBEY = ("obey", "run", "inputs", "--out", "out", "--device", "cpu")


class Home:
    """A folder with the toy pipeline, its inputs and its results."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.out = folder / "out"
        (folder / "site" / "obey-1.dist-info").mkdir(parents=True)
        (folder / "site" / "obey.py").write_text(TOY)
        (folder / "site" / "obey-1.dist-info" / "METADATA").write_text(
            "Metadata-Version: 2.1\nName: obey\nVersion: 1\n"
        )
        (folder / "site" / "obey-1.dist-info" / "entry_points.txt").write_text(
            "[safelight.pipelines]\nobey = obey:PIPELINE\n"
        )
        (folder / "inputs").mkdir()

    def orders(self, **orders: str) -> None:
        for name, order in orders.items():
            (self.folder / "inputs" / name).write_text(order)
            (self.folder / f"{name}.begun").unlink(missing_ok=True)

    def environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(self.folder / "site"), "OMP_NUM_THREADS": "2"}

    def start(self, workers: int = 2, *more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "safelight", *OBEY, "--lang", "en", "--workers", str(workers), *more],
            cwd=self.folder,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, workers: int = 2, *more: str) -> tuple[int, str]:
        process = self.start(workers, *more)
        _, said = process.communicate(timeout=120)
        return process.returncode, said

    def run_here(self, *more: str) -> Answer:
        """Run in this process; workers, if there are any, have theirs."""
        site = [str(self.folder / "site"), *sys.path]
        with patch.object(sys, "path", site), patch.dict(os.environ, OMP_NUM_THREADS="2"):
            answer = prompt(self.folder, *OBEY, *more)
        sys.modules.pop("obey")
        return answer

    def go_on(self) -> int:
        """Do the rest without workers."""
        return self.run_here().status

    def document(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((self.out / RECORD).read_text())
        return document

    def failures(self) -> dict[str, str]:
        return {failed["name"]: failed["error"] for failed in self.document()["failed"]}

    def outputs(self) -> dict[str, str]:
        return {path.name: digest(path) for path in sorted(self.out.glob("[a-z].out"))}

    def journalled(self) -> list[str]:
        lines = map(json.loads, (self.out / JOURNAL).read_text().splitlines())
        return [line["item"] for line in lines if "item" in line]

    def worker_of(self, name: str) -> psutil.Process:
        """Wait until an item is in hand, and return the process that has it."""
        begun = self.folder / f"{name}.begun"
        while not (begun.exists() and begun.read_text()):
            time.sleep(0.05)
        return psutil.Process(int(begun.read_text()))


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def leftovers(home: Home) -> list[Path]:
    return [path for path in home.folder.rglob("*") if is_temporary(path)]


def test_workers_that_die_lose_only_their_item(home: Home) -> None:
    home.orders(a="fine", b="killed", c="crashed", d="well")
    done = home.run_here("--workers", "2")
    assert done.status == 1
    assert "Traceback" not in done.said
    failures = home.failures()
    assert failures.keys() == {"b", "c"}
    assert "SIGKILL" in failures["b"]
    assert "SIGSEGV" in failures["c"]
    assert sorted(home.journalled()) == ["a", "d"]
    document = home.document()
    assert all(item["details"] == {"torch": 1, "openmp": "1"} for item in document["items"])
    begun = [event["data"]["item"] for event in document["events"] if event["key"] == "toy_begun"]
    assert sorted(begun) == ["a", "b", "c", "d"], "what a worker said before it died is known"
    home.orders(b="mended", c="mended")
    assert home.go_on() == 0
    assert home.journalled()[2:] == ["b", "c"], "what was done is not done again"
    assert [item["name"] for item in home.document()["items"]] == ["a", "b", "c", "d"]
    assert leftovers(home) == []


def test_a_lost_device_replaces_the_worker_and_an_item_that_loses_it_again_has_failed(home: Home) -> None:
    home.orders(b="lost once", c="lost")
    assert home.run_here("--workers", "2").status == 1
    assert home.failures().keys() == {"c"}
    assert "lost 2 times at c" in home.failures()["c"]
    assert list(home.outputs()) == ["b.out"]
    losses = [event["data"]["name"] for event in home.document()["events"] if event["key"] == "device_lost"]
    assert sorted(losses) == ["b", "c", "c"]


def test_a_mistake_in_the_program_ends_the_run_and_shows_where_it_is(home: Home) -> None:
    home.orders(a="wrong", b="long")
    status, said = home.run(2)
    assert status != 0
    assert "ValueError: a mistake in the program" in said
    assert "in process" in said
    assert not psutil.pid_exists(int((home.folder / "a.begun").read_text()))


def test_ctrl_c_stops_the_workers_and_says_what_is_kept(home: Home) -> None:
    home.orders(a="fine", b="long", c="long")
    run = home.start(2)
    workers = [home.worker_of("b"), home.worker_of("c")]
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does: all processes get it
    _, said = run.communicate(timeout=120)
    assert run.returncode == 130
    assert "stopped with 1 of 3 item(s) done" in said
    assert "Traceback" not in said
    assert psutil.wait_procs(workers, timeout=0)[1] == []
    home.orders(b="short", c="short")
    assert home.go_on() == 0
    assert home.journalled() == ["a", "b", "c"]
    assert leftovers(home) == []


def test_a_script_without_the_usual_guard_is_told_what_it_lacks(home: Home) -> None:
    home.orders(a="fine", b="fine")
    script = home.folder / "script.py"
    script.write_text("import safelight\nsafelight.run('obey', 'run', input='inputs', out='out', workers=2)\n")
    command = [sys.executable, str(script)]
    done = subprocess.run(
        command, cwd=home.folder, env=home.environment(), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode != 0
    assert "WorkerError: no worker process can start" in done.stderr
    assert "if __name__ == '__main__'" in done.stderr


def test_workers_end_when_the_run_is_killed(home: Home) -> None:
    home.orders(a="long", b="long")
    run = home.start(2)
    workers = [home.worker_of("a"), home.worker_of("b")]
    run.kill()
    run.communicate(timeout=120)
    assert psutil.wait_procs(workers, timeout=120)[1] == []
    home.orders(a="short", b="short")
    assert home.go_on() == 0
    assert leftovers(home) == []


DASK = """
import sys
from distributed import LocalCluster

if __name__ == "__main__":
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        print(cluster.scheduler_address, flush=True)
        sys.stdin.read()
"""


@pytest.fixture
def cluster(home: Home) -> Iterator[str]:
    """The address of a Dask cluster on this machine."""
    pytest.importorskip("distributed", reason="needs the extra 'cluster'")
    script = home.folder / "dask_cluster.py"
    script.write_text(DASK)
    command = [sys.executable, str(script)]
    with subprocess.Popen(
        command, env=home.environment(), stdin=-1, stdout=-1, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.communicate()


@pytest.mark.slow
def test_a_cluster_does_the_same(home: Home, cluster: str) -> None:
    home.orders(a="fine", b="killed", c="lost once", d="well")
    status, said = home.run(1, "--cluster", cluster)
    assert status == 1, said
    assert home.failures().keys() == {"b"}
    assert "died" in home.failures()["b"]
    assert list(home.outputs()) == ["a.out", "c.out", "d.out"]
    document = home.document()
    assert sorted(home.journalled()) == ["a", "c", "d"]
    begun = [event["data"]["item"] for event in document["events"] if event["key"] == "toy_begun"]
    assert {"a", "c", "d"} <= set(begun)
    assert all(item["details"]["torch"] == 1 for item in document["items"])
    home.orders(b="long")
    run = home.start(1, "--cluster", cluster)
    home.worker_of("b")
    os.kill(run.pid, signal.SIGINT)
    _, said = run.communicate(timeout=120)
    assert run.returncode == 130
    assert "stopped with 3 of 4 item(s) done" in said


@pytest.mark.slow
def test_a_cluster_that_is_not_there_is_said_before_anything_is_done(home: Home) -> None:
    pytest.importorskip("distributed", reason="needs the extra 'cluster'")
    home.orders(a="fine")
    for address, problem in (("nowhere", "no address"), ("tcp://127.0.0.1:1", "no Dask scheduler answers")):
        status, said = home.run(1, "--cluster", address)
        assert status == 2
        assert problem in said
        assert "Traceback" not in said
    assert not home.out.exists()
