"""kill -9 in any phase of a mosaic: the next run ends with the same bytes, and does nothing twice that was finished."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from safelight.core.files import digest, is_temporary
from sky import panels

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills with a signal")

# Imports everything once, then runs the real command line in a forked child for every line that it is told. A child
# kills itself, without a chance to clean up, when a function is called for so many times: no moment can be missed.
STEM = """
import importlib, json, os, signal, sys
from safelight import cli
from safelight.pipelines.mosaic import process, report

def kill_at(module, path, calls):
    *owner, name = path.split(".")
    holder = importlib.import_module(module)
    for part in owner:
        holder = getattr(holder, part)
    function, left = getattr(holder, name), [calls]
    def counted(*arguments, **keywords):
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **keywords)
    setattr(holder, name, counted)

for line in sys.stdin:
    told = json.loads(line)
    child = os.fork()
    if child == 0:
        if told["kill"]:
            kill_at(*told["kill"])
        os._exit(cli.run(told["arguments"]))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""

MOSAIC = "safelight.pipelines.mosaic"
MOMENTS: dict[str, tuple[str, str, int]] = {
    "measuring": (f"{MOSAIC}.process", "stars_of", 3),
    "registering": (f"{MOSAIC}.process", "register_frame", 2),
    "stacking": (f"{MOSAIC}.stack_file", "PlanesSink.write", 1),
    "registering the second group": (f"{MOSAIC}.process", "register_frame", 5),
    "stacking the second group": (f"{MOSAIC}.stack_file", "PlanesSink.write", 2),
    "matching": (f"{MOSAIC}.process", "match", 1),
    "assembling": (f"{MOSAIC}.stack_file", "PlanesSink.write", 3),
    "drawing the preview": (f"{MOSAIC}.process", "write_preview", 1),
    "reporting": (f"{MOSAIC}.report", "write_report", 1),
}
FRAMES_PER_GROUP = 3


class Stem:
    """Starts runs that kill themselves."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, folder: Path, out: Path, kill: tuple[str, str, int] | None = None) -> int:
        """Make a mosaic, killed at so many calls of a function; return how it ended."""
        arguments = ["mosaic", "run", str(folder), "--out", str(out), "--solver", "none", "--quiet"]
        arguments += ["--results", str(out.parent / "results")]
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"arguments": arguments, "kill": kill}) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


@pytest.fixture(scope="module")
def stem(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stem]:
    environment = {**os.environ, "SAFELIGHT_CACHE": str(tmp_path_factory.mktemp("cache")), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", STEM]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True, env=environment) as process:
        yield Stem(process)
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return panels(tmp_path_factory.mktemp("frames"), frames=FRAMES_PER_GROUP)


@pytest.fixture(scope="module")
def undisturbed(stem: Stem, frames: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The digests of what an uninterrupted run makes."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    assert stem.run(frames, out) == 0
    made = results(out)
    assert {"mosaic_science.fits", "mosaic_preview.png", "group-01.fits", "group-02.fits"} <= made.keys()
    return made


def results(out: Path) -> dict[str, str]:
    """Return the digest of every picture that has its name."""
    paths = [*out.glob("mosaic_*"), *out.glob("tiles/group*")]
    return {path.name: digest(path) for path in paths}


def written(out: Path) -> dict[Path, int]:
    """Return when what a later run can use was written: measured frames and finished groups."""
    journal = out / "journal.jsonl"
    lines = [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []
    groups = [out / "tiles" / f"{line['item']}.fits" for line in lines if line.get("item", "").startswith("group")]
    return {path: path.stat().st_mtime_ns for path in (*out.glob("frames/*.npz"), *groups)}


def record(out: Path) -> dict[str, Any]:
    return json.loads((out / "run.json").read_text())


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_mosaic_goes_on_to_the_same_bytes(
    stem: Stem, frames: Path, undisturbed: dict[str, str], tmp_path: Path, moment: str
) -> None:
    before, out = digest(frames), tmp_path / "out"
    assert stem.run(frames, out, MOMENTS[moment]) == -signal.SIGKILL
    assert results(out).items() <= undisturbed.items(), "what has its name is whole"
    finished = written(out)
    assert (moment == "measuring") == (len(finished) < 2 * FRAMES_PER_GROUP)

    assert stem.run(frames, out) == 0
    assert results(out) == undisturbed
    assert {path: path.stat().st_mtime_ns for path in finished} == finished, "something was done twice"
    skipped = {event["data"]["name"] for event in record(out)["events"] if event["key"] == "item_skipped"}
    assert skipped == {path.stem for path in finished if path.parent.name == "tiles"} | (
        {"mosaic"} if moment == "reporting" else set()
    )
    assert digest(frames) == before
    assert not [path for path in out.rglob("*") if is_temporary(path)]
    assert not list((out / "scratch").iterdir())
