"""Georeferenced images: windows, what files say about themselves, damaged ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio

from safelight.core.errors import InputError, OutputError
from safelight.formats.geotiff import Raster, create_cog, write_geotiff
from sentinel import ground, header


def test_a_new_image_is_a_cog_and_comes_back_with_everything_it_says(tmp_path: Path) -> None:
    pixels = ground((700, 600))
    names = tuple(f"B{n}" for n in range(13))
    wanted = header(
        13,
        (700, 600),
        np.uint16,
        nodata=0.0,
        names=names,
        tags={"PROCESSING_BASELINE": "05.09"},
        band_tags=tuple({"WAVELENGTH": str(400 + n)} for n in range(13)),
        units=("reflectance",) * 13,
        colours=("undefined", "blue", "green", "red", *("undefined",) * 9),
    )
    path = tmp_path / "a.tif"
    with create_cog(path, wanted) as writer:
        for row, column in ((512, 0), (0, 100), (0, 0), (512, 100)):
            part = pixels[:, row : row + (512 if row == 0 else 188), column : column + (100 if column == 0 else 500)]
            writer.write(row, column, part)
    with Raster(path) as raster:
        found = raster.header
        assert rasterio.CRS.from_wkt(found.grid.crs).to_epsg() == 32631
        assert replace(found.grid, crs="") == replace(wanted.grid, crs="")
        assert (found.nodata, found.names, found.dtype) == (0.0, names, np.uint16)
        assert found.tags["PROCESSING_BASELINE"] == "05.09"
        assert (found.band_tags, found.units, found.colours) == (wanted.band_tags, wanted.units, wanted.colours)
        assert np.array_equal(raster.read_all(), pixels)
        assert np.array_equal(raster.read(slice(500, 530), slice(90, 120)), pixels[:, 500:530, 90:120])
    with rasterio.open(path) as file:
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
    assert [p.name for p in tmp_path.iterdir()] == ["a.tif"], "no draft is left"


def test_statistics_of_the_pixels_are_no_tags(tmp_path: Path) -> None:
    write_geotiff(tmp_path / "a.tif", ground((20, 20)), header(13, (20, 20), np.uint16))
    with rasterio.open(tmp_path / "a.tif", "r+", IGNORE_COG_LAYOUT_BREAK="YES") as file:
        file.update_tags(1, STATISTICS_MEAN="7", WAVELENGTH="443")
    with Raster(tmp_path / "a.tif") as raster:
        assert raster.header.band_tags[0] == {"WAVELENGTH": "443"}


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), create_cog(tmp_path / "a.tif", header(1, (8, 8), np.uint8)):
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError):
        write_geotiff(tmp_path / "file" / "a.tif", ground((8, 8)), header(13, (8, 8), np.uint16))


def test_an_image_can_be_read_on_another_grid(tmp_path: Path) -> None:
    rows, columns = np.indices((40, 50), dtype=np.float32)
    write_geotiff(tmp_path / "a.tif", np.stack([rows, columns]), header(2, (40, 50), np.float32))
    with Raster(tmp_path / "a.tif") as raster:
        grid = raster.header.grid
    a, b, x, d, e, y = grid.transform
    onto = replace(grid, transform=(a, b, x + 55.0, d, e, y - 30.0), height=20, width=60)
    with Raster(tmp_path / "a.tif", onto) as warped:
        part = warped.read_all()
    np.testing.assert_allclose(part[0, :, :40], rows[3:23, :40], atol=1e-3)
    np.testing.assert_allclose(part[1, :, :40], columns[3:23, :40] + 5.5, atol=1e-3)
    assert np.isnan(part[:, :, 46:]).all()


@pytest.mark.parametrize("content", [b"", b"II*\0 no image", b"hello"])
def test_what_is_no_image_is_one_clear_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.tif: it cannot be read as an image"):
        Raster(tmp_path / "a.tif")


def test_a_damaged_image_is_found_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    write_geotiff(path, ground((200, 200)), header(13, (200, 200), np.uint16))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"a\.tif"), Raster(path) as raster:
        raster.read_all()


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.tif: there is no such file"):
        Raster(tmp_path / "none.tif")


def test_an_overview_is_every_so_many_pixels(tmp_path: Path) -> None:
    rows, columns = np.indices((1300, 900), dtype=np.float32)
    write_geotiff(tmp_path / "a.tif", np.stack([rows, columns]), header(2, (1300, 900), np.float32))
    with Raster(tmp_path / "a.tif") as raster:
        small = raster.overview(100)
    assert np.array_equal(small, np.stack([rows, columns])[:, ::13, ::13])
