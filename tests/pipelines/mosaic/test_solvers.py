"""Plate solvers are asked as they want to be asked, stopped in time, and believed only if it fits."""

from __future__ import annotations

import json
import shutil
import stat
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from safelight.pipelines.mosaic.solvers import Astap, AstrometryNet, Hints
from safelight.pipelines.mosaic.stars import StarField, measure_stars
from safelight.pipelines.mosaic.wcs import pixel_scale, pixel_to_sky, read_wcs_file, separation, sidecar_of

WIDTH, HEIGHT = 600, 800
Kind = type[AstrometryNet] | type[Astap]
HINTS = Hints(scale_low=2.2, scale_high=2.6, ra=192.8, dec=41.1, radius=2.0)
PICTURE = np.full((HEIGHT, WIDTH), np.nan, dtype=np.float32)

ASTROMETRY_NET = """
    import os, sys
    from astropy.io import fits
    from astropy.wcs import WCS
    arguments = sys.argv[1:]
    stars = fits.getdata(arguments[-1])
    value = lambda name: arguments[arguments.index(name) + 1]
    if BEHAVIOUR == "silent":
        print("Did not solve (or no WCS file was written).")
        sys.exit(0)
    if BEHAVIOUR == "broken":
        print("no index files", file=sys.stderr)
        sys.exit(255)
    wcs = WCS(fits.Header.fromstring(HEADER, sep="\\n"))
    header = wcs.to_header(relax=True)
    header["IMAGEW"], header["IMAGEH"] = int(value("--width")), int(value("--height"))
    folder = value("--dir")
    fits.PrimaryHDU(header=header).writeto(os.path.join(folder, "stars.wcs"))
    x, y = stars["X"][:20], stars["Y"][:20]
    ra, dec = wcs.all_pix2world(x + (9 if BEHAVIOUR == "misfit" else 0), y, 1)
    columns = {"field_x": x, "field_y": y, "index_ra": ra, "index_dec": dec}
    table = fits.BinTableHDU.from_columns([fits.Column(name=n, format="D", array=v) for n, v in columns.items()])
    table.writeto(os.path.join(folder, "stars.corr"))
"""

ASTAP = """
    import sys
    from astropy.io import fits
    from astropy.wcs import WCS
    arguments = sys.argv[1:]
    value = lambda name: arguments[arguments.index(name) + 1]
    assert "-wcs" in arguments
    picture = fits.getdata(value("-f"))
    assert (picture == 500).all(), "invalid pixels have the level of the sky"
    if BEHAVIOUR == "broken":
        sys.exit(32)
    if BEHAVIOUR == "silent":
        sys.exit(1)
    header = fits.Header.fromstring(HEADER, sep="\\n")
    with open(value("-o") + ".wcs", "w", newline="\\r\\n") as file:
        file.write(header.tostring(sep="\\n", endcard=True, padding=False))
"""

SLEEPER = """
    import pathlib, subprocess, sys, time
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    pathlib.Path(CHILD).write_text(str(child.pid))
    time.sleep(600)
"""


def solution(scale: float = 2.4) -> WCS:
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval = ["RA---TAN", "DEC--TAN"], [192.76, 41.34]
    wcs.wcs.crpix, wcs.wcs.cd = [300, 400], np.diag([-scale, -scale]) / 3600
    return wcs


@pytest.fixture
def field() -> StarField:
    random = np.random.default_rng(0)
    x, y = random.uniform(0, WIDTH, 40), random.uniform(0, HEIGHT, 40)
    none = np.zeros(40, dtype=np.bool_)
    return StarField(x, y, np.geomspace(1e5, 1e3, 40), np.full(40, 3.0), none, WIDTH, HEIGHT, 500.0, 10.0)


def stand_in(folder: Path, program: str, behaviour: str = "solves", wcs: WCS | None = None) -> str:
    """Write an executable that notes its arguments and behaves like a solver."""
    header = (wcs or solution()).to_header(relax=True).tostring(sep="\n", padding=False)
    path = folder / "solver"
    noted = f"import json, sys; open({str(folder / 'arguments')!r}, 'w').write(json.dumps(sys.argv[1:]))\n"
    values = f"BEHAVIOUR, HEADER, CHILD = {behaviour!r}, {header!r}, {str(folder / 'child')!r}\n"
    path.write_text(f"#!{sys.executable}\n{noted}{values}{textwrap.dedent(program)}", encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def arguments(folder: Path) -> dict[str, str]:
    """Return what followed each word of the command line."""
    words: list[str] = json.loads((folder / "arguments").read_text(encoding="utf-8"))
    return dict(zip(words, [*words[1:], ""], strict=True))


SOLVERS = [(AstrometryNet, ASTROMETRY_NET), (Astap, ASTAP)]


@pytest.mark.parametrize(("kind", "program"), SOLVERS)
def test_the_solver_s_answer_is_read(kind: Kind, program: str, field: StarField, tmp_path: Path) -> None:
    solved = kind(command=stand_in(tmp_path, program)).solve(field, PICTURE, HINTS, tmp_path)
    assert solved.failure is None
    assert solved.wcs is not None
    ra, dec = pixel_to_sky(solved.wcs, np.array([299.0]), np.array([399.0]))
    assert separation(ra, dec, np.array(192.76), np.array(41.34))[0] < 1e-9
    assert {path.name for path in tmp_path.iterdir()} == {"solver", "arguments"}  # nothing is left behind


def test_astrometry_net_gets_stars_scale_and_position(field: StarField, tmp_path: Path) -> None:
    AstrometryNet(command=stand_in(tmp_path, ASTROMETRY_NET), seconds=7).solve(field, PICTURE, HINTS, tmp_path)
    said = arguments(tmp_path)
    assert (said["--width"], said["--height"]) == ("600", "800")
    assert said["--scale-units"] == "arcsecperpix"
    assert (float(said["--scale-low"]), float(said["--scale-high"])) == (2.2, 2.6)
    assert (float(said["--ra"]), float(said["--dec"]), float(said["--radius"])) == (192.8, 41.1, 2.0)
    assert said["--cpulimit"] == "7"
    assert {"--no-plots", "--overwrite"} <= said.keys()
    AstrometryNet(command=stand_in(tmp_path, ASTROMETRY_NET)).solve(field, PICTURE, Hints(2.2, 2.6), tmp_path)
    assert "--ra" not in arguments(tmp_path)


def test_astap_gets_hours_and_distance_from_the_south_pole(field: StarField, tmp_path: Path) -> None:
    Astap(command=stand_in(tmp_path, ASTAP)).solve(field, PICTURE, HINTS, tmp_path)
    said = arguments(tmp_path)
    assert float(said["-ra"]) == pytest.approx(192.8 / 15, abs=1e-5)
    assert float(said["-spd"]) == pytest.approx(131.1)
    assert float(said["-fov"]) == pytest.approx(800 * 2.4 / 3600, abs=1e-3)
    assert float(said["-r"]) == 2.0
    Astap(command=stand_in(tmp_path, ASTAP)).solve(field, PICTURE, Hints(2.2, 2.6), tmp_path)
    assert arguments(tmp_path)["-r"] == "180"


def test_a_scratch_folder_with_a_strange_name_is_no_option(field: StarField, tmp_path: Path) -> None:
    scratch = tmp_path / "-rf; $(touch x)"
    scratch.mkdir()
    solved = AstrometryNet(command=stand_in(tmp_path, ASTROMETRY_NET)).solve(field, PICTURE, HINTS, scratch)
    assert solved.wcs is not None
    words = json.loads((tmp_path / "arguments").read_text(encoding="utf-8"))
    assert Path(words[-1]).is_absolute()
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("kind", [AstrometryNet, Astap])
def test_a_missing_solver_is_named(kind: Kind, field: StarField, tmp_path: Path) -> None:
    answer = kind(command="no-such-solver").solve(field, PICTURE, HINTS, tmp_path)
    assert (answer.wcs, answer.failure, answer.detail) == (None, "solver_missing", "no-such-solver")


@pytest.mark.parametrize(
    ("kind", "program", "behaviour", "failure", "detail"),
    [
        (AstrometryNet, ASTROMETRY_NET, "silent", "no_solution", "Did not solve"),
        (AstrometryNet, ASTROMETRY_NET, "broken", "solver_failed", "no index files"),
        (AstrometryNet, ASTROMETRY_NET, "misfit", "solution_rejected", "px off"),
        (Astap, ASTAP, "silent", "no_solution", "no solution"),
        (Astap, ASTAP, "broken", "solver_failed", "no star database"),
    ],
)
def test_a_failure_is_named(
    kind: Kind, program: str, behaviour: str, failure: str, detail: str, field: StarField, tmp_path: Path
) -> None:
    solver = kind(command=stand_in(tmp_path, program, behaviour))
    answer = solver.solve(field, PICTURE, HINTS, tmp_path)
    assert answer.wcs is None
    assert answer.failure == failure
    assert detail in answer.detail


@pytest.mark.parametrize(("kind", "program"), SOLVERS)
@pytest.mark.parametrize(
    ("wcs", "hints", "said"),
    [
        (solution(scale=1.2), HINTS, "arcsec/px"),
        (solution(), Hints(2.2, 2.6, ra=10.0, dec=-41.0, radius=2.0), "telescope pointed"),
    ],
)
def test_an_answer_that_contradicts_the_hints_is_rejected(
    kind: Kind, program: str, wcs: WCS, hints: Hints, said: str, field: StarField, tmp_path: Path
) -> None:
    solver = kind(command=stand_in(tmp_path, program, wcs=wcs))
    answer = solver.solve(field, PICTURE, hints, tmp_path)
    assert (answer.wcs, answer.failure) == (None, "solution_rejected")
    assert said in answer.detail


def test_a_solver_that_hangs_is_stopped_with_its_children(
    field: StarField, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("safelight.pipelines.mosaic.solvers.GRACE", 0.0)
    answer = AstrometryNet(command=stand_in(tmp_path, SLEEPER), seconds=2).solve(field, PICTURE, HINTS, tmp_path)
    assert answer.failure == "solver_timeout"
    child = int((tmp_path / "child").read_text(encoding="utf-8"))
    assert gone(child)


def gone(process: int) -> bool:
    """Wait a little until a process has ended (or is a zombie that nobody has asked for)."""
    for _ in range(500):
        try:
            if psutil.Process(process).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.skipif(shutil.which("solve-field") is None, reason="astrometry.net is not installed")
def test_a_real_frame_is_solved_by_astrometry_net(shared: Path, tmp_path: Path) -> None:
    path = sorted((shared / "data" / "m94" / "s1").glob("*.fits.fz"))[0]
    with fits.open(path) as file:
        raw = file[1].data.astype(np.float32)
    field = measure_stars((raw[0::2, 0::2] + raw[1::2, 1::2]) / 2)
    answer = AstrometryNet().solve(field, PICTURE, Hints(4.4, 5.2, ra=193.04, dec=40.97), tmp_path)
    if answer.failure == "solver_failed":
        pytest.skip(f"solve-field cannot run here: {answer.detail}")
    assert answer.wcs is not None, answer.detail
    assert pixel_scale(answer.wcs) == pytest.approx(2 * 2.376, rel=0.005)
    true = read_wcs_file(sidecar_of(path), 1080, 1920)
    x, y = np.array([269.5]), np.array([479.5])
    off = separation(*pixel_to_sky(answer.wcs, x, y), *pixel_to_sky(true, 2 * x + 0.5, 2 * y + 0.5))
    assert off[0] * 3600 < 2.4  # arc seconds: one pixel of the camera
