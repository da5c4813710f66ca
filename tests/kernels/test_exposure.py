"""Gains and noise that are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from safelight.kernels.exposure import fit_poisson_gaussian, gain_between, offset_by_level


def test_the_gain_of_most_blocks_counts() -> None:
    light = torch.from_numpy(np.random.default_rng(0).uniform(1, 2, 100))
    target = light / 2.5
    target[:20] *= 4
    target[20:45] /= 4
    assert float(gain_between(light, target)) == pytest.approx(2.5)


def test_frames_without_light_have_no_gain() -> None:
    assert gain_between(torch.ones(5), torch.zeros(5)).isnan()


@pytest.mark.parametrize(("slope", "floor"), [(0.01, 1e-4), (0.0, 1e-3), (0.02, 0.0)])
def test_poisson_gaussian_noise_is_fitted_despite_outliers(slope: float, floor: float) -> None:
    generator = np.random.default_rng(1)
    level = generator.uniform(0, 1, 60_000)
    residual = generator.normal(size=level.shape) * np.sqrt(slope * level + floor)
    residual[:200] += 2
    fitted = fit_poisson_gaussian(torch.from_numpy(level), torch.from_numpy(residual))
    assert fitted.slope == pytest.approx(slope, rel=0.08, abs=3e-5)
    assert fitted.floor == pytest.approx(floor, abs=1e-4)


def test_noise_cut_off_at_black_shows_as_an_offset_of_the_dark() -> None:
    generator = np.random.default_rng(2)
    level = np.repeat(generator.uniform(0, 1, 3000), 16).reshape(-1, 16)
    noisy = np.maximum(level + generator.normal(scale=0.2, size=level.shape), 0)
    moved = generator.random(len(level)) < 0.2
    noisy[moved] += 0.5
    levels, offsets = offset_by_level(torch.from_numpy(level[:, 0]), torch.from_numpy((noisy - level).mean(1)), 10)
    assert levels.diff().min() > 0
    assert 0.05 < float(offsets[0]) < 0.12
    assert float(offsets[-1]) == pytest.approx(0, abs=0.03)
