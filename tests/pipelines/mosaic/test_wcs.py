"""A solution is told from a hint; pixels and sky go both ways with SIP, at the seam and the pole, in threads."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from astropy.wcs import WCS

from safelight.core.errors import InputError
from safelight.pipelines.mosaic.wcs import (
    celestial_wcs,
    fitted,
    parity,
    pixel_scale,
    pixel_to_sky,
    read_wcs_file,
    relative_wcs,
    same_camera_wcs,
    separation,
    sidecar_of,
    sky_of_vectors,
    sky_outline,
    sky_to_pixel,
    tangent_plane,
    unit_vectors,
)

WIDTH, HEIGHT = 1080, 1920
CARDS: dict[str, object] = {
    "CTYPE1": "RA---TAN-SIP",
    "CTYPE2": "DEC--TAN-SIP",
    "CRVAL1": 192.76,
    "CRVAL2": 41.34,
    "CRPIX1": 566.5,
    "CRPIX2": 623.4,
    "CD1_1": -6.602e-4,
    "CD1_2": -1.44e-5,
    "CD2_1": 1.468e-5,
    "CD2_2": -6.595e-4,
    "A_ORDER": 2,
    "A_0_2": 3.3e-7,
    "A_2_0": -2.27e-6,
    "B_ORDER": 2,
    "B_1_1": -2.7e-7,
}


def solution(**changes: object) -> WCS:
    wcs = celestial_wcs({**CARDS, **changes})
    assert wcs is not None
    return wcs


def grid() -> np.ndarray:
    x, y = np.meshgrid(np.linspace(0, WIDTH - 1, 9), np.linspace(0, HEIGHT - 1, 9))
    return np.stack([x.ravel(), y.ravel()], axis=1)


def without(*names: str) -> dict[str, object]:
    return {name: value for name, value in CARDS.items() if name not in names}


def test_hints_alone_are_no_solution() -> None:
    assert celestial_wcs({"RA": 193.04, "DEC": 40.97, "OBJECT": "M 94", "FOCALLEN": 250}) is None
    assert celestial_wcs(without("CRVAL1")) is None
    assert celestial_wcs(without("CTYPE1", "CTYPE2")) is None
    assert celestial_wcs({**CARDS, "CTYPE1": "LINEAR", "CTYPE2": "LINEAR"}) is None
    assert celestial_wcs(without("CD1_1", "CD1_2", "CD2_1", "CD2_2")) is None


@pytest.mark.parametrize(
    ("first", "second"), [("GLON-TAN", "GLAT-TAN"), ("ELON-TAN", "ELAT-TAN"), ("DEC--TAN", "RA---TAN")]
)
def test_other_axes_than_right_ascension_and_declination_are_named(first: str, second: str) -> None:
    """Galactic longitudes taken for right ascensions would put the mosaic anywhere."""
    plain = {**without("A_ORDER", "A_0_2", "A_2_0", "B_ORDER", "B_1_1"), "CRVAL1": 41.3, "CRVAL2": 41.3}
    with pytest.raises(InputError, match=rf"{first} and {second}.*right ascension"):
        celestial_wcs({**plain, "CTYPE1": first, "CTYPE2": second}, Path("light.fits"))


@pytest.mark.parametrize(
    "changes",
    [
        {"CD1_1": 0.0, "CD1_2": 0.0},
        {"CD1_1": float("nan")},
        {"CRVAL1": "here"},
        {"CPDIS1": "LOOKUP"},
    ],
)
def test_a_broken_solution_is_refused_and_named(changes: dict[str, object]) -> None:
    with pytest.raises(InputError, match="WCS"):
        celestial_wcs({**CARDS, **changes}, Path("a.fits"))


def test_dates_and_units_of_telescopes_do_not_matter() -> None:
    wcs = celestial_wcs({**CARDS, "DATE-OBS": "27/03/25", "BUNIT": "adu", "RADECSYS": "FK5"})
    assert wcs is not None


@pytest.mark.parametrize(
    "matrix",
    [
        {"CDELT1": -6.6e-4, "CDELT2": 6.6e-4},
        {"CDELT1": -6.6e-4, "CDELT2": 6.6e-4, "CROTA2": 30.0},
        {"CDELT1": 1.0, "CDELT2": 1.0, "PC1_1": -6.6e-4, "PC1_2": 1e-5, "PC2_1": 1e-5, "PC2_2": 6.6e-4},
    ],
)
def test_every_form_of_matrix_means_the_same_as_in_astropy(matrix: dict[str, object]) -> None:
    cards = {**without("CD1_1", "CD1_2", "CD2_1", "CD2_2"), **matrix}
    wcs = celestial_wcs(cards)
    assert wcs is not None
    from astropy.io.fits import Header

    expected = WCS(Header(list(cards.items()))).all_pix2world(grid(), 0)
    np.testing.assert_allclose(np.stack(pixel_to_sky(wcs, *grid().T), axis=1), expected, atol=1e-10)


def test_pixels_count_from_zero() -> None:
    ra, dec = pixel_to_sky(solution(), np.array([565.5]), np.array([622.4]))
    assert ra[0] == pytest.approx(192.76, abs=1e-12)
    assert dec[0] == pytest.approx(41.34, abs=1e-12)


@pytest.mark.parametrize("dec", [41.34, 89.9, -89.99, 0.0])
@pytest.mark.parametrize("ra", [192.76, 0.0, 359.9999])
def test_there_and_back_with_distortion(ra: float, dec: float) -> None:
    wcs = solution(CRVAL1=ra, CRVAL2=dec)
    x, y = sky_to_pixel(wcs, *pixel_to_sky(wcs, *grid().T))
    np.testing.assert_allclose(np.stack([x, y], axis=1), grid(), atol=1e-5)


def test_distortion_is_applied() -> None:
    plain = celestial_wcs({**without("A_ORDER", "B_ORDER"), "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN"})
    assert plain is not None
    x, y = sky_to_pixel(plain, *pixel_to_sky(solution(), np.array([0.0]), np.array([0.0])))
    assert np.hypot(x, y)[0] > 0.3


def test_the_far_side_of_the_sky_has_no_pixels() -> None:
    x, y = sky_to_pixel(solution(), np.array([12.76, 192.76, np.nan]), np.array([-41.34, 41.34, 0.0]))
    assert np.isnan(x).tolist() == np.isnan(y).tolist() == [True, False, True]


def test_shapes_are_kept() -> None:
    ra, dec = pixel_to_sky(solution(), np.zeros((3, 4)), np.zeros((3, 4)))
    x, _ = sky_to_pixel(solution(), ra, dec)
    assert ra.shape == dec.shape == x.shape == (3, 4)


def test_handedness_and_scale() -> None:
    assert parity(solution()) == 1  # rows stored top-down
    assert parity(solution(CD2_2=6.595e-4, CD2_1=-1.468e-5)) == -1
    assert pixel_scale(solution()) == pytest.approx(2.376, abs=1e-3)


def test_many_threads_may_use_one_wcs() -> None:
    wcs = solution()
    points = np.random.default_rng(0).uniform(0, 1000, (2, 20_000))
    expected = pixel_to_sky(wcs, *points)
    with ThreadPoolExecutor(8) as pool:
        for ra, dec in pool.map(lambda _: pixel_to_sky(wcs, *points), range(32)):
            assert np.array_equal(ra, expected[0])
            assert np.array_equal(dec, expected[1])


@pytest.mark.parametrize("distorted", ["SIP", "TPV", "relative"])
def test_a_wcs_goes_to_another_process_to_the_last_bit(distorted: str) -> None:
    tpv = {name: value for name, value in CARDS.items() if name[:2] not in ("A_", "B_")}
    tpv |= {"CTYPE1": "RA---TPV", "CTYPE2": "DEC--TPV", "PV1_1": 1.0, "PV2_1": 1.0, "PV1_4": 1e-4 / 3}
    exact = {"CRVAL1": 192.7 + 1 / 3, "CRPIX2": 623 + 1 / 7, "CD1_1": -2e-3 / 3}
    made = {
        "SIP": lambda: solution(**exact, A_2_0=-1e-5 / 7),
        "TPV": lambda: celestial_wcs(tpv | exact),
        "relative": lambda: relative_wcs(WIDTH, HEIGHT, 4 / 3),
    }[distorted]()
    sent = pickle.loads(pickle.dumps(made))  # noqa: S301 - made here
    assert np.array_equal(pixel_to_sky(sent, *grid().T), pixel_to_sky(made, *grid().T))
    assert sent.to_header(relax=True).tostring() == made.to_header(relax=True).tostring()


def test_separation_is_precise_everywhere() -> None:
    assert separation(359.9999, 0.0, 0.0001, 0.0) == pytest.approx(0.0002)
    assert separation(0.0, 89.9, 180.0, 89.9) == pytest.approx(0.2)
    assert separation(10.0, 20.0, 190.0, -20.0) == pytest.approx(180.0)
    assert separation(10.0, 20.0, 10.0, 20.0 + 1e-9) == pytest.approx(1e-9, rel=1e-4)


def test_the_outline_encloses_the_frame_also_around_the_pole() -> None:
    wcs = solution(CRVAL1=0.0, CRVAL2=89.9)
    ra, dec = sky_outline(wcs, WIDTH, HEIGHT, points_per_side=1)
    x, y = sky_to_pixel(wcs, ra, dec)
    np.testing.assert_allclose(x, [-0.5, WIDTH - 0.5, WIDTH - 0.5, -0.5], atol=1e-4)
    np.testing.assert_allclose(y, [-0.5, -0.5, HEIGHT - 0.5, HEIGHT - 0.5], atol=1e-4)
    assert len(sky_outline(wcs, WIDTH, HEIGHT)[0]) == 32


def test_vectors_and_back() -> None:
    ra, dec = np.array([0.0, 359.5, 120.0]), np.array([-89.5, 0.0, 41.0])
    back = sky_of_vectors(3 * unit_vectors(ra, dec))
    np.testing.assert_allclose(back, (ra, dec), atol=1e-9)


def test_the_tangent_plane_is_that_of_tan() -> None:
    wcs = relative_wcs(WIDTH, HEIGHT, 2.0)
    ra, dec = pixel_to_sky(wcs, *grid().T)
    plane = tangent_plane(ra, dec, 0.0, 0.0)
    np.testing.assert_allclose(plane, (np.array([(WIDTH - 1) / 2, (HEIGHT - 1) / 2]) - grid()) * 2 / 3600, atol=1e-9)
    assert np.isnan(tangent_plane(np.array([180.0]), np.array([0.0]), 0.0, 0.0)).all()


@pytest.mark.parametrize("dec", [41.34, 89.95])
def test_a_fit_finds_a_shifted_turned_and_stretched_solution(dec: float) -> None:
    true = solution(CRVAL2=dec)
    wrong = solution(CRVAL2=dec - 0.003, CRVAL1=192.765, CD1_1=-6.61e-4, CD1_2=-1.6e-5)
    found = fitted(wrong, grid(), *pixel_to_sky(true, *grid().T), "affine")
    x, y = sky_to_pixel(found, *pixel_to_sky(true, *grid().T))
    assert np.hypot(*(np.stack([x, y], axis=1) - grid()).T).max() < 0.01
    assert found.sip is not None
    assert wrong.wcs.crval[0] == 192.765  # the given one stays


def test_the_wcs_of_a_frame_follows_from_a_transform() -> None:
    reference = solution()
    angle = np.radians(70)
    turn = np.array([[np.cos(angle), -np.sin(angle), 300.0], [np.sin(angle), np.cos(angle), -50.0]])
    wcs = same_camera_wcs(reference, turn, WIDTH, HEIGHT, distorted=False)
    middle = np.array([540.0, 960.0])
    expected = pixel_to_sky(reference, *(turn[:, :2] @ middle + turn[:, 2])[:, None])
    x, y = sky_to_pixel(wcs, *expected)
    assert np.hypot(x - middle[0], y - middle[1])[0] < 1.0  # the reference's distortion cannot be had by a TAN
    assert parity(wcs) == parity(reference)
    assert same_camera_wcs(reference, turn, WIDTH, HEIGHT, distorted=True).sip is not None


def test_sidecars_lie_beside_their_frames() -> None:
    assert sidecar_of(Path("a/x.fits.fz")) == sidecar_of(Path("a/x.fit")) == Path("a/x.wcs.txt")
    assert sidecar_of(Path("M_94_10.0s.fits")) == Path("M_94_10.0s.wcs.txt")


def test_a_sidecar_is_read_with_its_distortion(shared: Path) -> None:
    frame = sorted((shared / "data" / "m94" / "s3").glob("*.fits.fz"))[0]
    wcs = read_wcs_file(sidecar_of(frame), WIDTH, HEIGHT)
    assert wcs.sip is not None
    assert pixel_scale(wcs) == pytest.approx(2.375, abs=0.005)
    assert parity(wcs) == 1


@pytest.mark.parametrize("between", ["\n", "\r\n", ""])
def test_a_header_is_read_in_lines_and_in_blocks(tmp_path: Path, between: str) -> None:
    path = tmp_path / "a.wcs.txt"
    path.write_bytes(between.join(card.ljust(80) for card in written()).encode())
    assert pixel_scale(read_wcs_file(path, WIDTH, HEIGHT)) == pytest.approx(2.376, abs=1e-3)


def test_a_sidecar_of_another_frame_or_of_nothing_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.wcs.txt"
    path.write_text("\n".join([*written(), "IMAGEW  = 640", "IMAGEH  = 480"]), encoding="ascii")
    with pytest.raises(InputError, match="640 × 480"):
        read_wcs_file(path, WIDTH, HEIGHT)
    path.write_bytes(bytes(range(256)) * 20)
    with pytest.raises(InputError, match="no celestial WCS"):
        read_wcs_file(path, WIDTH, HEIGHT)
    with pytest.raises(InputError, match="cannot be read"):
        read_wcs_file(tmp_path / "missing.wcs.txt", WIDTH, HEIGHT)


def written() -> list[str]:
    cards = [
        f"{name:8}= {value!r:>20}" if not isinstance(value, str) else f"{name:8}= '{value}'"
        for name, value in CARDS.items()
    ]
    return ["SIMPLE  =                    T / Standard FITS file", *cards, "HISTORY a line of words", "END"]
