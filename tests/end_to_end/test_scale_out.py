"""Real pipelines with workers: to the last bit what one process gives, and resumed with another number of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

from dng import make_dataset
from safelight.core.files import digest
from safelight.pipelines.decloud.model import CloudModel
from safelight.pipelines.decloud.network import GLFCR, Architecture
from sentinel import write_triplet
from sky import panels

pytestmark = pytest.mark.slow


def safelight(folder: Path, *arguments: str) -> str:
    """Run a command line with one thread in the parent: how sums are rounded depends on the number of threads."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "SAFELIGHT_CACHE": str(folder / "cache")}
    command = [sys.executable, "-m", "safelight", *arguments, "--lang", "en", "--device", "cpu"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


def images(folder: Path) -> dict[str, str]:
    """Return the digest of every image, array and manifest of a run by its path."""
    kinds = ("tif", "fits", "png", "npz", "npy", "jsonl")
    found = [path for kind in kinds for path in folder.rglob(f"*.{kind}") if path.stem not in ("journal", "events")]
    return {path.relative_to(folder).as_posix(): digest(path) for path in found}


def test_denoising_a_folder(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(3):
        noise = np.random.default_rng(number).normal(500, 40, (64 + 8 * number, 72))
        tifffile.imwrite(tmp_path / "in" / f"{number}.tif", noise.astype(np.uint16))
    predict = ("denoise", "predict", "in", "--model", "model")
    safelight(tmp_path, "denoise", "train", "in/0.tif", "--steps", "3", "--features", "8", "--out", "model")
    safelight(tmp_path, *predict, "--out", "one")
    assert "among 2 workers" in safelight(tmp_path, *predict, "--out", "two", "--workers", "2")
    assert len(images(tmp_path / "one")) > 3
    assert images(tmp_path / "two") == images(tmp_path / "one")
    (tmp_path / "two" / "1.tif").unlink()
    assert safelight(tmp_path, *predict, "--out", "two").count("Already done") == 2
    assert images(tmp_path / "two") == images(tmp_path / "one")


def test_a_mosaic(tmp_path: Path) -> None:
    frames = panels(tmp_path / "in")
    run = ("mosaic", "run", str(frames), "--solver", "none")
    safelight(tmp_path, *run, "--out", "one")
    assert "among 2 workers" in safelight(tmp_path, *run, "--out", "two", "--workers", "2")
    assert {"mosaic_science.fits", "tiles/group-01.fits", "tiles/group-02.fits"} <= images(tmp_path / "one").keys()
    assert images(tmp_path / "two") == images(tmp_path / "one")


def test_pairs(tmp_path: Path) -> None:
    make_dataset(tmp_path / "in")
    run = ("pairs", "run", "in")
    safelight(tmp_path, *run, "--out", "one")
    assert "workers on cpu" in safelight(tmp_path, *run, "--out", "two", "--workers", "2")
    assert {"manifest.jsonl"} < images(tmp_path / "one").keys()
    assert images(tmp_path / "two") == images(tmp_path / "one")


def test_decloud(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tiny = Architecture(features=8, growth=8, stages=1, layers=2)
        CloudModel(tiny, GLFCR(tiny).state_dict()).save(tmp_path / "w.safetensors")
    for seed, name in enumerate(("a.tif", "b.tif")):
        write_triplet(tmp_path / "data", name, seed=seed)
    (tmp_path / "data" / "data.csv").write_text("3,s1,s2,s2_cloudy,a.tif\n3,s1,s2,s2_cloudy,b.tif")
    run = ("decloud", "test", "--data", "data", "--weights", "w.safetensors", "--crop-size", "48")
    safelight(tmp_path, *run, "--out", "one")
    assert "among 2 workers" in safelight(tmp_path, *run, "--out", "two", "--workers", "2")
    one, two = (json.loads((tmp_path / name / "run.json").read_text()) for name in ("one", "two"))
    assert [item["metrics"] for item in two["items"]] == [item["metrics"] for item in one["items"]]
    assert two["averages"] == one["averages"]
