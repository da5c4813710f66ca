"""What an astrophotographer types, with good frames and with bad ones."""

from __future__ import annotations

import itertools
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from astropy.io import fits
from astropy.wcs import WCS
from torch import Tensor

from safelight.core import execute
from safelight.core.errors import UsageError
from safelight.core.files import digest
from safelight.core.plan import Plan
from safelight.kernels.combine import PLANES
from safelight.pipelines.mosaic import process, registered, stack
from safelight.pipelines.mosaic.stars import StarField, measure_stars
from sky import PLACES, SCALE, Camera, Floats, Made, Stars, mosaic, panels, take

LARGEST_OFFSET = 0.3
"""Pixels by which a star may be off."""


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFELIGHT_CACHE", str(tmp_path / "cache"))


def found_stars(made: Made) -> StarField:
    """Return the stars of the mosaic, in green."""
    planes = made.plane()
    return measure_stars(planes[len(planes) // 2])


def offsets(made: Made, stars: Stars) -> Floats:
    """Return how many pixels the mosaic's bright stars lie from those of the sky."""
    field = found_stars(made)
    ra, dec = made.wcs().all_pix2world(field.x, field.y, 0)
    towards = np.cos(np.radians(dec))[:, None]
    off = np.hypot((ra[:, None] - stars.ra) * towards, dec[:, None] - stars.dec).min(axis=1) * 3600 / SCALE
    return off[: len(off) // 2]


@pytest.mark.parametrize("camera", [Camera(), Camera(pattern="GRBG"), Camera(channels=3)], ids=["mono", "Bayer", "RGB"])
def test_frames_become_one_audited_mosaic(tmp_path: Path, camera: Camera) -> None:
    made = mosaic(take(tmp_path / "in", camera), tmp_path / "out")
    assert made.status == 0, made.said
    channels = 3 if camera.pattern or camera.channels == 3 else 1
    with fits.open(made.science) as file:
        file.verify("exception")
        assert [hdu.name for hdu in file] == ["IMAGE", "WEIGHT", "VARIANCE", "NEFF", "COVERAGE", "LOW", "HIGH"]
        for hdu in file:
            assert hdu.header["CTYPE1"].startswith("RA---TAN"), hdu.name
            assert hdu.data.shape == file[0].data.shape, hdu.name
        assert file[0].data.shape[-2:] >= camera.size
        assert file[0].header["NFRAMES"] == 6
    assert made.plane().shape[0] == channels
    off = offsets(made, camera.stars)
    assert len(off) > 5
    assert off.max() < LARGEST_OFFSET
    assert {name for name, _ in made.checks} == {
        "noise_gain",
        "flux_conservation",
        "fwhm_growth",
        "astrometric_residual",
    }
    assert all(check["passed"] for check in made.checks.values()), made.checks
    assert (made.out / "mosaic_preview.png").stat().st_size > 5_000
    assert "light_003" in made.report
    assert not (made.out / "scratch").exists() or not list((made.out / "scratch").iterdir())


def test_the_planes_say_how_good_every_pixel_is(tmp_path: Path) -> None:
    made = mosaic(take(tmp_path / "in"), tmp_path / "out", "--weighting", "none", "--min-coverage", "0")
    image, coverage, effective, variance = (made.plane(name)[0] for name in ("IMAGE", "COVERAGE", "NEFF", "VARIANCE"))
    assert coverage.max() == 6
    assert coverage.min() == 0
    assert (np.isnan(image) == (coverage == 0)).all()
    assert np.allclose(effective, coverage)
    assert np.median(variance[coverage == 6]) == pytest.approx(np.median(variance[coverage == 3]) / 2, rel=0.05)
    sky = image[(coverage == 6) & (image < 1100)]
    assert np.median(sky) == pytest.approx(1000, abs=2)


def test_pixels_without_data_never_bias(tmp_path: Path) -> None:
    """A sky of 1000 stays 1000 beside holes and at the edges, where fewer frames lie."""
    camera = Camera(stars=Stars.scattered(40))
    for number, (dx, dy, turn) in enumerate(PLACES):
        place = (4 * dx, 4 * dy, turn)
        pixels = camera.shot(camera.solution(*place), number)
        pixels[0, 30:60, 40 + 8 * number : 60 + 8 * number] = np.nan
        camera.write(tmp_path / "in" / f"{number}.fits", 0, place, dtype=np.float32, pixels=pixels)
    made = mosaic(tmp_path / "in", tmp_path / "out", "--min-coverage", "0")
    image, coverage = made.plane()[0], made.plane("COVERAGE")[0]
    assert (coverage[80:110, 60:120] < 6).any()
    for frames in range(1, 7):
        sky = image[coverage == frames]
        assert np.percentile(sky, 0.5) > 1000 - 6 * camera.noise / np.sqrt(frames), frames
        assert np.median(sky) == pytest.approx(1000, abs=4), frames
    assert (np.isnan(image) == (coverage == 0)).all()


def test_one_hit_of_60000_does_not_survive(tmp_path: Path) -> None:
    folder = take(tmp_path / "in", frames=5)
    with fits.open(folder / "light_001.fits", mode="update") as file:
        assert file[0].data[15:26, 60:71].max() < 1100, "there is no star"
        file[0].data[20, 65] = 60_000
    made = mosaic(folder, tmp_path / "out")
    x, y = made.wcs().all_world2pix(*Camera().solution(*PLACES[1]).all_pix2world(65, 20, 0), 0)
    around = made.plane()[0, int(y) - 4 : int(y) + 6, int(x) - 4 : int(x) + 6]
    assert around.shape == (10, 10)
    assert np.abs(around - 1000).max() < 4 * Camera().noise
    lost = made.plane("HIGH")[0, int(y) - 1 : int(y) + 3, int(x) - 1 : int(x) + 3]
    assert lost.max() == 1, "the map of rejection shows it"
    assert made.plane("HIGH").mean() < 0.1


def scaled_frames(folder: Path, a: float, b: float) -> Path:
    camera = Camera()
    for number, place in enumerate(PLACES):
        pixels = a * camera.shot(camera.solution(*place), number) + b
        camera.write(folder / f"{number}.fits", 0, place, dtype=np.float64, pixels=pixels)
    return folder


def test_the_unit_of_the_frames_changes_nothing(tmp_path: Path) -> None:
    """f(aX + b) = a f(X) + b, from frames of 0 to 1 to frames of millions."""
    plain = mosaic(scaled_frames(tmp_path / "in", 1, 0), tmp_path / "out")
    for number, (a, b) in enumerate([(1 / 65535, 0.25), (100.0, -7000.0)]):
        made = mosaic(scaled_frames(tmp_path / f"in-{number}", a, b), tmp_path / f"out-{number}")
        assert made.status == 0, made.said
        difference = np.abs((made.plane() - b) / a - plain.plane()) / Camera().noise
        assert np.nanmedian(difference) < 1e-3
        assert np.nanpercentile(difference, 99.9) < 0.02
        assert (np.isnan(made.plane()) == np.isnan(plain.plane())).all()
        np.testing.assert_allclose(made.wcs().wcs.crpix, plain.wcs().wcs.crpix, atol=1e-4)


def test_the_order_of_the_frames_changes_nothing(tmp_path: Path) -> None:
    first = mosaic(panels(tmp_path / "in"), tmp_path / "first")
    names = sorted(path.name for path in (tmp_path / "in").iterdir())
    for number, name in enumerate(names):
        new = tmp_path / "other" / f"{number * 5 % 8}.fits"
        new.parent.mkdir(exist_ok=True)
        shutil.copy(tmp_path / "in" / name, new)
    second = mosaic(tmp_path / "other", tmp_path / "second")
    assert digest(first.science) == digest(second.science)


def test_chunks_of_any_size_give_the_same_mosaic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = take(tmp_path / "in", Camera(pattern="RGGB"), frames=4)
    whole = mosaic(folder, tmp_path / "whole")
    make_plan = execute.make_plan
    for rows in (1, 7, 64):

        def plan_of_rows(*arguments: object, rows: int = rows, **named: object) -> Plan:
            return make_plan(*arguments, **named).with_rows(rows)

        monkeypatch.setattr(execute, "make_plan", plan_of_rows)
        chunked = mosaic(folder, tmp_path / f"rows-{rows}")
        assert {event["data"]["rows"] for event in chunked.events("gpu_chunking_rows")} == {rows}
        assert digest(chunked.science) == digest(whole.science)


def test_a_memory_limit_gives_the_same_mosaic(tmp_path: Path) -> None:
    camera = Camera(size=(400, 480), stars=Stars.scattered(200, 800, 700))
    whole = mosaic(take(tmp_path / "in", camera, 12), tmp_path / "whole")
    limited = mosaic(tmp_path / "in", tmp_path / "limited", "--memory-limit", "48MiB")
    assert limited.status == 0, limited.said
    assert limited.events("gpu_chunking_rows")
    assert digest(limited.science) == digest(whole.science)
    for measured in limited.document["memory"]:
        assert measured["measured_bytes"] <= 48 * 2**20, measured


@pytest.mark.parametrize("how", [(), ("--drizzle", "1")], ids=["interpolated", "drizzled"])
def test_with_radial_weights_the_middle_of_one_frame_counts_more_than_the_corner_of_another(
    tmp_path: Path, how: tuple[str, ...]
) -> None:
    """Two frames in four corner to corner, the second brighter by 100: what lies between tells how much each counts."""
    camera = Camera(size=(160, 160), noise=1.0, stars=Stars.scattered(60, 300, 300))
    for number in range(4):
        place = (40 * (number % 2), 40 * (number % 2), 0)
        pixels = camera.shot(camera.solution(*place), number) + 100 * (number % 2)
        camera.write(tmp_path / "in" / f"{number}.fits", 0, place, pixels=pixels)
    options = ("--normalisation", "none", "--rejection", "none", "--weighting", "none", "--no-match-background", *how)
    plain, radial = (
        mosaic(tmp_path / "in", tmp_path / name, *options, *more)
        for name, more in (("plain", ()), ("radial", ("--radial-weight", "--radial-feather", "0.9")))
    )
    assert plain.status == radial.status == 0, radial.said
    x, y = (round(float(at)) for at in radial.wcs().all_world2pix(*camera.solution().all_pix2world(79.5, 79.5, 0), 0))
    middle_of_one = np.s_[0, y - 5 : y + 5, x - 5 : x + 5]
    assert np.median(plain.plane()[middle_of_one]) == pytest.approx(1050, abs=2)
    other = 1 - 0.9 * (2 * 40**2) / (2 * 79.5**2)
    assert np.median(radial.plane()[middle_of_one]) == pytest.approx(1000 + 100 * other / (1 + other), abs=2)
    effective = np.median(radial.plane("NEFF")[middle_of_one]) / np.median(plain.plane("NEFF")[middle_of_one])
    assert effective == pytest.approx((1 + other) ** 2 / (1 + other**2) / 2, rel=0.005)
    assert (np.isnan(radial.plane()) == np.isnan(plain.plane())).all(), "no pixel is lost"


@pytest.mark.parametrize("assembly", ["reproject_coadd", "incremental"])
def test_panels_under_different_skies_join_without_a_seam(tmp_path: Path, assembly: str) -> None:
    camera = Camera()
    made = mosaic(panels(tmp_path / "in", camera), tmp_path / "out", "--final-assembly", assembly)
    assert made.status == 0, made.said
    (seam,) = (check for (name, _), check in made.checks.items() if name == "seam_step")
    assert seam["measured"] < 0.1
    assert all(check["passed"] for check in made.checks.values()), made.checks
    assert offsets(made, camera.stars).max() < LARGEST_OFFSET
    unmatched = mosaic(tmp_path / "in", tmp_path / "unmatched", "--no-match-background")
    (seam,) = (check for (name, _), check in unmatched.checks.items() if name == "seam_step")
    assert not seam["passed"]


def test_stars_have_one_light_in_all_panels_also_under_a_sky_that_is_bent(tmp_path: Path) -> None:
    """The sky of one panel is bright at its sides: that must not pass for a gain."""
    camera = Camera(size=(200, 300), stars=Stars.scattered(150, 560, 300))
    dimmer = replace(camera, background=0, stars=replace(camera.stars, flux=0.7 * camera.stars.flux))
    _, x = np.indices(camera.size)
    bent = 1300 + 100 * ((x - 150) / 150) ** 2
    for number, (dx, dy, turn) in enumerate(PLACES[:4]):
        camera.write(tmp_path / "in" / f"a_{number}.fits", number, (dx - 85, dy, turn))
        place = (dx + 85, dy, turn)
        pixels = dimmer.shot(dimmer.solution(*place), 50 + number) + bent
        dimmer.write(tmp_path / "in" / f"b_{number}.fits", 0, place, pixels=pixels)
    made = mosaic(tmp_path / "in", tmp_path / "out")
    assert made.status == 0, made.said
    stars = found_stars(made)
    x0, y0 = made.wcs().all_world2pix(camera.stars.ra, camera.stars.dec, 0)
    distance = np.hypot(stars.x[:, None] - x0, stars.y[:, None] - y0)
    light = (stars.flux / camera.stars.flux[distance.argmin(1)])[distance.min(1) < 1]
    place = stars.x[distance.min(1) < 1]
    left, right = (float(np.median(light[side])) for side in (place < 150, place > made.plane().shape[2] - 150))
    assert left == pytest.approx(right, rel=0.05)


def test_both_assemblies_agree_where_nothing_is_rejected(tmp_path: Path) -> None:
    folder = panels(tmp_path / "in")
    at_once, one_by_one = (
        mosaic(folder, tmp_path / assembly, "--final-assembly", assembly)
        for assembly in ("reproject_coadd", "incremental")
    )
    for name in ("IMAGE", "WEIGHT", "VARIANCE", "NEFF", "COVERAGE", "LOW", "HIGH"):
        np.testing.assert_allclose(one_by_one.plane(name), at_once.plane(name), rtol=2e-6)


def test_frames_without_a_solution_lie_on_a_relative_grid_and_the_run_says_so(tmp_path: Path) -> None:
    made = mosaic(take(tmp_path / "in", solved=False), tmp_path / "out")
    assert made.status == 0, made.said
    (event,) = made.events("relative_grid")
    assert event["severity"] == "warning"
    assert "relative" in made.said
    assert all(check["passed"] for check in made.checks.values())
    assert made.plane("COVERAGE").max() == 6


@pytest.mark.parametrize("solved", [True, False], ids=["solved", "unsolved"])
def test_frames_stored_from_the_bottom_up_lie_on_the_others(tmp_path: Path, solved: bool) -> None:
    """Some programs write the last row first; with the others' the frames then are of both parities."""
    camera = Camera(pattern="RGGB")
    folder = take(tmp_path / "in", camera, solved=solved)
    for number in (1, 4):
        with fits.open(folder / f"light_{number:03}.fits", mode="update") as file:
            file[0].data = np.ascontiguousarray(file[0].data[::-1])
            file[0].header["ROWORDER"] = "BOTTOM-UP"  # BAYERPAT goes on to be that of the picture's top
            if solved:
                file[0].header["CRPIX2"] = camera.size[0] + 1 - file[0].header["CRPIX2"]
                for card in ("PC1_2", "PC2_2"):
                    file[0].header[card] = -file[0].header.get(card, 0.0 if card == "PC1_2" else 1.0)
    made = mosaic(folder, tmp_path / "out")
    assert made.status == 0, made.said
    assert made.plane("COVERAGE").max() == 6
    assert all(check["passed"] for check in made.checks.values()), made.checks
    light = [measure_stars(plane).flux[:20].sum() for plane in made.plane()]
    assert light[0] / light[1] == pytest.approx(0.8, rel=0.05)
    assert light[2] / light[1] == pytest.approx(0.6, rel=0.05)


def test_a_solver_that_is_not_installed_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    made = mosaic(take(tmp_path / "in", solved=False), tmp_path / "out", solver="astap")
    assert made.status == UsageError.exit_status == 2
    (line,) = (line for line in made.said.splitlines() if line.startswith("safelight:"))
    assert "astap is not installed" in line
    assert "--solver none" in line


def bad_frames(folder: Path) -> dict[str, str]:
    """Write frames that cannot be used; return what must be said about each."""
    camera = Camera()
    (folder / "junk.fits").write_bytes(b"no FITS at all" * 300)
    (folder / "empty.fit").write_bytes(b"")
    whole = camera.write(folder / "cut.fits", 50).read_bytes()
    (folder / "cut.fits").write_bytes(whole[: len(whole) // 2])
    lying = whole.replace(b"NAXIS1  =                  220", b"NAXIS1  =             90000000")
    assert lying != whole
    (folder / "lying.fits").write_bytes(lying)
    replace(camera, size=(90, 100)).write(folder / "small.fits", 51)
    camera.write(folder / "halpha.fits", 52, FILTER="Ha")
    replace(camera, stars=Stars.scattered(0)).write(folder / "clouds.fits", 53, solved=False)
    replace(camera, stars=Stars.scattered(seed=9)).write(folder / "elsewhere.fits", 54, solved=False)
    camera.write(folder / "seestar.fits", 55, INSTRUME="Seestar S50")
    camera.write(folder / "dark.fits", 56, IMAGETYP="Dark Frame")
    return {
        "junk": "",
        "empty": "",
        "cut": "",
        "lying": "",
        "small": "100 × 90 pixels",
        "halpha": "filter Ha",
        "clouds": "no stars",
        "elsewhere": "its stars match those of no other frame",
        "seestar": "BAYERPAT is missing",
        "dark": "IMAGETYP",
    }


DAMAGED = ("junk", "empty", "cut", "lying", "seestar")


def test_bad_frames_are_named_with_the_reason_and_the_rest_is_done(tmp_path: Path) -> None:
    folder = take(tmp_path / "in")
    reasons = bad_frames(folder)
    made = mosaic(folder, tmp_path / "out")
    assert made.status == 1  # some are damaged
    refused = {Path(refusal["name"]).name.split(".")[0]: refusal["error"] for refusal in made.document["refused"]}
    assert refused.keys() == reasons.keys()
    for name, reason in reasons.items():
        assert reason in refused[name]
        assert f"{name}.fit" in made.said
        assert f"{name}.fit" in made.report
    assert made.plane("COVERAGE").max() == 6
    assert all(check["passed"] for check in made.checks.values())


def test_frames_that_do_not_belong_are_no_error_unless_it_is_asked_for(tmp_path: Path) -> None:
    folder = take(tmp_path / "in")
    reasons = bad_frames(folder)
    for name in DAMAGED:
        for path in folder.glob(f"{name}.*"):
            path.unlink()
    made = mosaic(folder, tmp_path / "out")
    assert made.status == 0, made.said
    assert len(made.document["refused"]) == len(reasons) - len(DAMAGED)
    assert mosaic(folder, tmp_path / "out", "--strict").status == 1


@pytest.mark.parametrize("what", ["nothing", "junk", "clouds", "missing"])
def test_nothing_usable_is_one_clear_error(tmp_path: Path, what: str) -> None:
    folder = tmp_path / "in"
    if what != "missing":
        folder.mkdir()
    if what == "junk":
        (folder / "junk.fits").write_bytes(b"no FITS at all" * 300)
    if what == "clouds":
        take(folder, Camera(stars=Stars.scattered(0)))
    made = mosaic(folder, tmp_path / "out")
    assert made.status == 1
    (line,) = (line for line in made.said.splitlines() if line.startswith("safelight:"))
    assert "in" in line
    assert not made.science.exists()


def test_inputs_are_only_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = take(tmp_path / "in")
    before = digest(folder)
    assert mosaic(folder, tmp_path / "out").status == 0
    assert digest(folder) == before

    def broken(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", str(tmp_path / "out" / "mosaic_science.fits"))

    monkeypatch.setattr(process, "write_preview", broken)
    failed = mosaic(folder, tmp_path / "failed")
    assert failed.status == 1
    assert "No space left" in failed.said
    assert digest(folder) == before


def test_a_second_run_does_nothing_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = take(tmp_path / "in")
    first = mosaic(folder, tmp_path / "out")
    before = digest(first.science)

    def again(*_: object, **__: object) -> None:
        raise AssertionError("done again")

    monkeypatch.setattr(process, "register_frame", again)
    monkeypatch.setattr(process, "coadd_kernel", again)
    monkeypatch.setattr("safelight.pipelines.mosaic.frames.measure_stars", again)
    second = mosaic(folder, tmp_path / "out")
    assert second.status == 0, second.said
    assert {event["data"]["name"] for event in second.events("item_skipped")} == {"group-01", "mosaic"}
    assert digest(second.science) == before
    assert second.checks == first.checks


def test_another_frame_is_measured_and_the_others_are_not(tmp_path: Path) -> None:
    folder = take(tmp_path / "in", frames=5)
    mosaic(folder, tmp_path / "out")
    Camera().write(folder / "new.fits", 77, (2, 2, 0))
    made = mosaic(folder, tmp_path / "out")
    assert made.status == 0
    assert made.plane("COVERAGE").max() == 6
    assert len(list((tmp_path / "out" / "frames").iterdir())) == 6


def test_a_stack_of_one_frame_is_not_called_a_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All frames but one lost, and a wrong number of frames said: the noise tells, and --strict makes it an error."""
    honest = stack.stack_rows

    def only_one(samples: Tensor, *constants: Tensor, **named: Any) -> Tensor:
        lost = samples.clone()
        lost[..., 1:] = torch.nan
        planes = honest(lost, *constants, **named)
        planes[:, PLANES.index("n_eff")] = samples.shape[-1]
        return planes

    monkeypatch.setattr(stack, "stack_rows", only_one)
    folder = take(tmp_path / "in")
    made = mosaic(folder, tmp_path / "out")
    assert made.status == 0
    assert not made.checks["noise_gain", "group-01"]["passed"]
    assert [event["data"]["name"] for event in made.events("audit_missed")] == ["noise_gain"]
    strict = mosaic(folder, tmp_path / "out", "--strict")
    assert strict.events("item_skipped"), "nothing is done again, and it still is not right"
    assert strict.status == 1
    assert "noise_gain" in strict.said
    assert strict.science.exists()


def test_smeared_stars_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames put down 1.5 pixels from where they belong, every second one to the other side."""
    honest = registered.sky_transform
    sides = itertools.cycle((1.5, -1.5))

    def off(canvas: WCS, wcs: WCS, size: tuple[int, int]) -> Any:
        moved = wcs.deepcopy()
        moved.wcs.crpix = np.add(wcs.wcs.crpix, (next(sides), 0))
        moved.wcs.set()
        return honest(canvas, moved, size)

    monkeypatch.setattr(registered, "sky_transform", off)
    made = mosaic(take(tmp_path / "in"), tmp_path / "out")
    missed = {name for (name, _), check in made.checks.items() if not check["passed"]}
    assert missed >= {"fwhm_growth", "astrometric_residual"}
    assert len(made.events("audit_missed")) == len(missed)
