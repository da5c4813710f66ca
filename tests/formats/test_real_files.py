"""Images of real microscopes, as their software wrote them."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import tifffile

from safelight.core.errors import InputError
from safelight.formats.microscopy import open_image, write_image


def test_a_confocal_ome_tiff_of_bio_formats(tmp_path: Path) -> None:
    partseg = pytest.importorskip("PartSegData", reason="the package PartSegData, which carries a stack, is missing")
    path = Path(str(files(partseg) / "static_files" / "initial_images" / "stack.tif"))
    with open_image(path) as image:
        assert (image.shape, image.axes, image.dtype) == ((4, 1024, 1024), "CYX", np.dtype(np.float32))
        assert image.pixel_size == pytest.approx({"Z": 0.21, "Y": 0.077522, "X": 0.077522}, rel=1e-5)
        assert image.metadata.name == "A_deconv.tif (slice 23)"
        region = (slice(1, 3), slice(100, 164), slice(7, 71))
        part = image.read(region)
        notices = write_image(tmp_path / "out.tif", part, image.axes, image.metadata)
    np.testing.assert_array_equal(part, tifffile.imread(path)[region])
    assert notices == ()
    with open_image(tmp_path / "out.tif") as result:
        assert result.metadata == image.metadata
        np.testing.assert_array_equal(result.read(), part)


def test_a_volume_of_unknown_axes(shared: Path) -> None:
    path = shared / "data" / "micro" / "volume" / "img3d.tif"
    with pytest.raises(InputError, match=r"\(31, 61, 57\) QYX, .* what Q is.*--axes, for instance ZYX"):
        open_image(path)
    with open_image(path, "ZYX") as image:
        assert (image.shape, image.dtype) == ((31, 61, 57), np.dtype(np.uint16))
        np.testing.assert_array_equal(image.read(), tifffile.imread(path))


@pytest.mark.parametrize(
    ("name", "axes", "shape", "dtype"),
    [
        ("volume/cellfinder_ch0_16planes.tif", "ZYX", (16, 510, 667), "uint16"),
        ("convallaria/20190520_tl_25um_50msec_05pc_488_130EM_Conv0000.tif", "YX", (1024, 1024), "uint16"),
        ("fmd/mice_raw.tif", "YX", (512, 512), "uint8"),
        ("w2s/input_avg1_001_0.png", "YX", (512, 512), "uint8"),
    ],
)
def test_real_frames(shared: Path, name: str, axes: str, shape: tuple[int, ...], dtype: str) -> None:
    with open_image(shared / "data" / "micro" / name) as image:
        assert (image.axes, image.shape, image.dtype, image.notices) == (axes, shape, np.dtype(dtype), ())
        pixels = image.read()
        region = tuple(slice(size // 3, size // 2) for size in shape)
        np.testing.assert_array_equal(image.read(region), pixels[region])
    assert pixels.std() > 0


def test_an_archive_of_many_images_says_what_it_holds(shared: Path) -> None:
    with pytest.raises(InputError, match=r"holds \d+ arrays: test001, .*save each image in a file of its own"):
        open_image(shared / "data" / "micro" / "bsd68" / "noisy_sigma25_int16x100.npz")
