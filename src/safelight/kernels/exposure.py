"""What makes two exposures of one scene comparable: the gain between them, and the noise of their difference."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor

from safelight.core.kernel import KernelInfo, Sample
from safelight.kernels.noise import variance_by_level

LEVELS = 32
"""Points of the noise curve."""
_ROUNDS = 10
_CLIP = 3.0
_TINY = 1e-12


@dataclass(frozen=True)
class PoissonGaussian:
    """Noise whose variance is ``slope · level + floor``: of photons and of the readout.

    Parameters
    ----------
    slope, floor : float
        Both 0 or more.
    """

    slope: float
    floor: float


def noise_variance(level: Tensor, slope: Tensor, floor: Tensor) -> Tensor:
    """Return the variance of Poisson-Gaussian noise at every level; both parameters of one number."""
    return torch.addcmul(floor, level.clamp(min=0), slope)


def block_light(anchor: Tensor, target: Tensor, usable: Tensor, side: int) -> Tensor:
    """Return the light of every block of pixels in two frames, over the pixels that are usable in both.

    Parameters
    ----------
    anchor, target : Tensor
        (channels, height, width), floating point.
    usable : Tensor
        Same shape, bool: neither clipped.
    side : int
        Of a block; what is beyond the last whole block is left out.

    Returns
    -------
    Tensor
        (3, channels, height // side, width // side): sum of the anchor, of the target, number of usable pixels.
    """
    mask = usable.to(anchor.dtype)
    return block_sums(torch.stack((anchor * mask, target * mask, mask)), side)


def block_sums(values: Tensor, side: int) -> Tensor:
    """Return the sum of every block.

    Parameters
    ----------
    values : Tensor
        (…, height, width).
    side : int
        Of a block; what is beyond the last whole block is left out.

    Returns
    -------
    Tensor
        (…, height // side, width // side).
    """
    return values.unfold(-2, side, side).sum(-1).unfold(-1, side, side).sum(-1)


def gain_between(anchor: Tensor, target: Tensor) -> Tensor:
    """Return by what the target's light is to be multiplied: the median of the blocks' ratios, weighted by light.

    A median, so that what moved does not count; of blocks, not pixels, so that noise does not bias the ratio.

    Parameters
    ----------
    anchor, target : Tensor
        (…, blocks), floating point: light of each block; the anchor's is the weight. Blocks without light in either
        frame are left out.

    Returns
    -------
    Tensor
        (…): anchor over target; NaN where no block has light in both.
    """
    lit = (anchor > 0) & (target > 0)
    ratio = torch.where(lit, anchor / torch.where(lit, target, 1), torch.inf)
    weight = torch.where(lit, anchor, 0)
    order = ratio.argsort(-1)
    passed = weight.gather(-1, order).cumsum(-1)
    middle = (passed < 0.5 * passed[..., -1:]).sum(-1, keepdim=True).clamp(max=ratio.shape[-1] - 1)
    found = ratio.gather(-1, order).gather(-1, middle).squeeze(-1)
    return torch.where(lit.any(-1), found, torch.nan)


def offset_by_level(level: Tensor, difference: Tensor, bins: int) -> Tensor:
    """Return what two frames differ by at each brightness, once the gain is applied: the median of blocks.

    Noise that is cut off, at black or at white, has another mean than the light: at high ISO the dark is too bright.

    Parameters
    ----------
    level, difference : Tensor
        (blocks,), floating point: mean of each block in the anchor, and mean difference.
    bins : int
        At most the number of blocks.

    Returns
    -------
    Tensor
        (2, bins): level, ascending, and difference; bins of equally many blocks, the brightest left out.
    """
    size = level.numel() // bins
    order = level.argsort()[: bins * size].view(bins, size)
    return torch.stack((level[order].mean(1), difference[order].median(1).values))


def at_even_levels(curve: Tensor, points: int) -> Tensor:
    """Return a curve by evenly spaced levels, so that ``at_level`` need not search.

    Parameters
    ----------
    curve : Tensor
        (2, n): levels, ascending, and values; n of 2 or more. Linear between its points.
    points : int
        How many levels, from the curve's first to its last.

    Returns
    -------
    Tensor
        (2, points).
    """
    levels, values = curve[0].contiguous(), curve[1]
    even = torch.lerp(levels[:1], levels[-1:], torch.linspace(0, 1, points, dtype=curve.dtype, device=curve.device))
    above = torch.bucketize(even, levels).clamp(1, len(levels) - 1)
    low, high = levels[above - 1], levels[above]
    share = ((even - low) / (high - low).clamp(min=_TINY)).clamp(0, 1)
    return torch.stack((even, torch.lerp(values[above - 1], values[above], share)))


def at_level(curve: Tensor, level: Tensor) -> Tensor:
    """Return a curve's value at the nearest of its levels.

    Parameters
    ----------
    curve : Tensor
        (2, n): levels, evenly spaced, and values.
    level : Tensor
        Any shape, floating point.
    """
    levels, values = curve[0], curve[1]
    step = ((levels[-1] - levels[0]) / (len(levels) - 1)).clamp(min=_TINY)
    nearest = ((level - levels[0]) / step).round_().clamp_(0, len(levels) - 1).to(torch.int32)
    return values.index_select(0, nearest.flatten()).view(level.shape)


def fit_poisson_gaussian(level: Tensor, residual: Tensor) -> PoissonGaussian:
    """Fit the noise of a residual to what was there: a line of variance over level (Foi et al. 2008).

    Parameters
    ----------
    level, residual : Tensor
        Same shape, floating point: what is taken for the clean image, and noise of mean 0. Some outliers are allowed.

    Returns
    -------
    PoissonGaussian
        By least squares of relative deviations; points far above the line, as texture makes them, count less.
    """
    points = variance_by_level(level.flatten(), residual.flatten(), min(LEVELS, level.numel()))
    levels, variances = points.double().cpu().numpy()
    return _line(np.clip(levels, 0, None), variances)


def _line(levels: np.ndarray, variances: np.ndarray) -> PoissonGaussian:
    """Fit a line with neither slope nor floor below 0, each point weighted by 1 / expected²."""
    tiny = max(float(variances.max()), 1e-12) * 1e-6
    slope, floor = 0.0, float(np.median(variances))
    for _ in range(_ROUNDS):
        expected = np.maximum(slope * levels + floor, tiny)
        excess = np.maximum(variances / expected, 1 / _CLIP)
        weights = np.minimum(1, 1 / excess) / expected**2
        slope, floor = _non_negative_line(levels, variances, weights)
    return PoissonGaussian(slope, max(floor, tiny))


def _non_negative_line(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    total = weights.sum()
    mean_x, mean_y = (weights * x).sum() / total, (weights * y).sum() / total
    spread = (weights * (x - mean_x) ** 2).sum()
    slope = float((weights * (x - mean_x) * (y - mean_y)).sum() / spread) if spread > 0 else 0.0
    floor = float(mean_y - slope * mean_x)
    if slope < 0:
        return 0.0, float(mean_y)
    if floor < 0:
        return float((weights * x * y).sum() / (weights * x * x).sum()), 0.0
    return slope, floor


def _light_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(0)
    for shape, side in (((3, 17, 22), 4), ((1, 8, 8), 8)):
        frames = torch.rand((3, *shape), generator=generator, dtype=torch.float64)
        anchor, target = frames[:2].to(device, dtype)
        yield Sample((anchor, target, (frames[2] > 0.2).to(device), side))


def _gain_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(0)
    for shape in ((3, 40), (7,)):
        anchor = torch.rand(shape, generator=generator, dtype=torch.float64) - 0.1
        target = anchor * (0.5 + torch.rand(shape, generator=generator, dtype=torch.float64))
        yield Sample((anchor.to(device, dtype), target.to(device, dtype)))


def _curve_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(0)
    for blocks, bins in ((103, 10), (8, 8)):
        level, difference = torch.rand((2, blocks), generator=generator, dtype=torch.float64).to(device, dtype)
        yield Sample((level, difference, bins))


def _even_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for points in (2, 9):
        # Powers of two are the same levels in either precision.
        curve = torch.stack(((torch.arange(points) / 8).square(), (torch.arange(points) - 2.0).square()))
        yield Sample((curve.to(device, dtype), 17))


def _at_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for points in (2, 9):
        curve = torch.stack((torch.arange(points) / 8, (torch.arange(points) - 2.0).square()))
        yield Sample((curve.to(device, dtype), ((torch.arange(40).view(5, 8) + 0.25) / 16 - 0.5).to(device, dtype)))


def _offset_oracle(level: np.ndarray, difference: np.ndarray, bins: int) -> np.ndarray:
    size = len(level) // bins
    groups = [np.argsort(level)[i * size : (i + 1) * size] for i in range(bins)]
    lower_median = [np.sort(difference[group])[(size - 1) // 2] for group in groups]
    return np.array([[level[group].mean() for group in groups], lower_median])


def _even_oracle(curve: np.ndarray, points: int) -> np.ndarray:
    levels = np.linspace(curve[0, 0], curve[0, -1], points)
    return np.array([levels, np.interp(levels, curve[0], curve[1])])


def _at_oracle(curve: np.ndarray, level: np.ndarray) -> np.ndarray:
    return np.asarray(curve[1][abs(level[..., None] - curve[0]).argmin(-1)])


def _light_oracle(anchor: np.ndarray, target: np.ndarray, usable: np.ndarray, side: int) -> np.ndarray:
    channels, height, width = anchor.shape
    result = np.empty((3, channels, height // side, width // side))
    for channel, y, x in product(*map(range, result.shape[1:])):
        place = (channel, slice(y * side, (y + 1) * side), slice(x * side, (x + 1) * side))
        valid = usable[place]
        result[:, channel, y, x] = anchor[place][valid].sum(), target[place][valid].sum(), valid.sum()
    return result


def _gain_oracle(anchor: np.ndarray, target: np.ndarray) -> np.ndarray:
    gains = np.empty(anchor.shape[:-1])
    for index in np.ndindex(*gains.shape):
        lit = [(a / t, a) for a, t in zip(anchor[index], target[index], strict=True) if a > 0 and t > 0]
        half, passed = sum(a for _, a in lit) / 2, 0.0
        for ratio, weight in sorted(lit):
            passed += weight
            if passed >= half:
                gains[index] = ratio
                break
    return gains


def _noise_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    level = torch.linspace(-0.1, 1.2, 12, dtype=torch.float64).view(3, 4)
    slope, floor = torch.tensor((0.01, 1e-4), dtype=torch.float64).to(device, dtype)
    yield Sample((level.to(device, dtype), slope, floor))


def _noise_oracle(level: np.ndarray, slope: np.ndarray, floor: np.ndarray) -> np.ndarray:
    return np.asarray(slope * np.maximum(level, 0) + floor)


KERNELS = (
    KernelInfo("noise_variance", noise_variance, _noise_samples, _noise_oracle),
    KernelInfo("block_light", block_light, _light_samples, _light_oracle),
    KernelInfo("offset_by_level", offset_by_level, _curve_samples, _offset_oracle),
    KernelInfo("at_even_levels", at_even_levels, _even_samples, _even_oracle),
    KernelInfo("at_level", at_level, _at_samples, _at_oracle),
    KernelInfo("gain_between", gain_between, _gain_samples, _gain_oracle),
)
