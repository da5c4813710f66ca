"""kill -9 at any moment of a run: nothing unreadable, nothing done twice but the item it hit, the same results."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from safelight.core.files import digest, is_temporary
from safelight.core.history import ALL_RUNS, TRUTH
from safelight.core.run import EVENTS, JOURNAL, RECORD

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills with a signal")

KILLS = 100
ITEMS = 4

# Imports everything once, then runs the real command line in a forked child for every folder it is told: 100 starts
# of an interpreter with torch would take minutes. The child says when it begins.
STEM = """
import os, sys, filelock, rich.console, torch._dynamo.utils
from pathlib import Path
from safelight import cli
from safelight.core import execute, history, runner
from safelight.core.files import atomic_folder, atomic_write
from safelight.core.options import CommonOptions
from safelight.core.pipeline import Command, Found, Item, Pipeline, Record
from safelight.core.settings import gather

class Options(CommonOptions):
    out: Path

def find_items(options):
    sources = sorted((options.out.parent / "inputs").iterdir())
    return Found(tuple(Item(source.stem, (source,), source) for source in sources))

def process(item, options, context, prepared):
    with (options.out.parent / "begun").open("a") as begun:
        begun.write(item.name + "\\n")
    pixels = item.payload.read_bytes()
    image, volume = (context.folder / f"{item.name}{suffix}" for suffix in (".tif", ".zarr"))
    with atomic_write(image) as part:
        part.write_bytes(pixels[::-1])
    with atomic_folder(volume) as part:
        for chunk in range(2):
            (part / str(chunk)).write_bytes(pixels[chunk::2])
    return Record((image, volume), {"bytes": float(len(pixels))})

COUNT = Command("run", "Reverse bytes.", Options, lambda options: options.out, find_items, process)
PIPELINE = Pipeline("reverse", "Reverse bytes.", (COUNT,))

for line in sys.stdin:
    home = Path(line.strip())
    child = os.fork()
    if child == 0:
        os.chdir(home)
        print(os.getpid(), flush=True)
        given = {"out": home / "out", "results": home / "results", "quiet": True}
        os._exit(cli._do(PIPELINE, COUNT, gather(PIPELINE, COUNT, given, {})))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Stem:
    """Starts runs, and kills them."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, home: Path, kill_after: float | None = None) -> int:
        """Run in a folder, killed after so many seconds, and return how the run ended."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{home}\n")
        self._process.stdin.flush()
        child = self._read()
        if kill_after is not None:
            time.sleep(kill_after)
            with suppress(ProcessLookupError):  # it was faster
                os.kill(child, signal.SIGKILL)
        return self._read()

    def _read(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())


@pytest.fixture(scope="module")
def stem(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stem]:
    environment = {**os.environ, "SAFELIGHT_CACHE": str(tmp_path_factory.mktemp("cache")), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", STEM]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True, env=environment) as process:
        yield Stem(process)
        assert process.stdin is not None
        process.stdin.close()


def make_home(folder: Path) -> Path:
    inputs = folder / "inputs"
    inputs.mkdir(parents=True)
    for number in range(ITEMS):
        (inputs / f"{number}.raw").write_bytes(random.Random(number).randbytes(50_000))
    return folder


def duration(stem: Stem, folder: Path) -> float:
    """Return how long an undisturbed run takes now, in seconds: that depends on what else the machine does."""
    home = make_home(folder / "timed")
    started = time.monotonic()
    assert stem.run(home) == 0
    took = time.monotonic() - started
    shutil.rmtree(home)
    return took


def results(home: Path) -> dict[str, str]:
    """Return the digest of every output that has its name."""
    out = home / "out"
    outputs = [*out.glob("[0-9]*.tif"), *out.glob("[0-9]*.zarr")] if out.exists() else []
    return {path.name: digest(path) for path in outputs}


def assert_readable(home: Path) -> None:
    """Every file that a program or a person may open now is whole."""
    for path in (home / "out" / JOURNAL, home / "out" / EVENTS, home / "results" / TRUTH):
        for line in path.read_text().splitlines() if path.exists() else ():
            json.loads(line)
    for path in [home / "out" / RECORD, home / "results" / ALL_RUNS, *(home / "results").glob("result_*.json")]:
        if path.exists():
            json.loads(path.read_text())


def assert_no_leftover(home: Path) -> None:
    assert [path for path in home.rglob("*") if is_temporary(path)] == []


def test_a_run_killed_at_a_hundred_moments_goes_on_where_it_stopped(stem: Stem, tmp_path: Path) -> None:
    reference = make_home(tmp_path / "reference")
    assert stem.run(reference) == 0
    expected, inputs = results(reference), digest(reference / "inputs")
    assert len(expected) == 2 * ITEMS
    moments, whole, hit = random.Random(2), duration(stem, tmp_path), Counter[int]()
    while hit.total() < KILLS:
        home = make_home(tmp_path / str(hit.total()))
        if stem.run(home, kill_after=moments.uniform(0, whole)) != -signal.SIGKILL:  # it was faster
            shutil.rmtree(home)
            whole = duration(stem, tmp_path)
            continue
        assert_readable(home)
        finished = set(results(home).items())
        assert finished <= set(expected.items())  # what has its name is whole
        assert stem.run(home) == 0
        assert results(home) == expected
        assert_readable(home)
        assert_no_leftover(home)
        begun = (home / "begun").read_text().split()
        assert len(begun) <= ITEMS + 1
        hit[len(begun) - ITEMS] += 1
        assert len(json.loads((home / "out" / RECORD).read_text())["items"]) == ITEMS
        assert digest(home / "inputs") == inputs
    assert hit[1] > 0  # some of the moments were in the middle of an item


def test_a_run_killed_again_and_again_ends(stem: Stem, tmp_path: Path) -> None:
    home, kills = make_home(tmp_path), 0
    moments = random.Random(3)
    while stem.run(home, kill_after=moments.uniform(0, 0.15)) == -signal.SIGKILL and kills < 50:
        kills += 1
        assert_readable(home)
    assert stem.run(home) == 0
    assert len(results(home)) == 2 * ITEMS
    assert len((home / "begun").read_text().split()) <= ITEMS + kills
    assert_no_leftover(home)
