"""Correlation, spectrum and variance of known noise come out as they were put in."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from safelight.kernels.noise import block_spectra, half_plane, lag_correlation, structure_sums, variance_by_level


def white(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_correlation_of_white_noise_is_zero_within_its_error() -> None:
    correlation, error = lag_correlation(white(300, 300), -1, 5)
    assert error.tolist() == pytest.approx([1 / 300] * 5, rel=0.05)
    assert (correlation.abs() < 4 * error).all()


def test_correlation_is_found_along_its_axis_only() -> None:
    noise = white(300, 301)
    correlated = noise[:, 1:] + 0.5 * noise[:, :-1]
    assert lag_correlation(correlated, -1, 2)[0].tolist() == pytest.approx([0.4, 0], abs=0.02)
    assert lag_correlation(correlated, -2, 2)[0].tolist() == pytest.approx([0, 0], abs=0.02)


def test_white_noise_has_a_flat_spectrum_at_its_variance() -> None:
    spectrum = block_spectra(3 * white(512, 512), 16).mean(0)
    inner = spectrum[2:-1, 2:-1]  # the block's own mean is taken out, which the window spreads to its neighbours
    np.testing.assert_allclose(inner, 9, rtol=0.2)


def test_a_wave_appears_at_its_frequency() -> None:
    x = torch.arange(128, dtype=torch.float64)
    spectrum = block_spectra(torch.cos(2 * torch.pi * x / 8).expand(128, 128), 32).mean(0)
    assert np.unravel_index(int(spectrum.argmax()), (32, 32)) in {(0, 4), (0, 28)}


def test_half_plane_has_one_of_each_pair() -> None:
    lags = half_plane(2)
    assert len(lags) == 12
    assert not {(-y, -x) for y, x in lags} & set(lags)


def test_structure_sums_of_noise_of_any_variance_stay_within_their_error() -> None:
    """Photon noise: 1,000 times stronger in places than in others."""
    y, x = torch.meshgrid(torch.linspace(0, 20, 512), torch.linspace(0, 20, 512), indexing="ij")
    residual = white(512, 512) * torch.exp(3.5 * torch.sin(y) * torch.sin(x))
    shared, variance, _ = structure_sums(residual, half_plane(2), 64)
    assert shared.shape == (8, 8)
    errors = shared / variance.sqrt()
    assert errors.std().item() == pytest.approx(1, abs=0.25)
    assert errors.abs().max() < 4.5


def test_structure_sums_find_what_neighbours_share() -> None:
    residual = white(128, 128)
    residual[:64, 64:] += 0.5 * white(8, 8, seed=1).repeat_interleave(8, 0).repeat_interleave(8, 1)
    shared, variance, energy = structure_sums(residual, half_plane(2), 64)
    errors = shared / variance.sqrt()
    assert errors[0, 1] > 10
    assert errors.flatten()[[0, 2, 3]].abs().max() < 4
    assert energy.sum().item() == pytest.approx(residual.square().sum().item())


def test_variance_by_level_is_that_of_photon_noise_without_outliers() -> None:
    generator = torch.Generator().manual_seed(0)
    level = torch.rand((400, 400), generator=generator, dtype=torch.float64) * 90 + 10
    residual = torch.poisson(level, generator=generator) - level
    residual[::40, ::40] += 1000  # hot pixels
    levels, variances = variance_by_level(level, residual, 10)
    assert (levels.diff() > 0).all()
    np.testing.assert_allclose(variances, levels, rtol=0.06)
