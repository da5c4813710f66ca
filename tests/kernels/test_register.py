"""Shifts of frames that were moved by known amounts, and what the confidence is worth."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from exposures import texture
from safelight.kernels.register import coarse_shift, despeckle, fast_length, fine_shift, spectrum


def scene(seed: int = 0) -> Tensor:
    return torch.from_numpy(texture(300, 400, seed)[1]).float()


def part(image: Tensor, dy: int, dx: int) -> Tensor:
    return image[60 + dy : 220 + dy, 80 + dx : 301 + dx]


@pytest.mark.parametrize("shift", [(0, 0), (1, 0), (-1, 3), (17, -41), (-33, -7), (40, 50)])
def test_a_part_of_a_larger_scene_is_found(shift: tuple[int, int]) -> None:
    anchor, target = part(scene(), 0, 0), part(scene(), *shift)
    dy, dx, confidence = coarse_shift(target[None], spectrum(anchor[None]))[0].tolist()
    # The window stays where it is while the content moves: far from zero this pulls a little.
    assert (dy, dx) == pytest.approx(shift, abs=1)
    assert confidence > 10


def test_noise_alone_is_no_match() -> None:
    noise = torch.randn((4, 160, 221), generator=torch.Generator().manual_seed(0))
    found = coarse_shift(noise, spectrum(part(scene(), 0, 0)[None]))
    assert float(found[:, 2].max()) < 6


@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.25, -0.5), (-1.37, 1.21), (2.0, -2.0)])
def test_a_fraction_of_a_pixel_is_found(shift: tuple[float, float]) -> None:
    image = scene()
    y, x = torch.fft.fftfreq(300)[:, None], torch.fft.rfftfreq(400)
    turned = torch.fft.rfft2(image) * torch.exp(2j * torch.pi * (y * shift[0] + x * shift[1]))
    frames = torch.stack((part(image, 0, 0), part(torch.fft.irfft2(turned, s=(300, 400)), 0, 0)))
    dy, dx, agreement = fine_shift(frames[None])[0].tolist()
    # A window stays where it is while the content moves: far from zero this pulls a little.
    assert (dy, dx) == pytest.approx(shift, abs=0.01 + 0.02 * max(map(abs, shift)))
    assert agreement > 0.9


def test_hot_pixels_vanish_and_edges_stay() -> None:
    image = torch.zeros(20, 20)
    image[:, 10:] = 1
    hot = image.clone()
    hot[5, 5], hot[12, 15] = 9, -9
    torch.testing.assert_close(despeckle(hot), image, rtol=0, atol=0)


def test_lengths_are_even_and_fast() -> None:
    for size in range(1, 700):
        length = fast_length(size)
        assert size <= length <= 1.25 * size + 2
        assert length % 2 == 0
        assert set(np.unique(_factors(length))) <= {2, 3, 5}


def _factors(number: int) -> list[int]:
    return [p for p in range(2, number + 1) if number % p == 0 and all(p % q for q in range(2, p))]
