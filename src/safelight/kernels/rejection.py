"""Outliers among the samples of a pixel: satellites, aircraft, cosmic rays, hot pixels.

Every method works on samples that are sorted and taken relative to their median, so that float32 holds whatever the
level, and follows the data: f(aX + b) = a f(X) + b. Only percentile, which compares with the median's own value, asks
for b = 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from safelight.core.errors import UsageError
from safelight.core.kernel import KernelInfo, Sample

Method = Literal["none", "kappa_sigma", "winsorized_sigma_clip", "linear_fit_clip", "percentile", "minmax"]

WINSOR_LIMIT = 1.5
"""Standard deviations at which samples are winsorised (Huber 1981)."""
WINSOR_CORRECTION = 1.134
"""Makes the standard deviation of winsorised Gaussian samples that of the Gaussian."""
WINSOR_TOLERANCE = 5e-4
WINSOR_ROUNDS = (2, 4, 8, *[16] * 60)
"""How often at most, and when to look where the end is reached: mostly soon; but of three samples, of which one is a
hit, the standard deviation shrinks by only 2 % a round."""
_GUARDED = 4
_FEWEST = 3

Measure = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(values, kept, first kept rank, number kept) -> deviations, 0 where not kept; and the spread that judges them."""


@dataclass(frozen=True)
class Rejection:
    """Which samples of a pixel are outliers.

    Parameters
    ----------
    method : str
        ``none``; ``kappa_sigma``: beyond kappa standard deviations of the median; ``winsorized_sigma_clip``: the same
        with the standard deviation of winsorised samples; ``linear_fit_clip``: beyond kappa mean absolute residuals
        of a line through the sorted samples; ``percentile``: further from the median than a share of it; ``minmax``:
        so many at each end. The first three after ``none`` are repeated without the rejected until none is.
    kappa_low, kappa_high : float
        Below and above; linear_fit_clip usually takes 5.
    percentile_low, percentile_high : float
        Shares of the median.
    drop_low, drop_high : int
        How many samples ``minmax`` drops.
    siril_guards : bool
        Reject as Siril 1.0.6 does: a sample of exactly 0 is no data, and samples are rejected from the lowest to the
        highest only while those left exceed all that were rejected, in earlier passes too, by more than 4. Of two
        hits among five samples it so keeps the brighter one.

    Raises
    ------
    UsageError
        A limit is not positive, or a number of samples is negative.
    """

    method: Method = "winsorized_sigma_clip"
    kappa_low: float = 3.0
    kappa_high: float = 3.0
    percentile_low: float = 0.2
    percentile_high: float = 0.1
    drop_low: int = 1
    drop_high: int = 1
    siril_guards: bool = False

    def __post_init__(self) -> None:
        """Refuse what no method can use."""
        methods = get_args(Method)
        if self.method not in methods:
            raise UsageError(f"unknown rejection {self.method!r}", expected=f"one of {', '.join(methods)}")
        for name in ("kappa_low", "kappa_high", "percentile_low", "percentile_high"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} is {getattr(self, name)}", expected="more than 0")
        for name in ("drop_low", "drop_high"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name} is {getattr(self, name)}", expected="0 or more")


def reject(deviations: Tensor, count: Tensor, level: Tensor, rejection: Rejection) -> tuple[Tensor, Tensor]:
    """Find the outliers of every pixel.

    Where a method would reject every sample of a pixel it rejects none.

    Parameters
    ----------
    deviations : Tensor
        (n, pixels), floating point: every pixel's samples minus their median, ascending, the ``count`` valid ones
        first, the others 0.
    count : Tensor
        (pixels,), int64.
    level : Tensor
        (pixels,): the medians; only ``percentile`` asks.
    rejection : Rejection

    Returns
    -------
    tuple of Tensor
        (n, pixels), bool: rejected as too low, and as too high.
    """
    ranks = torch.arange(deviations.shape[0], device=deviations.device)[:, None]
    valid = ranks < count
    match rejection.method:
        case "none":
            return torch.zeros_like(valid), torch.zeros_like(valid)
        case "kappa_sigma":
            low, high = _clip_repeatedly(deviations, valid, rejection, _deviate_by_std)
        case "winsorized_sigma_clip":
            low, high = _clip_repeatedly(deviations, valid, rejection, _deviate_by_winsorized_std)
        case "linear_fit_clip":
            low, high = _clip_repeatedly(deviations, valid, rejection, _deviate_from_line)
        case "percentile":
            low = deviations < -rejection.percentile_low * level.abs()
            high = deviations > rejection.percentile_high * level.abs()
        case "minmax":
            low = (ranks < rejection.drop_low) & valid
            high = (ranks >= count - rejection.drop_high) & valid
    survives = count_of(valid & ~(low | high)) > 0
    return low & survives, high & survives


def count_of(mask: Tensor) -> Tensor:
    """Return how many are true in every column."""
    count: Tensor = mask.sum(0, dtype=torch.int32)  # Tensor.any and 64-bit sums take several times longer
    return count


def median_of_sorted(values: Tensor, first: Tensor, count: Tensor) -> Tensor:
    """Return the median of the samples of rank ``first`` to ``first + count − 1`` in every column of sorted values."""
    last = values.shape[0] - 1
    below = (first + (count - 1) // 2).clamp(0, last)
    above = (first + count // 2).clamp(0, last)
    low, high = values.gather(0, torch.stack((below, above)).long()).unbind()
    return low + (high - low) / 2


def positions_of(mask: Tensor) -> Tensor:
    """Return where a mask of one axis is true: the only thing here that waits for the device.

    On the meta device nothing is known: everywhere, the most there can be.
    """
    return torch.arange(mask.shape[0], device="meta") if mask.is_meta else mask.nonzero()[:, 0]


def _rounds(values: Tensor, most: int) -> int:
    """Return how often to repeat: twice on the meta device, as no later round takes more memory than the second."""
    return min(most, 2) if values.is_meta else most


def _clip_repeatedly(values: Tensor, valid: Tensor, rejection: Rejection, measure: Measure) -> tuple[Tensor, Tensor]:
    """Reject until nothing more is, or three samples or fewer are left; again only where something was."""
    total = count_of(valid)
    low, high, again = _clip_once(values, valid, torch.zeros_like(total), total, rejection, measure)
    pixels = positions_of(again)
    for _ in range(_rounds(values, values.shape[0]) - 1):
        if pixels.shape[0] == 0:
            break
        was_low, was_high = low.index_select(1, pixels), high.index_select(1, pixels)
        kept = valid.index_select(1, pixels) & ~(was_low | was_high)
        now_low, now_high, again = _clip_once(
            values.index_select(1, pixels), kept, count_of(was_low), total[pixels], rejection, measure
        )
        low.index_copy_(1, pixels, was_low | now_low)
        high.index_copy_(1, pixels, was_high | now_high)
        pixels = pixels[positions_of(again)]
    return low, high


def _clip_once(
    values: Tensor, kept: Tensor, first: Tensor, total: Tensor, rejection: Rejection, measure: Measure
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what is now rejected as too low and as too high, and the pixels where it may be worth another look."""
    count = count_of(kept)
    deviations, spread = measure(values, kept, first, count)
    low = deviations < -rejection.kappa_low * spread
    high = deviations > rejection.kappa_high * spread
    rejected = count_of(low | high)
    if rejection.siril_guards:
        allowed = 2 * count - total - _GUARDED
        _guard(low, high, positions_of(rejected > allowed), allowed)
        rejected = torch.minimum(rejected, allowed)
    return low, high, (rejected > 0) & (count - rejected > _FEWEST)


def _guard(low: Tensor, high: Tensor, pixels: Tensor, allowed: Tensor) -> None:
    """Leave only the lowest ``allowed`` rejections of some pixels, in place."""
    some_low, some_high = low.index_select(1, pixels), high.index_select(1, pixels)
    in_turn = (some_low | some_high).cumsum(0) <= allowed[pixels]
    low.index_copy_(1, pixels, some_low & in_turn)
    high.index_copy_(1, pixels, some_high & in_turn)


def _deviate_by_std(values: Tensor, kept: Tensor, first: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    deviations = (values - median_of_sorted(values, first, count)) * kept
    return deviations, _std(deviations, count)


def _deviate_by_winsorized_std(values: Tensor, kept: Tensor, first: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    deviations, std = _deviate_by_std(values, kept, first, count)
    return deviations, _winsorized_std(deviations, count, std)


def _deviate_from_line(values: Tensor, kept: Tensor, first: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    rank = (kept.cumsum(0) - (count + 1) / 2) * kept
    deviations = (values - (values * kept).sum(0) / count.clamp(min=1)) * kept
    slope = (rank * deviations).sum(0) / rank.square().sum(0).clamp(min=0.5)
    residuals = deviations - slope * rank
    return residuals, residuals.abs().sum(0) / count.clamp(min=1)


def _std(deviations: Tensor, count: Tensor) -> Tensor:
    """Return the standard deviation, ddof 1, of the ``count`` deviations that are not set to 0.

    From the sum of squares: harmless for deviations from about the median, whose mean is below their spread.
    """
    total = deviations.sum(0)
    squares = (deviations * deviations).sum(0)
    variance = (squares - total * total / count.clamp(min=1)) / (count - 1).clamp(min=1)
    return variance.clamp_(min=0).sqrt_()


def _winsorized_std(deviations: Tensor, count: Tensor, std: Tensor) -> Tensor:
    """Winsorise until the standard deviation settles: a few rounds at once, then more where it has not."""
    result = std
    pixels = torch.arange(std.shape[0], device=std.device)
    bound = torch.full_like(std, math.inf)
    for rounds in WINSOR_ROUNDS[: _rounds(deviations, len(WINSOR_ROUNDS))]:
        stds = [std]
        for _ in range(_rounds(deviations, rounds)):
            # Clipping what was clipped before is clipping once, to the narrower bounds.
            bound = torch.minimum(bound, WINSOR_LIMIT * std)
            std = WINSOR_CORRECTION * _std(deviations.clamp(-bound, bound), count)
            stds.append(std)
        path = torch.stack(stds)
        moving = (path[1:] - path[:-1]).abs() > WINSOR_TOLERANCE * path[:-1]
        settled_at = moving.cumprod(0).sum(0)
        settled = path.gather(0, (settled_at + 1).clamp(max=len(stds) - 1)[None])[0]
        result = result.index_copy(0, pixels, settled)
        still = positions_of(settled_at == len(stds) - 1)
        if still.shape[0] == 0:
            break
        pixels, std, bound, count = pixels[still], std[still], bound[still], count[still]
        deviations = deviations.index_select(1, still)
    return result


def _verdicts(deviations: Tensor, count: Tensor, level: Tensor, rejection: Rejection) -> Tensor:
    low, high = reject(deviations, count, level, rejection)
    return high.to(torch.int8) - low.to(torch.int8)


def _samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(0)
    for n in (1, 2, 5, 12):
        values = 1000 + 20 * torch.randn((n, 64), generator=generator, dtype=torch.float64)
        values[torch.rand((n, 64), generator=generator) < 0.1] += 300
        values[torch.rand((n, 64), generator=generator) < 0.1] = math.inf
        values = values.sort(0).values
        count = (values < math.inf).sum(0)
        level = median_of_sorted(values, torch.zeros_like(count), count)
        deviations = torch.nan_to_num(values - level, nan=0.0, posinf=0.0).to(device, dtype)
        for rejection in REJECTIONS:
            yield Sample((deviations, count.to(device), level.to(device, dtype), rejection))


REJECTIONS = (
    Rejection("none"),
    Rejection("kappa_sigma", kappa_low=2.0, kappa_high=1.5),
    Rejection("winsorized_sigma_clip"),
    Rejection("winsorized_sigma_clip", kappa_low=2.0, kappa_high=2.5, siril_guards=True),
    Rejection("linear_fit_clip", kappa_low=2.1, kappa_high=2.6),  # a lone residual is n/2 times the mean: a tie
    Rejection("percentile"),
    Rejection("minmax", drop_low=1, drop_high=2),
)
"""One of every kind, for tests."""


def reject_oracle(x: np.ndarray, level: float, rejection: Rejection) -> np.ndarray:
    """Return −1 (too low), 0 (kept) or 1 (too high) for each of one pixel's sorted samples, in float64.

    Parameters
    ----------
    x : array
        Samples, ascending; may be relative to their median.
    level : float
        Their median before.
    rejection : Rejection
    """
    verdict = np.zeros(len(x), int)
    match rejection.method:
        case "percentile":
            centre = np.median(x) if len(x) else 0.0
            verdict[x < centre - rejection.percentile_low * abs(level)] = -1
            verdict[x > centre + rejection.percentile_high * abs(level)] = 1
        case "minmax":
            verdict[max(len(x) - rejection.drop_high, 0) :] = 1
            verdict[: rejection.drop_low] = -1
        case "kappa_sigma" | "winsorized_sigma_clip" | "linear_fit_clip":
            while len(x) and _reject_once(x, rejection, verdict) and (verdict == 0).sum() > _FEWEST:
                pass
    return verdict if (verdict == 0).any() else np.zeros_like(verdict)


def _reject_once(x: np.ndarray, rejection: Rejection, verdict: np.ndarray) -> bool:
    left = np.flatnonzero(verdict == 0)
    kept = x[left]
    if rejection.method == "linear_fit_clip":
        line = np.polyfit(np.arange(len(kept)), kept, 1) if len(kept) > 1 else kept
        deviations = kept - np.polyval(line, np.arange(len(kept)))
        spread = np.abs(deviations).mean()
    else:
        deviations = kept - np.median(kept)
        spread = kept.std(ddof=1) if len(kept) > 1 else 0.0
        if rejection.method == "winsorized_sigma_clip" and len(kept) > 1:
            spread = _winsorized_std_oracle(deviations, spread)
    changed = False
    for place, deviation in zip(left, deviations, strict=True):
        low, high = deviation < -rejection.kappa_low * spread, deviation > rejection.kappa_high * spread
        guarded = rejection.siril_guards and len(kept) - (verdict != 0).sum() <= _GUARDED
        if (low or high) and not guarded:
            verdict[place] = -1 if low else 1
            changed = True
    return changed


def _winsorized_std_oracle(deviations: np.ndarray, std: float) -> float:
    for _ in range(sum(WINSOR_ROUNDS)):
        deviations = np.clip(deviations, -WINSOR_LIMIT * std, WINSOR_LIMIT * std)
        before, std = std, WINSOR_CORRECTION * deviations.std(ddof=1)
        if abs(std - before) <= WINSOR_TOLERANCE * before:
            break
    return std


def _oracle(deviations: np.ndarray, count: np.ndarray, level: np.ndarray, rejection: Rejection) -> np.ndarray:
    verdicts = np.zeros(deviations.shape, int)
    for pixel, n in enumerate(count):
        verdicts[:n, pixel] = reject_oracle(deviations[:n, pixel], level[pixel], rejection)
    return verdicts


_EXACT = {torch.float32: (0.0, 0.0), torch.float64: (0.0, 0.0)}
KERNELS = (KernelInfo("reject", _verdicts, _samples, _oracle, _EXACT),)
