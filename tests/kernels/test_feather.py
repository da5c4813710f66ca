"""Weights fall towards the edge of a tile, not towards every dead pixel."""

from __future__ import annotations

import pytest
import torch
from scipy import ndimage
from torch import Tensor

from safelight.kernels.feather import SURROUNDINGS, distance_to_edge, feather_weights, radial_weights


def turned_tile(height: int = 500, width: int = 420, angle: float = 0.5) -> Tensor:
    y, x = torch.meshgrid(torch.arange(height) - height / 2, torch.arange(width) - width / 2, indexing="ij")
    s, c = torch.tensor(angle).sin(), torch.tensor(angle).cos()
    return ((c * y + s * x).abs() < 150) & ((c * x - s * y).abs() < 110)


def exact(valid: Tensor) -> Tensor:
    return torch.from_numpy(ndimage.distance_transform_edt(torch.nn.functional.pad(valid, (1,) * 4).numpy()))[
        1:-1, 1:-1
    ]


def test_the_distance_is_that_of_scipy() -> None:
    inside = turned_tile(200, 130) & (torch.rand((200, 130), generator=torch.Generator().manual_seed(0)) < 0.999)
    torch.testing.assert_close(distance_to_edge(inside, 500), exact(inside).float())
    torch.testing.assert_close(distance_to_edge(inside, 7.5), exact(inside).float().clamp(max=7.5))


@pytest.mark.parametrize("reach", [20, 64, 192])
@pytest.mark.parametrize("valid", [turned_tile(), torch.ones(300, 203, dtype=torch.bool)])
def test_the_feather_is_as_wide_as_asked(valid: Tensor, reach: float) -> None:
    weights = feather_weights(valid, reach)
    ideal = (exact(valid).float() / reach).clamp(max=1)
    assert weights.dtype == torch.float32
    assert (weights - ideal).abs().max() < 4 / min(reach, 64)  # at the corners, which count as round
    assert (weights - ideal).abs().mean() < 0.02
    assert (weights[~valid] == 0).all()
    assert (weights[valid] > 0).all()


def test_dead_pixels_are_no_edge() -> None:
    valid = turned_tile()
    holed = valid & (torch.rand(valid.shape, generator=torch.Generator().manual_seed(0)) < 0.9)
    weights, whole = feather_weights(holed, 64), feather_weights(valid, 64)
    inside = exact(valid) > SURROUNDINGS
    assert (weights - whole)[inside & holed].abs().max() < 2 / 64
    assert (weights[~holed] == 0).all()


def test_a_feather_of_0_weighs_all_valid_pixels_alike() -> None:
    valid = turned_tile()
    assert torch.equal(feather_weights(valid, 0), valid.float())


@pytest.mark.parametrize("reach", [64, 200])
def test_a_blend_has_no_step(reach: float) -> None:
    one, other = torch.zeros(500, 900, dtype=torch.bool), torch.zeros(500, 900, dtype=torch.bool)
    one[:, :603] = True
    other[:, 301:] = True
    first, second = feather_weights(one, reach), feather_weights(other, reach)
    share = (first / (first + second))[250]
    assert (share[:301] == 1).all()
    assert (share[603:] == 0).all()
    assert share.diff().abs().max() < 0.02


def test_radial_weights_fall_from_the_middle_to_the_corners_by_the_share_that_is_asked_for() -> None:
    weights = radial_weights(301, 401, feather=0.8, power=2)
    assert weights[150, 200].item() == 1
    assert [weights[y, x].item() for y in (0, 300) for x in (0, 400)] == pytest.approx([0.2] * 4, abs=1e-6)
    assert weights[150, 400].item() == pytest.approx(1 - 0.8 * 200**2 / (150**2 + 200**2), abs=1e-6)
    assert radial_weights(301, 401, feather=0.8, power=8)[150, 300] > weights[150, 300], "later, but steeper"
    assert radial_weights(1, 1, feather=0.5, power=2).item() == 1
