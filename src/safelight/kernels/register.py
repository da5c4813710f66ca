"""The shift between two frames of one scene, from the phases of their spectra.

Convention: ``anchor[y + dy, x + dx] ≈ target[y, x]`` for the shift (dy, dx), in pixels of what is registered.

The cross-power spectrum is divided by the square root of its modulus: whitened half, it still knows where the light is,
and noise and fixed patterns do not lead it. Its low frequencies are weighted by a Gaussian.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from safelight.core.kernel import KernelInfo, Sample
from safelight.kernels.cfa import grey

BANDWIDTH = 0.14
"""Standard deviation of the Gaussian low-pass, in cycles per pixel."""
TAPER = 0.25
"""Share of each side over which the window falls to 0, both ends together."""
WHITENING = 0.5
"""Exponent by which the cross-power spectrum is divided."""
NEIGHBOURHOOD = 8
"""Pixels around a peak that belong to it."""
REACH = 3.0
"""Pixels around zero in which ``fine_shift`` looks."""

_STEPS = (0.125, 0.01)
"""Spacing of the grids on which the peak is looked for, one after the other."""
_TINY = 1e-30


def fast_length(size: int) -> int:
    """Return the next even length without prime factors above 5, on which every FFT library is fast."""
    length = size + size % 2
    while _rest(length) > 1:
        length += 2
    return length


def despeckle(image: Tensor) -> Tensor:
    """Limit every pixel to the range of its eight neighbours: hot and dead pixels vanish, edges and slopes stay.

    Parameters
    ----------
    image : Tensor
        (height, width), floating point, two pixels or more along both; edge pixels are repeated outside. The halo of
        a row is one row.

    Returns
    -------
    Tensor
        Same shape.
    """
    padded = torch.nn.functional.pad(image[None], (1, 1, 1, 1), mode="replicate")[0]
    left, middle, right = padded[:, :-2], padded[:, 1:-1], padded[:, 2:]
    low, high = torch.minimum(left, right), torch.maximum(left, right)
    low3, high3 = torch.minimum(low, middle), torch.maximum(high, middle)
    lowest = torch.minimum(torch.minimum(low3[:-2], low3[2:]), low[1:-1])
    highest = torch.maximum(torch.maximum(high3[:-2], high3[2:]), high[1:-1])
    return torch.minimum(torch.maximum(image, lowest), highest)


def spectrum(frames: Tensor) -> Tensor:
    """Return the spectra of frames under a Tukey window, their mean taken away.

    Parameters
    ----------
    frames : Tensor
        (…, height, width), floating point.

    Returns
    -------
    Tensor
        (…, H, W / 2 + 1), complex; H and W are ``fast_length`` of the height and the width.
    """
    height, width = frames.shape[-2:]
    window = _tukey(height, frames)[:, None] * _tukey(width, frames)
    mean = (frames * window).sum((-2, -1), keepdim=True) / window.sum()
    size = (fast_length(height), fast_length(width))
    result: Tensor = torch.fft.rfft2((frames - mean) * window, s=size)
    return result


def coarse_shift(targets: Tensor, anchor: Tensor) -> Tensor:
    """Return the whole shift of each target, and how clear it is.

    Parameters
    ----------
    targets : Tensor
        (n, height, width), floating point.
    anchor : Tensor
        (1, H, W / 2 + 1), from ``spectrum`` of an anchor of the same size.

    Returns
    -------
    Tensor
        (n, 2, 3): dy, dx and the height of the peak over the standard deviation of what is further than
        ``NEIGHBOURHOOD`` from it. First the highest peak; then the highest one that is no neighbour of zero, where
        a pattern that stays on the sensor has its peak.
    """
    shape = (fast_length(targets.shape[-2]), fast_length(targets.shape[-1]))
    surface = torch.fft.irfft2(_cross_power(anchor, spectrum(targets), shape[1]), s=shape)
    highest = _peak(surface)
    zero = torch.zeros_like(highest[:, 0], dtype=torch.long)
    elsewhere = _peak(surface.flatten(1).scatter(1, _around(zero, 1, shape), -torch.inf).view_as(surface), surface)
    return torch.stack((highest, elsewhere), dim=1)


def fine_shift(pairs: Tensor) -> Tensor:
    """Return the shift of pairs that are aligned to a pixel or two.

    The peak is found on finer and finer grids by matrix multiplication (Guizar-Sicairos, Thurman, Fienup 2008,
    "Efficient subpixel image registration algorithms"), at last with a parabola.

    Parameters
    ----------
    pairs : Tensor
        (n, 2, height, width), floating point: anchor and target.

    Returns
    -------
    Tensor
        (n, 3): dy, dx, and the peak over that of two equal frames with these spectra: 1 where all frequencies agree.
    """
    width = fast_length(pairs.shape[-1])
    spectra = spectrum(pairs)
    power = _cross_power(spectra[:, 0], spectra[:, 1], width)
    y, x = _frequencies(power.shape[-2], width, pairs)
    at = torch.zeros((len(power), 2), dtype=pairs.dtype, device=pairs.device)
    reach = REACH
    for step in _STEPS:
        half = math.ceil(reach / step)
        grid = torch.arange(-half, half + 1, dtype=pairs.dtype, device=pairs.device) * step
        surface = _upsampled(power, y, x, at[:, :1] + grid, at[:, 1:] + grid)
        row, column, height = _highest(surface)
        at = at + torch.stack((grid[row], grid[column]), dim=1)
        reach = step
    vertex = torch.stack((_vertex(surface, row, column, axis=0), _vertex(surface, row, column, axis=1)), dim=1)
    most = (power.abs() * _column_weights(width, pairs)).sum((-2, -1))
    return torch.cat((at + _STEPS[-1] * vertex, (height / most.clamp(min=_TINY))[:, None]), dim=1)


def shared_variance(pairs: Tensor, side: int = 4) -> Tensor:
    """Return how much of their variation two frames share, over means of so many pixels squared, where noise is small.

    Parameters
    ----------
    pairs : Tensor
        (n, 2, height, width), floating point: anchor and target, aligned.
    side : int

    Returns
    -------
    Tensor
        (n, 3): covariance, variance of the anchor, variance of the target. Summed over tiles, covariance over the
        root of the product of the variances is a correlation that differences from tile to tile do not raise.
    """
    means = grey(pairs, side).flatten(2)
    anchor, target = (means - means.mean(2, keepdim=True)).unbind(1)
    return torch.stack([(one * other).mean(1) for one, other in ((anchor, target), (anchor,) * 2, (target,) * 2)], 1)


def _rest(length: int) -> int:
    for factor in (2, 3, 5):
        while length % factor == 0:
            length //= factor
    return length


def _tukey(size: int, like: Tensor) -> Tensor:
    """Return a Tukey window (Harris 1978), sampled between its ends so that no sample is 0."""
    position = (torch.arange(size, dtype=like.dtype, device=like.device) + 0.5) / size
    from_end = torch.minimum(position, 1 - position)
    return 0.5 - 0.5 * torch.cos(2 * math.pi / TAPER * from_end.clamp(max=TAPER / 2))


def _frequencies(height: int, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the frequencies of the rows and of the columns of a half spectrum, in cycles per pixel."""
    y = torch.fft.fftfreq(height, dtype=like.dtype, device=like.device)
    return y, torch.fft.rfftfreq(width, dtype=like.dtype, device=like.device)


def _cross_power(anchor: Tensor, target: Tensor, width: int) -> Tensor:
    """Return the half-whitened, low-passed cross-power spectrum."""
    power = anchor * target.conj()
    y, x = _frequencies(power.shape[-2], width, power.real)
    lowpass = torch.exp(-0.5 * (y / BANDWIDTH).square())[:, None] * torch.exp(-0.5 * (x / BANDWIDTH).square())
    return power * (lowpass / power.abs().clamp(min=_TINY).pow(WHITENING))


def _column_weights(width: int, like: Tensor) -> Tensor:
    """Return how often each column of a half spectrum counts in the whole one, for an even width."""
    weights = torch.full((width // 2 + 1,), 2.0, dtype=like.dtype, device=like.device)
    weights[0] = weights[-1] = 1
    return weights


def _upsampled(power: Tensor, y: Tensor, x: Tensor, at_y: Tensor, at_x: Tensor) -> Tensor:
    """Return the correlation at any positions: (n, rows, columns) for positions (n, rows) and (n, columns)."""
    rows = torch.exp(2j * math.pi * at_y[:, :, None] * y)
    columns = torch.exp(2j * math.pi * at_x[:, None, :] * x[:, None]) * _column_weights(2 * len(x) - 2, at_x)[:, None]
    return (rows @ power @ columns).real


def _highest(surface: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return row, column and height of each surface's highest point."""
    height, index = surface.flatten(1).max(1)
    return index // surface.shape[-1], index % surface.shape[-1], height


def _vertex(surface: Tensor, row: Tensor, column: Tensor, axis: int) -> Tensor:
    """Return where between its neighbours the parabola through a peak is highest, −1 to 1; 0 at the grid's edge."""
    last = torch.tensor(surface.shape[-2:], device=surface.device) - 1
    place = [row.clamp(min=1).minimum(last[0] - 1), column.clamp(min=1).minimum(last[1] - 1)]
    inner = place[axis] == (row, column)[axis]
    which = torch.arange(len(row), device=surface.device)
    before, here, after = (
        surface[(which, place[0] + shift * (axis == 0), place[1] + shift * (axis == 1))] for shift in (-1, 0, 1)
    )
    curvature = before - 2 * here + after
    vertex = 0.5 * (before - after) / torch.where(curvature < 0, curvature, -torch.inf)
    return torch.where(inner, vertex, 0).clamp(-1, 1)


def _peak(candidates: Tensor, surface: Tensor | None = None) -> Tensor:
    """Return (n, 3): dy, dx and height of the highest candidate over the surface's deviation away from it."""
    surface = candidates if surface is None else surface
    row, column, height = _highest(candidates)
    shape = (surface.shape[-2], surface.shape[-1])
    first = row * shape[1] + column
    near = surface.flatten(1).gather(1, _around(first, NEIGHBOURHOOD, shape))
    count = max(shape[0] * shape[1] - near.shape[1], 1)
    mean = (surface.sum((-2, -1)) - near.sum(1)) / count
    deviation = (surface.square().sum((-2, -1)) - near.square().sum(1)) / count - mean.square()
    clarity = (height - mean) / deviation.clamp(min=_TINY).sqrt()
    dy, dx = (torch.where(2 * at > size, at - size, at) for at, size in ((row, shape[0]), (column, shape[1])))
    return torch.stack((dy.to(surface.dtype), dx.to(surface.dtype), clarity), dim=1)


def _around(index: Tensor, reach: int, shape: tuple[int, int]) -> Tensor:
    """Return the flat indices of the square around each flat index, wrapped at the edges, each pixel once."""
    height, width = shape
    rows, columns = (
        torch.arange(min(2 * reach + 1, size), device=index.device) - min(reach, size // 2) for size in (height, width)
    )
    row = (index[:, None] // width + rows) % height
    column = (index[:, None] % width + columns) % width
    return (row[:, :, None] * width + column[:, None, :]).flatten(1)


def _moved_pairs(sizes: tuple[tuple[int, int], ...], dtype: torch.dtype) -> Iterator[Tensor]:
    """Yield pairs (2, 2, height, width) of smooth random frames, moved by whole and fractional pixels."""
    generator = np.random.default_rng(0)
    for height, width in sizes:
        y, x = np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)
        soft = np.fft.fft2(generator.normal(size=(height, width))) * np.exp(-20 * (y**2 + x**2))
        pairs = [[soft, soft * np.exp(2j * np.pi * (y * dy + x * dx))] for dy, dx in ((2.0, -1.0), (0.37, 1.21))]
        yield torch.from_numpy(100 + np.fft.ifft2(pairs).real).to(dtype)


_SIZES = ((60, 81), (97, 64))


def _speckled(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for pairs in _moved_pairs(_SIZES, dtype):
        yield Sample((pairs[0, 0].to(device),))


def _frames(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for pairs in _moved_pairs(_SIZES, dtype):
        yield Sample((pairs[:, 0].to(device),))


def _coarse_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for pairs in _moved_pairs(_SIZES, dtype):
        yield Sample((pairs[:, 1].to(device), pairs[:1, 0].to(device)))


def _fine_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for pairs in _moved_pairs(_SIZES, dtype):
        yield Sample((pairs.to(device),))


def _coarse_between(targets: Tensor, anchors: Tensor) -> Tensor:
    return coarse_shift(targets, spectrum(anchors))


def _amplitudes(frames: Tensor) -> Tensor:
    return spectrum(frames).abs()


def _despeckle_oracle(grey: np.ndarray) -> np.ndarray:
    padded = np.pad(grey, 1, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3)).reshape(*grey.shape, 9)
    around = np.delete(windows, 4, axis=-1)
    return np.asarray(np.clip(grey, around.min(-1), around.max(-1)))


def _spectrum_oracle(frames: np.ndarray) -> np.ndarray:
    lines = []
    for size in frames.shape[-2:]:
        position = (np.arange(size) + 0.5) / size
        from_end = np.minimum(position, 1 - position)
        lines.append(np.where(from_end < TAPER / 2, 0.5 - 0.5 * np.cos(2 * np.pi * from_end / TAPER), 1))
    window = np.outer(*lines)
    sizes = [next(n for n in range(size, 2 * size + 2) if n % 2 == 0 and _rest(n) == 1) for size in window.shape]
    centred = [(frame - np.average(frame, weights=window)) * window for frame in frames]
    return np.stack([np.fft.fft2(frame, s=sizes) for frame in centred])


def _amplitudes_oracle(frames: np.ndarray) -> np.ndarray:
    whole = _spectrum_oracle(frames)
    return np.asarray(np.abs(whole[..., : whole.shape[-1] // 2 + 1]))


def _power_oracle(anchor: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    power = anchor * target.conj()
    y, x = np.fft.fftfreq(power.shape[0])[:, None], np.fft.fftfreq(power.shape[1])
    return power / np.sqrt(abs(power)) * np.exp(-0.5 * (y**2 + x**2) / BANDWIDTH**2), y, x


def _coarse_oracle(targets: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    return np.stack([_peaks_oracle(target, anchors[0]) for target in targets])


def _peaks_oracle(target: np.ndarray, anchor: np.ndarray) -> np.ndarray:
    power, y, x = _power_oracle(*_spectrum_oracle(np.stack([anchor, target])))
    surface = np.fft.ifft2(power).real
    rows, columns = np.rint(y * len(y)).astype(int), np.rint(x * len(x)).astype(int)
    peaks = []
    for allowed in (np.full(surface.shape, True), (abs(rows) > 1) | (abs(columns) > 1)):
        row, column = np.unravel_index(np.where(allowed, surface, -np.inf).argmax(), surface.shape)
        away = [
            abs((at - peak + size // 2) % size - size // 2)
            for at, peak, size in zip((rows, columns), (row, column), surface.shape, strict=True)
        ]
        rest = surface[(away[0] > NEIGHBOURHOOD) | (away[1] > NEIGHBOURHOOD)]
        peaks.append([rows[row, 0], columns[column], (surface[row, column] - rest.mean()) / rest.std()])
    return np.array(peaks)


def _variance_oracle(pairs: np.ndarray) -> np.ndarray:
    height, width = (size // 4 for size in pairs.shape[-2:])
    means = pairs[..., : 4 * height, : 4 * width].reshape(len(pairs), 2, height, 4, width, 4).mean((3, 5))
    matrices = [np.cov(pair.reshape(2, -1), ddof=0) for pair in means]
    return np.array([[matrix[0, 1], matrix[0, 0], matrix[1, 1]] for matrix in matrices])


def _fine_oracle(pairs: np.ndarray) -> np.ndarray:
    """Climb the correlation, which is smooth, by Newton's method, from its highest point on a grid."""
    return np.stack([_climbed(*_power_oracle(*_spectrum_oracle(pair))) for pair in pairs])


def _climbed(power: np.ndarray, y: np.ndarray, x: np.ndarray) -> list[float]:
    def derivative(at: tuple[float, float], by: np.ndarray | float = 1.0) -> float:
        return float((power * by * np.exp(2j * np.pi * (y * at[0] + x * at[1]))).sum().real)

    grid = np.arange(-REACH, REACH + 0.1, 0.25)
    at = max(((dy, dx) for dy in grid for dx in grid), key=derivative)
    wave_y, wave_x = 2j * np.pi * y, 2j * np.pi * x
    for _ in range(20):
        slope = [derivative(at, wave_y), derivative(at, wave_x)]
        mixed = derivative(at, wave_y * wave_x)
        bend = [[derivative(at, wave_y**2), mixed], [mixed, derivative(at, wave_x**2)]]
        step = np.linalg.solve(bend, slope)
        at = (at[0] - float(step[0]), at[1] - float(step[1]))
    return [*at, derivative(at) / float(abs(power).sum())]


_AMPLITUDES_AGREE = {torch.float32: (1e-3, 0.1), torch.float64: (1e-9, 1e-9)}
_SHIFTS_AGREE = {torch.float32: (1e-3, 1e-3), torch.float64: (1e-4, 1e-4)}

KERNELS = (
    KernelInfo("despeckle", despeckle, _speckled, _despeckle_oracle),
    KernelInfo("spectrum", _amplitudes, _frames, _amplitudes_oracle, _AMPLITUDES_AGREE),
    KernelInfo("coarse_shift", _coarse_between, _coarse_samples, _coarse_oracle, _SHIFTS_AGREE),
    KernelInfo("fine_shift", fine_shift, _fine_samples, _fine_oracle, _SHIFTS_AGREE),
    KernelInfo("shared_variance", shared_variance, _fine_samples, _variance_oracle, _SHIFTS_AGREE),
)
