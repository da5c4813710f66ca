"""A disk that fills up while a mosaic is made: said by the file, nothing half written, no input changed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from forked import Stem, stem
from safelight.core.files import digest, is_temporary
from sky import panels

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="only POSIX limits the size of files")

# Larger than what was written before, smaller than what the phase writes: frames of 180 × 220 make groups of some
# 190 × 230 pixels, whose stacks have seven planes, and a mosaic with five of 190 × 360.
LIMITS = {
    "measuring": (2_000, "frames/"),
    "registering": (100_000, "scratch/group-01/00000.raw"),
    "stacking": (600_000, "tiles/group-01.fits"),
    "assembling": (1_300_000, "mosaic_science.fits"),
}


@pytest.fixture(scope="module")
def runs() -> Iterator[Stem]:
    with stem() as process:
        yield process


@pytest.mark.parametrize("phase", LIMITS)
def test_a_full_disk_is_told_and_leaves_nothing_half_written(runs: Stem, tmp_path: Path, phase: str) -> None:
    limit, name = LIMITS[phase]
    frames, out = panels(tmp_path / "in", frames=2), tmp_path / "out"
    before = digest(frames)
    assert runs.mosaic(frames, out, limit=limit) == 1
    told = [line for line in runs.said.splitlines() if "cannot be written" in line]
    assert f"{out}/{name}" in told[0]
    assert "Try: choose another disk" in told[0]
    assert "Traceback" not in runs.said
    assert digest(frames) == before
    assert not [path for path in out.rglob("*") if is_temporary(path)]
    assert not (out / "scratch").exists() or not list((out / "scratch").iterdir())
    assert not list(out.glob("mosaic_*"))
    if phase != "assembling":
        assert not list(out.glob("tiles/*"))

    assert runs.mosaic(frames, out) == 0, "with space, the run goes on"
    assert (out / "mosaic_science.fits").exists()
    done = {item["name"] for item in json.loads((out / "run.json").read_text())["items"] if item["seconds"] is not None}
    assert done == ({"mosaic"} if phase == "assembling" else {"group-01", "group-02", "mosaic"})
