"""What ``safelight plan mosaic run`` says: frames, what was left out, and memory, without reading a pixel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from astropy.io.fits import Header

from safelight.cli import run
from safelight.core.execute import Executor
from safelight.formats.fits import create_fits
from safelight.pipelines.mosaic.chunks import CHUNK_BYTES

FRAMES, HEIGHT, WIDTH = 6, 900, 600
SIDE = 1082
"""Of the square that holds a frame at any angle."""
DRY_RUN = ("--dry-run", "--device", "cpu", "--json")


@pytest.fixture
def lights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of frames that hold nothing, one of another size."""
    monkeypatch.setenv("SAFELIGHT_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "lights"
    folder.mkdir()
    for number in range(FRAMES):
        write_empty_frame(folder / f"{number}.fits", (HEIGHT, WIDTH))
    write_empty_frame(folder / "other.fits", (HEIGHT, WIDTH + 1))
    return folder


def write_empty_frame(path: Path, shape: tuple[int, int]) -> None:
    with create_fits(path, {"LIGHT": (shape, Header({"EXPTIME": 10.0}))}):
        pass


def events_of(capsys: pytest.CaptureFixture[str]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for line in capsys.readouterr().out.splitlines():
        event = json.loads(line)
        found.setdefault(event["key"], []).append(event["data"])
    return found


def test_a_plan_counts_frames_names_refusals_and_writes_nothing(
    lights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = lights.parent / "out"
    assert run(["plan", "mosaic", "run", str(lights), "--out", str(out), "--device", "cpu", "--json"]) == 0
    events = events_of(capsys)
    (stacking,) = events["stack_planned"]
    assert stacking == {"frames": FRAMES, "width": WIDTH, "height": HEIGHT, "channels": 1, "side": SIDE}
    (refusal,) = events["item_refused"]
    assert refusal["name"] == "other.fits"
    assert [plan["kernel"] for plan in events["plan"]] == ["resample_bicubic", "stack", "coadd"]
    assert not out.exists()


def test_the_plan_counts_every_frame_and_every_channel(lights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def stack_bytes(*more: str) -> int:
        run(["mosaic", "run", str(lights), "--out", "out", *DRY_RUN, *more])
        size: int = events_of(capsys)["plan"][1]["predicted_bytes"]
        return size

    grey, colour = stack_bytes(), stack_bytes("--bayer-pattern", "RGGB")
    samples = FRAMES * SIDE**2 * 4
    assert grey > samples
    assert colour > CHUNK_BYTES, "more than is enough for a chunk"
    assert colour < 3 * grey


def test_a_drizzle_is_planned_on_its_finer_grid(lights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(["mosaic", "run", str(lights), "--out", "out", *DRY_RUN, "--drizzle", "2"])
    _, judge, drizzle, coadd = events_of(capsys)["plan"]
    assert [plan["kernel"] for plan in (judge, drizzle, coadd)] == ["judge", "drizzle", "coadd"]
    assert (judge["extent"], drizzle["extent"], coadd["extent"]) == (SIDE, 2 * SIDE, 2 * SIDE)
    band = drizzle["rows"] * 7 * 4 * 2 * SIDE
    assert drizzle["predicted_bytes"] > 2 * band, "a band, and the next one that the C library fills meanwhile"


def test_a_limit_makes_chunks_that_keep_it(lights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(["mosaic", "run", str(lights), "--out", "out", *DRY_RUN, "--memory-limit", "96MiB"])
    _, stack, _ = events_of(capsys)["plan"]
    assert stack["chunks"] > 1
    assert stack["predicted_bytes"] <= stack["budget_bytes"] == 96 << 20


def test_what_the_limit_does_not_govern_is_said(lights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def besides(*more: str) -> int:
        run(["mosaic", "run", str(lights), "--out", "out", *DRY_RUN, *more])
        (said,) = events_of(capsys)["memory_besides"]
        size: int = said["besides_bytes"]
        return size

    assert besides("--memory-limit", "96MiB") == besides() > 40 * HEIGHT * WIDTH
    assert besides("--bayer-pattern", "RGGB") > besides()


def test_no_pixel_is_read(lights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a plan reads no pixels")

    monkeypatch.setattr("safelight.formats.fits.FitsImage.read", refuse)
    monkeypatch.setattr(Executor, "map", refuse)
    assert run(["mosaic", "run", str(lights), "--out", "out", *DRY_RUN]) == 0
