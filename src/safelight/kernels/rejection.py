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
"""Relative change of the standard deviation from which winsorising goes on."""
WINSOR_ROUNDS = (2, 4, 8, *[16] * 60)
"""How often to winsorise before looking where the end is reached. Mostly it soon is; but of three samples, of which
one is a hit, the standard deviation shrinks by only 2 % a round."""
_NO_LIMIT = 1e38
_MARGIN = 1e-5
"""Relative, for rounding: what is nearer to a limit is iterated."""
_GUARDED = 4
"""By how many samples those left must exceed the rejected, for Siril to reject one more."""
_FEWEST = 3
"""Samples that are not passed over again."""

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
        (pixels,), of the same type.
    level : Tensor
        (pixels,): the medians; only ``percentile`` asks.
    rejection : Rejection

    Returns
    -------
    tuple of Tensor
        (n, pixels), of the same type, 1 where a sample is rejected as too low, and as too high, 0 elsewhere.
    """
    ranks = torch.arange(deviations.shape[0], dtype=deviations.dtype, device=deviations.device)[:, None]
    ranks = ranks.expand_as(deviations)
    valid = less(ranks, count)
    match rejection.method:
        case "none":
            low = high = torch.zeros_like(valid)
        case "kappa_sigma":
            low, high = _clip_repeatedly(deviations, valid, rejection, _deviate_by_std)
        case "winsorized_sigma_clip":
            low, high = _clip_repeatedly(deviations, valid, rejection, _deviate_by_winsorized_std)
        case "linear_fit_clip":
            low, high = _clip_repeatedly(deviations, valid, rejection, _deviate_from_line)
        case "percentile":
            low = less(deviations, -rejection.percentile_low * level.abs())
            high = less(-deviations, -rejection.percentile_high * level.abs())
        case "minmax":
            low = less(ranks, count.clamp(max=rejection.drop_low))
            high = valid - less(ranks, count - rejection.drop_high)
    survives = (valid - low - high).sum(0) > 0
    return low * survives, high * survives


def surely_keeps_all(deviations: Tensor, count: Tensor, rejection: Rejection) -> Tensor:
    """Return where ``kappa_sigma`` or ``winsorized_sigma_clip`` surely rejects nothing: most pixels, without iterating.

    Nothing is rejected where the final standard deviation is at least ``needed``, by which the extreme samples are
    just kept. Winsorising at a narrower bound never gives a larger standard deviation, as it moves no two samples
    apart. So if winsorising at 1.5 × ``needed`` gives at least ``needed``, no wider bound gives less, and the
    iteration, which starts from wider bounds, never comes to narrower ones.

    Parameters
    ----------
    deviations, count : Tensor
        As for :func:`reject`.
    rejection : Rejection

    Returns
    -------
    Tensor
        (pixels,), bool.
    """
    highest = deviations.gather(0, (count - 1).clamp(min=0).long()[None])[0]
    needed = torch.maximum(-deviations[0] / rejection.kappa_low, highest / rejection.kappa_high) * (1 + _MARGIN)
    clipped_std = _ClippedStd(deviations, count)
    keeps = clipped_std(torch.full_like(needed, math.inf)) >= needed
    if rejection.method == "winsorized_sigma_clip":
        keeps &= clipped_std(WINSOR_LIMIT * needed).mul_(WINSOR_CORRECTION) >= needed
    return keeps


def sum_of(planes: Tensor) -> Tensor:
    """Return the sum over the first axis, added up in the same order for every pixel; overwrites ``planes``.

    ``Tensor.sum`` takes another order for the last pixels of a chunk, and so changes their last bits.
    """
    for into, other in _halves(planes):
        into.add_(other)
    return planes[0]


def _halves(planes: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return which planes to add to which, in turn, until the first is the sum of all."""
    steps = []
    left = planes.shape[0]
    while left > 1:
        half = left // 2
        steps.append((planes[:half], planes[left - half : left]))
        left -= half
    return steps


def less(values: Tensor, limit: Tensor) -> Tensor:
    """Return 1 where values are below a limit and 0 elsewhere, of the values' type.

    Such masks take a third of the time of bool ones, and multiply and add up without being converted.
    """
    return torch.lt(values, limit, out=torch.empty_like(values, memory_format=torch.contiguous_format))


def median_of_sorted(values: Tensor, first: Tensor, count: Tensor) -> Tensor:
    """Return the median of the samples of rank ``first`` to ``first + count − 1`` in every column of sorted values."""
    last = values.shape[0] - 1
    below = (first + ((count - 1) / 2).floor()).clamp(0, last)
    above = (first + (count / 2).floor()).clamp(0, last)
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
    total = valid.sum(0)
    low, high, again = _clip_once(values, valid, torch.zeros_like(total), total, rejection, measure)
    pixels = positions_of(again)
    for _ in range(_rounds(values, values.shape[0]) - 1):
        if pixels.shape[0] == 0:
            break
        was_low = low.index_select(1, pixels)
        first, kept = was_low.sum(0), valid.index_select(1, pixels) - was_low - high.index_select(1, pixels)
        del was_low  # gathered again below: a pass takes most memory before
        now_low, now_high, again = _clip_once(
            values.index_select(1, pixels), kept, first, total[pixels], rejection, measure
        )
        low.index_copy_(1, pixels, now_low.add_(low.index_select(1, pixels)))
        high.index_copy_(1, pixels, now_high.add_(high.index_select(1, pixels)))
        del now_low, now_high, kept  # the next pass so takes no more than this one
        pixels = pixels[positions_of(again)]
    return low, high


def _clip_once(
    values: Tensor, kept: Tensor, first: Tensor, total: Tensor, rejection: Rejection, measure: Measure
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what one pass rejects as too low and as too high, and the pixels that need another pass."""
    count = kept.sum(0)
    deviations, spread = measure(values, kept, first, count)
    low = less(deviations, -rejection.kappa_low * spread)
    high = less(-deviations, -rejection.kappa_high * spread)
    rejected = (low + high).sum(0)
    if rejection.siril_guards:
        allowed = 2 * count - total - _GUARDED
        _guard(low, high, positions_of(rejected > allowed), allowed)
        rejected = torch.minimum(rejected, allowed)
    return low, high, (rejected > 0) & (count - rejected > _FEWEST)


def _guard(low: Tensor, high: Tensor, pixels: Tensor, allowed: Tensor) -> None:
    """Leave only the lowest ``allowed`` rejections of some pixels, in place."""
    some_low, some_high = low.index_select(1, pixels), high.index_select(1, pixels)
    in_turn = (some_low + some_high).cumsum(0) <= allowed[pixels]
    low.index_copy_(1, pixels, some_low * in_turn)
    high.index_copy_(1, pixels, some_high * in_turn)


def _deviate_by_std(values: Tensor, kept: Tensor, first: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    deviations = (values - median_of_sorted(values, first, count)) * kept
    return deviations, _std(deviations, count)


def _deviate_by_winsorized_std(values: Tensor, kept: Tensor, first: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    deviations, std = _deviate_by_std(values, kept, first, count)
    return deviations, _winsorized_std(deviations, count, std)


def _deviate_from_line(values: Tensor, kept: Tensor, first: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    rank = (kept.cumsum(0) - (count + 1) / 2) * kept
    deviations = (values - sum_of(values * kept) / count.clamp(min=1)) * kept
    slope = sum_of(rank * deviations) / sum_of(rank * rank).clamp(min=0.5)
    residuals = deviations - slope * rank
    return residuals, sum_of(residuals.abs()) / count.clamp(min=1)


def _std(deviations: Tensor, count: Tensor) -> Tensor:
    """Return the standard deviation, ddof 1, of the ``count`` deviations that are not set to 0."""
    unclipped = torch.full_like(deviations[0], math.inf)
    return _ClippedStd(deviations, count)(unclipped)


class _ClippedStd:
    """The standard deviation, ddof 1, of deviations clipped to some bound, again and again in the same memory.

    From the sum of squares: harmless for deviations from about the median, whose mean is below their spread.
    """

    def __init__(self, deviations: Tensor, count: Tensor) -> None:
        self._deviations = deviations
        n = count.clamp(min=1)
        self._share = 1 / n
        self._freedom = 1 / (n - 1).clamp(min=1)
        powers = deviations.new_empty((deviations.shape[0], 2, deviations.shape[1]))
        self._clipped, self._squared = powers.unbind(1)
        self._steps = _halves(powers)
        self._total, self._energy = powers[0]

    def __call__(self, bound: Tensor) -> Tensor:
        """Return the standard deviations with every deviation between ``-bound`` and ``bound``."""
        torch.clamp(self._deviations, -bound, bound, out=self._clipped)
        torch.mul(self._clipped, self._clipped, out=self._squared)
        for into, other in self._steps:
            into.add_(other)
        variance = self._energy.sub_(self._total.mul_(self._total).mul_(self._share)).mul_(self._freedom)
        std: Tensor = variance.clamp_(min=0).sqrt()
        return std


def _winsorized_std(deviations: Tensor, count: Tensor, std: Tensor) -> Tensor:
    """Winsorise until the standard deviation settles: a few rounds at once, then more where it has not."""
    result = std
    pixels = torch.arange(std.shape[0], device=std.device)
    bound = torch.full_like(std, math.inf)
    for rounds in WINSOR_ROUNDS[: _rounds(deviations, len(WINSOR_ROUNDS))]:
        clipped_std = _ClippedStd(deviations, count)
        settled = torch.zeros_like(std)
        for _ in range(_rounds(deviations, rounds)):
            # Clipping what was clipped before is clipping once, to the narrower bounds. Where the bounds stay, so
            # does the standard deviation, to the bit: what has settled needs no other care.
            bound = torch.minimum(bound, (WINSOR_LIMIT * std).add_(settled, alpha=_NO_LIMIT))
            before, std = std, clipped_std(bound).mul_(WINSOR_CORRECTION)
            torch.le((std - before).abs_(), WINSOR_TOLERANCE * before, out=settled)
        result = result.index_copy(0, pixels, std)
        still = positions_of(settled == 0)
        if still.shape[0] == 0:
            return result
        del clipped_std  # its memory makes room for the next one's
        pixels, std, bound, count = (of.index_select(0, still) for of in (pixels, std, bound, count))
        deviations = deviations.index_select(1, still)
    return result


def _verdicts(deviations: Tensor, count: Tensor, level: Tensor, rejection: Rejection) -> Tensor:
    low, high = reject(deviations, count, level, rejection)
    return high - low


def _samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(0)
    for n in (1, 2, 5, 12):
        values = 1000 + 20 * torch.randn((n, 64), generator=generator, dtype=torch.float64)
        values[torch.rand((n, 64), generator=generator) < 0.1] += 300
        values[torch.rand((n, 64), generator=generator) < 0.1] = math.inf
        values = values.sort(0).values
        count = (values < math.inf).sum(0).to(values.dtype)
        level = median_of_sorted(values, torch.zeros_like(count), count)
        deviations = torch.nan_to_num(values - level, nan=0.0, posinf=0.0).to(device, dtype)
        for rejection in REJECTIONS:
            yield Sample((deviations, count.to(device, dtype), level.to(device, dtype), rejection))


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
    for pixel, n in enumerate(count.astype(int)):
        verdicts[:n, pixel] = reject_oracle(deviations[:n, pixel], level[pixel], rejection)
    return verdicts


_EXACT = {torch.float32: (0.0, 0.0), torch.float64: (0.0, 0.0)}
KERNELS = (KernelInfo("reject", _verdicts, _samples, _oracle, _EXACT),)
