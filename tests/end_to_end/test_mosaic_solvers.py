"""Plate solvers within a run: a real one where it is installed, and a stand-in that finds nothing."""

from __future__ import annotations

import shutil
import stat
import sys
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from safelight.pipelines.mosaic.stars import measure_stars
from safelight.pipelines.mosaic.wcs import pixel_to_sky, read_wcs_file, sidecar_of, sky_to_pixel
from sky import mosaic, take


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFELIGHT_CACHE", str(tmp_path / "cache"))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("solve-field") is None, reason="astrometry.net is not installed")
def test_astrometry_net_puts_real_frames_where_they_are(tmp_path: Path, shared: Path) -> None:
    """The sky of the mosaic is that of the solutions beside the frames, which the run does not see."""
    frames = sorted((shared / "data" / "m94" / "s1").glob("*.fits.fz"))[:2]
    folder = tmp_path / "in"
    folder.mkdir()
    for frame in frames:
        shutil.copy(frame, folder)
    made = mosaic(folder, tmp_path / "out", solver="astrometry.net")
    assert made.status == 0, made.said
    (event,) = made.events("solver_used")
    assert event["data"] == {"solver": "astrometry.net", "frames": 2}
    assert not made.events("not_solved")
    assert not made.events("relative_grid")
    with fits.open(frames[0]) as file:
        raw = file[1].data.astype(np.float32)
    field = measure_stars((raw[0::2, 0::2] + raw[1::2, 1::2]) / 2)  # the green sites; pixels of twice the size
    known = read_wcs_file(sidecar_of(frames[0]), 1080, 1920)
    x, y = sky_to_pixel(made.wcs(), *pixel_to_sky(known, 2 * field.x[:40] + 0.5, 2 * field.y[:40] + 0.5))
    stars = measure_stars(made.plane()[1])
    off = np.hypot(x[:, None] - stars.x, y[:, None] - stars.y).min(axis=1)
    assert np.median(off) < 1, "a pixel is 2.4 arc seconds"


def test_frames_that_a_solver_cannot_solve_are_placed_by_their_stars(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    solver = tmp_path / "bin" / "astap"
    solver.parent.mkdir()
    solver.write_text(f"#!{sys.executable}\nimport sys\nsys.exit(1)\n")
    solver.chmod(solver.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(solver.parent))
    made = mosaic(take(tmp_path / "in", frames=3, solved=False), tmp_path / "out", solver="astap")
    assert made.status == 0, made.said
    assert [event["data"]["reason"] for event in made.events("not_solved")] == ["no solution"] * 3
    assert made.events("relative_grid")
    assert made.plane("COVERAGE").max() == 3
