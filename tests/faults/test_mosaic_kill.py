"""kill -9 in any phase of a mosaic: the next run ends with the same bytes, and does nothing twice that was finished."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from forked import Moment, Stem, stem
from safelight.core.files import digest, is_temporary
from sky import panels

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills with a signal")

MOSAIC = "safelight.pipelines.mosaic"
MOMENTS: dict[str, Moment] = {
    "measuring": (f"{MOSAIC}.process", "stars_of", 3),
    "registering": (f"{MOSAIC}.process", "register_frame", 2),
    "stacking": (f"{MOSAIC}.stack_file", "PlanesSink.write", 1),
    "stacking the second group": (f"{MOSAIC}.stack_file", "PlanesSink.write", 2),
    "assembling": (f"{MOSAIC}.stack_file", "PlanesSink.write", 3),
    "reporting": (f"{MOSAIC}.report", "write_report", 1),
}
FRAMES_PER_GROUP = 3


@pytest.fixture(scope="module")
def runs() -> Iterator[Stem]:
    with stem() as process:
        yield process


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return panels(tmp_path_factory.mktemp("frames"), frames=FRAMES_PER_GROUP)


@pytest.fixture(scope="module")
def undisturbed(runs: Stem, frames: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The digests of what an uninterrupted run makes."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    assert runs.mosaic(frames, out) == 0
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
    runs: Stem, frames: Path, undisturbed: dict[str, str], tmp_path: Path, moment: str
) -> None:
    before, out = digest(frames), tmp_path / "out"
    assert runs.mosaic(frames, out, kill=MOMENTS[moment]) == -signal.SIGKILL
    assert results(out).items() <= undisturbed.items(), "what has its name is whole"
    finished = written(out)
    assert (moment == "measuring") == (len(finished) < 2 * FRAMES_PER_GROUP)

    assert runs.mosaic(frames, out) == 0
    assert results(out) == undisturbed
    assert {path: path.stat().st_mtime_ns for path in finished} == finished, "something was done twice"
    skipped = {event["data"]["name"] for event in record(out)["events"] if event["key"] == "item_skipped"}
    assert skipped == {path.stem for path in finished if path.parent.name == "tiles"} | (
        {"mosaic"} if moment == "reporting" else set()
    )
    assert digest(frames) == before
    assert not [path for path in out.rglob("*") if is_temporary(path)]
    assert not (out / "scratch").exists()
