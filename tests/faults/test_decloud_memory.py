"""Scenes that memory cannot hold: what is resident does not grow with them, and the result is whole."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.windows import Window

from safelight.formats.geotiff import Raster
from safelight.pipelines.decloud.model import CloudModel
from safelight.pipelines.decloud.network import GLFCR, Architecture
from safelight.pipelines.decloud.radiometry import BANDS
from sentinel import UTM, backscatter, clouded, ground

TINY = Architecture(features=8, growth=8, stages=1, layers=1)
PART = 512
GIB = 1 << 30
SLOW = (pytest.mark.slow, pytest.mark.timeout(3600))

# The network is replaced by one that takes a tenth away: what is measured is reading, joining and writing.
MEASURED = """
import json, sys
from torch import nn
from safelight import cli
from safelight.core.kernel import ModuleKernel
from safelight.pipelines.decloud import process

class StandIn(nn.Module):
    def forward(self, both):
        return 0.9 * both[:, :13]

if sys.argv[1] == "stand-in":
    process.kernel_of = lambda model: ModuleKernel("stand-in", StandIn())
common = ["--weights", sys.argv[2], "--results", sys.argv[3], "--memory-limit", "2GiB", "--quiet"]
def own_peak():  # ru_maxrss would begin at the peak of the tests' own process
    (line,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])

peaks = []
for folder in sys.argv[4:]:
    scene = ["--s2", f"{folder}/s2.tif", "--s1", f"{folder}/s1.tif", "--out", f"{folder}/clear.tif"]
    status = cli.run(["decloud", "predict", *scene, *common])
    peaks.append(own_peak())
print(json.dumps({"status": status, "peaks": peaks}))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    shutil.rmtree(tmp_path)  # gigabytes


def write_scene(folder: Path, height: int, width: int) -> np.ndarray:
    """Write a scene of one part that repeats, band by band in blocks, and return the part."""
    folder.mkdir()
    numbers, sar = clouded(ground((PART, PART))), backscatter((PART, PART))
    common: dict[str, Any] = {
        "driver": "GTiff",
        "height": height,
        "width": width,
        "crs": UTM,
        "transform": rasterio.Affine(10, 0, 600_000, 0, -10, 5_300_000),
        "tiled": True,
        "blockxsize": PART,
        "blockysize": PART,
    }
    with (
        rasterio.open(folder / "s2.tif", "w", count=len(BANDS), dtype="uint16", nodata=0, **common) as optical,
        rasterio.open(folder / "s1.tif", "w", count=2, dtype="float32", **common) as radar,
    ):
        for row in range(0, height, PART):
            for column in range(0, width, PART):
                size = min(PART, height - row), min(PART, width - column)
                for file, pixels in ((optical, numbers), (radar, sar)):
                    window = Window(column, row, size[1], size[0])
                    file.write(pixels[:, : size[0], : size[1]], window=window)
    return numbers


def predict(folder: Path, network: str, architecture: Architecture, *scenes: Path) -> list[int]:
    """Clear scenes in one process of its own, and return the largest resident memory after each, in bytes."""
    CloudModel(architecture, GLFCR(architecture).state_dict()).save(folder / "w.safetensors")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "SAFELIGHT_CACHE": str(folder / "cache")}
    environment["MALLOC_MMAP_THRESHOLD_"] = "65536"  # glibc gives every block back: what is resident is in use
    arguments = (network, folder / "w.safetensors", folder / "results", *scenes)
    command = [sys.executable, "-c", MEASURED, *map(str, arguments)]
    done = json.loads(subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout)
    assert done["status"] == 0
    return done["peaks"]


def check_whole(path: Path, numbers: np.ndarray, size: tuple[int, int]) -> None:
    """Compare the corners and every so many pixels in between with a tenth less than the scene."""
    step = 37
    expected = np.tile(numbers, (1, -(-size[0] // PART), -(-size[1] // PART)))[:, : size[0] : step, : size[1] : step]
    with Raster(path) as raster:
        assert (raster.header.grid.height, raster.header.grid.width) == size
        found = raster.overview(-(-max(size) // step))
    assert found.shape == expected.shape
    np.testing.assert_allclose(found.astype(int), 0.9 * expected, atol=1)


def test_memory_does_not_grow_with_the_scene(folder: Path) -> None:
    small, large, size = folder / "small", folder / "large", (1800, 2100)
    write_scene(small, PART, 2 * PART)
    numbers = write_scene(large, *size)
    peaks = predict(folder, "stand-in", TINY, small, large)
    assert peaks[1] - peaks[0] < numbers.itemsize * len(BANDS) * size[0] * size[1] / 2, "half of the scene's numbers"
    check_whole(large / "clear.tif", numbers, size)


@pytest.mark.parametrize(
    ("network", "architecture", "size"),
    [
        pytest.param("stand-in", TINY, (10_000, 10_000), marks=SLOW, id="10 000²"),
        pytest.param("real", Architecture(), (1000, 777), marks=SLOW, id="GLF-CR on 1000×777"),
    ],
)
def test_two_gibibytes_are_enough(
    folder: Path, network: str, architecture: Architecture, size: tuple[int, int]
) -> None:
    numbers = write_scene(folder / "scene", *size)
    (peak,) = predict(folder, network, architecture, folder / "scene")
    assert peak < 2 * GIB
    if network == "stand-in":
        check_whole(folder / "scene" / "clear.tif", numbers, size)
