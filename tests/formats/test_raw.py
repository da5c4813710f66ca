"""RAW files as cameras, copies and liars write them."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from dng import BAYER, BLACK, MATRIX, WHITE, XTRANS, colour_coded, write_dng
from safelight.core.errors import InputError, UnsafeInputError
from safelight.core.files import Limits
from safelight.formats.dng import write_dng as write_our_dng
from safelight.formats.raw import read_raw, read_raw_size
from safelight.kernels.cfa import tile_of

MARGINS = [(0, 0), (2, 4), (7, 6), (8, 10), (9, 0), (6, 13)]


@pytest.mark.parametrize("margin", MARGINS, ids=str)
@pytest.mark.parametrize("pattern", [*BAYER.values(), XTRANS], ids=[*BAYER, "X-Trans"])
def test_the_pattern_is_that_of_the_first_visible_pixels(
    tmp_path: Path, pattern: tuple[tuple[int, ...], ...], margin: tuple[int, int]
) -> None:
    """Whatever the margins: every site says its own colour."""
    top, left = margin
    mosaic = np.roll(colour_coded(pattern, 96, 120), margin, axis=(0, 1))
    path = write_dng(tmp_path / "a.dng", mosaic, pattern, active=(top, left, 90, 114))
    frame = read_raw(path)
    height, width = frame.mosaic.shape
    assert 90 - top - 1 <= height <= 90 - top
    assert 114 - left - 1 <= width <= 114 - left
    period = len(pattern)
    assert frame.pattern.shape == (period, period)
    colours = np.tile(frame.pattern, (20 * 6 // period, 20 * 6 // period))[:height, :width]
    assert (frame.mosaic == 1000 * (np.where(colours == 3, 1, colours).astype(np.uint16) + 1)).all()
    assert (3 in frame.pattern) == (period == 2)
    assert frame.sensor == ("bayer" if period == 2 else "x-trans")


def test_black_levels_belong_to_colours_not_to_places(tmp_path: Path) -> None:
    mosaic = np.full((60, 60), 2000, np.uint16)
    path = write_dng(tmp_path / "a.dng", mosaic, BAYER["GBRG"], black=(60, 62, 64, 66), black_dim=(2, 2))
    frame = read_raw(path)
    levels = np.array(frame.black)[frame.pattern]
    assert levels.tolist() == [[60, 62], [64, 66]]


def test_what_the_header_says_is_read(tmp_path: Path) -> None:
    mosaic = np.full((60, 80), 2000, np.uint16)
    frame = read_raw(write_dng(tmp_path / "a.dng", mosaic, BAYER["RGGB"], exposure=(1, 50), orientation=6))
    assert (frame.white, frame.black[0]) == (WHITE, BLACK)
    assert frame.clipping == (WHITE,) * 4
    assert frame.white_balance == pytest.approx((2, 1, 1 / 0.6, 1)), "the second green is 0 in the file"
    assert frame.exposure == pytest.approx(0.02)
    assert frame.camera == "Test Camera"
    assert frame.mosaic.shape == (60, 80), "never turned"
    assert frame.flip != 0
    rows = [row / np.linalg.norm(row) for row in np.reshape(MATRIX, (3, 3))]
    found = [row / np.linalg.norm(row) for row in frame.rgb_xyz_matrix[:3]]
    assert np.array(found) == pytest.approx(np.array(rows), abs=0.01), "LibRaw does not know this camera"


def test_the_pixels_stay_when_the_file_is_closed(tmp_path: Path) -> None:
    mosaic = np.arange(60 * 80, dtype=np.uint16).reshape(60, 80)
    frame = read_raw(write_dng(tmp_path / "a.dng", mosaic, BAYER["RGGB"]))
    assert frame.mosaic.flags.owndata
    assert (frame.mosaic == mosaic).all()


def test_threads_may_read_at_once(tmp_path: Path) -> None:
    mosaics = [np.full((200, 300), 1000 + number, np.uint16) for number in range(8)]
    paths = [write_dng(tmp_path / f"{n}.dng", mosaic, BAYER["RGGB"]) for n, mosaic in enumerate(mosaics)]
    with ThreadPoolExecutor(4) as pool:
        frames = list(pool.map(read_raw, paths))
    assert all((frame.mosaic == mosaic).all() for frame, mosaic in zip(frames, mosaics, strict=True))


def test_a_file_without_a_mosaic_is_refused(tmp_path: Path) -> None:
    path = write_dng(tmp_path / "a.dng", np.full((60, 60, 3), 2000, np.uint16), BAYER["RGGB"], photometric=34892)
    with pytest.raises(InputError, match="mosaic"):
        read_raw(path)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.raw", b"x" * 1000, "suffix"),
        ("a.jpg", b"x" * 1000, "suffix"),
        ("a.cr2", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "git-LFS pointer"),
        ("a.arw", b"<?xpacket begin='' ?><x:xmpmeta/>" * 20, "no RAW file"),
        ("a.dng", b"", "empty"),
        ("a.nef", b"II*\0", "cut off|no RAW file"),
    ],
)
def test_what_is_no_raw_file_is_refused_with_its_name(tmp_path: Path, name: str, content: bytes, problem: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    for read in (read_raw_size, read_raw):
        with pytest.raises(InputError, match=problem) as caught:
            read(path)
        assert caught.value.path == path


def test_a_file_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    path = write_dng(tmp_path / "a.dng", np.full((200, 300), 2000, np.uint16), BAYER["RGGB"])
    path.write_bytes(path.read_bytes()[:60_000])
    read_raw_size(path)
    with pytest.raises(InputError, match="cut off"):
        read_raw(path)


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_raw(tmp_path / "a.dng")
    (tmp_path / "b.dng").mkdir()
    with pytest.raises(InputError, match="not a file"):
        read_raw(tmp_path / "b.dng")


@pytest.mark.parametrize("side", [30_000, 40_000])
def test_a_header_that_lies_is_refused_before_anything_is_allocated(tmp_path: Path, side: int) -> None:
    mosaic = np.full((200, 300), 2000, np.uint16)
    path = write_dng(tmp_path / "a.dng", mosaic, BAYER["RGGB"], claimed=(side, side))
    code = (
        "import sys; from pathlib import Path\n"
        "from safelight.core.errors import UnsafeInputError; from safelight.formats.raw import read_raw\n"
        "try: read_raw(Path(sys.argv[1]))\n"
        "except UnsafeInputError as error: print(error)\n"
        "print(*(line for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    said = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True).stdout
    problem, peak = said.splitlines()[:2]
    assert "header claims" in problem
    assert int(peak.split()[1]) < 1_000_000, "KiB; ru_maxrss would begin at the peak of the tests' own process"


def test_a_frame_larger_than_memory_allows_is_refused(tmp_path: Path) -> None:
    path = write_dng(tmp_path / "a.dng", np.full((200, 300), 2000, np.uint16), BAYER["RGGB"])
    with pytest.raises(UnsafeInputError, match="allowed"):
        read_raw(path, Limits(max_bytes=100_000))


def test_the_samples_of_broken_files(shared: Path) -> None:
    usable = {"b_bl4.dng", "xt_m8_10.dng"}
    for path in sorted((shared / "data" / "raw_edge").iterdir()):
        if path.name in usable:
            assert read_raw(path).mosaic.size
        else:
            with pytest.raises(InputError):
                read_raw(path)


@pytest.mark.parametrize("pattern", [BAYER["GRBG"], XTRANS], ids=["Bayer", "X-Trans"])
def test_a_mosaic_that_we_write_is_read_as_it_was(tmp_path: Path, pattern: tuple[tuple[int, ...], ...]) -> None:
    mosaic = np.random.default_rng(0).integers(0, WHITE, (96, 120)).astype(np.uint16)
    frame = read_raw(write_dng(tmp_path / "a.dng", mosaic, pattern))
    write_our_dng(tmp_path / "b.dng", mosaic, frame, tile_of(frame.pattern))
    again = read_raw(tmp_path / "b.dng")
    assert (again.mosaic == mosaic).all()
    assert (again.pattern == frame.pattern).all()
    assert (again.black, again.white, again.camera) == (frame.black, frame.white, frame.camera)
    assert again.white_balance == pytest.approx(frame.white_balance)
