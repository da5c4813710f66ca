"""What hits a pixel is rejected, and nothing else is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from safelight.core.errors import UsageError
from safelight.kernels.combine import combine
from safelight.kernels.rejection import Method, Rejection, reject, surely_keeps_all

SKY, SIGMA, HIT = 1000.0, 20.0, 60_000.0


def sky(*shape: int) -> Tensor:
    return SKY + SIGMA * torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("n", range(3, 13))
def test_winsorising_rejects_a_hit_among_three_or_more(n: int) -> None:
    samples = sky(50, n)
    samples[:, n // 2] = HIT
    result = combine(samples, rejection=Rejection("winsorized_sigma_clip"))
    assert (result.high >= 1).all()
    assert (result.image - SKY).abs().max() < 4 * SIGMA


@pytest.mark.parametrize("n", range(3, 13))
def test_kappa_sigma_rejects_a_hit_among_ten_or_more(n: int) -> None:
    """A hit D among n makes the standard deviation (ddof 1) D/√n: beyond 3 of them only where n > 9."""
    samples = sky(50, n)
    samples[:, 0] = HIT
    result = combine(samples, rejection=Rejection("kappa_sigma"))
    if n < 9:
        assert (result.high == 0).all()
    elif n > 9:  # 9 is a tie
        assert (result.high == 1).all()
        assert (result.image - SKY).abs().max() < 4 * SIGMA


@pytest.mark.parametrize("rejection", [Rejection("winsorized_sigma_clip"), Rejection("linear_fit_clip", 5.0, 5.0)])
def test_a_trail_is_rejected_not_clipped(rejection: Rejection) -> None:
    """A winsorised mean would keep the trail at the edge of what is allowed, a bias of σ/5."""
    samples = sky(20_000, 15)
    without = combine(samples[:, 1:], rejection=rejection)
    samples[:, 0] += 50 * SIGMA
    result = combine(samples, rejection=rejection)
    same = ((result.image - without.image).abs() < 1e-3) & (result.high == without.high + 1)
    assert same.float().mean() > 0.999


def test_what_is_rejected_is_counted_on_its_side() -> None:
    samples = sky(15).repeat(2, 1)
    samples[0, 2] = -HIT
    samples[1, 3] = samples[1, 5] = HIT
    result = combine(samples, rejection=Rejection())
    assert result.low.tolist() == [1, 0]
    assert result.high.tolist() == [0, 2]
    assert result.count.tolist() == [14, 13]


def test_guards_keep_the_brighter_of_two_hits_among_five_as_siril_does() -> None:
    samples = torch.tensor([[990.0, 1000.0, 1010.0, 30_000.0, HIT]])
    result = combine(samples, rejection=Rejection(siril_guards=True))
    assert result.image.item() == pytest.approx((990 + 1000 + 1010 + HIT) / 4)
    assert combine(samples, rejection=Rejection()).image.item() == pytest.approx(1000)


def test_guards_count_what_earlier_passes_rejected() -> None:
    """Of six, one is rejected; among the five left a second would be too, but five exceeds one by only 4."""
    samples = torch.tensor([[100.0, 900.0, 982.3, 1000.8, 1004.2, 1013.6]])
    settings = {"method": "kappa_sigma", "kappa_low": 2.0, "kappa_high": 2.5}
    assert combine(samples, rejection=Rejection(**settings, siril_guards=True)).low.item() == 1
    assert combine(samples, rejection=Rejection(**settings)).low.item() > 1


def test_guards_take_zero_for_no_data_and_leave_four_samples_alone() -> None:
    samples = torch.tensor([[0.0, 1000.0, 1010.0, 990.0, HIT], [0.0, 0.0, 0.0, 0.0, 0.0]])
    result = combine(samples, rejection=Rejection(siril_guards=True))
    assert result.image[0].item() == pytest.approx((3000 + HIT) / 4)
    assert result.count.tolist() == [4, 0]
    assert result.image[1].isnan()


def test_minmax_drops_as_many_as_told_of_the_valid_samples() -> None:
    samples = torch.tensor([[5.0, 1.0, float("nan"), 2.0, 9.0, 3.0]])
    result = combine(samples, rejection=Rejection("minmax", drop_low=1, drop_high=2))
    assert result.image.item() == pytest.approx(2.5)
    assert (result.low.item(), result.high.item()) == (1, 2)


def test_percentile_compares_with_the_median() -> None:
    samples = torch.tensor([[79.0, 81.0, 100.0, 109.0, 111.0], [-121.0, -101.0, -100.0, -91.0, -89.0]])
    result = combine(samples, rejection=Rejection("percentile", percentile_low=0.2, percentile_high=0.1))
    assert result.low.tolist() == [1, 1]
    assert result.high.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("rejection", "samples"),
    [
        (Rejection("minmax", drop_low=2, drop_high=2), [1.0, 2.0, 3.0]),
        (Rejection("percentile", percentile_low=0.01, percentile_high=0.01), [90.0, 110.0]),
        (Rejection("kappa_sigma", kappa_low=0.1, kappa_high=0.1), [0.0, 0.0, 1.0, 1.0]),
    ],
)
def test_no_pixel_loses_all_its_samples(rejection: Rejection, samples: list[float]) -> None:
    result = combine(torch.tensor([samples]), rejection=rejection)
    assert result.count.item() == len(samples)
    assert result.image.item() == pytest.approx(sum(samples) / len(samples))
    assert result.low.item() == result.high.item() == 0


@pytest.mark.parametrize(
    "wrong", [{"method": "winsor"}, {"kappa_low": 0.0}, {"percentile_high": float("nan")}, {"drop_low": -1}]
)
def test_settings_that_no_method_can_use_are_refused_by_value(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=str(next(iter(wrong.values())))):
        Rejection(**wrong)  # type: ignore[arg-type]  # wrong on purpose


@pytest.mark.parametrize("n", [3, 4, 7, 15])
@pytest.mark.parametrize("method", ["kappa_sigma", "winsorized_sigma_clip"])
def test_the_proof_that_spares_iterating_holds_and_is_found_for_most_pixels(method: Method, n: int) -> None:
    samples = sky(n, 20_000)
    samples[torch.rand(samples.shape, generator=torch.Generator().manual_seed(1)) < 0.01] += 200
    samples = samples.sort(dim=0).values
    level = samples.quantile(0.5, dim=0)
    count = torch.full_like(level, n)
    for rejection, share in ((Rejection(method), 0.9), (Rejection(method, kappa_low=1.5, kappa_high=2.5), 0.5)):
        spared = surely_keeps_all(samples - level, count, rejection)
        low, high = reject(samples - level, count, level, rejection)
        kept_all = (low + high).sum(0) == 0
        assert not (spared & ~kept_all).any()
        assert spared.sum() > share * kept_all.sum()
