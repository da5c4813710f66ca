"""Frames of other skies and exposures are brought to the reference; weights say which to trust."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from safelight.kernels.normalisation import Normalisation, frame_weights, location_and_scale, normalise_to, quantiles

SHIFTS: tuple[Normalisation, ...] = ("additive", "additive_with_scaling", "linear_fit")


def background(n: int = 20_001) -> Tensor:
    return 1000 + 20 * torch.randn((1, 2, n), generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_location_and_scale_ignore_stars_and_holes() -> None:
    samples = background()
    samples[..., :200] = 60_000
    samples[..., 200:400] = math.nan
    location, scale = location_and_scale(samples)
    assert location.flatten().tolist() == pytest.approx([1000, 1000], abs=1)
    assert scale.flatten().tolist() == pytest.approx([20, 20], rel=0.03)


def test_quantiles_of_more_samples_than_torch_takes() -> None:
    values = torch.arange(2**24 + 1, dtype=torch.float32)
    assert quantiles(values, (0.5,)).item() == 2**23


def test_quantiles_of_nothing_are_nan() -> None:
    assert quantiles(torch.full((3, 4), math.nan), (0.1, 0.5)).isnan().all()


@pytest.mark.parametrize("method", SHIFTS)
def test_another_sky_is_taken_to_the_reference(method: Normalisation) -> None:
    reference = background()
    frames = torch.cat((reference, reference + 300))
    scale, offset = normalise_to(frames, method)
    torch.testing.assert_close(scale[..., None] * frames + offset[..., None], reference.expand_as(frames))


@pytest.mark.parametrize("method", ["additive_with_scaling", "linear_fit"])
def test_another_exposure_is_taken_to_the_reference(method: Normalisation) -> None:
    reference = background()
    frames = torch.cat((0.5 * reference + 40, reference))
    scale, offset = normalise_to(frames, method, reference=1)
    torch.testing.assert_close(scale[0], torch.full((2,), 2.0, dtype=torch.float64))
    torch.testing.assert_close(scale[..., None] * frames + offset[..., None], reference.expand_as(frames))


def test_multiplicative_takes_a_flat_exposure_to_the_reference() -> None:
    scale, offset = normalise_to(torch.cat((background(), 2 * background())), "multiplicative")
    assert scale[1].tolist() == pytest.approx([0.5, 0.5])
    assert (offset == 0).all()


@pytest.mark.parametrize("method", ["none", *SHIFTS, "multiplicative"])
def test_the_reference_stays_as_it_is(method: Normalisation) -> None:
    scale, offset = normalise_to(torch.cat((background(), 2 * background())), method, reference=1)
    assert (scale[1] == 1).all()
    assert (offset[1] == 0).all()


def test_a_frame_without_spread_cannot_be_scaled_and_says_so() -> None:
    frames = torch.cat((background(), torch.full_like(background(), 1000.0)))
    assert not normalise_to(frames, "additive_with_scaling").scale[1].isfinite().any()
    assert not normalise_to(frames, "linear_fit").scale[1].isfinite().any()


def test_weights_follow_noise_and_have_the_mean_one() -> None:
    noise = torch.tensor([[10.0, 5.0], [20.0, 5.0]])
    weights = frame_weights(noise, torch.tensor([2.0, 3.0]), "noise_variance")
    torch.testing.assert_close(weights, torch.tensor([[1.6, 1.0], [0.4, 1.0]]))
    assert (frame_weights(noise, torch.tensor([2.0, 3.0]), "none") == 1).all()


def test_the_widest_stars_count_for_nothing_unless_all_are_alike() -> None:
    noise = torch.full((3, 1), 10.0)
    weights = frame_weights(noise, torch.tensor([2.0, 3.0, 4.0]), "noise_fwhm")
    assert weights[2].item() == 0
    assert weights.mean().item() == pytest.approx(1)
    assert (frame_weights(noise, torch.full((3,), 2.5), "noise_fwhm") == 1).all()
