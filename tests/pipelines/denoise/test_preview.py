"""While training goes on, a picture shows how far it is, and takes no noticeable time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from safelight.core.device import Device
from safelight.pipelines.denoise.frames import ArrayImage, Frames
from safelight.pipelines.denoise.model import DenoiseModel
from safelight.pipelines.denoise.network import Architecture
from safelight.pipelines.denoise.pictures import CROP_SCALE
from safelight.pipelines.denoise.preview import Preview
from safelight.pipelines.denoise.training import Epoch, Losses

CPU = Device(torch.device("cpu"))


def epoch(share: float, seconds: float, architecture: Architecture) -> Epoch:
    return Epoch(1, share, seconds, Losses(), lambda: DenoiseModel.untrained(architecture))


@pytest.mark.parametrize(
    ("shape", "axes", "patch", "size"),
    [
        ((100, 120), "YX", (32, 32), (2 * 64, 64)),
        ((40, 200), "YX", (32, 32), (2 * 64, 32)),
        ((2, 80, 80), "CYX", (32, 32), (2 * 64, 2 * 64)),
        ((9, 70, 80), "ZYX", (8, 32, 32), (2 * 64, 64)),
    ],
    ids=["image", "narrow", "channels", "volume"],
)
def test_before_and_after_stand_side_by_side(
    tmp_path: Path, shape: tuple[int, ...], axes: str, patch: tuple[int, ...], size: tuple[int, int]
) -> None:
    image = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    image.flat[0] = np.nan
    architecture = Architecture(dims=len(patch), channels=shape[0] if "C" in axes else 1, features=4, depth=1)
    preview = Preview(tmp_path / "preview.png", Frames(ArrayImage(image, axes), len(patch)), patch, CPU)
    preview(epoch(1.0, 1.0, architecture))
    with Image.open(preview.path) as picture:
        gaps = np.subtract(picture.size, [CROP_SCALE * side for side in size])
        assert (gaps >= 0).all()
        assert (gaps < 10).all()
        left = np.asarray(picture)[: CROP_SCALE * 32, : CROP_SCALE * 64]
    assert np.ptp(left) > 100
    assert [path.name for path in tmp_path.iterdir()] == ["preview.png"]


def test_previews_take_a_hundredth_of_the_time_but_the_last_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(float(second) for second in range(0, 1000))  # every drawing takes one second
    monkeypatch.setattr("safelight.pipelines.denoise.preview.time.monotonic", lambda: next(clock))
    architecture = Architecture(features=4, depth=1)
    image = ArrayImage(np.zeros((64, 64), np.float32), "YX")
    preview = Preview(tmp_path / "preview.png", Frames(image, 2), (32, 32), CPU)
    drawn = []
    for seconds in (10, 60, 105, 115, 150, 230, 240):
        preview.path.unlink(missing_ok=True)
        preview(epoch(seconds / 240, float(seconds), architecture))
        drawn += [seconds] * preview.path.exists()
    assert drawn == [10, 115, 230, 240]


def test_the_part_with_something_to_see_is_shown(tmp_path: Path) -> None:
    image = np.random.default_rng(0).normal(size=(256, 256)).astype(np.float32)
    image[200:230, 20:50] += 20
    preview = Preview(tmp_path / "preview.png", Frames(ArrayImage(image, "YX"), 2), (32, 32), CPU)
    preview(epoch(1.0, 1.0, Architecture(features=4, depth=1)))
    with Image.open(preview.path) as picture:
        noisy = np.asarray(picture)[:, : CROP_SCALE * 64]
    assert (noisy == 255).sum() > CROP_SCALE**2 * 30 * 30 * 0.9
