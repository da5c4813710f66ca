"""The combined image, and what is said about it, whatever the order of frames and the size of chunks."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from safelight.core.device import Device
from safelight.core.dry_run import predict_cost
from safelight.core.events import EventLog
from safelight.core.execute import Executor
from safelight.core.kernel import Kernel
from safelight.core.memory import Budget, Ledger
from safelight.core.plan import Corrections
from safelight.core.stream import TensorSink, TensorSource
from safelight.kernels.combine import Combined, combine, rows_of_block
from safelight.kernels.rejection import REJECTIONS, Method, Rejection

METHODS = [pytest.param(rejection, id=f"{rejection.method}-{rejection.siril_guards}") for rejection in REJECTIONS]
NONE = Rejection("none")


def noisy(*shape: int, seed: int = 0) -> Tensor:
    """Sky of 1000 ± 20 with 2 % hits and 5 % holes, in whole numbers: ties are frequent."""
    generator = torch.Generator().manual_seed(seed)
    samples = 1000 + 20 * torch.randn(shape, generator=generator)
    samples[torch.rand(shape, generator=generator) < 0.02] += 700
    samples[torch.rand(shape, generator=generator) < 0.05] = math.nan
    return samples.round()


def planes(result: Combined) -> Tensor:
    return torch.stack(tuple(result))


def rows(rejection: Rejection, samples: Tensor, *per_frame: Tensor) -> Tensor:
    return planes(combine(samples, *per_frame, rejection=rejection)).movedim(0, 1)


def test_a_weighted_mean_with_its_variance_and_number() -> None:
    samples, weights = torch.tensor([[10.0, 20.0, 40.0]]), torch.tensor([1.0, 2.0, 1.0])
    result = combine(samples, weights, torch.tensor([3.0, 2.0, 5.0]), rejection=NONE)
    assert result.image.item() == 22.5
    assert result.weight.item() == 4
    assert result.variance.item() == pytest.approx((9 + 4 * 4 + 25) / 16)
    assert result.n_eff.item() == pytest.approx(16 / 6)
    assert result.count.item() == 3


def test_scale_and_offset_come_first() -> None:
    samples = torch.tensor([[10.0, 20.0]])
    result = combine(samples, None, None, torch.tensor([2.0, 1.0]), torch.tensor([0.0, 5.0]), rejection=NONE)
    assert result.image.item() == 22.5


def test_the_median_says_that_it_is_noisier_than_the_mean() -> None:
    samples = 1000 + 20 * torch.randn((100_000, 15), generator=torch.Generator().manual_seed(0))
    result = combine(samples, None, torch.full((15,), 20.0), rejection=NONE, statistic="median")
    torch.testing.assert_close(result.image, samples.median(1).values)
    assert result.variance[0].sqrt().item() == pytest.approx(result.image.std().item(), rel=0.05)
    assert 20 / result.n_eff[0].sqrt().item() == pytest.approx(result.image.std().item(), rel=0.05)


def test_without_noise_the_variance_is_unknown() -> None:
    assert combine(torch.ones(2, 3), rejection=NONE).variance.isnan().all()


@pytest.mark.parametrize("rejection", METHODS)
def test_invalid_samples_are_as_if_they_were_not_there(rejection: Rejection) -> None:
    samples, weights = noisy(300, 9).nan_to_num(1000.0), torch.linspace(0.5, 2, 9)
    holes = torch.full((300, 3), math.nan)
    holes[:, 1] = math.inf
    more = torch.cat((samples[:, :4], holes, samples[:, 4:]), 1)
    more_weights = torch.cat((weights[:4], torch.tensor([9.0, 9.0, 9.0]), weights[4:]))
    expected = combine(samples, weights, weights, rejection=rejection)
    result = combine(more, more_weights, more_weights, rejection=rejection)
    same = np.isclose(planes(result), planes(expected), rtol=1e-6).all(0)
    assert same.mean() > 0.99  # rounding decides where a sample lies on a limit


@pytest.mark.parametrize("rejection", METHODS)
def test_a_pixel_that_nothing_covers_is_nan_with_weight_zero(rejection: Rejection) -> None:
    result = combine(torch.full((2, 5), math.nan), None, torch.ones(5), rejection=rejection)
    assert result.image.isnan().all()
    assert result.variance.isnan().all()
    for name in ("weight", "count", "n_eff", "low", "high"):
        assert (getattr(result, name) == 0).all(), name


@settings(max_examples=15, deadline=None)
@given(order=st.permutations(range(9)), rejection=st.sampled_from(REJECTIONS))
def test_the_order_of_frames_changes_no_bit(order: list[int], rejection: Rejection) -> None:
    samples, generator = noisy(400, 9), torch.Generator().manual_seed(1)
    weights, noise = torch.rand(9, generator=generator), 20 * torch.rand(9, generator=generator)
    weights[3] = weights[5]
    expected = combine(samples, weights, noise, rejection=rejection)
    result = combine(samples[:, order], weights[order], noise[order], rejection=rejection)
    np.testing.assert_array_equal(planes(result), planes(expected))


@settings(max_examples=20, deadline=None)
@given(
    rejection=st.sampled_from([r for r in REJECTIONS if r.method != "percentile" and not r.siril_guards]),
    scale=st.sampled_from([1 / 65535, 0.01, 3.0, 1e4]),
    levels=st.sampled_from([0.0, 500.0, 1e4]),
)
def test_units_and_pedestals_change_nothing(rejection: Rejection, scale: float, levels: float) -> None:
    samples = noisy(500, 11) - 1000
    expected = combine(samples, rejection=rejection)
    result = combine(samples * scale + levels * scale, rejection=rejection)
    assert (result.count == expected.count).float().mean() > 0.995  # rounding decides where a limit is met exactly
    same = (result.low == expected.low) & (result.high == expected.high)
    np.testing.assert_allclose(result.image[same] / scale - levels, expected.image[same], atol=2e-7 * (levels + 1000))


@pytest.mark.parametrize("rejection", METHODS)
def test_chunks_change_no_bit_and_stay_within_the_plan(rejection: Rejection, tmp_path: Path) -> None:
    samples = noisy(200, 97, 7)
    per_frame = (torch.linspace(0.5, 1.5, 7), torch.linspace(18, 22, 7), torch.linspace(0.9, 1.1, 7), torch.arange(7.0))
    whole = planes(combine(samples, *per_frame, rejection=rejection))
    kernel, source = Kernel("combine", partial(rows, rejection), per_frame), TensorSource(samples)
    executor = Executor(
        Device(torch.device("cpu")), EventLog(), budget=Budget(7 << 20, "free"), corrections=Corrections(tmp_path)
    )
    assert executor.plan(kernel, source).rows < 200
    sink = TensorSink(200)
    executor.map(kernel, source, sink)
    np.testing.assert_array_equal(sink.result.movedim(1, 0), whole)
    for measured in executor.measured:
        assert measured.measured_bytes <= 1.05 * measured.predicted_bytes


def easy(*shape: int) -> Tensor:
    """Nothing is an outlier, and nothing has to be iterated to know it."""
    return 1000 + (torch.arange(shape[-1]) % 2).expand(shape).float()


def hard(*shape: int) -> Tensor:
    """Most pixels have outliers that come to light one after the other."""
    generator = torch.Generator().manual_seed(5)
    return 1000 + torch.empty(shape).exponential_(generator=generator) ** 4


@pytest.mark.parametrize(
    ("method", "frames", "slack"),
    [
        ("kappa_sigma", 12, 1.001),
        ("winsorized_sigma_clip", 4, 1.02),
        ("winsorized_sigma_clip", 12, 1.001),
        ("linear_fit_clip", 12, 1.05),  # all of its pixels are iterated, some more often
    ],
)
def test_a_plan_that_easy_pixels_have_corrected_holds_for_hard_ones(method: Method, frames: int, slack: float) -> None:
    rejection = Rejection(method)
    width = 701
    extent = 2 * rows_of_block(width, frames)
    per_frame = tuple(torch.linspace(0.9, 1.1, frames) for _ in range(4))
    kernel = Kernel("combine", partial(rows, rejection), per_frame, alignment=rows_of_block(width, frames))
    taken = []
    for samples in (easy(extent, width, frames), noisy(extent, width, frames), hard(extent, width, frames)):
        planned = predict_cost(kernel, TensorSource(samples), shared=True).peak(extent)
        ledger = Ledger(samples.nbytes)
        with torch.no_grad(), ledger:
            kernel(samples)
        taken.append(ledger.peak / planned)
    assert max(taken) <= 1.001
    assert max(taken) <= slack * min(taken)


def test_weights_may_differ_from_pixel_to_pixel() -> None:
    samples, generator = noisy(40, 30, 6), torch.Generator().manual_seed(2)
    weights = torch.rand((40, 30, 6), generator=generator)
    result = combine(samples, weights, rejection=NONE)
    valid = ~samples.isnan()
    expected = (samples.nan_to_num() * weights).sum(-1) / (weights * valid).sum(-1)
    torch.testing.assert_close(result.image, expected)


def test_fifteen_frames_come_near_the_ideal() -> None:
    """The spec's case: σ 20, 0.2 % outliers; 5.355 is Siril's noise, 20/√15 = 5.164 the ideal."""
    generator = torch.Generator().manual_seed(3)
    samples = 1000 + 20 * torch.randn((400_000, 15), generator=generator)
    hit = torch.rand(samples.shape, generator=generator) < 0.002
    samples[hit] += 5000 * torch.rand(int(hit.sum()), generator=generator)
    image = combine(samples, rejection=Rejection(siril_guards=True)).image.double()
    assert image.std().item() == pytest.approx(5.355, abs=0.025)
    assert abs(image.mean().item() - 1000) < 0.03
