"""FITS: what is read is what was stored, damage and lies are refused, outputs appear whole."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.io.fits import Header

from safelight.core.errors import InputError, UnsafeInputError
from safelight.formats.fits import create_fits, open_fits, open_planes

COMPRESSIONS = ("RICE_1", "GZIP_1", "GZIP_2", "HCOMPRESS_1", "PLIO_1")


@pytest.fixture
def counts() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 3000, (64, 48)).astype(np.int16)


@pytest.fixture
def frame(tmp_path: Path, counts: np.ndarray) -> Path:
    path = tmp_path / "frame.fits"
    fits.writeto(path, counts, Header([("EXPTIME", 10.0), ("FILTER", "IRCUT")]))
    return path


def compressed(path: Path, pixels: np.ndarray, method: str = "RICE_1", **keywords: float) -> Path:
    image = fits.CompImageHDU(pixels, compression_type=method, **keywords)
    fits.HDUList([fits.PrimaryHDU(), image]).writeto(path)
    return path


def read(path: Path, rows: slice = slice(None)) -> np.ndarray:
    with open_fits(path) as image:
        return image.read(rows)


def change_card(path: Path, key: str, text: str) -> None:
    content = path.read_bytes()
    start = content.index(key.ljust(8).encode())
    path.write_bytes(content[:start] + text.ljust(80).encode("latin-1") + content[start + 80 :])


@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "u4", "f4", "f8"])
def test_every_type_of_number_is_read_as_physical_values(tmp_path: Path, counts: np.ndarray, dtype: str) -> None:
    stored = (counts % 200).astype(dtype) + np.array(55, dtype)
    fits.writeto(tmp_path / "frame.fit", stored)
    pixels = read(tmp_path / "frame.fit")
    assert pixels.dtype == np.float32
    np.testing.assert_array_equal(pixels, stored[None].astype(np.float32))


def test_scaling_is_applied_and_blank_is_invalid(frame: Path, counts: np.ndarray) -> None:
    with fits.open(frame, mode="update", do_not_scale_image_data=True) as hdus:
        hdus[0].header.update(BSCALE=0.5, BZERO=100.0, BLANK=int(counts[3, 4]))
    expected = np.where(counts == counts[3, 4], np.nan, 0.5 * counts + 100)
    np.testing.assert_array_equal(read(frame)[0], expected.astype(np.float32))


@pytest.mark.parametrize("method", COMPRESSIONS)
def test_compressed_frames_are_read_by_rows(tmp_path: Path, counts: np.ndarray, method: str) -> None:
    path = compressed(tmp_path / "frame.fits.fz", counts, method)
    np.testing.assert_array_equal(read(path)[0], counts)
    np.testing.assert_array_equal(read(path, slice(13, 31))[0], counts[13:31])


def test_compressed_unsigned_numbers_and_blank(tmp_path: Path, counts: np.ndarray) -> None:
    unsigned = counts.astype(np.uint16) + np.uint16(40000)
    np.testing.assert_array_equal(read(compressed(tmp_path / "u.fits.fz", unsigned))[0], unsigned)
    image = fits.CompImageHDU(counts)
    image.header["BLANK"] = int(counts[0, 0])
    fits.HDUList([fits.PrimaryHDU(), image]).writeto(tmp_path / "b.fits.fz")
    np.testing.assert_array_equal(np.isnan(read(tmp_path / "b.fits.fz")[0]), counts == counts[0, 0])


def test_nan_stays_nan_plain_and_compressed(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).normal(100, 5, (40, 30)).astype(np.float32)
    pixels[7, 8] = np.nan
    fits.writeto(tmp_path / "plain.fits", pixels)
    np.testing.assert_array_equal(read(tmp_path / "plain.fits")[0], pixels)
    np.testing.assert_allclose(
        read(compressed(tmp_path / "q.fits.fz", pixels, quantize_level=64))[0], pixels, atol=0.2, equal_nan=True
    )


def test_a_colour_cube_is_read_by_rows_of_all_channels(tmp_path: Path) -> None:
    cube = np.arange(3 * 20 * 6, dtype=np.float32).reshape(3, 20, 6)
    fits.writeto(tmp_path / "cube.fits", cube)
    with open_fits(tmp_path / "cube.fits") as image:
        assert image.shape == (3, 20, 6)
        np.testing.assert_array_equal(image.read(slice(5, 9)), cube[:, 5:9])


def test_real_frames(shared: Path) -> None:
    path = next(iter(sorted((shared / "data" / "m94" / "s1").glob("*.fits.fz"))))
    with open_fits(path) as image, fits.open(path) as hdus:
        assert image.shape == (1, 1920, 1080)
        assert (image.header["BAYERPAT"], image.header["EXPTIME"]) == ("GRBG", 10.0)
        np.testing.assert_array_equal(image.read(slice(700, 764))[0], hdus[1].data[700:764])


def test_inputs_are_not_touched(frame: Path) -> None:
    frame.chmod(0o400)
    before = hashlib.sha256(frame.read_bytes()).hexdigest(), frame.stat().st_mtime_ns
    read(frame)
    assert (hashlib.sha256(frame.read_bytes()).hexdigest(), frame.stat().st_mtime_ns) == before


def test_a_card_that_nobody_can_read_does_not_cost_the_frame(frame: Path, counts: np.ndarray) -> None:
    change_card(frame, "FILTER", "FILTER  = 10.0.3 'abc")
    with open_fits(frame) as image:
        assert "FILTER" not in image.header
        assert image.header["EXPTIME"] == 10.0
        np.testing.assert_array_equal(image.read()[0], counts)


def test_letters_beyond_ascii_do_not_cost_the_frame(frame: Path, counts: np.ndarray) -> None:
    change_card(frame, "FILTER", "FILTER  = 'caf\xe9 \xb0'")
    np.testing.assert_array_equal(read(frame)[0], counts)


def test_padding_that_is_missing_at_the_end_does_not_cost_the_frame(frame: Path, counts: np.ndarray) -> None:
    frame.write_bytes(frame.read_bytes()[: 2880 + counts.nbytes])
    np.testing.assert_array_equal(read(frame)[0], counts)


@pytest.mark.parametrize("kept", [0, 100, 2880, 2881, 2880 + 64 * 48 * 2 - 1])
def test_a_frame_that_is_cut_short_is_refused(frame: Path, kept: int) -> None:
    frame.write_bytes(frame.read_bytes()[:kept])
    with pytest.raises(InputError, match=r"frame\.fits: (is cut short|cannot be read)"):
        read(frame)


def test_a_compressed_frame_that_is_cut_short_is_refused(tmp_path: Path, counts: np.ndarray) -> None:
    path = compressed(tmp_path / "frame.fits.fz", counts)
    path.write_bytes(path.read_bytes()[:-4000])
    with pytest.raises(InputError, match="cut short"):
        read(path)


@pytest.mark.parametrize("method", ["RICE_1", "GZIP_1", "GZIP_2", "HCOMPRESS_1"])
def test_damaged_tiles_are_an_input_error(tmp_path: Path, counts: np.ndarray, method: str) -> None:
    path = compressed(tmp_path / "frame.fits.fz", counts, method)
    content = bytearray(path.read_bytes())
    for place in range(len(content) - 4400, len(content) - 2400, 40):
        content[place] ^= 0x5A
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"frame\.fits\.fz: cannot be read"):
        read(path)


LIES = {
    "wider than the file": ("NAXIS1", "NAXIS1  =           2000000000", "cut short"),
    "a billion axes": ("NAXIS", "NAXIS   =            999999999", "NAXIS is 999999999"),
    "axes without a length": ("NAXIS", "NAXIS   =                    9", "NAXIS3"),
    "a negative length": ("NAXIS1", "NAXIS1  =                  -48", "-48"),
    "an unknown type": ("BITPIX", "BITPIX  =                   17", "BITPIX is 17"),
    "a type of letters": ("BITPIX", "BITPIX  = 'abc'", "abc"),
    "no end": ("END", "COMMENT", "no end"),
    "another kind of file": ("SIMPLE", "%PDF-1.7", "does not begin like a FITS file"),
}


@pytest.mark.parametrize("lie", LIES)
def test_headers_that_lie_are_refused(frame: Path, lie: str) -> None:
    key, card, complaint = LIES[lie]
    change_card(frame, key, card)
    with pytest.raises(InputError, match=complaint):
        read(frame)


@pytest.mark.parametrize("key", ["ZNAXIS", "ZTILE"])
def test_compressed_headers_that_lie_are_refused_before_anything_is_allocated(
    tmp_path: Path, counts: np.ndarray, key: str
) -> None:
    path = compressed(tmp_path / "frame.fits.fz", counts)
    for axis in (1, 2):
        change_card(path, f"{key}{axis}", f"{key}{axis}".ljust(8) + "=              2000000")
    with pytest.raises(UnsafeInputError, match="claims"):
        read(path)


def folder(path: Path) -> None:
    path.mkdir()


def table(path: Path) -> None:
    column = fits.Column("a", "J", array=np.arange(5))
    fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU.from_columns([column])]).writeto(path)


def spectrum(path: Path) -> None:
    fits.writeto(path, np.arange(10.0))


def hypercube(path: Path) -> None:
    fits.writeto(path, np.zeros((2, 3, 4, 5)))


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (folder, "is not a file"),
        (lambda path: None, "does not exist"),
        (table, "holds no image"),
        (spectrum, r"shape \(10,\)"),
        (hypercube, r"shape \(2, 3, 4, 5\)"),
    ],
)
def test_what_is_no_image_is_refused(tmp_path: Path, make: Callable[[Path], None], complaint: str) -> None:
    path = tmp_path / "frame.fits"
    make(path)
    with pytest.raises(InputError, match=complaint):
        read(path)


def test_planes_are_written_by_rows_and_read_by_name(tmp_path: Path) -> None:
    image = np.random.default_rng(2).normal(0, 1, (3, 10, 7)).astype(np.float32)
    image[1, 2, 3] = np.nan
    weight = np.arange(70, dtype=np.float32).reshape(10, 7)
    header = Header([("OBJECT", "M 94"), ("CRPIX1", -20.5), ("NAXIS1", 9999), ("BZERO", 32768)])
    with create_fits(tmp_path / "out.fits", {"IMAGE": ((3, 10, 7), header), "WEIGHT": ((10, 7), header)}) as writer:
        for start in (6, 0, 3):
            stop = min(start + 4, 10)
            writer.write("WEIGHT", start, weight[None, start:stop])
            writer.write("IMAGE", start, image[:, start:stop])
    with open_planes(tmp_path / "out.fits") as planes:
        assert list(planes) == ["IMAGE", "WEIGHT"]
        np.testing.assert_array_equal(planes["IMAGE"].read(), image)
        np.testing.assert_array_equal(planes["WEIGHT"].read(slice(2, 5))[0], weight[2:5])
    with fits.open(tmp_path / "out.fits") as hdus:
        hdus.verify("exception")
        assert [(hdu.header["OBJECT"], hdu.header["CRPIX1"]) for hdu in hdus] == [("M 94", -20.5)] * 2


def test_a_file_whose_writing_fails_does_not_appear(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="stopped"),
        create_fits(tmp_path / "out.fits", {"IMAGE": ((10, 7), Header())}),
    ):
        raise RuntimeError("stopped")
    assert list(tmp_path.iterdir()) == []
