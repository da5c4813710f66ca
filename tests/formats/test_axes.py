"""Axes come from the file or the user; what is assumed is said; what is unknown is refused with advice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from safelight.core.errors import InputError
from safelight.formats.microscopy import open_image, write_image


def test_two_axes_without_a_word_are_assumed_and_said(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((5, 6)))
    with open_image(tmp_path / "a.npy") as image:
        assert image.axes == "YX"
        assert [event.key for event in image.notices] == ["axes_assumed"]


def test_two_axes_that_the_user_named_are_not_assumed(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((5, 6)))
    with open_image(tmp_path / "a.npy", "xy") as image:
        assert (image.axes, image.notices) == ("XY", ())


def test_three_axes_without_a_word_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((4, 5, 6)))
    with pytest.raises(InputError, match=r"a\.npy.*\(4, 5, 6\).*--axes, for instance ZYX"):
        open_image(tmp_path / "a.npy")


@pytest.mark.parametrize("letter", ["Q", "I"])
def test_an_unknown_axis_of_a_tiff_is_refused_until_named(tmp_path: Path, letter: str) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((4, 5, 6), np.uint8), metadata={"axes": f"{letter}YX"}, photometric="minisblack")
    with pytest.raises(InputError, match=f"{letter}YX, which leaves open what {letter} is.*--axes, for instance ZYX"):
        open_image(path)
    with open_image(path, "ZYX") as image:
        assert image.axes == "ZYX"


@pytest.mark.parametrize(
    ("axes", "problem"),
    [
        ("YX", "are 2, but the image has 3"),
        ("TZYX", "are 4, but the image has 3"),
        ("ZZX", "repeat"),
        ("CZX", "lack Y or X"),
        ("ZYQ", "unknown letter Q"),
    ],
)
def test_wrong_axes_of_the_user_are_refused(tmp_path: Path, axes: str, problem: str) -> None:
    np.save(tmp_path / "a.npy", np.zeros((4, 5, 6)))
    with pytest.raises(InputError, match=problem):
        open_image(tmp_path / "a.npy", axes)


def test_an_empty_image_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((0, 6)))
    for axes in ("YX", None):
        with pytest.raises(InputError, match="the image is empty"):
            open_image(tmp_path / "a.npy", axes)


@pytest.mark.parametrize(("shape", "problem"), [((5,), "a list of numbers"), ((), "a single number")])
def test_an_array_of_fewer_than_two_axes_is_no_image(tmp_path: Path, shape: tuple[int, ...], problem: str) -> None:
    np.save(tmp_path / "a.npy", np.zeros(shape))
    for axes in ("YX", None):
        with pytest.raises(InputError, match=f"{problem} is no image. Expected: at least the axes Y and X"):
            open_image(tmp_path / "a.npy", axes)


def test_colour_of_a_tiff_is_a_channel_axis(tmp_path: Path) -> None:
    picture = np.arange(5 * 6 * 3, dtype=np.uint8).reshape(5, 6, 3)
    tifffile.imwrite(tmp_path / "a.tif", picture, photometric="rgb")
    with open_image(tmp_path / "a.tif") as image:
        assert image.axes == "YXC"
        np.testing.assert_array_equal(image.read(), picture)


@pytest.mark.parametrize("suffix", [".tif", ".ome.tif"])
def test_axes_of_size_one_can_be_named_again(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    array = np.arange(4 * 5 * 6, dtype=np.float32).reshape(1, 4, 1, 5, 6)
    write_image(path, array, "TZCYX")
    with open_image(path) as image:
        assert image.axes == "ZYX"
    with open_image(path, "TZCYX") as image:
        assert image.shape == array.shape
        np.testing.assert_array_equal(image.read(), array)
        region = (slice(0, 1), slice(2, 4), slice(0, 1), slice(1, 3), slice(0, 2))
        np.testing.assert_array_equal(image.read(region), array[region])
        assert image.read((slice(0, 0), *region[1:])).shape == (0, 2, 1, 2, 2)
    with pytest.raises(InputError, match="are 4, but the image has 3"):
        open_image(path, "TYZX")
