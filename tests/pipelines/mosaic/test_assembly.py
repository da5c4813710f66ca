"""What of the canvas a mosaic shows, and that rows are the same however many are asked for at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from astropy.wcs import WCS

from safelight.kernels.coadd import LAYERS
from safelight.kernels.combine import PLANES
from safelight.kernels.feather import feather_weights
from safelight.pipelines.mosaic.assembly import (
    Feather,
    Tile,
    TilesSource,
    Window,
    find_overlaps,
    match,
    match_layers,
    seam_step,
    unmatched,
    well_covered,
)
from safelight.pipelines.mosaic.stack_file import BAND_ROWS, StackFile, create_stack

CANVAS = (BAND_ROWS + 90, 80)
WINDOWS = {"a": (0, BAND_ROWS + 60, 5, 60), "b": (30, BAND_ROWS + 90, 20, 80)}


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Tile]]:
    """Two overlapping tiles of noise, with 6 frames inside and 1 at the outermost 10 pixels, with a hole in one."""
    folder = tmp_path_factory.mktemp("tiles")
    with ExitStack() as opened:
        yield [
            Tile(name, opened.enter_context(StackFile(write(folder, name, window))), window)
            for name, window in WINDOWS.items()
        ]


def write(folder: Path, name: str, window: Window) -> Path:
    y0, y1, x0, x1 = window
    shape = (y1 - y0, x1 - x0)
    values = np.random.default_rng(len(name)).normal(100, 1, (len(PLANES), *shape)).astype(np.float32)
    count = np.ones(shape, np.float32)
    count[10:-10, 10:-10] = 6
    values[PLANES.index("count")] = count
    if name == "b":
        values[:, 200:230, 30:40] = 0
        values[PLANES.index("image"), 200:230, 30:40] = np.nan
    path = folder / f"{name}.fits"
    wcs = WCS(naxis=2)
    with create_stack(path, PLANES, (1, *shape), wcs, {}) as sink:
        sink.write(0, shape[0], torch.from_numpy(values.swapaxes(0, 1)[:, :, None]))
    return path


def source(tiles: list[Tile], window: Window, feather: int = 20) -> TilesSource:
    return TilesSource(tiles, window, unmatched(1, len(tiles)), [Feather(tile, feather) for tile in tiles])


def test_the_whole_canvas_and_what_many_frames_cover(tiles: list[Tile]) -> None:
    height, width = CANVAS
    assert well_covered(tiles, CANVAS, 0) == (0, height, 0, width)
    assert well_covered(tiles, CANVAS, 1 / 12) == (0, height, 5, width)
    assert well_covered(tiles, CANVAS, 0.5) == (10, height - 10, 15, width - 10)
    assert well_covered(tiles, CANVAS, 0.9) == (40, BAND_ROWS + 50, 30, 50), "where both tiles have all frames"


def test_a_cropped_mosaic_has_the_same_pixels(tiles: list[Tile]) -> None:
    height, width = CANVAS
    whole = source(tiles, (0, height, 0, width)).read(0, height)
    cropped = source(tiles, (35, height - 3, 12, width - 4))
    assert cropped.extent == height - 38
    assert cropped.shape == (*whole.shape[1:3], width - 16, 2)
    torch.testing.assert_close(
        cropped.read(0, cropped.extent), whole[35:-3, :, :, 12:-4], rtol=0, atol=0, equal_nan=True
    )


@pytest.mark.parametrize("rows", [1, 7, 64])
@pytest.mark.parametrize("feather", [0, 20, 200])
def test_rows_are_the_same_however_many_are_read(tiles: list[Tile], rows: int, feather: int) -> None:
    height, width = CANVAS
    window = (0, height, 0, width)
    whole = source(tiles, window, feather).read(0, height)
    by_chunks = source(tiles, window, feather)
    parts = [by_chunks.read(start, min(start + rows, height)) for start in range(0, height, rows)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("width", [0, 1, 30, 64, 150, 500])
def test_a_feather_by_bands_is_that_of_the_whole_tile(tiles: list[Tile], width: int) -> None:
    for tile in tiles:
        valid = torch.from_numpy(tile.file.read("count")[0] > 0)
        by_bands = Feather(tile, width).read(slice(0, len(valid)))
        torch.testing.assert_close(by_bands, feather_weights(valid, width), rtol=1e-5, atol=1e-5)


def test_a_part_of_a_tile_is_brought_to_the_others_and_weighed_by_noise_and_feather() -> None:
    layers = torch.rand((len(LAYERS), 2, 3, 4), generator=torch.Generator().manual_seed(0)) - 0.5
    image, variance = LAYERS.index("image"), LAYERS.index("variance")
    layers[variance] += 1
    layers[[image, variance], 1, 2, 3] = torch.nan
    coefficients = torch.tensor([[2.0, 10.0, 0.5, -0.25], [3.0, -1.0, 0.0, 0.1]], dtype=torch.float64)
    feather = torch.linspace(0, 1, 12).view(3, 4)
    matched = match_layers(layers.clone(), coefficients, feather, (100, 40))
    y, x = torch.arange(100.0, 103)[:, None], torch.arange(40.0, 44)
    torch.testing.assert_close(matched[image, 0], 2 * layers[image, 0] + 10 + 0.5 * y - 0.25 * x)
    torch.testing.assert_close(matched[image, 1], 3 * layers[image, 1] - 1 + 0.1 * x, equal_nan=True)
    torch.testing.assert_close(matched[variance, 0], 4 * layers[variance, 0])
    weight = matched[LAYERS.index("weight")]
    torch.testing.assert_close(weight[0], feather / (4 * layers[variance, 0]))
    assert weight[1, 2, 3] == 0, "where there is nothing"
    for name in ("n_eff", "count", "low", "high"):
        assert torch.equal(matched[LAYERS.index(name)], layers[LAYERS.index(name)])


def test_overlaps_match_planes_and_say_the_step_that_is_left(tmp_path: Path) -> None:
    """The second tile's sky is brighter by a plane of the canvas; matched, no step is left."""
    height, width = 300, 200
    y, x = np.mgrid[:height, :width]
    sky = np.random.default_rng(1).normal(500, 1, (height, width)) + 50 * np.sin(x / 9) * np.sin(y / 7)
    plane = 30 + 0.04 * y - 0.03 * x
    windows = {"first": (0, 300, 0, 120), "second": (10, 290, 60, 200)}
    with ExitStack() as opened:
        pair = []
        for name, window in windows.items():
            y0, y1, x0, x1 = window
            values = np.ones((len(PLANES), y1 - y0, x1 - x0), np.float32)
            values[PLANES.index("image")] = (sky + plane * (name == "second"))[y0:y1, x0:x1]
            path = tmp_path / f"{name}.fits"
            with create_stack(path, PLANES, (1, y1 - y0, x1 - x0), WCS(naxis=2), {}) as sink:
                sink.write(0, y1 - y0, torch.from_numpy(values.swapaxes(0, 1)[:, :, None]))
            pair.append(Tile(name, opened.enter_context(StackFile(path)), window))
        overlaps = find_overlaps(pair)
    coefficients = match(overlaps, torch.ones(1, 2, dtype=torch.float64))
    assert abs(seam_step(overlaps[0][0], unmatched(1, 2)[0])) > 25
    assert abs(seam_step(overlaps[0][0], coefficients[0])) < 0.01
    apart = coefficients[0, 0] - coefficients[0, 1]
    assert apart.tolist() == pytest.approx([0, 30, 0.04, -0.03], rel=0.05, abs=1e-6)
