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
    return image.clamp(lowest, highest)


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
        (n, 3): dy, dx and the height of the peak over the standard deviation of what is further than
        ``NEIGHBOURHOOD`` from it.
    """
    shape = (fast_length(targets.shape[-2]), fast_length(targets.shape[-1]))
    power, _ = _cross_power(anchor, spectrum(targets), shape[1])
    surface = torch.fft.irfft2(power, s=shape)
    return _peak(surface)


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
    power, modulus = _cross_power(spectra[:, 0], spectra[:, 1], width)
    y, x = _constant(np.fft.fftfreq(power.shape[-2]), pairs), _constant(np.fft.rfftfreq(width), pairs)
    at = torch.zeros((len(power), 2), dtype=pairs.dtype, device=pairs.device)
    reach = REACH
    for step in _STEPS:
        half = math.ceil(reach / step) + 1
        grid = _constant(np.arange(-half, half + 1) * step, pairs)
        surface = _upsampled(power, y, x, at[:, :1] + grid, at[:, 1:] + grid)
        # Within an edge of one position, so that the highest one has neighbours on both sides.
        row, column, height = _highest(surface[:, 1:-1, 1:-1])
        at = at + torch.stack((grid[1:-1][row], grid[1:-1][column]), dim=1)
        reach = step
    at = at + _STEPS[-1] * _vertex(surface, row + 1, column + 1)
    most = (modulus * _column_weights(width, pairs)).flatten(1).sum(1)
    return torch.cat((at, (height / (most + _TINY))[:, None]), dim=1)


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


def _constant(values: np.ndarray, like: Tensor) -> Tensor:
    """Return numbers that depend on sizes alone; made by NumPy, they cost a dry run nothing."""
    return torch.from_numpy(values).to(like.device, like.dtype)


def _tukey(size: int, like: Tensor) -> Tensor:
    """Return a Tukey window (Harris 1978), sampled between its ends so that no sample is 0."""
    position = (np.arange(size) + 0.5) / size
    from_end = np.minimum(np.minimum(position, 1 - position), TAPER / 2)
    return _constant(0.5 - 0.5 * np.cos(2 * np.pi / TAPER * from_end), like)


def _low_pass(frequencies: np.ndarray, like: Tensor) -> Tensor:
    return _constant(np.exp(-0.5 * (frequencies / BANDWIDTH) ** 2), like)


def _cross_power(anchor: Tensor, target: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Return the half-whitened, low-passed cross-power spectrum, and its modulus."""
    power = anchor * target.conj()
    modulus = power.abs()
    rows, columns = np.fft.fftfreq(power.shape[-2]), np.fft.rfftfreq(width)
    weight = (_low_pass(rows, modulus)[:, None] * _low_pass(columns, modulus)) / (modulus + _TINY).pow_(WHITENING)
    return power.mul_(weight), modulus.mul_(weight)


def _column_weights(width: int, like: Tensor) -> Tensor:
    """Return how often each column of a half spectrum counts in the whole one, for an even width."""
    weights = np.full(width // 2 + 1, 2.0)
    weights[[0, -1]] = 1
    return _constant(weights, like)


def _upsampled(power: Tensor, y: Tensor, x: Tensor, at_y: Tensor, at_x: Tensor) -> Tensor:
    """Return the correlation at any positions: (n, rows, columns) for positions (n, rows) and (n, columns)."""
    rows, columns = _waves(at_y[:, :, None] * y), _waves(at_x[:, None, :] * x[:, None])
    weighted = columns * _column_weights(2 * len(x) - 2, at_x)[:, None]
    return (rows @ power @ weighted).real


def _waves(turns: Tensor) -> Tensor:
    angle = 2 * math.pi * turns
    return torch.complex(angle.cos(), angle.sin())


def _highest(surface: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return row, column and height of each surface's highest point."""
    by_row = surface.max(2)
    height, row = by_row.values.max(1)
    column = by_row.indices.gather(1, row[:, None])[:, 0]
    return row, column, height


def _vertex(surface: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Return where between its neighbours the parabolas through a peak are highest: (n, 2), −1/2 to 1/2."""
    width = surface.shape[2]
    cross = torch.tensor([-width, 0, width, -1, 0, 1], device=surface.device)
    values = surface.flatten(1).gather(1, (row * width + column)[:, None] + cross)
    before, here, after = values.view(-1, 2, 3).unbind(2)
    bend = (here - before) + (here - after)
    return 0.5 * (after - before) / (bend + _TINY)


def _peak(surface: Tensor) -> Tensor:
    """Return (n, 3): dy, dx and height of the highest point over the surface's deviation away from it."""
    row, column, height = _highest(surface)
    height_px, width_px = surface.shape[1:]
    near = surface.flatten(1).gather(1, _around(row, column, NEIGHBOURHOOD, (height_px, width_px)))
    count = max(height_px * width_px - near.shape[1], 1)
    mean = (surface.flatten(1).sum(1) - near.sum(1)) / count
    variance = (surface.square().flatten(1).sum(1) - near.square().sum(1)) / count - mean.square()
    clarity = (height - mean) / (variance.abs() + _TINY).sqrt()
    dy, dx = (torch.where(2 * at > size, at - size, at) for at, size in ((row, height_px), (column, width_px)))
    return torch.stack((dy.to(surface.dtype), dx.to(surface.dtype), clarity), dim=1)


def _around(row: Tensor, column: Tensor, reach: int, shape: tuple[int, int]) -> Tensor:
    """Return the flat indices of the square around each place, wrapped at the edges, each pixel once: (n, square)."""
    rows, columns = (
        torch.from_numpy(np.arange(min(2 * reach + 1, size)) - min(reach, size // 2)).to(row.device) for size in shape
    )
    down, across = (row[:, None] + rows) % shape[0], (column[:, None] + columns) % shape[1]
    return (down[:, :, None] * shape[1] + across[:, None, :]).flatten(1)


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
    return np.stack([_peak_oracle(target, anchors[0]) for target in targets])


def _peak_oracle(target: np.ndarray, anchor: np.ndarray) -> np.ndarray:
    power, y, x = _power_oracle(*_spectrum_oracle(np.stack([anchor, target])))
    surface = np.fft.ifft2(power).real
    rows, columns = np.rint(y * len(y)).astype(int), np.rint(x * len(x)).astype(int)
    row, column = np.unravel_index(surface.argmax(), surface.shape)
    away = [
        abs((at - peak + size // 2) % size - size // 2)
        for at, peak, size in zip((rows, columns), (row, column), surface.shape, strict=True)
    ]
    rest = surface[(away[0] > NEIGHBOURHOOD) | (away[1] > NEIGHBOURHOOD)]
    return np.array([rows[row, 0], columns[column], (surface[row, column] - rest.mean()) / rest.std()])


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
