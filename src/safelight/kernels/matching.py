"""Photometric matching of overlapping tiles: one gain, offset and plane per tile from all overlaps at once.

A tile's values v at the pixel (y, x) of the common grid become

    gain · v + offset + slope_y · y + slope_x · x

so that overlapping tiles agree. Every pair of samples in an overlap is one equation; all are solved together by
weighted least squares, so that no error accumulates along a chain of tiles and no order of tiles matters. Equations
say only how tiles differ: within each set of connected tiles the mean gain is 1 and the mean offset and slopes are 0,
or one tile of reference keeps its values. Gains can be given, from the light of stars: samples that are mostly sky
say little about them.

Outliers (stars that moved or were seen sharper, trails) lose their weight with the residual, at first slowly (Huber
1964), then wholly (Tukey's biweight; Beaton & Tukey 1974). Bright samples, which alone could decide on the gain, weigh
less from the beginning (Mallows 1975). All weights are continuous in the data.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from safelight.core.kernel import KernelInfo, Sample
from safelight.kernels.neighbours import median_of

LEAST_SAMPLES = 16
"""An overlap with fewer valid samples is not used."""

_HUBER = 1.345  # σ; with the next, 95 % efficiency for normal residuals
_BIWEIGHT = 4.685
_BRIGHT = 5.0  # robust σ of an overlap's values
_SIGMA_OF_MAD = 1.4826
_HUBER_ROUNDS = 15
_BIWEIGHT_ROUNDS = 60
_CONVERGED = 1e-13
_DEGENERATE = 1e-9  # eigenvalues below this share of the largest are not determined by the overlaps
_GAIN, _OFFSET, _SLOPE_Y, _SLOPE_X = range(4)


@dataclass(frozen=True, eq=False)
class Overlap:
    """What two tiles have at the same pixels of the common grid.

    Parameters
    ----------
    first, second : int
        The tiles, from 0.
    first_values, second_values : Tensor
        (samples,); samples with a NaN in either do not count.
    y, x : Tensor
        (samples,): pixels of the common grid.
    weights : Tensor, optional
        (samples,): statistical weights; equal by default.
    """

    first: int
    second: int
    first_values: Tensor
    second_values: Tensor
    y: Tensor
    x: Tensor
    weights: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Matching:
    """How tiles are made to agree, and how well they do.

    Parameters
    ----------
    coefficients : Tensor
        (tiles, 4) float64: gain, offset, slope_y, slope_x, for ``match_values``.
    component : tuple of int
        For each tile, the lowest tile that it is connected to. Tiles of different components could not be compared.
    noise : Tensor
        (overlaps,) float64: robust standard deviation of the matched differences; NaN for an overlap that had too few
        samples and was not used.
    step : Tensor
        (overlaps,) float64: median of the matched differences, first minus second: the seam that is left.
    """

    coefficients: Tensor
    component: tuple[int, ...]
    noise: Tensor
    step: Tensor


def block_medians(values: Tensor, block: int) -> Tensor:
    """Return the median of the valid values of every whole block; NaN where half of them or more are invalid.

    Parameters
    ----------
    values : Tensor
        (rows, width).
    block : int
        Side of the square blocks.

    Returns
    -------
    Tensor
        (rows // block, width // block).
    """
    rows, width = (size // block for size in values.shape)
    blocks = values[: rows * block, : width * block].reshape(rows, block, width, block)
    blocks = blocks.transpose(1, 2).flatten(2)
    valid = ~blocks.isnan()
    return torch.where(2 * valid.sum(-1) > block**2, median_of(blocks, valid), torch.nan)


def overlap_of(
    tiles: tuple[int, int], first_values: Tensor, second_values: Tensor, corner: tuple[int, int], block: int = 8
) -> Overlap:
    """Return the samples of two tiles from the rectangle that they share: medians of blocks.

    Noise in the values makes gains look more alike than they are (regression dilution); the medians have little, and
    no trails, hot pixels or faint stars.

    Parameters
    ----------
    tiles : tuple of int
        The first and the second tile.
    first_values, second_values : Tensor
        (rows, width): the same pixels of the common grid in both; NaN where invalid.
    corner : tuple of int
        Row and column of the rectangle in the common grid.
    block : int
        Side of the blocks in pixels.
    """
    both = first_values.isfinite() & second_values.isfinite()
    first, second = (block_medians(values.where(both, torch.nan), block) for values in (first_values, second_values))
    y, x = (
        start + (block - 1) / 2 + block * torch.arange(count, dtype=torch.float64, device=first.device)
        for start, count in zip(corner, first.shape, strict=True)
    )
    y, x = torch.meshgrid(y, x, indexing="ij")
    return Overlap(*tiles, first.flatten(), second.flatten(), y.flatten(), x.flatten())


def joined(parts: Sequence[Overlap]) -> Overlap:
    """Return one overlap of two tiles from parts that follow one another, without weights."""
    first_values, second_values, y, x = (
        torch.cat([getattr(part, name) for part in parts]) for name in ("first_values", "second_values", "y", "x")
    )
    return Overlap(parts[0].first, parts[0].second, first_values, second_values, y, x)


def match_values(values: Tensor, coefficients: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Return a tile's matched values.

    Parameters
    ----------
    values : Tensor
        (…, rows, width).
    coefficients : Tensor
        (4,): gain, offset, slope_y, slope_x.
    y, x : Tensor
        (rows,) and (width,): rows and columns of the common grid.
    """
    gain, offset, slope_y, slope_x = coefficients.to(values.dtype)
    matched: Tensor = gain * values + (offset + slope_y * y[:, None] + slope_x * x)
    return matched


def gains_of_light(ratios: Sequence[tuple[int, int, float, float]], tiles: int) -> Tensor:
    """Return the gains (tiles,) float64 that give stars the same light in all tiles.

    The logarithms of the gains are fitted to those of all ratios by weighted least squares. Within each set of tiles
    that ratios connect their mean is 0; a tile without a ratio has a gain of 1.

    Parameters
    ----------
    ratios : sequence of tuple
        First tile, second tile, the stars' light in the first over that in the second, and a weight.
    tiles : int
    """
    normal = torch.zeros(tiles, tiles, dtype=torch.float64)
    known = torch.zeros(tiles, dtype=torch.float64)
    for first, second, ratio, weight in ratios:
        normal[first, first] += weight
        normal[second, second] += weight
        normal[first, second] -= weight
        normal[second, first] -= weight
        known[first] -= weight * math.log(ratio)
        known[second] += weight * math.log(ratio)
    gains: Tensor = (torch.linalg.pinv(normal, rtol=_DEGENERATE, hermitian=True) @ known).exp()
    return gains


def match_tiles(
    overlaps: Sequence[Overlap], tiles: int, *, gains: Tensor | None = None, reference: int | None = None
) -> Matching:
    """Find the coefficients that make tiles agree where they overlap.

    Parameters
    ----------
    overlaps : sequence of Overlap
        In any order; the result does not depend on it.
    tiles : int
        How many there are. A tile without an overlap keeps its values.
    gains : Tensor, optional
        (tiles,) float64: known gains, of stars for instance; then only offsets and planes are fitted. In samples of
        sky a gradient that is no plane passes for a gain.
    reference : int, optional
        The tile that keeps its values, with its component.
    """
    equations = [_Equations.of(overlap) for overlap in overlaps]
    used = [pair for pair in equations if pair.usable]
    component = _components(used, tiles)
    scaling = _Scaling.of(used)
    scaled = [scaling.scaled(pair) for pair in used]
    theta = _solve_robustly(scaled, torch.tensor(component), gains)
    coefficients = scaling.restored(theta)
    if reference is not None:
        coefficients = _referred_to(coefficients, reference, torch.tensor(component))
    residuals = [pair.residuals(coefficients) if pair.usable else torch.tensor([torch.nan]) for pair in equations]
    return Matching(
        coefficients,
        component,
        noise=torch.tensor([_spread(residual) for residual in residuals], dtype=torch.float64),
        step=torch.tensor([_median(residual) for residual in residuals], dtype=torch.float64),
    )


@dataclass(frozen=True, eq=False)
class _Equations:
    """The equations of one overlap: (samples, 4) coefficients of each tile's unknowns, and their weights (samples,)."""

    first: int
    second: int
    first_terms: Tensor
    second_terms: Tensor
    weights: Tensor

    @classmethod
    def of(cls, overlap: Overlap) -> _Equations:
        """Return the equations of the valid samples; gains are of the values as they are."""
        a, b = overlap.first_values.double(), overlap.second_values.double()
        y, x = overlap.y.double(), overlap.x.double()
        weights = torch.ones_like(a) if overlap.weights is None else overlap.weights.double()
        valid = a.isfinite() & b.isfinite() & (weights > 0)
        a, b, y, x, weights = (part[valid] for part in (a, b, y, x, weights))
        one = torch.ones_like(a)
        first, second = torch.stack([a, one, y, x], -1), torch.stack([b, one, y, x], -1)
        return cls(overlap.first, overlap.second, first, second, weights)

    @property
    def usable(self) -> bool:
        """Whether there are enough samples."""
        return len(self.weights) >= LEAST_SAMPLES

    def residuals(self, theta: Tensor) -> Tensor:
        """Return the matched differences of the samples, first minus second."""
        residuals: Tensor = self.first_terms @ theta[self.first] - self.second_terms @ theta[self.second]
        return residuals


@dataclass(frozen=True)
class _Scaling:
    """Values and positions brought to the order of 1 around 0, for the sake of the condition number."""

    level: float
    spread: float
    y: float
    x: float
    radius: float

    @classmethod
    def of(cls, pairs: Sequence[_Equations]) -> _Scaling:
        if not pairs:
            return cls(0.0, 1.0, 0.0, 0.0, 1.0)
        terms = torch.cat([terms for pair in pairs for terms in (pair.first_terms, pair.second_terms)])
        values = terms[:, _GAIN]
        level = float(values.median())
        low, high = terms[:, _SLOPE_Y:].amin(0), terms[:, _SLOPE_Y:].amax(0)
        y, x = ((low + high) / 2).tolist()
        spread = float((values - level).square().mean().sqrt()) or 1.0
        return cls(level, spread, y, x, radius=float((high - low).max()) / 2 or 1.0)

    def scaled(self, pair: _Equations) -> _Equations:
        """Return the equations in scaled values and positions."""
        shift = torch.tensor([self.level, 0, self.y, self.x], dtype=torch.float64)
        size = torch.tensor([self.spread, 1, self.radius, self.radius], dtype=torch.float64)
        first, second = ((terms - shift) / size for terms in (pair.first_terms, pair.second_terms))
        return _Equations(pair.first, pair.second, first, second, pair.weights)

    def restored(self, theta: Tensor) -> Tensor:
        """Return the coefficients of unscaled values and positions."""
        gain, offset, slope_y, slope_x = theta.unbind(-1)
        slope_y, slope_x = (slope * self.spread / self.radius for slope in (slope_y, slope_x))
        offset = self.level * (1 - gain) + self.spread * offset - slope_y * self.y - slope_x * self.x
        return torch.stack([gain, offset, slope_y, slope_x], -1)


def _solve_robustly(pairs: Sequence[_Equations], component: Tensor, gains: Tensor | None) -> Tensor:
    """Return the unknowns (tiles, 4) by least squares whose weights follow the residuals."""
    start = torch.zeros(len(component), 4, dtype=torch.float64)
    start[:, _GAIN] = 1 if gains is None else gains
    free = torch.ones(4, dtype=torch.float64)
    free[_GAIN] = gains is None
    allowed = torch.kron(_gauge(component), free.diag())
    trusted = [pair.weights * _leverage(pair) for pair in pairs]
    theta = _solve(pairs, trusted, allowed, start)
    scales = [0.0 for _ in pairs]
    for _ in range(_HUBER_ROUNDS):
        residuals = [pair.residuals(theta) for pair in pairs]
        scales = [max(_spread(residual), 1e-12) for residual in residuals]
        weights = [
            weight * (_HUBER * scale / residual.abs()).clamp(max=1)
            for weight, residual, scale in zip(trusted, residuals, scales, strict=True)
        ]
        theta = _solve(pairs, weights, allowed, start)
    for _ in range(_BIWEIGHT_ROUNDS):
        weights = [
            weight * (1 - (pair.residuals(theta) / (_BIWEIGHT * scale)).square()).clamp(min=0).square()
            for pair, weight, scale in zip(pairs, trusted, scales, strict=True)
        ]
        before, theta = theta, _solve(pairs, weights, allowed, start)
        if float((theta - before).abs().max()) < _CONVERGED:
            break
    return theta


def _solve(pairs: Sequence[_Equations], weights: Sequence[Tensor], allowed: Tensor, start: Tensor) -> Tensor:
    """Return the unknowns (tiles, 4) by weighted least squares: the start and the least allowed change to it."""
    tiles = len(start)
    normal = torch.zeros(tiles, 4, tiles, 4, dtype=torch.float64)
    for pair, weight in zip(pairs, weights, strict=True):
        i, j = pair.first, pair.second
        first, second = pair.first_terms * weight[:, None], pair.second_terms * weight[:, None]
        normal[i, :, i] += first.t() @ pair.first_terms
        normal[j, :, j] += second.t() @ pair.second_terms
        cross = first.t() @ pair.second_terms
        normal[i, :, j] -= cross
        normal[j, :, i] -= cross.t()
    flat = normal.reshape(4 * tiles, 4 * tiles)
    inverse = torch.linalg.pinv(allowed @ flat @ allowed, rtol=_DEGENERATE, hermitian=True)
    solution: Tensor = start - (inverse @ (allowed @ (flat @ start.flatten()))).reshape(tiles, 4)
    return solution


def _gauge(component: Tensor) -> Tensor:
    """Return the projection (tiles, tiles) that takes the mean of every component away."""
    together = (component[:, None] == component).double()
    return torch.eye(len(component), dtype=torch.float64) - together / together.sum(1)


def _leverage(pair: _Equations) -> Tensor:
    """Return less than 1 for samples far brighter or fainter than the overlap, so that their influence is bounded."""
    values = (pair.first_terms[:, _GAIN] + pair.second_terms[:, _GAIN]) / 2
    distance = (values - _median(values)).abs()
    return (_BRIGHT * _SIGMA_OF_MAD * _median(distance) / distance).nan_to_num(1.0).clamp(max=1).square()


def _spread(residual: Tensor) -> float:
    return _SIGMA_OF_MAD * float(_median((residual - _median(residual)).abs()))


def _median(values: Tensor) -> Tensor:
    return median_of(values, torch.ones_like(values, dtype=torch.bool))


def _components(pairs: Sequence[_Equations], tiles: int) -> tuple[int, ...]:
    """Return for each tile the lowest one that it is connected to."""
    lowest = list(range(tiles))
    changed = True
    while changed:
        changed = False
        for pair in pairs:
            least = min(lowest[pair.first], lowest[pair.second])
            changed |= lowest[pair.first] != least or lowest[pair.second] != least
            lowest[pair.first] = lowest[pair.second] = least
    return tuple(lowest)


def _referred_to(coefficients: Tensor, reference: int, component: Tensor) -> Tensor:
    """Return coefficients that agree as well, with which the reference tile keeps its values."""
    own = coefficients[reference]
    moved = coefficients / own[_GAIN]
    moved[:, _OFFSET:] -= own[_OFFSET:] / own[_GAIN]
    return torch.where((component == component[reference])[:, None], moved, coefficients)


def _samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(0)
    coefficients = torch.tensor([1.25, -30.0, 0.5, -0.25])
    for shape in ((4, 5), (3, 6, 2)):
        values = 500 + 20 * torch.rand(shape, generator=generator)
        y, x = torch.arange(shape[-2]) + 7.0, torch.arange(shape[-1]) + 100.0
        yield Sample(tuple(part.to(device, dtype) for part in (values, coefficients, y, x)))


def _block_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(1)
    values = torch.randn((21, 34), generator=generator)
    values[torch.rand(values.shape, generator=generator) < 0.4] = torch.nan
    for block in (1, 4, 5):
        yield Sample((values.to(device, dtype), block))


def _block_oracle(values: np.ndarray, block: int) -> np.ndarray:
    result = np.full((values.shape[0] // block, values.shape[1] // block), np.nan)
    for row, column in np.ndindex(*result.shape):
        part = values[row * block : (row + 1) * block, column * block : (column + 1) * block]
        if np.isnan(part).mean() < 0.5:
            result[row, column] = np.nanmedian(part)
    return result


def _match_oracle(values: np.ndarray, coefficients: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    plane = [[coefficients[1] + coefficients[2] * row + coefficients[3] * column for column in x] for row in y]
    return np.asarray(coefficients[0] * values + np.array(plane))


KERNELS = (
    KernelInfo("block_medians", block_medians, _block_samples, _block_oracle),
    KernelInfo("match_values", match_values, _samples, _match_oracle),
)
