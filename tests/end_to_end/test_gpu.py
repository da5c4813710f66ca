"""Every pipeline on a device that is as strict as a GPU: nothing is left on the host, and the results are the CPU's."""

from __future__ import annotations

import os
import subprocess
import sys
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
from prompt import prompt
from safelight.formats.geotiff import Raster
from safelight.formats.mesh import Mesh, read_mesh, write_mesh
from safelight.pipelines.decloud.model import CloudModel
from safelight.pipelines.decloud.network import GLFCR, Architecture
from safelight.pipelines.mesh.hypotheses import icosahedron
from sentinel import backscatter, clouded, ground, write_optical, write_sar, write_triplet
from sky import Camera, take

COARSE = ("mesh", "train", "coarse")
TINY = Architecture(features=8, growth=8, stages=1, layers=2)


def on_both(folder: Path, *arguments: str) -> tuple[Path, Path]:
    """Run a command on the CPU and on the pretended device, OUT standing for its name; return the folders OUT."""
    done = prompt(folder, *(argument.replace("OUT", "cpu") for argument in arguments), "--device", "cpu")
    assert done.status == 0, done.said
    there = [argument.replace("OUT", pretended_gpu.NAME) for argument in arguments]
    command = [sys.executable, pretended_gpu.__file__, *there, "--device", pretended_gpu.NAME, "--no-cpu-fallback"]
    environment = {**os.environ, "SAFELIGHT_CACHE": str(folder / "cache"), "SAFELIGHT_LANG": "en"}
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert f"Device: {pretended_gpu.NAME}" in ended.stderr
    return folder / "cpu", folder / pretended_gpu.NAME


def test_kernels(request: pytest.FixtureRequest) -> None:
    conformance = request.config.rootpath / "tests" / "conformance.py"
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "-k", "oracle", conformance]
    environment = {**os.environ, pretended_gpu.WANTED: "yes"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout


def test_denoise(tmp_path: Path) -> None:
    y, x = np.indices((72, 64))
    noise = np.random.default_rng(0).normal(0, 40, (72, 64))
    tifffile.imwrite(tmp_path / "a.tif", (300 + 200 * np.sin(y / 7) * np.cos(x / 9) + noise).astype(np.float32))
    expected, found = on_both(tmp_path, "denoise", "run", "a.tif", "--steps", "10", "--features", "4", "--out", "OUT")
    images = [tifffile.imread(out / "a.tif") for out in (expected, found)]
    np.testing.assert_allclose(images[1], images[0], rtol=1e-3)


def test_mosaic(tmp_path: Path) -> None:
    take(tmp_path / "lights", Camera(), frames=4)
    expected, found = on_both(tmp_path, "mosaic", "run", "lights", "--solver", "none", "--out", "OUT")
    images = [fits.getdata(out / "mosaic_science.fits") for out in (expected, found)]
    np.testing.assert_allclose(images[1], images[0], rtol=1e-5, atol=1e-3)


def test_pairs(tmp_path: Path) -> None:
    scene = SceneMaker()
    (tmp_path / "set" / "scene" / "gt").mkdir(parents=True)
    scene.write(tmp_path / "set" / "scene" / "gt" / "clean.dng")
    scene.write(tmp_path / "set" / "scene" / "noisy.dng", (4, -6), full_well=900, seed=2)
    expected, found = on_both(tmp_path, "pairs", "run", "set", "--out", "OUT")
    manifests = [(out / "manifest.jsonl").read_text() for out in (expected, found)]
    assert '"shift_lattice": [4, -6]' in manifests[0]
    assert '"shift_lattice": [4, -6]' in manifests[1]
    masks = [next((out / "masks").rglob("*.png")).read_bytes() for out in (expected, found)]
    assert masks[0] == masks[1]


def test_decloud(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        CloudModel(TINY, GLFCR(TINY).state_dict()).save(tmp_path / "w.safetensors")
    write_triplet(tmp_path / "data", "a.tif")
    (tmp_path / "data" / "data.csv").write_text("1,s1,s2,s2_cloudy,a.tif")
    training = ("--data", "data", "--weights", "w.safetensors", "--crop-size", "32", "--epochs", "3", "--out", "OUT")
    folders = on_both(tmp_path, "decloud", "train", *training)
    facts: list[Any] = [CloudModel.load(out / "model_last.safetensors").facts for out in folders]
    curves = [known["curve"]["training_loss"] for known in facts]
    np.testing.assert_allclose(curves[1], curves[0], rtol=1e-3)

    write_optical(tmp_path / "s2.tif", clouded(ground((96, 80))))
    write_sar(tmp_path / "s1.tif", backscatter((96, 80)))
    scene = ("--s2", "s2.tif", "--s1", "s1.tif", "--weights", "w.safetensors")
    on_both(tmp_path, "decloud", "predict", *scene, "--out", "OUT.tif")
    images = []
    for device in ("cpu", pretended_gpu.NAME):
        with Raster(tmp_path / f"{device}.tif") as raster:
            images.append(raster.read_all().astype(int))
    np.testing.assert_allclose(images[1], images[0], atol=1)


def test_mesh(tmp_path: Path) -> None:
    corners = icosahedron()
    faces = np.array([face for face in combinations(range(12), 3) if pdist(corners[list(face)]).max() < 2.1])
    write_mesh(tmp_path / "ball.obj", Mesh(corners * 0.1 + (0, 0, -0.8), faces))
    assert prompt(tmp_path, "mesh", "render", "ball.obj", "--count", "8", "--out", "data").status == 0
    training = ("--data", "data", "--template", "ball.obj", "--steps", "2", "--out", "OUT")
    expected, found = (load_file(next(out.glob("*.safetensors"))) for out in on_both(tmp_path, *COARSE, *training))
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-5)

    (rendering,) = (tmp_path / "data").rglob("rendering")
    cameras = (rendering / "rendering_metadata.txt").read_text().splitlines(keepends=True)[:3]
    (tmp_path / "cameras.txt").write_text("".join(cameras))
    views = [str(rendering / f"{number:02}.png") for number in range(3)]
    weights = str(next((tmp_path / "cpu").glob("*.safetensors")))
    given = ("--views", *views, "--cameras", "cameras.txt", "--weights", weights)
    on_both(tmp_path, "mesh", "predict", *given, "--out", "OUT.obj")
    vertices = [read_mesh(tmp_path / f"{device}.obj").vertices for device in ("cpu", pretended_gpu.NAME)]
    np.testing.assert_allclose(vertices[1], vertices[0], atol=1e-5)
