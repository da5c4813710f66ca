"""Drizzle, as an astrophotographer would judge it: light, sharpness, colours, trails, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from scipy.spatial.distance import cdist

import sky
from safelight.core import execute
from safelight.core.files import digest
from safelight.core.plan import Plan
from safelight.pipelines.mosaic import drizzle
from safelight.pipelines.mosaic.stars import measure_stars
from sky import COLOURS, Camera, Made, Stars, mosaic, take


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFELIGHT_CACHE", str(tmp_path / "cache"))


def light_of(made: Made, ra: float, dec: float, radius: float, channel: int = 0) -> float:
    """Return the sum of a star's pixels above the sky around it, of those within a radius in pixels."""
    image = made.plane()[channel]
    x0, y0 = made.wcs().all_world2pix(ra, dec, 0)
    y, x = np.indices(image.shape)
    distance = np.hypot(x - x0, y - y0)
    level = np.nanmedian(image[(distance > 1.3 * radius) & (distance < 2 * radius)])
    return float((image[distance <= radius] - level).sum())


def brightest(stars: Stars, number: int, within: float = 70) -> list[tuple[float, float, float]]:
    """Return right ascension, declination and flux of the brightest stars within so many pixels of the middle."""
    near = np.hypot((stars.ra - sky.RA) * np.cos(np.radians(sky.DEC)), stars.dec - sky.DEC) * 3600 / sky.SCALE < within
    chosen = np.flatnonzero(near)[np.argsort(-stars.flux[near])][:number]
    return [(float(stars.ra[at]), float(stars.dec[at]), float(stars.flux[at])) for at in chosen]


@pytest.mark.parametrize("kernel", ["square", "turbo"])
def test_the_light_of_stars_is_kept_on_a_grid_of_twice_as_many_pixels_a_side(tmp_path: Path, kernel: str) -> None:
    camera = Camera(noise=2.0)
    folder = take(tmp_path / "in", camera, 18)
    made = mosaic(folder, tmp_path / "out", "--drizzle", "2", "--pixfrac", "0.8", "--drizzle-kernel", kernel)
    assert made.status == 0, made.said
    np.testing.assert_allclose(np.abs(np.diag(made.wcs().pixel_scale_matrix)) * 3600, sky.SCALE / 2, rtol=1e-3)
    for ra, dec, flux in brightest(camera.stars, 5):
        assert light_of(made, ra, dec, 12) / 4 == pytest.approx(flux, rel=0.01)
    stars = measure_stars(made.plane()[0])
    places = np.stack(made.wcs().all_world2pix(camera.stars.ra, camera.stars.dec, 0), axis=1)
    off = (stars.positions[:20, None] - places)[np.arange(20), cdist(stars.positions[:20], places).argmin(1)]
    assert np.abs(np.median(off, axis=0)).max() < 0.1, "the WCS is that of the finer grid, to a part of its pixels"
    assert all(check["passed"] for check in made.checks.values()), made.checks


def test_undersampled_stars_come_out_sharper_than_interpolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sky, "STAR_SIGMA", 0.55)
    folder = take(tmp_path / "in", Camera(size=(130, 150), noise=3.0), 18)
    drizzled = mosaic(folder, tmp_path / "drizzled", "--drizzle", "2", "--pixfrac", "0.4")
    interpolated = mosaic(folder, tmp_path / "interpolated", "--pixel-scale", str(sky.SCALE / 2))
    assert drizzled.status == interpolated.status == 0, drizzled.said
    ours, theirs = (measure_stars(made.plane()[0]).median_fwhm / 2 for made in (drizzled, interpolated))
    assert ours < 0.95 * theirs
    assert ours < 1.1 * 2.3548 * 0.55
    assert drizzled.checks["fwhm_growth", "group-01"]["measured"] < -0.05


@pytest.mark.parametrize(
    ("pattern", "cards", "lies"),
    [
        ("RGGB", {}, "RGGB"),
        ("BGGR", {"ROWORDER": "TOP-DOWN"}, "BGGR"),
        ("GRBG", {}, "GRBG"),
        ("GBRG", {}, "GBRG"),
        ("GBRG", {"ROWORDER": "BOTTOM-UP", "BAYERPAT": "RGGB"}, "GBRG"),
    ],
)
def test_each_colour_comes_from_its_own_sites(tmp_path: Path, pattern: str, cards: dict[str, str], lies: str) -> None:
    """Whatever the header calls the pattern, the sites are those of the first rows in the file."""
    camera = Camera(size=(100, 120), pattern=pattern, noise=2.0, stars=Stars.scattered(25, 160, 140))
    made = mosaic(take(tmp_path / "in", camera, 12, **cards), tmp_path / "out", "--drizzle", "1")
    assert made.status == 0, made.said
    (event,) = made.events("drizzling_colours")
    assert event["data"]["pattern"] == lies
    for ra, dec, flux in brightest(camera.stars, 3, within=30):
        for channel, share in enumerate(COLOURS):
            assert light_of(made, ra, dec, 6, channel) == pytest.approx(share * flux, rel=0.05), channel


def test_a_trail_is_rejected_before_it_falls_and_counted(tmp_path: Path) -> None:
    folder = take(tmp_path / "in", frames=12)
    clean = mosaic(folder, tmp_path / "clean", "--drizzle", "2")
    with fits.open(folder / "light_003.fits", mode="update") as file:
        file[0].data[90, 20:200] = 60_000
    made = mosaic(folder, tmp_path / "out", "--drizzle", "2")
    assert made.status == 0, made.said
    difference = np.abs(made.plane() - clean.plane())
    assert np.nanmax(difference) < 4 * Camera().noise
    with fits.open(made.out / "tiles" / "group-01.fits") as tile:
        lost = tile["HIGH"].data.sum() - fits.getdata(clean.out / "tiles" / "group-01.fits", "HIGH").sum()
        assert lost > 4 * 180 * 2  # 4 pixels of the grid for one of the frame, and its neighbours
        assert (np.isnan(tile["IMAGE"].data) == (tile["COVERAGE"].data == 0)).all()


def test_drops_too_small_for_so_few_frames_leave_holes_and_the_run_says_so(tmp_path: Path) -> None:
    made = mosaic(take(tmp_path / "in", frames=5), tmp_path / "out", "--drizzle", "2", "--drizzle-kernel", "point")
    (event,) = made.events("drizzle_holes")
    assert event["severity"] == "warning"
    image = made.plane()[0]
    middle = np.isnan(image[100:-100, 100:-100])
    assert event["data"]["share"] == pytest.approx(middle.mean(), abs=0.1)
    assert not mosaic(tmp_path / "in", tmp_path / "full", "--drizzle", "1").events("drizzle_holes")


def test_planes_say_how_good_every_pixel_is(tmp_path: Path) -> None:
    made = mosaic(take(tmp_path / "in", Camera(stars=Stars.scattered(40)), 12), tmp_path / "out", "--drizzle", "2")
    image, variance, effective, coverage = (made.plane(name)[0] for name in ("IMAGE", "VARIANCE", "NEFF", "COVERAGE"))
    assert coverage.max() == 12
    sky_only = (coverage >= 11) & (np.abs(image - 1000) < 60)
    pulls = (image - 1000)[sky_only] / np.sqrt(variance[sky_only])
    assert np.median(np.abs(pulls)) / 0.6745 == pytest.approx(1, abs=0.1)
    np.testing.assert_allclose(variance[sky_only] * effective[sky_only], Camera().noise ** 2, rtol=0.1)


def test_chunks_and_the_order_of_frames_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drizzle, "BAND_BYTES", 1)  # several bands also here
    options = ("--drizzle", "1.5", "--pixfrac", "0.7")
    folder = take(tmp_path / "in", Camera(pattern="RGGB"), 5)
    whole = mosaic(folder, tmp_path / "whole", *options)
    for number in range(5):
        new = tmp_path / "renamed" / f"{number * 2 % 5}.fits"
        new.parent.mkdir(exist_ok=True)
        new.write_bytes((folder / f"light_{number:03}.fits").read_bytes())
    assert digest(mosaic(tmp_path / "renamed", tmp_path / "other", *options).science) == digest(whole.science)
    make_plan = execute.make_plan

    def fifty_rows(*arguments: object, **named: object) -> Plan:
        return make_plan(*arguments, **named).with_rows(50)

    monkeypatch.setattr(execute, "make_plan", fifty_rows)
    assert digest(mosaic(folder, tmp_path / "chunks", *options).science) == digest(whole.science)


@pytest.mark.parametrize(
    "options", [("--combine", "median"), ("--rejection", "median"), ("--pixel-scale", "1.2"), ("--drizzle", "0.5")]
)
def test_what_drizzle_cannot_do_is_a_clear_error(tmp_path: Path, options: tuple[str, ...]) -> None:
    made = mosaic(take(tmp_path / "in", frames=1), tmp_path / "out", "--drizzle", "2", *options)
    assert made.status == 2
    assert "drizzle" in made.said.lower()
