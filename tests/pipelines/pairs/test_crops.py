"""Crops cover what both frames show, colour on colour, and every format gives back what went in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from dng import BAYER, XTRANS, SceneMaker
from safelight.core.errors import InputError
from safelight.formats.raw import RawFrame, read_raw
from safelight.kernels.cfa import moved, tile_of
from safelight.pipelines.pairs.crops import (
    RGGB,
    Crop,
    first_tile,
    lay_out,
    linear_rgb,
    packed,
    read_crop,
    rec2020_from_camera,
    write_crops,
)
from safelight.pipelines.pairs.overlap import Overlap

GRBG = ((1, 0), (2, 3))


def overlap(tile: tuple[tuple[int, ...], ...], shape: tuple[int, int]) -> Overlap:
    return Overlap(tile, (10, 4), (0, 2), shape, (0.0, 0.0))


@pytest.mark.parametrize(("tile", "period"), [(RGGB, 2), (GRBG, 2), (tile_of(XTRANS), 6)], ids=["RGGB", "GRBG", "X"])
@pytest.mark.parametrize("shape", [(240, 480), (60, 1200), (252, 36)], ids=str)
def test_crops_cover_the_overlap_and_begin_at_one_place_of_the_array(
    tile: tuple[tuple[int, ...], ...], period: int, shape: tuple[int, int]
) -> None:
    region = overlap(tile, shape)
    crops = lay_out(region, size=100, shared=20)
    begin, offset = first_tile(region)
    covered = np.zeros((shape[0] + 10, shape[1] + 4), int)
    for crop in crops:
        top, left = crop.anchor
        assert crop.shape[0] % period == crop.shape[1] % period == 0
        assert max(crop.shape) <= 100
        assert moved(tile, (top - 10, left - 4)) == begin
        assert (top - crop.target[0], left - crop.target[1]) == (10, 2), "the shift between the frames"
        covered[top : top + crop.shape[0], left : left + crop.shape[1]] += 1
    whole = [(length - skip) // period * period for length, skip in zip(shape, offset, strict=True)]
    inside = covered[10 + offset[0] :, 4 + offset[1] :][: whole[0], : whole[1]]
    assert (inside > 0).all(), "right and bottom strips too"
    assert covered.sum() == sum(crop.shape[0] * crop.shape[1] for crop in crops), "nothing outside"
    if period == 2:
        assert begin[0][0] == 0, "red first"


def test_neighbours_share_what_was_asked_for() -> None:
    columns = sorted({crop.anchor[1] for crop in lay_out(overlap(RGGB, (100, 500)), size=100, shared=20)})
    steps = np.diff(columns)
    assert steps[0] == 80
    assert steps.max() <= 80
    assert columns[-1] == 4 + 500 - 100


@pytest.fixture(params=[BAYER["RGGB"], XTRANS], ids=["Bayer", "X-Trans"])
def frame(request: pytest.FixtureRequest, tmp_path: Path) -> RawFrame:
    return read_raw(SceneMaker(size=(120, 144), pattern=request.param).write(tmp_path / "a.dng"))


@pytest.mark.parametrize("kind", ["npz", "npy", "tiff", "exr", "dng"])
def test_every_format_gives_back_what_went_in_and_is_always_the_same(
    tmp_path: Path, frame: RawFrame, kind: str
) -> None:
    tile = tile_of(frame.pattern)
    crop = Crop((6, 12), (0, 6), (48, 60))
    paths = write_crops(tmp_path / "crops", crop, {"gt": frame, "noisy": frame}, tile, kind)
    assert set(paths) == {"gt", "noisy"}
    assert paths["gt"].name == f"6_0_gt.{kind}"
    for name, (top, left) in (("gt", crop.anchor), ("noisy", crop.target)):
        mosaic = frame.mosaic[top : top + 48, left : left + 60]
        in_colour = kind in ("tiff", "exr")
        expected = linear_rgb(mosaic, frame, tile).transpose(2, 0, 1) if in_colour else packed(mosaic, frame, tile)
        got = read_crop(paths[name])
        assert got.dtype == np.float32
        assert np.array_equal(got, expected)
    before = paths["gt"].read_bytes()
    write_crops(tmp_path / "crops", crop, {"gt": frame, "noisy": frame}, tile, kind)
    assert paths["gt"].read_bytes() == before


def test_other_programs_can_read_the_tiff(tmp_path: Path, frame: RawFrame) -> None:
    paths = write_crops(tmp_path, Crop((0, 0), (0, 0), (48, 60)), {"gt": frame, "noisy": frame}, XTRANS, "tiff")
    with tifffile.TiffFile(paths["gt"]) as file:
        page = file.pages[0]
        assert (page.shape, page.dtype, page.photometric.name) == ((48, 60, 3), np.float32, "RGB")


def test_planes_hold_one_colour_each(frame: RawFrame) -> None:
    colours = np.tile(np.where(frame.pattern == 3, 1, frame.pattern), (24, 24))[:48, :48].astype(np.uint16)
    planes = packed(colours, frame, tile_of(frame.pattern)) * (frame.white - frame.black[0]) + frame.black[0]
    counts = {"bayer": [0, 1, 1, 2], "x-trans": [0, 0, 1, 1, 1, 1, 1, 2, 2]}[frame.sensor]
    assert planes.shape == (len(counts), 48 // (2 if frame.sensor == "bayer" else 3), planes.shape[2])
    assert [plane.round().min() for plane in planes] == [plane.round().max() for plane in planes] == counts


def test_white_stays_white_in_linear_colours(frame: RawFrame) -> None:
    """A surface that the camera balances to white is (1, 1, 1)."""
    period = len(frame.pattern)
    neutral = 1 / np.array(frame.white_balance)[np.tile(frame.pattern, (12 // period, 12 // period))]
    mosaic = (frame.black[0] + neutral * (frame.white - frame.black[0])).round().astype(np.uint16)
    assert linear_rgb(mosaic, frame, tile_of(frame.pattern)) == pytest.approx(np.ones((12, 12, 3)), abs=1e-3)


def test_the_colour_matrix() -> None:
    srgb_from_xyz = np.array(
        [[3.2404542, -1.5371385, -0.4985314], [-0.969266, 1.8760108, 0.041556], [0.0556434, -0.2040259, 1.0572252]]
    )
    matrix = rec2020_from_camera(np.vstack([srgb_from_xyz, np.zeros(3)]))
    expected = [[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]]  # ITU-R BT.2087
    assert matrix == pytest.approx(np.array(expected), abs=2e-3)
    assert rec2020_from_camera(np.zeros((4, 3))) == pytest.approx(np.eye(3)), "an unknown camera keeps its colours"


@pytest.mark.parametrize("kind", ["npz", "npy", "tiff", "exr", "dng"])
def test_a_damaged_crop_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    path.write_bytes(b"garbage" * 30)
    with pytest.raises(InputError) as caught:
        read_crop(path)
    assert caught.value.path == path


def test_a_crop_with_a_damaged_header_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((4, 5, 6), np.float32))
    path.write_bytes(path.read_bytes().replace(b"(4, 5, 6)", b"(4, 5, (6"))
    with pytest.raises(InputError, match="is no crop") as caught:
        read_crop(path)
    assert caught.value.path == path
