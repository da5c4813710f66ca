"""What is decided without being asked comes back as events that a person can read, in every language."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import tifffile
import zarr

from safelight.core.messages import LANGUAGES, translate
from safelight.formats.microscopy import Channel, ImageFile, Metadata, open_image, to_dtype, write_image


def test_missing_chunks(tmp_path: Path) -> None:
    folder = tmp_path / "a.zarr"
    zarr.create_array(folder, data=np.ones((8, 8), np.uint16), chunks=(4, 4), zarr_format=2)
    (folder / "1.1").unlink()
    assert sentence_of(open_image(folder, "YX")).endswith("1 of 4 chunks are missing and count as the fill value")


def test_further_images(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as writer:
        for size in (8, 9):
            writer.write(np.zeros((size, size), np.uint8))
    image = open_image(tmp_path / "a.ome.tif")
    assert image.shape == (8, 8)
    assert "1 further image(s) in it are left out" in sentence_of(image)


def test_a_damaged_tag_that_spoils_no_pixel(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.ones((8, 8), np.uint8), software="a long name")
    with tifffile.TiffFile(path) as tif:
        tag = tif.pages.first.tags["Software"].offset
    with path.open("r+b") as stream:
        stream.seek(tag + 8)
        stream.write(struct.pack("<I", 1 << 30))
    with open_image(path) as image:
        assert image.read().all()
    assert "a.tif: the reader says: " in sentence_of(image)


def test_assumed_axes(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((5, 6)))
    assert sentence_of(open_image(tmp_path / "a.npy")).endswith("a.npy: two axes are taken for YX")


def sentence_of(image: ImageFile) -> str:
    with image:
        (event,) = image.notices
    english, *_ = [translate(event, language) for language in LANGUAGES]
    return english


def test_metadata_that_a_format_cannot_hold(tmp_path: Path, metadata: Metadata) -> None:
    (event,) = write_image(tmp_path / "a.npy", np.zeros((4, 5)), "YX", metadata)
    assert translate(event, "en").endswith("does not keep channels, description, name, pixel_size, time_interval")
    partial = Metadata(channels=(Channel(name="a", emission=520), Channel(name="b")))
    (event,) = write_image(tmp_path / "a.ome.tif", np.zeros((2, 4, 5), np.float32), "CYX", partial)
    assert translate(event, "fr").endswith("ne conserve pas channels")


def test_conversions_of_tiles_add_up_to_one_event() -> None:
    tiles = [np.array([300.0, 0.4]), np.array([np.nan, -1.0])]
    (first, second) = (to_dtype(tile, np.uint8)[1] for tile in tiles)
    (event,) = (first + second).notices("a.tif")
    assert translate(event, "en") == (
        "a.tif: as uint8, 1 pixel(s) were rounded, 2 clipped to its range, 1 NaN became 0"
    )
