"""Stars are found where they are, hot pixels and galaxies are not stars, NaN does not enter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from numpy.typing import NDArray

from safelight.core.errors import InputError
from safelight.pipelines.mosaic.stars import StarField, measure_stars

HEIGHT, WIDTH = 240, 320
SKY, NOISE, FWHM = 500.0, 10.0, 3.0
M94 = Path("data") / "m94"

Floats = NDArray[np.float64]


def truth(count: int = 25) -> Floats:
    """Positions of stars at least 25 px apart, (count, 2) as x, y."""
    random = np.random.default_rng(1)
    positions: list[Floats] = []
    while len(positions) < count:
        candidate = random.uniform([15, 15], [WIDTH - 15, HEIGHT - 15])
        if all(np.hypot(*(candidate - other)) > 25 for other in positions):
            positions.append(candidate)
    return np.array(positions)


def light(positions: Floats, fluxes: Floats, fwhm: float = FWHM) -> Floats:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    variance = (fwhm / 2.3548) ** 2
    frame = np.zeros((HEIGHT, WIDTH))
    for (star_x, star_y), flux in zip(positions, fluxes, strict=True):
        distance = (x - star_x) ** 2 + (y - star_y) ** 2
        frame += flux / (2 * np.pi * variance) * np.exp(-distance / (2 * variance))
    return frame


def frame() -> tuple[Floats, Floats, Floats]:
    positions = truth()
    fluxes = np.geomspace(60_000, 4_000, len(positions))
    sky = np.random.default_rng(2).normal(SKY, NOISE, (HEIGHT, WIDTH))
    return sky + light(positions, fluxes), positions, fluxes


def same_stars(field: StarField, positions: Floats) -> Floats:
    """Return the distance of each detection from the nearest true star."""
    return np.linalg.norm(field.positions[:, None] - positions[None], axis=2).min(axis=1)


def test_stars_sky_noise_and_sharpness_are_measured() -> None:
    image, positions, fluxes = frame()
    field = measure_stars(image)
    assert len(field) == len(positions)
    off = np.linalg.norm(field.positions - positions, axis=1)  # brightest first, as drawn
    assert off.max() < 0.25
    assert off[:10].max() < 0.08
    np.testing.assert_allclose(field.flux, fluxes, rtol=0.15)
    assert field.background == pytest.approx(SKY, abs=2)
    assert field.noise == pytest.approx(NOISE, rel=0.05)
    assert field.median_fwhm == pytest.approx(FWHM, rel=0.08)
    assert (field.width, field.height) == (WIDTH, HEIGHT)


def test_a_gradient_and_an_offset_change_neither_stars_nor_noise() -> None:
    image, _, _ = frame()
    tilted = image + 3 * np.arange(WIDTH)
    plain, other = measure_stars(image), measure_stars(tilted)
    assert len(other) == len(plain)
    assert np.linalg.norm(other.positions - plain.positions, axis=1).max() < 0.1
    assert other.noise == pytest.approx(plain.noise, rel=0.05)


@pytest.mark.parametrize("gain", [1 / 65_535, 100.0])
def test_the_unit_of_the_pixels_does_not_matter(gain: float) -> None:
    image, _, _ = frame()
    plain, other = measure_stars(image), measure_stars(image * gain)
    np.testing.assert_allclose(other.positions, plain.positions, atol=1e-3)
    assert other.noise == pytest.approx(plain.noise * gain, rel=1e-3)


def test_integers_in_the_byte_order_of_fits_are_read() -> None:
    image, positions, _ = frame()
    field = measure_stars(np.round(image).astype(">i2"))
    assert same_stars(field, positions).max() < 0.3


def test_invalid_pixels_never_enter() -> None:
    image, positions, _ = frame()
    cut = image.copy()
    cut[:, :100] = np.nan
    cut[200, 200] = np.inf
    field = measure_stars(cut)
    assert np.isfinite(field.positions).all()
    assert field.background == pytest.approx(SKY, abs=2)
    assert field.noise == pytest.approx(NOISE, rel=0.05)
    assert same_stars(field, positions[positions[:, 0] > 98]).max() < 1.5
    assert np.isnan(cut[:, :100]).all()  # the caller's array stays


def test_hot_pixels_and_galaxies_are_no_stars() -> None:
    image, positions, _ = frame()
    random = np.random.default_rng(3)
    for x, y in random.integers(5, 230, (30, 2)):
        image[y, x] += 5_000
    galaxy = light(np.array([[160.0, 120.0]]), np.array([400_000.0]), fwhm=30.0)
    field = measure_stars(image + galaxy)
    assert (same_stars(field, positions) < 1).mean() > 0.9


def test_saturated_stars_are_marked() -> None:
    image, _, _ = frame()
    level = 2_000.0
    field = measure_stars(np.minimum(image, level), saturation=level)
    assert field.saturated[:3].all()
    assert not field.saturated[-10:].any()
    assert not measure_stars(image).saturated.any()


def test_the_same_frame_gives_the_same_stars() -> None:
    image, _, _ = frame()
    first, second = measure_stars(image), measure_stars(image)
    assert first.positions.tobytes() == second.positions.tobytes()


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (np.random.default_rng(0).normal(500, 10, (HEIGHT, WIDTH)), "no stars"),
        (np.full((HEIGHT, WIDTH), np.nan), "no valid pixels"),
        (np.full((HEIGHT, WIDTH), 7.0), "no noise"),
        (np.zeros((3, HEIGHT, WIDTH)), "shape"),
        (np.zeros((4, 4)), "shape"),
    ],
)
def test_a_frame_without_stars_is_refused_by_name_of_the_problem(image: Floats, said: str) -> None:
    with pytest.raises(InputError, match=said):
        measure_stars(image)


def test_real_frames_give_some_40_stars_each(shared: Path) -> None:
    path = sorted((shared / M94 / "s1").glob("*.fits.fz"))[0]
    with fits.open(path) as file:
        raw = file[1].data.astype(np.float32)
    field = measure_stars((raw[0::2, 0::2] + raw[1::2, 1::2]) / 2)  # GRBG: green at both
    assert 30 <= len(field) <= 80
    assert 1.2 < field.median_fwhm < 2.5  # of pixels that are twice as large
    assert 900 < field.background < 1_100
