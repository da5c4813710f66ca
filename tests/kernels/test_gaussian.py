"""The Gaussian filter is SciPy's, in any number of dimensions and for images smaller than the filter."""

from __future__ import annotations

import pytest
import torch
from scipy import ndimage

from safelight.kernels.gaussian import gaussian_filter


@pytest.mark.parametrize("sigma", [0.4, 1.0, 3.3])
@pytest.mark.parametrize("shape", [(40, 31), (5, 4), (1, 6)])
def test_planes_are_smoothed_as_by_scipy(shape: tuple[int, int], sigma: float) -> None:
    image = torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = ndimage.gaussian_filter(image.numpy(), sigma, mode="mirror")
    torch.testing.assert_close(gaussian_filter(image, sigma), torch.from_numpy(expected), rtol=0, atol=1e-12)


def test_volumes_are_smoothed_in_three_dimensions_or_plane_by_plane() -> None:
    volume = torch.rand((7, 12, 9), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = torch.from_numpy(ndimage.gaussian_filter(volume.numpy(), 1.2, mode="mirror"))
    torch.testing.assert_close(gaussian_filter(volume, 1.2, dims=3), whole, rtol=0, atol=1e-12)
    planes = torch.stack([gaussian_filter(plane, 1.2) for plane in volume])
    assert torch.equal(gaussian_filter(volume, 1.2, dims=2), planes)


def test_sigma_zero_changes_nothing() -> None:
    image = torch.rand(8, 8)
    assert torch.equal(gaussian_filter(image, 0.0), image)


def test_a_constant_stays_constant() -> None:
    image = torch.full((9, 9), 1000.0)
    torch.testing.assert_close(gaussian_filter(image, 2.0), image, rtol=1e-6, atol=0)
