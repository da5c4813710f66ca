"""Metrics agree with the literature's definitions and with scikit-image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.io import imread
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from safelight.kernels.metrics import high_pass_ratio, psnr, range_of, scale_invariant_psnr, ssim


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    """A clean picture of waves, 60 × 70 pixels between 60 and 140, and a noisy version of it."""
    y, x = torch.meshgrid(torch.arange(60.0), torch.arange(70.0), indexing="ij")
    clean = 100 + 20 * torch.sin(y / 5) + 20 * torch.cos(x / 7)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    return (clean + 8 * noise).double(), clean.double()


def test_psnr_is_scikit_images(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    noisy, clean = pair
    expected = peak_signal_noise_ratio(clean.numpy(), noisy.numpy(), data_range=255)
    assert psnr(noisy, clean, 255).item() == pytest.approx(expected, abs=1e-9)


def test_data_range_of_a_tensor_is_the_same_as_of_a_number(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    noisy, clean = pair
    assert torch.equal(psnr(noisy, clean, range_of(clean)), psnr(noisy, clean, float(clean.max() - clean.min())))


def test_equal_images_are_infinitely_near(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    _, clean = pair
    assert psnr(clean, clean, 255).item() == np.inf
    assert ssim(clean, clean, 255).item() == pytest.approx(1, abs=1e-12)


def test_scale_invariant_psnr_is_the_papers(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    """The formula of juglab's evaluation, as in the tables of N2V2."""
    noisy, clean = pair
    truth = (clean - clean.mean()) / clean.std(correction=0)
    prediction = noisy - noisy.mean()
    fitted = prediction * (truth * prediction).sum() / prediction.square().sum()
    span = (clean.max() - clean.min()) / clean.std(correction=0)
    expected = 20 * torch.log10(span) - 10 * torch.log10((truth - fitted).square().mean())
    assert scale_invariant_psnr(noisy, clean, range_of(clean)).item() == pytest.approx(expected.item(), abs=1e-9)


def test_scale_invariant_psnr_ignores_gain_and_offset(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    noisy, clean = pair
    before = scale_invariant_psnr(noisy, clean, 255)
    assert scale_invariant_psnr(0.01 * noisy - 7, clean, 255).item() == pytest.approx(before.item(), abs=1e-9)
    assert psnr(0.01 * noisy - 7, clean, 255) < psnr(noisy, clean, 255)


def test_a_constant_prediction_is_fitted_by_the_mean(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    _, clean = pair
    constant = torch.full_like(clean, 3.0)
    mean = torch.full_like(clean, clean.mean().item())
    expected = psnr(mean, clean, 255).item()
    assert scale_invariant_psnr(constant, clean, 255).item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("data_range", [40.0, 255.0])
def test_ssim_is_scikit_images(pair: tuple[torch.Tensor, torch.Tensor], data_range: float) -> None:
    noisy, clean = pair
    expected = structural_similarity(
        clean.numpy(),
        noisy.numpy(),
        data_range=data_range,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    assert ssim(noisy, clean, data_range).item() == pytest.approx(expected, abs=1e-9)


def test_ssim_of_a_volume_is_the_mean_of_its_planes(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    noisy, clean = pair
    volume = ssim(torch.stack((noisy, clean)), torch.stack((clean, clean)), 80).item()
    assert volume == pytest.approx((ssim(noisy, clean, 80).item() + 1) / 2, abs=1e-6)


def test_ssim_refuses_planes_smaller_than_its_window() -> None:
    with pytest.raises(ValueError, match=r"\(10, 40\) pixels"):
        ssim(torch.zeros(10, 40), torch.zeros(10, 40), 1)


@pytest.mark.parametrize("metric", [psnr, scale_invariant_psnr, ssim])
def test_float32_serves_at_level_10_000(pair: tuple[torch.Tensor, torch.Tensor], metric: object) -> None:
    noisy, clean = (image + 10_000 for image in pair)
    exact = metric(noisy, clean, 80.0)  # type: ignore[operator]
    single = metric(noisy.float(), clean.float(), 80.0)  # type: ignore[operator]
    assert single.item() == pytest.approx(exact.item(), rel=1e-3)


def test_high_pass_ratio_tells_checkerboards_and_smoothing(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    noisy, _ = pair
    checkerboard = (-1.0) ** torch.arange(60)[:, None] * (-1.0) ** torch.arange(70)
    smoothed = (noisy + noisy.roll(1, -1) + noisy.roll(1, -2) + noisy.roll((1, 1), (-2, -1))) / 4
    assert high_pass_ratio(noisy, noisy).item() == pytest.approx(1)
    assert high_pass_ratio(noisy + 8 * checkerboard, noisy).item() > 1.5
    assert high_pass_ratio(smoothed, noisy).item() < 0.5


def test_noisy_bsd68_is_as_far_as_published(shared: Path) -> None:
    """N2V2's table 2: the input of BSD68 with σ = 25 has 21.32 dB over 68 images; ours are 12 of them."""
    folder = shared / "data/micro/bsd68"
    noisy = np.load(folder / "noisy_sigma25_int16x100.npz")
    values = [
        scale_invariant_psnr(
            torch.from_numpy(noisy[name] / 100), torch.from_numpy(imread(folder / f"gt/{name}.png").astype(float)), 255
        )
        for name in noisy.files
    ]
    assert len(values) == 12
    assert torch.stack(values).mean().item() == pytest.approx(21.32, abs=0.25)
