"""Real pipelines with workers: to the last bit what one process gives, and resumed with another number of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile

from safelight.core.files import digest
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
    """Return the digest of every image of a run by its path."""
    found = [path for suffix in ("tif", "fits", "png") for path in folder.rglob(f"*.{suffix}")]
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
