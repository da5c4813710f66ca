"""Between pixels: ramps stay ramps, and holes stay holes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from safelight.core.device import select
from safelight.core.events import EventLog
from safelight.core.execute import Executor
from safelight.core.options import CommonOptions
from safelight.core.stream import TensorSink, TensorSource
from safelight.kernels import resample as resample_module
from safelight.kernels.resample import INTERPOLATIONS, Interpolation, resample, resampling, with_border

each_interpolation = pytest.mark.parametrize("interpolation", INTERPOLATIONS)


def grid(height: int, width: int, dtype: torch.dtype = torch.float64) -> Tensor:
    y, x = torch.meshgrid(torch.arange(height, dtype=dtype), torch.arange(width, dtype=dtype), indexing="ij")
    return torch.stack([y, x], dim=1)


def turned(height: int, width: int) -> Tensor:
    y, x = grid(height, width).unbind(1)
    return torch.stack([3.3 + 0.8 * y + 0.05 * x, 4.1 - 0.05 * y + 0.8 * x], dim=1)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@each_interpolation
def test_the_identity_returns_the_same_bits_holes_included(interpolation: Interpolation) -> None:
    image = 500 + 20 * noise(2, 30, 40)
    image[0, 7, 9] = torch.nan
    image[:, 0, :5] = torch.nan
    result = resample(grid(30, 40, torch.float32), with_border(image), interpolation)
    assert torch.equal(result.transpose(0, 1).nan_to_num(-1), image.nan_to_num(-1))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_linear_ramp_is_exact(interpolation: Interpolation) -> None:
    y, x = grid(40, 50).unbind(1)
    coordinates = turned(30, 40)
    result = resample(coordinates, with_border((7 + 3 * y - 2 * x)[None]), interpolation)[:, 0]
    torch.testing.assert_close(result, 7 + 3 * coordinates[:, 0] - 2 * coordinates[:, 1], rtol=0, atol=1e-11)


def test_a_smooth_star_keeps_its_shape_best_with_lanczos() -> None:
    y, x = grid(41, 41).unbind(1)

    def star(y: Tensor, x: Tensor) -> Tensor:
        return torch.exp(-((y - 20) ** 2 + (x - 20) ** 2) / (2 * 1.3**2))  # 3 px FWHM

    coordinates = grid(30, 30) + torch.tensor([5.5, 5.5])[:, None]
    truth = star(*coordinates.unbind(1))
    worst = [
        float((resample(coordinates, with_border(star(y, x)[None]), i)[:, 0] - truth).abs().max())
        for i in INTERPOLATIONS
    ]
    assert worst[0] > 3 * worst[1] > 3 * worst[2]


@each_interpolation
def test_an_invalid_pixel_touches_only_its_neighbours(interpolation: Interpolation) -> None:
    image = 500 + 20 * noise(1, 40, 40).double()
    holed = image.clone()
    holed[0, 20, 20] = torch.nan
    coordinates = turned(40, 40)
    whole, result = (resample(coordinates, with_border(i), interpolation)[:, 0] for i in (image, holed))
    y, x = (coordinates - 20).abs().unbind(1)
    reach = {"bilinear": 1, "bicubic": 2, "lanczos3": 3}[interpolation]
    untouched = (y > reach) | (x > reach)
    assert torch.equal(whole[untouched].nan_to_num(-1), result[untouched].nan_to_num(-1))
    assert result[(y < 0.2) & (x < 0.2)].isnan().all()
    assert not result[((y > 0.5) | (x > 0.5)) & whole.isfinite()].isnan().any()


@each_interpolation
def test_outside_and_nowhere_are_invalid(interpolation: Interpolation) -> None:
    places = [[-0.6, 5], [5, 9.6], [1e9, 5], [5, -torch.inf], [torch.nan, 5], [5, torch.nan], [-0.4, 5]]
    coordinates = torch.tensor(places, dtype=torch.float32).t()[None]
    values = resample(coordinates, with_border(torch.full((1, 10, 10), 500.0)), interpolation)[0, 0]
    assert values[:-1].isnan().all()
    assert float(values[-1]) == pytest.approx(500)  # less than half a pixel past the first centre


def test_a_star_on_a_finer_grid_adds_up_to_its_light_per_source_pixel() -> None:
    y, x = grid(60, 60).unbind(1)
    star = 1000 * torch.exp(-((y - 30.3) ** 2 + (x - 29.6) ** 2) / (2 * 2.5**2))
    coordinates = grid(150, 150) / 2.5
    values = resample(coordinates, with_border(star[None]), "bicubic")[:, 0]
    light = values.nansum() / 2.5**2
    assert float(light / star.sum()) == pytest.approx(1, abs=1e-3)


@each_interpolation
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("block", [1, 500, resample_module.BLOCK_PIXELS])
def test_chunks_of_any_size_give_the_same_bits(
    interpolation: Interpolation, threads: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = (500 + 20 * noise(2, 50, 61)).float()
    image[0, 20, 20] = torch.nan
    coordinates = turned(64, 37).float()
    bordered = with_border(image)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        whole = resample(coordinates, bordered, interpolation)
        monkeypatch.setattr(resample_module, "BLOCK_PIXELS", block)
        parts = [resample(part, bordered, interpolation) for part in coordinates.split(5)]
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(torch.cat(parts).numpy(), whole.numpy(), equal_nan=True)


def test_the_executor_maps_it_over_rows_of_the_output() -> None:
    events = EventLog()
    options = CommonOptions(device="cpu")
    executor = Executor(select(options, events), events)
    image, coordinates = noise(3, 50, 61), turned(200, 37).float()
    sink = TensorSink(200)
    executor.map(resampling(image, 37, "lanczos3"), TensorSource(coordinates), sink)
    expected = resample(coordinates, with_border(image), "lanczos3")
    assert np.array_equal(sink.result.numpy(), expected.numpy(), equal_nan=True)
