"""Frames become a stack: bits do not depend on order or chunks, hits do not survive, gaps do not bias."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from safelight.core.device import Device
from safelight.core.errors import InputError
from safelight.core.events import EventLog
from safelight.core.execute import Executor
from safelight.core.memory import Budget
from safelight.kernels.combine import PLANES
from safelight.kernels.rejection import Rejection
from safelight.pipelines.mosaic.options import RunOptions
from safelight.pipelines.mosaic.registered import RegisteredFrame, noise_of
from safelight.pipelines.mosaic.stack import StackSource, rejection_of, stack_kernel

SHAPE = (90, 1, 70)
SKY, NOISE = 1000.0, 20.0


def frames(folder: Path, number: int, seed: int = 0, a: float = 1, b: float = 0) -> list[RegisteredFrame]:
    """Frames of one sky, each of another level, on the disk."""
    generator = np.random.default_rng(seed)
    made = []
    for index in range(number):
        values = generator.normal(SKY + 10 * index, NOISE * (1 + 0.1 * index), SHAPE)
        made.append(frame(folder, f"{index:02}", a * values + b))
    return made


def frame(folder: Path, name: str, values: Any) -> RegisteredFrame:
    path = folder / f"{name}.raw"
    values.astype(np.float32).tofile(path)
    noise = noise_of(torch.from_numpy(values.astype(np.float32)))
    return RegisteredFrame(name, path, values.shape, noise, 3.0)


def changed(of: RegisteredFrame, where: Any, value: float) -> RegisteredFrame:
    """Put a value somewhere into a frame."""
    np.memmap(of.path, np.float32, "r+", shape=of.shape)[where] = value
    return of


def options(**more: Any) -> RunOptions:
    return RunOptions(input=Path(), out=Path(), **more)


class Rows:
    """Keeps the rows of a stack."""

    def __init__(self) -> None:
        self.rows: list[Tensor] = []

    def write(self, start: int, stop: int, result: Tensor) -> None:
        self.rows.append(result.clone())


def stacked(made: Sequence[RegisteredFrame], budget: int | None = None, **more: Any) -> dict[str, Tensor]:
    """Return the planes of a stack, (channels, rows, width)."""
    device = Device(torch.device("cpu"))
    executor = Executor(device, EventLog(), budget=None if budget is None else Budget(budget, "test"))
    rows = Rows()
    executor.map(stack_kernel(made, options(**more)), StackSource(made), rows)
    return dict(zip(PLANES, torch.cat(rows.rows).permute(1, 2, 0, 3), strict=True))


def test_a_stack_has_less_noise_and_says_how_much(tmp_path: Path) -> None:
    planes = stacked(frames(tmp_path, 9), weighting="none")
    noise = float(planes["image"].std())
    assert noise == pytest.approx(float(planes["variance"].mean().sqrt()), rel=0.05)
    assert noise < 1.1 * 1.45 * NOISE / 3
    assert (planes["count"] + planes["low"] + planes["high"] == 9).all()
    assert float(planes["image"].mean()) == pytest.approx(SKY, abs=1), "the level of the frame with the least noise"


def test_any_order_of_the_frames_gives_the_same_bits(tmp_path: Path) -> None:
    made = frames(tmp_path, 8)
    expected = stacked(made)
    for order in ([7, 6, 5, 4, 3, 2, 1, 0], [3, 0, 7, 1, 5, 2, 6, 4]):
        other = stacked([made[index] for index in order])
        assert all(torch.equal(plane, other[name]) for name, plane in expected.items())


@pytest.mark.parametrize("frames_hit", range(3, 13))
def test_one_hit_of_60000_does_not_survive(tmp_path: Path, frames_hit: int) -> None:
    made = frames(tmp_path, frames_hit)
    expected = stacked(made)["image"]
    changed(made[1], (40, 0, 30), 60_000)
    planes = stacked(made)
    assert planes["high"][0, 40, 30] == 1
    assert float((planes["image"] - expected).abs().max()) < 3 * NOISE


def test_gaps_never_bias(tmp_path: Path) -> None:
    made = frames(tmp_path, 6)
    for index, of in enumerate(made):
        changed(of, np.s_[: 10 * (index + 1), :, :35], np.nan)
    planes = stacked(made, weighting="none")
    image, count = planes["image"][0], planes["count"][0]
    assert count[5, 5] == 0
    assert image[:10, :35].isnan().all()
    assert (image.isnan() == (count == 0)).all()
    for index in range(1, 6):
        part = image[10 * index : 10 * (index + 1), :35]
        assert float(part.mean()) == pytest.approx(SKY, abs=4), index


@pytest.mark.parametrize(
    "rejection", ["none", "kappa_sigma", "winsorized_sigma_clip", "linear_fit_clip", "minmax", "median"]
)
@pytest.mark.parametrize(("a", "b"), [(1 / 65535, 0.1), (1e4, -5e6)])
def test_the_unit_changes_nothing(tmp_path: Path, rejection: str, a: float, b: float) -> None:
    for name in ("plain", "scaled"):
        (tmp_path / name).mkdir()
    plain = stacked(frames(tmp_path / "plain", 7), rejection=rejection)
    scaled = stacked(frames(tmp_path / "scaled", 7, a=a, b=b), rejection=rejection)
    off = ((scaled["image"].double() - b) / a - plain["image"].double()).abs() / NOISE
    assert float(off.median()) < 1e-3
    assert float((off > 0.01).float().mean()) < 1e-3  # where a sample lies on the verge of rejection
    torch.testing.assert_close(scaled["n_eff"].mean(), plain["n_eff"].mean(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("normalisation", ["sky_mean", "additive", "additive_with_scaling", "linear_fit"])
def test_levels_do_not_count(tmp_path: Path, normalisation: str) -> None:
    """Without normalisation the samples of bright frames are outliers, with it they are like the others."""
    made = frames(tmp_path, 8)
    planes = stacked(made, normalisation=normalisation, rejection="kappa_sigma")
    assert float((planes["low"] + planes["high"]).mean()) < 0.15
    assert float(planes["image"].mean()) == pytest.approx(SKY, abs=3)


def test_a_frame_that_cannot_be_normalised_is_named(tmp_path: Path) -> None:
    made = [*frames(tmp_path, 3), frame(tmp_path, "black", np.zeros(SHAPE))]
    with pytest.raises(InputError, match=r"black: .*multiplicative.*--normalisation sky_mean"):
        stacked(made, normalisation="multiplicative")


def test_a_noisy_frame_counts_less(tmp_path: Path) -> None:
    made = [*frames(tmp_path, 4), frame(tmp_path, "noisy", np.random.default_rng(9).normal(SKY, 200, SHAPE))]
    weighted, equal = (
        float(stacked(made, weighting=weighting, rejection="none")["image"].std())
        for weighting in ("noise_variance", "none")
    )
    assert weighted < 0.35 * equal


def test_noise_around_zero_keeps_both_its_halves(tmp_path: Path) -> None:
    """A sky of 0, as after a dark: clipped there, half of the noise would be lost."""
    planes = stacked(frames(tmp_path, 6, b=-SKY), normalisation="sky_mean")
    assert float((planes["image"] < 0).float().mean()) == pytest.approx(0.5, abs=0.05)
    assert float(planes["image"].std()) == pytest.approx(float(planes["variance"].mean()) ** 0.5, rel=0.1)


def test_the_variance_is_that_of_frames_on_one_scale(tmp_path: Path) -> None:
    """Half of the frames saw half of the light: brought to the others' scale, their noise is twice as large."""
    made = frames(tmp_path, 4)
    dim = np.random.default_rng(5).normal(SKY / 2, NOISE / 4, (4, *SHAPE))
    made += [frame(tmp_path, f"dim-{number}", values) for number, values in enumerate(dim)]
    planes = stacked(made, normalisation="additive_with_scaling", rejection="none")
    assert float(planes["image"].std()) == pytest.approx(float(planes["variance"].mean()) ** 0.5, rel=0.05)


def test_stars_are_no_background(tmp_path: Path) -> None:
    values = np.random.default_rng(3).normal(SKY, NOISE, SHAPE)
    values[:, :, :25] += 3000
    samples = frame(tmp_path, "starry", values).background()
    assert not (samples > SKY + 10 * NOISE).any()
    assert float(samples.isnan().float().mean()) == pytest.approx(25 / 70, abs=0.05)


def test_every_limit_of_the_options_reaches_the_rejection() -> None:
    limits = {"kappa_low": 1.5, "kappa_high": 4.5, "percentile_low": 0.3, "percentile_high": 0.4}
    found = rejection_of(options(rejection="linear_fit_clip", reject_lowest=2, reject_highest=3, **limits))
    assert found == Rejection("linear_fit_clip", drop_low=2, drop_high=3, **limits)
    assert rejection_of(options(rejection="median")).method == "none"


def test_a_pixel_counts_for_what_its_radial_weight_says(tmp_path: Path) -> None:
    """A plane beside the channel holds the weights, NaN where the frame has no pixel."""
    generator, made = np.random.default_rng(2), []
    for name, weight in (("a", 1.0), ("b", 0.25)):
        values = np.stack([generator.normal(SKY, NOISE, (90, 70)), np.full((90, 70), weight)], axis=1)
        made.append(frame(tmp_path, name, values))
    changed(made[1], np.s_[10:20, :, :5], np.nan)
    made = [RegisteredFrame(of.name, of.path, of.shape, of.noise[:1], of.fwhm) for of in made]
    planes = stacked(made, normalisation="none", rejection="none", weighting="none")
    first, second = (torch.from_numpy(of.window(0, slice(None), slice(None))) for of in made)
    expected = torch.where(second.isnan(), first, (first + 0.25 * second) / 1.25)
    torch.testing.assert_close(planes["image"], expected[None])
    assert planes["n_eff"][0, 0, 60] == pytest.approx(1.25**2 / (1 + 0.25**2))
    assert (planes["n_eff"][0, 10:20, :5] == 1).all()
