from __future__ import annotations

import numpy as np
import pytest
from astropy.io import fits
from PIL import Image

from safelight.formats.fits import open_fits
from safelight.pipelines.mosaic import preview
from safelight.pipelines.mosaic.preview import averaged, stretch, write_preview

SIZE = 192
BOTTOM, TOP = slice(20, 60), slice(-60, -20)


def sky(*, tint=(1.0, 1.0, 1.0), gradient=0.0, stars=30, noise=4.0):
    """Return (3, SIZE, SIZE): a sky whose channels differ, with stars of the given tint."""
    random = np.random.default_rng(1)
    y, x = np.mgrid[:SIZE, :SIZE]
    image = np.stack([level + slope * gradient * x / SIZE for level, slope in ((900, 1), (1100, -1), (700, 0.5))])
    for star_y, star_x in random.uniform(5, SIZE - 5, (stars, 2)):
        star = 800 * np.exp(-((y - star_y) ** 2 + (x - star_x) ** 2) / (2 * 1.5**2))
        image += np.asarray(tint)[:, None, None] * star
    return (image + noise * random.standard_normal(image.shape)).astype(np.float32)


def bright(picture):
    """Return the median colour of the bright, unclipped pixels of a picture (3, height, width)."""
    level = picture.astype(float).mean(axis=0)
    return np.median(picture[:, (level > 120) & (picture.max(axis=0) < 255)], axis=1)


@pytest.mark.parametrize(("factor", "offset"), [(1 / 65535, 0), (1e4, 0), (1, -5000), (3.7, 123)])
def test_a_scaled_and_shifted_image_gives_the_same_picture(factor, offset):
    image = sky(gradient=50).astype(np.float64)
    difference = stretch(factor * image + offset).astype(int) - stretch(image)
    assert np.abs(difference).max() <= 1


def test_what_was_not_seen_is_black_and_spoils_nothing_else():
    image = sky()
    hole = np.zeros((SIZE, SIZE), bool)
    hole[:40, :50] = True
    picture = stretch(np.where(hole, np.nan, image))
    assert not picture[:, hole].any()
    beside = np.abs(picture.astype(int) - stretch(image))[:, ~hole]
    assert np.median(beside) <= 1


def test_an_image_with_nothing_in_it_is_black():
    assert not stretch(np.full((3, 20, 20), np.nan, np.float32)).any()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_constant_image_is_grey(channels):
    picture = stretch(np.full((channels, 20, 20), 7.0, np.float32))
    assert np.unique(picture).tolist() == [31]


def test_the_sky_is_neutral_even_where_its_colours_have_gradients():
    picture = stretch(sky(gradient=300))
    quarters = [picture[:, y, x] for y in (BOTTOM, TOP) for x in (BOTTOM, TOP)]
    medians = np.array([np.median(quarter, axis=(1, 2)) for quarter in quarters])
    assert np.ptp(medians) <= 4
    assert medians.mean() == pytest.approx(31, abs=3)


def test_the_median_star_is_white_whatever_the_camera_makes_of_it():
    assert np.ptp(bright(stretch(sky(tint=(1.0, 1.6, 0.7))))) <= 12


def test_colours_of_a_few_stars_stay_and_in_their_order():
    image = sky()
    y, x = np.mgrid[:SIZE, :SIZE]
    image[0] += 800 * np.exp(-((y - 100) ** 2 + (x - 100) ** 2) / (2 * 3**2))
    red, green, blue = stretch(image)[:, 97:104, 97:104].astype(float).mean(axis=(1, 2))
    assert red > green + 50
    assert red > blue + 50


def test_two_stars_do_not_tell_what_is_white():
    red, _, blue = bright(stretch(sky(tint=(1.0, 0.6, 0.4), stars=2)))
    assert red > blue + 20


def test_faint_structure_can_be_seen():
    """A nebula of 1.5 σ in a single pixel is brighter than the sky around it."""
    image = sky(stars=5)
    image[:, 80:112, 80:112] += 6
    picture = stretch(image)
    assert np.median(picture[:, 84:108, 84:108]) >= np.median(picture[:, BOTTOM, BOTTOM]) + 8


def test_north_is_up(tmp_path):
    image = np.zeros((3, 100, 75), np.float32)
    image[:, 90:] = 100
    write_preview(tmp_path / "p.png", image)
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.size == (75, 100)
        pixels = np.asarray(picture)
    assert pixels[5].min() > pixels[-5].max()


@pytest.mark.parametrize("rows", [1, 7, 512])
def test_a_large_mosaic_is_averaged_down_by_bands(tmp_path, monkeypatch, rows):
    monkeypatch.setattr(preview, "MOST_PIXELS", 100)
    monkeypatch.setattr(preview, "BAND_ROWS", rows)
    image = np.random.default_rng(0).normal(100, 5, (3, 251, 160)).astype(np.float32)
    fits.writeto(tmp_path / "m.fits", image)
    with open_fits(tmp_path / "m.fits") as mosaic:
        small = averaged(mosaic)
    squares = image[:, :249, :159].reshape(3, 83, 3, 53, 3)
    np.testing.assert_allclose(small, squares.mean(axis=(2, 4)), rtol=1e-6)


def test_a_monochrome_mosaic_gives_a_grey_picture(tmp_path):
    write_preview(tmp_path / "p.png", sky()[:1])
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.mode == "L"
        assert picture.size == (SIZE, SIZE)


def test_where_fewer_frames_lie_the_sky_looks_as_calm() -> None:
    rng = np.random.default_rng(5)
    noise = np.where(np.arange(300) < 200, 1.0, 3.0)
    image = (100 + noise * rng.standard_normal((1, 240, 300))).astype(np.float32)
    shown = stretch(image)[0].astype(float)
    deep, shallow = shown[20:-20, 20:160].std(), shown[20:-20, 240:-20].std()
    assert shallow < 1.7 * deep, "three times the noise must not look like it"
