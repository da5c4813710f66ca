"""Calibration: (light − dark) / flat, whatever the masters are made from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from astropy.io import fits

from safelight.core.device import Device
from safelight.core.errors import InputError
from safelight.core.events import EventLog
from safelight.core.execute import Executor
from safelight.pipelines.mosaic.calibration import read_calibration
from safelight.pipelines.mosaic.discovery import FrameFacts

HEIGHT, WIDTH = 16, 20
FACTS = FrameFacts(Path("light.fits"), WIDTH, HEIGHT, 1, "RGGB")


@pytest.fixture
def executor() -> Executor:
    return Executor(Device(torch.device("cpu")), EventLog())


def write(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(exist_ok=True)
    fits.PrimaryHDU(pixels.astype(np.float32)).writeto(path)
    return path


def vignette() -> np.ndarray:
    y, x = np.indices((HEIGHT, WIDTH))
    return 1 - 0.3 * ((y - 8) ** 2 + (x - 10) ** 2) / 164


def test_a_calibrated_light_is_the_sky(tmp_path: Path, executor: Executor) -> None:
    generator = np.random.default_rng(0)
    bias = np.full((HEIGHT, WIDTH), 100.0)
    dark = bias + generator.uniform(0, 20, (HEIGHT, WIDTH))
    colours = np.tile([[1.0, 2.0], [2.0, 0.5]], (HEIGHT // 2, WIDTH // 2))
    for number in range(5):
        write(tmp_path / "darks" / f"{number}.fits", dark)
        write(tmp_path / "flats" / f"{number}.fits", bias + 1000 * colours * vignette())
    hit = dark.copy()
    hit[3, 4] = 60_000
    write(tmp_path / "darks" / "hit.fits", hit)
    calibration = read_calibration(
        write(tmp_path / "bias.fits", bias), tmp_path / "darks", tmp_path / "flats", FACTS, executor
    )
    light = dark + 500 * vignette()
    result = calibration.apply(light[None].astype(np.float32), FACTS)[0]
    for rows, columns in ((0, 0), (0, 1), (1, 0), (1, 1)):  # colours keep their balance: each is as flat as the sky
        site = result[rows::2, columns::2]
        assert site.std() / site.mean() < 1e-4
        assert site.mean() == pytest.approx(500 * vignette()[rows::2, columns::2].mean(), rel=1e-3)


def test_without_masters_nothing_changes(executor: Executor) -> None:
    pixels = np.arange(HEIGHT * WIDTH, dtype=np.float32).reshape(1, HEIGHT, WIDTH)
    np.testing.assert_array_equal(read_calibration(None, None, None, FACTS, executor).apply(pixels, FACTS), pixels)


def test_a_pixel_that_saw_no_light_is_missing(tmp_path: Path, executor: Executor) -> None:
    flat = np.full((HEIGHT, WIDTH), 1000.0)
    flat[2, 3] = 0
    calibration = read_calibration(None, None, write(tmp_path / "flat.fits", flat), FACTS, executor)
    result = calibration.apply(np.ones((1, HEIGHT, WIDTH), np.float32), FACTS)[0]
    assert np.argwhere(np.isnan(result)).tolist() == [[2, 3]]


@pytest.mark.parametrize("single", [True, False])
def test_a_master_of_another_size_is_named(tmp_path: Path, executor: Executor, single: bool) -> None:
    path = write(tmp_path / "darks" / "other.fits", np.zeros((8, 8)))
    with pytest.raises(InputError, match=r"other\.fits.*8 × 8"):
        read_calibration(None, path if single else path.parent, None, FACTS, executor)


def test_a_flat_without_light_and_an_empty_folder_are_refused(tmp_path: Path, executor: Executor) -> None:
    dark_flat = write(tmp_path / "flat.fits", np.zeros((HEIGHT, WIDTH)))
    with pytest.raises(InputError, match="saw light"):
        read_calibration(None, None, dark_flat, FACTS, executor)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no FITS frames"):
        read_calibration(None, tmp_path / "empty", None, FACTS, executor)


def test_other_masters_have_another_digest(tmp_path: Path, executor: Executor) -> None:
    digests = {
        read_calibration(
            None, write(tmp_path / f"{level}.fits", np.full((HEIGHT, WIDTH), level)), None, FACTS, executor
        ).digest
        for level in (1.0, 2.0)
    }
    assert len(digests) == 2


def test_a_dark_of_another_exposure_is_refused(tmp_path: Path, executor: Executor) -> None:
    path = write(tmp_path / "dark.fits", np.zeros((HEIGHT, WIDTH)))
    lights = replace(FACTS, exposure=10.0)
    read_calibration(None, path, None, lights, executor)  # a dark that does not say its exposure
    fits.setval(path, "EXPTIME", value=10.2)
    read_calibration(None, path, None, lights, executor)
    fits.setval(path, "EXPTIME", value=30.0)
    with pytest.raises(InputError, match=r"dark\.fits: was exposed for 30 s.*10 s, as the lights"):
        read_calibration(None, path, None, lights, executor)


def said(executor: Executor) -> dict[str, dict[str, object]]:
    return {event.key: dict(event.data) for event in executor.events}


def test_flats_of_the_sky_at_dusk_are_brought_to_one_level(tmp_path: Path, executor: Executor) -> None:
    """Unscaled, a star in the brightest flat would stay, and rejection would look at levels instead of dust."""
    bias = np.full((HEIGHT, WIDTH), 100.0)
    for number, level in enumerate((8000, 4000, 2000, 1000, 500)):
        flat = bias + level * vignette()
        flat[3 * number, 4] += 0.2 * level  # a star, somewhere else in each
        write(tmp_path / "flats" / f"{number}.fits", flat)
    bias_path = write(tmp_path / "bias.fits", bias)
    calibration = read_calibration(bias_path, None, tmp_path / "flats", replace(FACTS, pattern=None), executor)
    assert calibration.flat is not None
    np.testing.assert_allclose(calibration.flat[0], vignette() / vignette().mean(), rtol=1e-4)
    scaled = said(executor)["flats_scaled"]
    assert scaled["frames"] == 5
    assert scaled["highest"] / scaled["lowest"] == pytest.approx(16, rel=0.01)


def test_what_calibration_decides_is_said(tmp_path: Path, executor: Executor) -> None:
    flat = np.full((HEIGHT, WIDTH), 1000.0)
    flat[2, 3:5] = 0
    dark = write(tmp_path / "dark.fits", np.zeros((HEIGHT, WIDTH)))
    read_calibration(None, dark, write(tmp_path / "flat.fits", flat), replace(FACTS, exposure=10.0), executor)
    events = said(executor)
    assert events["calibration_master"]["kind"] == "flat"
    assert events["dark_exposure_unknown"]["path"] == str(dark)
    assert events["flat_without_bias"]["path"].endswith("flat.fits")
    assert events["flat_too_dark"]["pixels"] == 2
