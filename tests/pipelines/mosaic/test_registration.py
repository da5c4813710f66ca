"""Frames find their place on one sky: with and without solutions, over chains of panels, in any order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS, Sip
from numpy.typing import NDArray
from scipy.ndimage import convolve

from safelight.pipelines.mosaic.refinement import by_quality
from safelight.pipelines.mosaic.registration import align
from safelight.pipelines.mosaic.star_matching import StarPattern, match_stars
from safelight.pipelines.mosaic.stars import StarField, measure_stars
from safelight.pipelines.mosaic.wcs import (
    celestial_wcs,
    pixel_scale,
    pixel_to_sky,
    read_wcs_file,
    sidecar_of,
    sky_to_pixel,
)

Floats = NDArray[np.float64]

WIDTH, HEIGHT = 600, 800
SCALE = 2.4 / 3600  # degrees per pixel
ERROR = 0.1  # pixels, of each coordinate


def wcs_at(ra: float, dec: float, degrees: float = 0.0, mirrored: bool = False, crpix: float = 0.0) -> WCS:
    """Return the true WCS of a frame, with a distortion of up to a pixel."""
    turn = np.radians(degrees)
    matrix = SCALE * np.array([[-np.cos(turn), np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    if mirrored:
        matrix = matrix @ np.diag([-1, 1])
    sip = {"A_ORDER": 2, "A_2_0": 8e-6, "A_0_2": -2e-6, "B_ORDER": 2, "B_0_2": 6e-6, "B_1_1": 3e-6}
    cards: dict[str, object] = {"CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP", "CRVAL1": ra, "CRVAL2": dec, **sip}
    cards |= {"CRPIX1": WIDTH / 2 + crpix, "CRPIX2": HEIGHT / 2}
    cards |= {f"CD{row + 1}_{column + 1}": matrix[row, column] for row, column in np.ndindex(2, 2)}
    wcs = celestial_wcs(cards)
    assert wcs is not None
    return wcs


class Sky:
    """Some hundred stars per square degree around a point."""

    def __init__(self, ra: float, dec: float, seed: int = 0, radius: float = 1.5, per_frame: int = 100) -> None:
        self.random = np.random.default_rng(seed)
        count = int(per_frame * 4 * radius**2 / (WIDTH * HEIGHT * SCALE**2))
        plane = self.random.uniform(-radius, radius, (count, 2)) / SCALE
        grid = WCS(naxis=2)
        grid.wcs.ctype, grid.wcs.crval = ["RA---TAN", "DEC--TAN"], [ra, dec]
        grid.wcs.cdelt = [SCALE, SCALE]
        self.ra, self.dec = grid.wcs_pix2world(plane, 1).T
        self.flux = 1000 / self.random.uniform(0.01, 1, count)

    def observe(self, wcs: WCS, fwhm: float = 3.0) -> StarField:
        x, y = sky_to_pixel(wcs, self.ra, self.dec)
        inside = (x > 0) & (x < WIDTH - 1) & (y > 0) & (y < HEIGHT - 1) & (self.random.random(len(x)) < 0.9)
        positions = np.stack([x, y], axis=1)[inside] + self.random.normal(0, ERROR, (inside.sum(), 2))
        flux = self.flux[inside] * np.exp(self.random.normal(0, 0.1, len(positions)))
        return field_of(positions[np.argsort(-flux)], np.sort(flux)[::-1], fwhm)


def field_of(positions: Floats, flux: Floats, fwhm: float = 3.0) -> StarField:
    count = len(positions)
    x, y = positions.T.copy()
    none = np.zeros(count, dtype=np.bool_)
    return StarField(x, y, flux, np.full(count, fwhm), none, WIDTH, HEIGHT, background=500.0, noise=10.0)


def off(found: WCS | None, true: WCS, margin: int = 0) -> Floats:
    """Return by how many pixels a WCS is off over the frame."""
    assert found is not None
    x, y = np.meshgrid(np.linspace(margin, WIDTH - margin, 7), np.linspace(margin, HEIGHT - margin, 7))
    found_x, found_y = sky_to_pixel(found, *pixel_to_sky(true, x, y))
    return np.hypot(found_x - x, found_y - y)


def between(first: WCS | None, second: WCS | None, true_first: WCS, true_second: WCS) -> Floats:
    """Return by how many pixels two frames disagree where both see the sky."""
    assert first is not None
    assert second is not None
    x, y = np.meshgrid(np.linspace(0, WIDTH, 13), np.linspace(0, HEIGHT, 13))
    true_x, true_y = sky_to_pixel(true_second, *pixel_to_sky(true_first, x, y))
    seen = (true_x > 0) & (true_x < WIDTH) & (true_y > 0) & (true_y < HEIGHT)
    found_x, found_y = sky_to_pixel(second, *pixel_to_sky(first, x[seen], y[seen]))
    return np.hypot(found_x - true_x[seen], found_y - true_y[seen])


def panels(ra: float, dec: float, count: int = 4) -> dict[str, WCS]:
    """Return panels of a mosaic in a row, a third of a frame overlapping, each turned its own way."""
    step = 0.65 * WIDTH * SCALE / np.cos(np.radians(dec))
    return {f"panel {n}": wcs_at((ra + n * step) % 360, dec, degrees=(0, 182)[n % 2] + 2 * n) for n in range(count)}


@pytest.mark.parametrize(("ra", "dec"), [(192.7, 41.0), (359.9, 0.0), (10.0, 85.0)])
def test_panels_that_only_overlap_their_neighbours_are_chained(ra: float, dec: float) -> None:
    sky, true = Sky(ra, dec), panels(ra, dec)
    fields = {name: sky.observe(wcs) for name, wcs in true.items()}
    placed = align(fields, {"panel 0": true["panel 0"]})
    assert [alignment.source for alignment in placed.values()] == ["solution", "stars", "stars", "stars"]
    assert placed["panel 3"].anchor == "panel 2"
    for name, neighbour in [("panel 0", "panel 1"), ("panel 1", "panel 2"), ("panel 2", "panel 3")]:
        assert between(placed[name].wcs, placed[neighbour].wcs, true[name], true[neighbour]).max() < 0.8
        assert placed[name].residual < 0.4
    assert off(placed["panel 3"].wcs, true["panel 3"]).max() < 6  # what a chain over three overlaps holds


def test_the_order_of_frames_makes_no_difference() -> None:
    sky, true = Sky(192.7, 41.0), panels(192.7, 41.0)
    fields = {name: sky.observe(wcs) for name, wcs in true.items()}
    placed = [align(dict(order), {}) for order in (fields.items(), reversed(fields.items()))]
    assert list(placed[0]) == list(placed[1])
    for name in fields:
        first, second = (alignments[name].wcs for alignments in placed)
        assert first is not None
        assert second is not None
        assert first.to_header(relax=True).tostring() == second.to_header(relax=True).tostring()


def test_without_any_solution_the_largest_connected_set_is_placed() -> None:
    sky, elsewhere = Sky(192.7, 41.0), Sky(20.0, -10.0, seed=1)
    true = panels(192.7, 41.0)
    fields = {name: sky.observe(wcs) for name, wcs in true.items()}
    fields["sharper, but alone"] = elsewhere.observe(wcs_at(20.0, -10.0), fwhm=1.5)
    fields["cloudy"] = field_of(np.array([[10.0, 10.0], [50.0, 90.0]]), np.array([2.0, 1.0]))
    placed = align(fields, {}, scale=2.4)
    assert {name: alignment.reason for name, alignment in placed.items()} == {
        "cloudy": "too_few_stars",
        "panel 0": None,
        "panel 1": None,
        "panel 2": None,
        "panel 3": None,
        "sharper, but alone": "not_connected",
    }
    assert placed["cloudy"].wcs is None
    for name in true:
        wcs = placed[name].wcs
        assert wcs is not None
        assert pixel_scale(wcs) == pytest.approx(2.4, rel=0.02)


def test_strangers_to_the_solved_frames_are_named() -> None:
    sky, elsewhere = Sky(192.7, 41.0), Sky(20.0, -10.0, seed=1)
    true = wcs_at(192.7, 41.0)
    placed = align({"a": sky.observe(true), "b": elsewhere.observe(wcs_at(20.0, -10.0))}, {"a": true})
    assert placed["b"].reason == "no_match"
    assert placed["a"].wcs is not None


def test_a_mirrored_frame_is_placed() -> None:
    sky = Sky(192.7, 41.0)
    true, mirrored = wcs_at(192.7, 41.0), wcs_at(192.71, 41.02, degrees=70, mirrored=True)
    placed = align({"a": sky.observe(true), "b": sky.observe(mirrored)}, {"a": true})
    assert placed["b"].parity_flipped
    assert off(placed["b"].wcs, mirrored, margin=150).max() < 1.5


def test_the_camera_s_distortion_is_shared() -> None:
    sky = Sky(192.7, 41.0)
    true = {"a": wcs_at(192.7, 41.0), "b": wcs_at(192.71, 41.02, degrees=70)}
    placed = align({name: sky.observe(wcs) for name, wcs in true.items()}, {"a": true["a"]})
    assert placed["b"].wcs is not None
    assert placed["b"].wcs.sip is not None
    assert off(placed["b"].wcs, true["b"]).max() < 0.3


def test_solutions_that_disagree_by_a_few_pixels_are_brought_together() -> None:
    sky, random = Sky(192.7, 41.0), np.random.default_rng(3)
    true = {f"{n}": wcs_at(192.7 + 0.02 * n, 41.0, degrees=30 * n) for n in range(6)}
    given = {}
    for name, wcs in true.items():
        given[name] = wcs.deepcopy()
        given[name].wcs.crval = wcs.wcs.crval + random.normal(0, 2 * SCALE, 2)
        given[name].wcs.set()
    before = between(given["0"], given["5"], true["0"], true["5"]).max()
    placed = align({name: sky.observe(wcs) for name, wcs in true.items()}, given)
    after = between(placed["0"].wcs, placed["5"].wcs, true["0"], true["5"]).max()
    assert before > 1.5
    assert after < 0.3
    assert all(alignment.residual < 3 * ERROR for alignment in placed.values())
    drift = np.mean([off(placed[name].wcs, true[name]).mean() for name in true])
    assert drift < 3.0  # the sky stays where the solutions say on the whole


def distorted(wcs: WCS, change: float) -> WCS:
    """Return a solution whose distortion is off by ``change`` pixels at the edges."""
    new = wcs.deepcopy()
    a = wcs.sip.a.copy()
    a[2, 0] += change / (WIDTH / 2) ** 2
    new.sip = Sip(a, wcs.sip.b, None, None, wcs.wcs.crpix)
    return new


def test_noisy_distortions_of_one_camera_become_one() -> None:
    sky, random = Sky(192.7, 41.0), np.random.default_rng(3)
    true = {f"{n}": wcs_at(192.7 + 0.02 * n, 41.0, degrees=30 * n) for n in range(7)}
    given = {name: distorted(wcs, random.normal(0, 1.5)) for name, wcs in true.items()}
    fields = {name: sky.observe(wcs) for name, wcs in true.items()}
    placed = align(fields, given)
    assert all(alignment.shared_distortion for alignment in placed.values())
    before = np.mean([off(given[name], true[name]).max() for name in true])
    after = np.mean([off(placed[name].wcs, true[name]).max() for name in true])
    assert after < 0.6 * before


def test_frames_of_two_cameras_of_one_size_keep_their_distortions() -> None:
    sky = Sky(192.7, 41.0)
    true = {f"{n}": distorted(wcs_at(192.7, 41.0, degrees=30 * n), 4.0 * (n % 2)) for n in range(6)}
    placed = align({name: sky.observe(wcs) for name, wcs in true.items()}, true)
    assert not any(alignment.shared_distortion for alignment in placed.values())
    assert max(off(placed[name].wcs, true[name]).max() for name in true) < 0.3


def test_a_lonely_solved_frame_keeps_its_solution() -> None:
    sky, wcs = Sky(192.7, 41.0), wcs_at(192.7, 41.0)
    placed = align({"a": sky.observe(wcs)}, {"a": wcs})["a"]
    assert off(placed.wcs, wcs).max() < 1e-6
    assert (placed.matched, placed.moved) == (0, 0.0)
    assert np.isnan(placed.residual)


def test_quality_is_stars_and_sharpness_then_the_name() -> None:
    positions = np.random.default_rng(0).uniform(0, 500, (40, 2))
    flux = np.ones(40)
    fields = {
        "b": field_of(positions, flux),
        "a": field_of(positions, flux),
        "few": field_of(positions[:10], flux[:10]),
        "blurred": field_of(positions, flux, fwhm=5.0),
    }
    assert by_quality(fields) == ["a", "b", "blurred", "few"]


def green(path: Path) -> Floats:
    """Return the interpolated green of a GRBG frame."""
    with fits.open(path) as file:
        raw = file[1].data.astype(np.float64)
    site = np.indices(raw.shape).sum(axis=0) % 2 == 0
    cross = np.array([[0, 1, 0], [1, 4, 1], [0, 1, 0]]) / 4
    return np.asarray(convolve(np.where(site, raw, 0.0), cross, mode="mirror"))


@pytest.fixture(scope="module")
def real(shared: Path) -> dict[str, tuple[StarField, WCS]]:
    """Four frames of M 94: two nights, 70 degrees apart."""
    folder = shared / "data" / "m94"
    chosen = [path for night in ("s1", "s3") for path in sorted((folder / night).glob("*.fits.fz"))[::4][:2]]
    fields = (measure_stars(green(path)) for path in chosen)
    solved = (read_wcs_file(sidecar_of(path), 1080, 1920) for path in chosen)
    return {path.name: (field, wcs) for path, field, wcs in zip(chosen, fields, solved, strict=True)}


def test_real_nights_70_degrees_apart_match_as_their_solutions_say(real: dict[str, tuple[StarField, WCS]]) -> None:
    (field, wcs), *_, (other, other_wcs) = real.values()
    match = match_stars(StarPattern(field.positions), StarPattern(other.positions))
    assert match.transform is not None
    assert match.matched >= 20
    assert match.residual < 0.8
    turned = np.degrees(np.arctan2(match.transform[1, 0], match.transform[0, 0]))
    assert abs(turned) == pytest.approx(181.3 - 111.8, abs=1.0)
    mine, theirs = match.pairs.T
    x, y = sky_to_pixel(other_wcs, *pixel_to_sky(wcs, field.x[mine], field.y[mine]))
    assert np.median(np.hypot(x - other.x[theirs], y - other.y[theirs])) < 0.6


def test_one_solution_places_all_real_frames(real: dict[str, tuple[StarField, WCS]]) -> None:
    fields = {name: field for name, (field, _) in real.items()}
    first = next(iter(real))
    placed = align(fields, {first: real[first][1]})
    for alignment in placed.values():
        assert alignment.residual < 0.6
        assert alignment.matched > 40
