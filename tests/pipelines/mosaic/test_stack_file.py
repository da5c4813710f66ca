"""A stack on the disk: any part of any plane, the field's names, and all of it or nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from astropy.io import fits
from astropy.wcs import WCS

from safelight.core.errors import InputError
from safelight.kernels.combine import PLANES
from safelight.pipelines.mosaic.stack_file import StackFile, bands, create_stack
from sky import canvas_wcs

SHAPE = (3, 600, 40)


@pytest.fixture(scope="module")
def values() -> np.ndarray:
    return np.random.default_rng(0).normal(100, 5, (len(PLANES), *SHAPE)).astype(np.float32)


@pytest.fixture(scope="module")
def path(values: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stack") / "group-01.fits"
    with create_stack(path, PLANES, SHAPE, canvas_wcs(20, 300, turn=5), {"NFRAMES": 12}) as sink:
        for band in bands(slice(0, SHAPE[1]), 70):
            sink.write(band.start, band.stop, torch.from_numpy(values[:, :, band]).permute(2, 0, 1, 3))
    return path


def test_all_planes_come_back_whole_and_in_parts(path: Path, values: np.ndarray) -> None:
    with StackFile(path) as stack:
        assert (stack.channels, stack.shape) == (3, SHAPE[1:])
        for number, name in enumerate(PLANES):
            assert np.array_equal(stack.read(name), values[number])
            assert np.array_equal(stack.read(name, slice(7, 19)), values[number, :, 7:19])
            part = stack.window(name, 1, slice(50, 590), slice(3, 21))
            assert np.array_equal(part, values[number, 1, 50:590, 3:21]), "more rows than are read at a time"


def test_other_programs_find_names_and_the_sky(path: Path) -> None:
    with fits.open(path) as hdus:
        hdus.verify("exception")
        assert [hdu.name for hdu in hdus] == ["IMAGE", "WEIGHT", "VARIANCE", "COVERAGE", "NEFF", "LOW", "HIGH"]
        for hdu in hdus:
            assert hdu.header["NFRAMES"] == 12
            found = WCS(hdu.header, naxis=2).all_pix2world(13.0, 470.0, 0)
            np.testing.assert_allclose(found, canvas_wcs(20, 300, turn=5).all_pix2world(13.0, 470.0, 0), atol=1e-9)


def test_a_stack_that_was_not_finished_is_not_there(tmp_path: Path, values: np.ndarray) -> None:
    def half() -> None:
        with create_stack(tmp_path / "half.fits", PLANES, SHAPE, WCS(naxis=2), {}) as sink:
            sink.write(0, 300, torch.from_numpy(values[:, :, :300]).permute(2, 0, 1, 3))
            raise InputError("a frame is damaged")

    with pytest.raises(InputError):
        half()
    assert list(tmp_path.iterdir()) == []


def test_bands_cover_all_rows_once() -> None:
    assert [(band.start, band.stop) for band in bands(slice(5, 30), 10)] == [(5, 15), (15, 25), (25, 30)]
    assert list(bands(slice(4, 4), 10)) == []
