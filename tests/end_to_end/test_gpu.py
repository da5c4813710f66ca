"""Every pipeline on a device that is as strict as a GPU: nothing is left on the host, and the results are the CPU's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from astropy.io import fits
from safetensors.torch import load_file
from scipy.spatial.distance import pdist

import pretended_gpu
from dng import SceneMaker
from prompt import Answer, prompt
from safelight.formats.geotiff import Raster
from safelight.formats.mesh import Mesh, read_mesh, write_mesh
from safelight.pipelines.decloud.model import CloudModel
from safelight.pipelines.decloud.network import GLFCR, Architecture
from safelight.pipelines.mesh.hypotheses import icosahedron
from sentinel import backscatter, clouded, ground, write_optical, write_sar, write_triplet
from sky import Camera, take

COARSE = ("mesh", "train", "coarse")
TINY = Architecture(features=8, growth=8, stages=1, layers=2)


Runner = Callable[..., tuple[Path, Path]]


@pytest.fixture(scope="module")
def there() -> Iterator[Callable[..., Answer]]:
    """A prompt on a machine with the pretended device: one process for all tests, as it takes seconds to start."""
    command = [sys.executable, "-c", "import pretended_gpu; pretended_gpu.answer_lines()"]
    environment = {**os.environ, "PYTHONPATH": str(Path(pretended_gpu.__file__).parent)}
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True, env=environment) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        told, heard = process.stdin, process.stdout

        def ask(folder: Path, *arguments: str) -> Answer:
            told.write(json.dumps([str(folder), *arguments]) + "\n")
            told.flush()
            return Answer(**json.loads(heard.readline()))

        yield ask
        told.close()


@pytest.fixture
def on_both(there: Callable[..., Answer], tmp_path: Path) -> Runner:
    """Runs a command on the CPU and on the device, OUT standing for its name; returns the folders OUT."""

    def run(*arguments: str) -> tuple[Path, Path]:
        for ask, device in ((prompt, "cpu"), (there, pretended_gpu.NAME)):
            named = (argument.replace("OUT", device) for argument in arguments)
            done = ask(tmp_path, *named, "--device", device, "--no-cpu-fallback")
            assert done.status == 0, done.said
            assert f"Device: {device}" in done.said
        return tmp_path / "cpu", tmp_path / pretended_gpu.NAME

    return run


def test_kernels(request: pytest.FixtureRequest) -> None:
    conformance = request.config.rootpath / "tests" / "conformance.py"
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "-k", "oracle", conformance]
    environment = {**os.environ, pretended_gpu.WANTED: "yes"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout


def test_denoise(tmp_path: Path, on_both: Runner) -> None:
    y, x = np.indices((72, 64))
    noise = np.random.default_rng(0).normal(0, 40, (72, 64))
    tifffile.imwrite(tmp_path / "a.tif", (300 + 200 * np.sin(y / 7) * np.cos(x / 9) + noise).astype(np.float32))
    expected, found = on_both("denoise", "run", "a.tif", "--steps", "10", "--features", "4", "--out", "OUT")
    images = [tifffile.imread(out / "a.tif") for out in (expected, found)]
    np.testing.assert_allclose(images[1], images[0], rtol=1e-3)


def test_mosaic(tmp_path: Path, on_both: Runner) -> None:
    take(tmp_path / "lights", Camera(), frames=4)
    expected, found = on_both("mosaic", "run", "lights", "--solver", "none", "--out", "OUT")
    images = [fits.getdata(out / "mosaic_science.fits") for out in (expected, found)]
    np.testing.assert_allclose(images[1], images[0], rtol=1e-5, atol=1e-3)


def test_pairs(tmp_path: Path, on_both: Runner) -> None:
    scene = SceneMaker()
    (tmp_path / "set" / "scene" / "gt").mkdir(parents=True)
    scene.write(tmp_path / "set" / "scene" / "gt" / "clean.dng")
    scene.write(tmp_path / "set" / "scene" / "noisy.dng", (4, -6), full_well=900, seed=2)
    expected, found = on_both("pairs", "run", "set", "--out", "OUT")
    manifests = [(out / "manifest.jsonl").read_text() for out in (expected, found)]
    assert '"shift_lattice": [4, -6]' in manifests[0]
    assert '"shift_lattice": [4, -6]' in manifests[1]
    masks = [next((out / "masks").rglob("*.png")).read_bytes() for out in (expected, found)]
    assert masks[0] == masks[1]


def test_decloud(tmp_path: Path, on_both: Runner) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        CloudModel(TINY, GLFCR(TINY).state_dict()).save(tmp_path / "w.safetensors")
    write_triplet(tmp_path / "data", "a.tif")
    (tmp_path / "data" / "data.csv").write_text("1,s1,s2,s2_cloudy,a.tif")
    training = ("--data", "data", "--weights", "w.safetensors", "--crop-size", "32", "--epochs", "3", "--out", "OUT")
    folders = on_both("decloud", "train", *training)
    facts: list[Any] = [CloudModel.load(out / "model_last.safetensors").facts for out in folders]
    curves = [known["curve"]["training_loss"] for known in facts]
    np.testing.assert_allclose(curves[1], curves[0], rtol=1e-3)

    write_optical(tmp_path / "s2.tif", clouded(ground((96, 80))))
    write_sar(tmp_path / "s1.tif", backscatter((96, 80)))
    scene = ("--s2", "s2.tif", "--s1", "s1.tif", "--weights", "w.safetensors")
    on_both("decloud", "predict", *scene, "--out", "OUT.tif")
    images = []
    for device in ("cpu", pretended_gpu.NAME):
        with Raster(tmp_path / f"{device}.tif") as raster:
            images.append(raster.read_all().astype(int))
    np.testing.assert_allclose(images[1], images[0], atol=1)


def test_mesh(tmp_path: Path, on_both: Runner) -> None:
    corners = icosahedron()
    faces = np.array([face for face in combinations(range(12), 3) if pdist(corners[list(face)]).max() < 2.1])
    write_mesh(tmp_path / "ball.obj", Mesh(corners * 0.1 + (0, 0, -0.8), faces))
    assert prompt(tmp_path, "mesh", "render", "ball.obj", "--count", "8", "--out", "data").status == 0
    training = ("--data", "data", "--template", "ball.obj", "--steps", "2", "--out", "OUT")
    expected, found = (load_file(next(out.glob("*.safetensors"))) for out in on_both(*COARSE, *training))
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-5)

    (rendering,) = (tmp_path / "data").rglob("rendering")
    cameras = (rendering / "rendering_metadata.txt").read_text().splitlines(keepends=True)[:3]
    (tmp_path / "cameras.txt").write_text("".join(cameras))
    views = [str(rendering / f"{number:02}.png") for number in range(3)]
    weights = str(next((tmp_path / "cpu").glob("*.safetensors")))
    given = ("--views", *views, "--cameras", "cameras.txt", "--weights", weights)
    on_both("mesh", "predict", *given, "--out", "OUT.obj")
    vertices = [read_mesh(tmp_path / f"{device}.obj").vertices for device in ("cpu", pretended_gpu.NAME)]
    np.testing.assert_allclose(vertices[1], vertices[0], atol=1e-5)
