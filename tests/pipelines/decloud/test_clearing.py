"""A scene cleared: what the file keeps, tiles beside the whole, clear pixels, grids that differ, bounded memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from safelight.core.device import Device
from safelight.core.errors import InputError
from safelight.core.events import EventLog
from safelight.core.execute import Executor
from safelight.core.pipeline import Context, Item, Record
from safelight.formats.geotiff import Raster
from safelight.pipelines.decloud.model import CloudModel
from safelight.pipelines.decloud.network import GLFCR, Architecture
from safelight.pipelines.decloud.options import PredictOptions
from safelight.pipelines.decloud.process import load_kernel, plan_scene, predict_scene
from safelight.pipelines.decloud.radiometry import BANDS
from sentinel import backscatter, clouded, ground, header, write_optical, write_sar

SIZE = (150, 200)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tiny = Architecture(features=8, growth=8, stages=1, layers=2)
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        CloudModel(tiny, GLFCR(tiny).state_dict()).save(path)
    return path


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SAFELIGHT_CACHE", str(tmp_path / "cache"))


def scene(folder: Path, **changes: Any) -> np.ndarray:
    numbers = clouded(ground(SIZE))
    numbers[:, :10, :20] = 0
    write_optical(folder / "s2.tif", numbers, nodata=0.0, names=BANDS, **changes)
    write_sar(folder / "s1.tif", backscatter(SIZE))
    return numbers


def clear(folder: Path, weights: Path, **options: Any) -> tuple[np.ndarray, EventLog, Record]:
    made = PredictOptions(
        s2=folder / "s2.tif", s1=folder / "s1.tif", weights=weights, out=folder / "clear.tif", **options
    )
    events, device = EventLog(), Device(torch.device("cpu"))
    context = Context(device, Executor.from_options(device, made, events), events, folder / "run")
    kernel = load_kernel((), made, context).value
    item = Item("clear", (made.s2, made.s1))
    record = predict_scene(item, made, context, kernel)
    with Raster(made.out) as raster:
        return raster.read_all(), events, record


def test_the_result_is_as_the_scene_was_but_for_the_clouds(tmp_path: Path, weights: Path) -> None:
    numbers = scene(tmp_path, tags={"PROCESSING_BASELINE": "02.09"})
    result, _, record = clear(tmp_path, weights)
    with Raster(tmp_path / "s2.tif") as before, Raster(tmp_path / "clear.tif") as after:
        assert after.header == before.header
    assert np.array_equal(result == 0, numbers == 0), "missing data stays missing, and no other pixel becomes so"
    assert (result != numbers).any()
    assert {path.name for path in record.outputs} >= {"clear.tif", "clear_cloudy.png", "clear_result.png"}


def test_a_scene_is_planned(tmp_path: Path, weights: Path) -> None:
    scene(tmp_path)
    made = PredictOptions(s2=tmp_path / "s2.tif", s1=tmp_path / "s1.tif", weights=weights, out=tmp_path / "clear.tif")
    events, device = EventLog(), Device(torch.device("cpu"))
    context = Context(device, Executor.from_options(device, made, events), events, tmp_path / "run")
    (plan,) = plan_scene(Item("clear", (made.s2, made.s1)), made, context)
    assert plan.fits
    assert not made.out.exists()


def test_tiles_give_nearly_what_the_whole_gives(tmp_path: Path, weights: Path) -> None:
    scene(tmp_path)
    whole, *_ = clear(tmp_path, weights)
    tiled, events, _ = clear(tmp_path, weights, tile_size=64, margin=16)
    assert "scene_tiled" in events.keys()
    difference = np.abs(whole.astype(int) - tiled)
    assert np.median(difference) <= 2, "the windows of the network lie alike in both"
    assert 0 < difference.max() <= 130, "within the budget that is said, 1.3e-2 of reflectance"


def test_the_offset_of_newer_products_comes_back(tmp_path: Path, weights: Path) -> None:
    scene(tmp_path)
    plain, *_ = clear(tmp_path, weights)
    added = clouded(ground(SIZE)) + np.uint16(1000)
    added[:, :10, :20] = 0
    write_optical(tmp_path / "s2.tif", added, nodata=0.0, names=BANDS, tags={"PROCESSING_BASELINE": "04.00"})
    result, events, _ = clear(tmp_path, weights)
    assert "harmonised" in events.keys()
    inside = plain > 1  # darker ones were clipped
    np.testing.assert_allclose(result[inside].astype(int) - 1000, plain[inside], atol=1)


def test_an_offset_that_is_gone_already_is_not_taken_away_again(tmp_path: Path, weights: Path) -> None:
    scene(tmp_path)
    plain, *_ = clear(tmp_path, weights)
    scene(tmp_path, tags={"PROCESSING_BASELINE": "05.09"})
    result, events, _ = clear(tmp_path, weights)
    assert "harmonised_already" in events.keys()
    assert np.array_equal(result, plain)


def test_missing_pixels_of_any_value_are_no_clouds(tmp_path: Path, weights: Path) -> None:
    numbers = scene(tmp_path)
    plain, *_ = clear(tmp_path, weights)
    missing = numbers == 0
    write_optical(tmp_path / "s2.tif", np.where(missing, 65535, numbers).astype(np.uint16), nodata=65535.0)
    result, *_ = clear(tmp_path, weights)
    assert np.array_equal(result == 65535, missing)
    inside = ~missing & (plain > 1)  # darker ones were clipped
    assert np.array_equal(result[inside], plain[inside])


def test_only_numbers_that_are_written_count_as_clipped(tmp_path: Path, weights: Path) -> None:
    scene(tmp_path)
    write_optical(tmp_path / "mask.tif", np.zeros((1, *SIZE), np.uint8))
    _, events, record = clear(tmp_path, weights, keep_clear=True, mask=tmp_path / "mask.tif")
    assert record.details["clipped"] == 0
    assert "numbers_clipped" not in events.keys()


@pytest.mark.parametrize("given", ["told", "classes", "probabilities"])
def test_clear_pixels_stay_exactly_as_they_are(tmp_path: Path, weights: Path, given: str) -> None:
    numbers = scene(tmp_path)
    cloudy = np.zeros(SIZE, bool)
    cloudy[SIZE[0] // 4 : SIZE[0] // 2, SIZE[1] // 4 : SIZE[1] // 2] = True
    options: dict[str, Any] = {"keep_clear": True}
    if given != "told":
        values = 3 * cloudy.astype(np.uint8) if given == "classes" else np.where(cloudy, 0.41, 0.39).astype(np.float32)
        write_optical(tmp_path / "mask.tif", values[None])
        options["mask"] = tmp_path / "mask.tif"
    result, events, _ = clear(tmp_path, weights, **options)
    changed = (result != numbers).any(0)
    assert "clear_kept" in events.keys()
    assert changed[cloudy].mean() > 0.99
    if given != "told":
        assert not changed[~cloudy].any()
    else:
        assert 0 < (~changed).sum() < changed.size


def test_told_clouds_do_not_depend_on_the_tiles(tmp_path: Path, weights: Path) -> None:
    numbers = scene(tmp_path)
    kept = []
    for options in ({}, {"tile_size": 64, "margin": 16}):
        result, *_ = clear(tmp_path, weights, keep_clear=True, **options)
        kept.append((result == numbers).all(0))
    assert (kept[0] != kept[1]).mean() < 1e-3, "but for numbers that happen to be equal"


def moved(folder: Path, east: float, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Write the radar image shifted, with values that tell the place."""
    sar = backscatter(SIZE)
    grid = header(2, size, np.float32).grid
    a, b, x, d, e, y = grid.transform
    write_sar(folder / "s1.tif", sar[:, : size[0], : size[1]], grid=replace(grid, transform=(a, b, x + east, d, e, y)))
    return sar


def test_a_larger_radar_image_on_the_same_grid_is_cut(tmp_path: Path, weights: Path) -> None:
    scene(tmp_path)
    plain, *_ = clear(tmp_path, weights)
    wide = np.pad(backscatter(SIZE), ((0, 0), (7, 3), (5, 9)), mode="edge")
    grid = header(2, wide.shape[1:], np.float32).grid
    a, b, x, d, e, y = grid.transform
    write_sar(tmp_path / "s1.tif", wide, grid=replace(grid, transform=(a, b, x - 50, d, e, y + 70)))
    result, *_ = clear(tmp_path, weights)
    assert np.array_equal(result, plain)


def test_radar_that_covers_only_a_part_is_said(tmp_path: Path, weights: Path) -> None:
    scene(tmp_path)
    moved(tmp_path, 500.0)
    _, events, _ = clear(tmp_path, weights)
    (event,) = (event for event in events if event.key == "sar_missing")
    assert event.data["percent"] == pytest.approx(25)


def test_radar_between_the_scene_s_pixels_is_refused_or_aligned(tmp_path: Path, weights: Path) -> None:
    scene(tmp_path)
    moved(tmp_path, 4.0)
    with pytest.raises(InputError, match=r"s1\.tif: it lies on another grid.*--align-sar"):
        clear(tmp_path, weights)
    _, events, _ = clear(tmp_path, weights, align_sar=True)
    assert "sar_aligned" in events.keys()


def test_radar_of_another_place_is_refused(tmp_path: Path, weights: Path) -> None:
    scene(tmp_path)
    moved(tmp_path, 1e5)
    with pytest.raises(InputError, match="radar of the same place"):
        clear(tmp_path, weights)


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda f: write_sar(f / "s1.tif", 10 ** (backscatter(SIZE) / 10)), "linear power"),
        (lambda f: write_sar(f / "s1.tif", backscatter(SIZE)[::-1].copy()), "polarisations are reversed"),
        (lambda f: write_sar(f / "s1.tif", np.full((2, *SIZE), np.nan, np.float32)), "no data where the scene is"),
        (lambda f: write_optical(f / "s2.tif", ground(SIZE)[:12]), "L2A"),
    ],
)
def test_bad_scenes_are_refused_and_nothing_is_written(tmp_path: Path, weights: Path, spoil: Any, problem: str) -> None:
    scene(tmp_path)
    spoil(tmp_path)
    with pytest.raises(InputError, match=problem):
        clear(tmp_path, weights)
    assert not (tmp_path / "clear.tif").exists()
