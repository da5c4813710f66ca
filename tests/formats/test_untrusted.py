"""Files that lie, are damaged or are meant to harm: one clear error, soon, without allocating what they claim."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tifffile
import zarr

from safelight.core.errors import InputError, UnsafeInputError
from safelight.core.files import Limits
from safelight.formats.microscopy import open_image, write_image

TERABYTES = 1 << 42
PEAK_BYTES = 16 << 20


@pytest.fixture(autouse=True)
def _little_memory() -> Iterator[None]:
    """No test here may allocate what a header claims."""
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < PEAK_BYTES


class Harmful:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def npy_header(shape: tuple[int, ...], dtype: str = "<f4") -> bytes:
    target = io.BytesIO()
    np.lib.format.write_array_header_1_0(target, {"descr": dtype, "fortran_order": False, "shape": shape})
    return target.getvalue()


def lying_npy(path: Path) -> None:
    path.write_bytes(npy_header((1 << 20, 1 << 20)) + bytes(100))


def lying_npz(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("image.npy", npy_header((1 << 20, 1 << 20)) + bytes(100))


def lying_png(path: Path) -> None:
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 1 << 20, 1 << 20, 16, 0, 0, 0, 0))
    )


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def lying_tiff(path: Path, **options: Any) -> None:
    """Write a small TIFF, then let its width and height claim a million each."""
    tifffile.imwrite(path, np.zeros((16, 16), np.uint16), **options)
    with tifffile.TiffFile(path, mode="r+") as tif:
        for tag in ("ImageWidth", "ImageLength"):
            tif.pages.first.tags[tag].overwrite(1 << 20, dtype="I")


def lying_compressed_tiff(path: Path) -> None:
    lying_tiff(path, compression="zlib")


def lying_imagej(path: Path) -> None:
    """Write a single plane whose description claims a million."""
    description = "ImageJ=1.54f\nimages=1000000\nslices=1000000\n"
    tifffile.imwrite(path, np.zeros((16, 16), np.uint16), description=description, metadata=None)


def lying_zarr(path: Path) -> None:
    """Claim terabytes in chunks of ordinary size, none of which is there."""
    zarr.create_array(path, shape=(1 << 21, 1 << 20), chunks=(512, 512), dtype="u2")


def huge_chunk_zarr(path: Path) -> None:
    zarr.create_array(path, shape=(1 << 21, 1 << 20), chunks=(1 << 21, 1 << 20), dtype="u2")


@pytest.mark.parametrize(
    ("name", "lie"),
    [
        ("a.npy", lying_npy),
        ("a.npz", lying_npz),
        ("a.png", lying_png),
        ("a.tif", lying_tiff),
        ("a.tif", lying_compressed_tiff),
        ("a.zarr", lying_zarr),
        ("a.zarr", huge_chunk_zarr),
    ],
)
def test_a_header_that_claims_terabytes(tmp_path: Path, name: str, lie: Callable[[Path], None]) -> None:
    lie(tmp_path / name)
    with pytest.raises(UnsafeInputError, match=rf"{name}.* (TiB|GiB)"):
        open_image(tmp_path / name, "YX")


def test_an_imagej_header_that_claims_a_million_planes(tmp_path: Path) -> None:
    lying_imagej(tmp_path / "a.tif")
    with pytest.raises(InputError, match="ImageJ header does not agree"):
        open_image(tmp_path / "a.tif")


def test_more_than_fits_in_memory_is_not_read_at_once(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((100, 100)))
    with open_image(tmp_path / "a.npy", limits=Limits(max_bytes=1000)) as image:
        assert image.read((slice(0, 10), slice(0, 10))).shape == (10, 10)
        with pytest.raises(UnsafeInputError, match=r"a\.npy.*1000 B allowed"):
            image.read()


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"compression": "lzw", "rowsperstrip": 4}])
@pytest.mark.parametrize("flavour", ["shaped", "ome", "imagej"])
def test_a_truncated_tiff_is_never_read_as_less(tmp_path: Path, flavour: str, options: dict[str, Any]) -> None:
    """Cut anywhere, a file gives its pixels or an error: not fewer planes, not zeros."""
    stack = np.random.default_rng(0).integers(1, 60000, (5, 16, 24)).astype(np.uint16)
    path = tmp_path / "a.tif"
    variant = {"metadata": {"axes": "ZYX"}} | ({} if flavour == "shaped" else {flavour: True})
    tifffile.imwrite(path, stack, **variant, **options)
    content = path.read_bytes()
    for length in range(0, len(content), len(content) // 60):
        path.write_bytes(content[:length])
        found = read_if_valid(path)
        assert found is None or (length > len(content) // 2 and np.array_equal(found, stack))


def read_if_valid(path: Path) -> np.ndarray | None:
    try:
        with open_image(path) as image:
            return image.read()
    except InputError:
        return None


@pytest.mark.parametrize("name", ["a.tif", "a.png", "a.npy", "a.npz"])
def test_noise_is_not_an_image(tmp_path: Path, name: str) -> None:
    random = np.random.default_rng(0)
    magic = {
        "a.tif": b"II*\0\x08\0\0\0",
        "a.png": b"\x89PNG\r\n\x1a\n",
        "a.npy": b"\x93NUMPY\x01\0",
        "a.npz": b"PK\3\4",
    }
    for length in (0, 3, 100, 3000):
        for start in (b"", magic[name]):
            (tmp_path / name).write_bytes(start + random.bytes(length))
            with pytest.raises(InputError, match=name):
                open_image(tmp_path / name, "YX").read()


def test_a_damaged_png_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    write_image(path, np.random.default_rng(0).integers(0, 255, (40, 50), np.uint8), "YX")
    path.write_bytes(path.read_bytes()[:-200])
    with open_image(path) as image, pytest.raises(InputError, match=r"a\.png: cannot be read"):
        image.read()


def test_no_pickle_in_npy(tmp_path: Path) -> None:
    array = np.empty((1, 1), object)
    array[0, 0] = Harmful(tmp_path / "harm")
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    np.savez(tmp_path / "a.npz", image=array)
    for name in ("a.npy", "a.npz"):
        with pytest.raises(UnsafeInputError, match="pickled"):
            open_image(tmp_path / name)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("place", ["compressor", "filters"])
def test_no_pickle_in_zarr(tmp_path: Path, place: str) -> None:
    codec = {"id": "pickle", "protocol": 5}
    document = {"zarr_format": 2, "shape": [4, 4], "chunks": [4, 4], "dtype": "<u2", "fill_value": 0, "order": "C"}
    document |= {"compressor": None, "filters": None, place: codec if place == "compressor" else [codec]}
    folder = tmp_path / "a.zarr"
    folder.mkdir()
    (folder / ".zarray").write_text(json.dumps(document))
    (folder / "0.0").write_bytes(pickle.dumps(Harmful(tmp_path / "harm")))
    with pytest.raises(InputError, match=r"a\.zarr"):
        open_image(folder, "YX").read()
    assert not (tmp_path / "harm").exists()


def secret_zarr(folder: Path, dataset: str) -> None:
    attributes = {"multiscales": [{"axes": ["y", "x"], "datasets": [{"path": dataset}]}]}
    zarr.create_group(folder, zarr_format=2, attributes=attributes)


def test_a_zarr_dataset_outside_its_folder(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "secret", data=np.ones((4, 4)))
    secret_zarr(tmp_path / "a.zarr", "../secret")
    with pytest.raises(UnsafeInputError, match=r"a\.zarr.*leads out of the folder"):
        open_image(tmp_path / "a.zarr")


def test_a_zarr_chunk_that_is_a_link_out_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(32))
    folder = tmp_path / "a.zarr"
    zarr.create_array(folder, data=np.ones((4, 4), np.uint16), zarr_format=2, compressors=None)
    (folder / "0.0").unlink()
    (folder / "0.0").symlink_to(tmp_path / "secret")
    with pytest.raises(UnsafeInputError, match="leads out of the folder"), open_image(folder, "YX") as image:
        image.read()


def test_an_ome_tiff_that_names_a_file_outside_its_folder(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "secret.tif", np.zeros((8, 8), np.uint16))
    folder = tmp_path / "in"
    folder.mkdir()
    ome_tiff_in_two_files(folder / "a.ome.tif", "../secret.tif")
    with pytest.raises(UnsafeInputError, match=r"'\.\./secret\.tif' leads out of the folder"):
        open_image(folder / "a.ome.tif")


def test_an_ome_tiff_whose_other_file_is_missing(tmp_path: Path) -> None:
    ome_tiff_in_two_files(tmp_path / "a.ome.tif", "b.ome.tif")
    with pytest.raises(InputError, match="1 of its 2 planes are missing"):
        open_image(tmp_path / "a.ome.tif")


def test_an_ome_tiff_in_two_files(tmp_path: Path) -> None:
    ome_tiff_in_two_files(tmp_path / "a.ome.tif", "b.ome.tif")
    tifffile.imwrite(tmp_path / "b.ome.tif", np.full((8, 8), 2, np.uint16), metadata=None)
    with open_image(tmp_path / "a.ome.tif") as image:
        assert image.axes == "ZYX"
        assert image.read().reshape(2, -1).mean(axis=1).tolist() == [1, 2]


def ome_tiff_in_two_files(path: Path, other: str) -> None:
    xml = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:1"><Image ID="Image:0">'
        '<Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" SizeX="8" SizeY="8" SizeZ="2" SizeC="1" SizeT="1">'
        '<Channel ID="Channel:0" SamplesPerPixel="1"/>'
        f'<TiffData FirstZ="0" IFD="0" PlaneCount="1"><UUID FileName="{path.name}">urn:uuid:1</UUID></TiffData>'
        f'<TiffData FirstZ="1" IFD="0" PlaneCount="1"><UUID FileName="{other}">urn:uuid:2</UUID></TiffData>'
        "</Pixels></Image></OME>"
    )
    tifffile.imwrite(path, np.ones((8, 8), np.uint16), description=xml.encode(), metadata=None)


def test_an_image_of_zeros_is_no_lie(tmp_path: Path) -> None:
    write_image(tmp_path / "a.zarr", np.zeros((600, 600), np.float32), "YX")
    with open_image(tmp_path / "a.zarr") as image:
        assert not image.read().any()


def open_files() -> set[str]:
    return {file.path for file in psutil.Process().open_files()}


@pytest.mark.parametrize("name", ["a.tif", "a.npz", "a.zarr"])
def test_files_are_closed_also_when_parsing_fails(tmp_path: Path, name: str) -> None:
    before = open_files()
    stack = np.random.default_rng(0).integers(0, 99, (3, 8, 8)).astype(np.uint16)
    if name == "a.tif":
        tifffile.imwrite(tmp_path / name, stack, compression="zlib", metadata={"axes": "QYX"}, photometric="minisblack")
    else:
        write_image(tmp_path / name, stack, "ZYX")
    with pytest.raises(InputError, match="are 2, but the image has 3"):
        open_image(tmp_path / name, "YX")
    assert open_files() == before

    with open_image(tmp_path / name, "ZYX") as image:
        image.read()
    assert open_files() == before
    with pytest.raises(ValueError, match="closed"):
        image.read()


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.tif: does not exist"):
        open_image(tmp_path / "nothing.tif")


def test_complex_pixels_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((4, 4), complex))
    with pytest.raises(InputError, match="complex128"):
        open_image(tmp_path / "a.npy")


def test_several_arrays_in_one_file_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", first=np.zeros((4, 4)), second=np.zeros((4, 4)))
    with pytest.raises(InputError, match="2 arrays: first, second"):
        open_image(tmp_path / "a.npz")
