"""What is written is read again: pixels, shape, axes, type, metadata; whole or by regions; or nothing at all."""

from __future__ import annotations

import tempfile
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from safelight.core.errors import OutputError
from safelight.core.files import digest
from safelight.formats.microscopy import Metadata, check_output, create_image, open_image, write_image

SUFFIXES = (".tif", ".ome.tif", ".ome.zarr", ".npy", ".npz")
DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")
ORDERS = sorted({"".join(order) for count in range(5) for order in permutations("STCZ", count)})


@st.composite
def layouts(draw: st.DrawFn, orders: list[str]) -> tuple[str, tuple[int, ...], str]:
    axes = draw(st.sampled_from(orders)) + "YX"
    if draw(st.booleans()):
        axes = "".join(draw(st.permutations(axes)))
    shape = tuple(draw(st.integers(2, 4 if axis in "YX" else 3)) for axis in axes)
    return axes, shape, draw(st.sampled_from(DTYPES))


def region_of(shape: tuple[int, ...], draw: st.DataObject) -> tuple[slice, ...]:
    starts = [draw.draw(st.integers(0, size - 1)) for size in shape]
    return tuple(
        slice(start, draw.draw(st.integers(start + 1, size))) for start, size in zip(starts, shape, strict=True)
    )


@pytest.mark.parametrize("suffix", [".tif", ".ome.zarr", ".npy", ".npz"])
@given(layout=layouts(ORDERS), data=st.data())
@settings(max_examples=25, deadline=None)
def test_any_order_of_axes_and_any_region(suffix: str, layout: tuple[str, tuple[int, ...], str], data: st.DataObject):
    axes, shape, dtype = layout
    array = np.random.default_rng(0).integers(0, 100, shape).astype(dtype)
    region = region_of(shape, data)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a{suffix}"
        write_image(path, array, axes)
        with open_image(path, axes if suffix == ".npy" else None) as image:
            assert (image.axes, image.shape, image.dtype) == (axes, shape, np.dtype(dtype))
            np.testing.assert_array_equal(image.read(), array)
            np.testing.assert_array_equal(image.read(region), array[region])


@pytest.mark.parametrize("suffix", [".tif", ".ome.tif", ".ome.zarr", ".npy"])
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_written_by_regions_in_any_order(suffix: str, data: st.DataObject) -> None:
    shape = (3, 2, 7, 9)
    expected = np.zeros(shape, np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a{suffix}"
        with create_image(path, shape, "ZCYX", np.float32) as image:
            for value in range(1, 6):
                region = region_of(shape, data)
                expected[region] = value
                image.write(region, np.full_like(expected[region], value))
        with open_image(path, "ZCYX" if suffix == ".npy" else None) as image:
            np.testing.assert_array_equal(image.read(), expected)


@pytest.mark.parametrize("suffix", [".tif", ".ome.tif", ".ome.zarr", ".npz"])
@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_metadata_are_kept(tmp_path: Path, metadata: Metadata, suffix: str, dtype: type) -> None:
    path = tmp_path / f"a{suffix}"
    notices = write_image(path, np.ones((2, 3, 2, 20, 24), dtype), "TZCYX", metadata)
    (lost,) = [event.data["entries"] for event in notices] or [[]]
    with open_image(path) as image:
        found = image.metadata
    for entry in metadata.known() - set(lost):
        if entry == "pixel_size":
            assert found.pixel_size == pytest.approx(metadata.pixel_size, rel=1e-6)
        else:
            assert getattr(found, entry) == getattr(metadata, entry)
    assert set(lost) <= {".ome.zarr": {"description"}, ".tif": {"channels", "name"}}.get(suffix, set())


def test_imagej_files_keep_names_and_display(tmp_path: Path) -> None:
    stack = np.arange(3 * 2 * 8 * 9, dtype=np.uint16).reshape(3, 2, 8, 9)
    tables = [np.stack([np.arange(256, dtype=np.uint8)] * 3), np.zeros((3, 256), np.uint8)]
    tifffile.imwrite(
        tmp_path / "in.tif",
        stack,
        imagej=True,
        resolution=(1 / 0.2, 1 / 0.25),
        metadata={
            "axes": "ZCYX",
            "unit": "um",
            "spacing": 0.7,
            "Info": "a note",
            "Labels": ["red", "green"] * 3,
            "Ranges": (0.0, 100.0, 5.0, 90.0),
            "LUTs": tables,
            "mode": "composite",
        },
    )
    with open_image(tmp_path / "in.tif") as image:
        assert image.metadata.flavour == "imagej"
        assert [channel.name for channel in image.metadata.channels] == ["red", "green"]
        assert image.pixel_size == pytest.approx({"Z": 0.7, "Y": 0.25, "X": 0.2})
        assert write_image(tmp_path / "out.tif", image.read().astype(np.float32), image.axes, image.metadata) == ()
    with tifffile.TiffFile(tmp_path / "out.tif") as tif:
        written = tif.imagej_metadata
    assert (written["slices"], written["channels"], written["mode"]) == (3, 2, "composite")
    assert (written["spacing"], written["unit"], written["Info"]) == (0.7, "um", "a note")
    assert written["Labels"] == ["red", "green"] * 3
    assert tuple(written["Ranges"]) == (0.0, 100.0, 5.0, 90.0)
    np.testing.assert_array_equal(written["LUTs"], tables)


@pytest.mark.parametrize("flavour", ["imagej", "ome", "shaped"])
def test_a_tif_keeps_the_flavour_of_the_input(tmp_path: Path, volume: np.ndarray, flavour: str) -> None:
    options = {"imagej": {"imagej": True}, "ome": {"ome": True}, "shaped": {"photometric": "minisblack"}}[flavour]
    tifffile.imwrite(tmp_path / "in.tif", volume, metadata={"axes": "ZYX"}, **options)
    with open_image(tmp_path / "in.tif") as image:
        assert image.axes == "ZYX"
        write_image(tmp_path / "out.tif", image.read().astype(np.float32), image.axes, image.metadata)
    with tifffile.TiffFile(tmp_path / "out.tif") as tif:
        assert (tif.is_imagej, tif.is_ome, tif.is_shaped) == tuple(
            flavour == name for name in ("imagej", "ome", "shaped")
        )
        np.testing.assert_array_equal(tif.series[0].asarray(), volume)


def test_ome_xml_is_valid_to_others(tmp_path: Path, metadata: Metadata) -> None:
    write_image(tmp_path / "a.ome.tif", np.ones((2, 4, 5), np.float32), "CYX", metadata)
    with tifffile.TiffFile(tmp_path / "a.ome.tif") as tif:
        xml = tif.ome_metadata
        assert tif.series[0].axes == "CYX"
    assert 'PhysicalSizeX="0.11"' in xml
    assert 'Name="GFP é"' in xml
    assert 'Color="16711935"' in xml  # 0x00FF00FF, green


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_ome_zarr_of_both_versions(tmp_path: Path, metadata: Metadata, version: str) -> None:
    path = tmp_path / "a.ome.zarr"
    array = np.arange(2 * 3 * 600 * 5, dtype=np.float32).reshape(2, 3, 600, 5)
    write_image(path, array, "CZYX", metadata.model_copy(update={"flavour": version}))

    group = zarr.open_group(path, mode="r")
    assert group.metadata.zarr_format == {"0.4": 2, "0.5": 3}[version]
    attributes = group.attrs["ome"] if version == "0.5" else group.attrs
    (multiscale,) = attributes["multiscales"]
    assert (attributes if version == "0.5" else multiscale)["version"] == version
    assert [(axis["name"], axis.get("unit")) for axis in multiscale["axes"]] == [
        ("c", None),
        ("z", "micrometer"),
        ("y", "micrometer"),
        ("x", "micrometer"),
    ]
    assert multiscale["datasets"][0]["coordinateTransformations"] == [{"type": "scale", "scale": [1, 0.5, 0.1, 0.11]}]
    assert group["0"].chunks == (1, 3, 512, 5)
    with open_image(path) as image:
        assert (image.metadata.flavour, image.notices) == (version, ())
        assert image.metadata.channels == metadata.channels
        np.testing.assert_array_equal(image.read(), array)


def test_a_pyramid_is_read_at_its_highest_resolution(tmp_path: Path) -> None:
    group = zarr.create_group(
        tmp_path / "a.zarr",
        zarr_format=2,
        attributes={
            "multiscales": [
                {
                    "axes": [
                        {"name": "y", "type": "space", "unit": "nanometer"},
                        {"name": "x", "type": "space", "unit": "nanometer"},
                    ],
                    "coordinateTransformations": [{"type": "scale", "scale": [2, 2]}],
                    "datasets": [
                        {"path": "full", "coordinateTransformations": [{"type": "scale", "scale": [50, 60]}]},
                        {"path": "half", "coordinateTransformations": [{"type": "scale", "scale": [100, 120]}]},
                    ],
                }
            ]
        },
    )
    group.create_array("full", data=np.ones((8, 8), np.uint16))
    group.create_array("half", data=np.ones((4, 4), np.uint16))
    with open_image(tmp_path / "a.zarr") as image:
        assert (image.shape, image.axes) == ((8, 8), "YX")
        assert image.pixel_size == pytest.approx({"Y": 0.1, "X": 0.12})


@pytest.mark.parametrize(
    ("shape", "axes", "dtype"),
    [((7, 5), "YX", "uint8"), ((7, 5), "YX", "uint16"), ((7, 5, 3), "YXC", "uint8"), ((7, 5, 4), "YXC", "uint16")],
)
def test_png_keeps_every_bit(tmp_path: Path, shape: tuple[int, ...], axes: str, dtype: str) -> None:
    array = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
    write_image(tmp_path / "a.png", array, axes)
    with open_image(tmp_path / "a.png") as image:
        assert (image.axes, image.dtype) == (axes, np.dtype(dtype))
        np.testing.assert_array_equal(image.read(), array)


def test_png_cannot_hold_float(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"a\.png: PNG cannot hold float32.*uint8 or uint16.*--dtype input"):
        check_output(tmp_path / "a.png", (4, 5), "YX", np.float32)


def test_png_cannot_hold_a_volume(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="axes ZYX"):
        write_image(tmp_path / "a.png", np.zeros((4, 5, 6), np.uint8), "ZYX")


def test_ome_tiff_cannot_hold_samples(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"axes SYX.*--format"):
        check_output(tmp_path / "a.ome.tif", (4, 5, 6), "SYX", np.float32)


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"'\.jpg' is not a format"):
        check_output(tmp_path / "a.jpg", (4, 5), "YX", np.uint8)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_failure_leaves_the_old_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    old = np.ones((4, 5), np.float32)
    write_image(path, old, "YX")
    with (  # noqa: PT012  the error comes out of the block that writes
        pytest.raises(RuntimeError),
        create_image(path, (4, 5), "YX", np.float32) as image,
    ):
        image.write((slice(0, 2), slice(0, 5)), np.zeros((2, 5), np.float32))
        raise RuntimeError
    assert [child.name for child in tmp_path.iterdir()] == [path.name]
    with open_image(path) as image:
        np.testing.assert_array_equal(image.read(), old)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_full_disk_is_an_error_not_a_crash(tmp_path: Path, suffix: str) -> None:
    resource = pytest.importorskip("resource", reason="limits on a file's size are a matter of Unix")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    noise = np.random.default_rng(0).random((512, 512))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    try:
        with pytest.raises(OutputError, match="cannot be written"):
            write_image(tmp_path / f"a{suffix}", noise, "YX")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_missing_folder_is_made(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "new" / f"a{suffix}"
    write_image(path, np.ones((4, 5)), "YX")
    assert path.exists()


@pytest.mark.parametrize("wrong", [np.zeros((2, 5)), np.zeros((3, 5), np.float32)])
def test_a_region_of_another_type_or_shape_is_refused(tmp_path: Path, wrong: np.ndarray) -> None:
    with create_image(tmp_path / "a.tif", (4, 5), "YX", np.float32) as image, pytest.raises(ValueError, match="fit"):
        image.write((slice(0, 2), slice(0, 5)), wrong)


def test_above_four_gigabytes_it_is_a_bigtiff(tmp_path: Path) -> None:
    path, size = tmp_path / "a.tif", 33_000
    corner = np.full((2, 3), 7, np.float32)
    with create_image(path, (size, size), "YX", np.float32) as image:
        image.write((slice(size - 2, size), slice(size - 3, size)), corner)
    assert path.stat().st_blocks * 512 < 1 << 20, "the file is sparse: the test needs no 4 GB"
    with open_image(path) as image:
        assert image.shape == (size, size)
        np.testing.assert_array_equal(image.read((slice(size - 2, size), slice(size - 3, size))), corner)
    with tifffile.TiffFile(path) as tif:
        assert tif.is_bigtiff


@pytest.mark.parametrize("name", ["a.tif", "a.ome.tif", "a.npy", "a.npz", "a.png", "a.ome.zarr"])
def test_the_same_image_is_the_same_bytes(tmp_path: Path, name: str) -> None:
    image = np.arange(5 * 6, dtype=np.uint8).reshape(5, 6)
    for folder in ("one", "two"):
        write_image(tmp_path / folder / name, image, "YX", Metadata(pixel_size={"X": 0.5, "Y": 0.5}))
    assert digest(tmp_path / "one" / name) == digest(tmp_path / "two" / name)
