"""What the mosaic decides where frames leave a choice is said, in the log and so in the report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from sky import PLACES, Camera, Stars, mosaic, take


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFELIGHT_CACHE", str(tmp_path / "cache"))


def test_of_a_file_with_several_images_the_first_is_taken_and_that_is_said(tmp_path: Path) -> None:
    folder = take(tmp_path / "in", frames=4)
    with fits.open(folder / "light_002.fits", mode="append") as file:
        file.append(fits.ImageHDU(np.zeros((20, 30), np.float32), name="THUMBNAIL"))
    made = mosaic(folder, tmp_path / "out")
    (event,) = made.events("first_image_used")
    assert event["severity"] == "warning"
    assert event["data"] == {"name": "light_002", "images": 2}
    assert made.plane("COVERAGE").max() == 4


def test_sets_of_frames_that_share_no_stars_are_told_apart(tmp_path: Path) -> None:
    folder = take(tmp_path / "in", frames=4, solved=False)
    for number in range(2):
        other = Camera(stars=Stars.scattered(seed=9))
        other.write(folder / f"other_{number}.fits", number, PLACES[number], solved=False)
    made = mosaic(folder, tmp_path / "out")
    (event,) = made.events("largest_set_kept")
    assert event["data"] == {"kept": 4, "left_out": 2}
    assert made.events("relative_grid")
    assert {refusal["name"] for refusal in made.document["refused"]} == {"other_0.fits", "other_1.fits"}


def test_a_frame_whose_place_no_other_confirms_is_named(tmp_path: Path) -> None:
    """It has a WCS, so it is taken; but hardly a star of it is in the others."""
    folder = take(tmp_path / "in", frames=4)
    Camera(stars=Stars.scattered(seed=9)).write(folder / "alone.fits", 7)
    made = mosaic(folder, tmp_path / "out")
    (event,) = made.events("weak_alignment")
    assert event["data"]["name"] == "alone"
    assert event["data"]["stars"] < 6


def test_an_implausible_gain_between_groups_is_said(tmp_path: Path) -> None:
    camera = Camera()
    brighter = replace(camera, stars=replace(camera.stars, flux=5 * camera.stars.flux), background=5 * 1000, noise=100)
    for number, (dx, dy, turn) in enumerate(PLACES[:3]):
        camera.write(tmp_path / "in" / f"a_{number}.fits", number, (dx - 60, dy, turn))
        brighter.write(tmp_path / "in" / f"b_{number}.fits", 10 + number, (dx + 70, dy, turn))
    made = mosaic(tmp_path / "in", tmp_path / "out")
    gains = {event["data"]["name"]: event["data"]["gain"] for event in made.events("implausible_gain")}
    assert gains
    assert not mosaic(take(tmp_path / "like"), tmp_path / "calm").events("implausible_gain")
