"""The shift between two frames that maximises their correlation, step by step (ECC).

Evangelidis, Psarakis 2008, "Parametric image alignment using enhanced correlation coefficient maximization", for a
translation. Brightness and contrast do not count. Convention: ``anchor[y + dy, x + dx] ≈ target[y, x]``.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from safelight.core.kernel import KernelInfo, Sample
from safelight.kernels.gaussian import gaussian_filter

SMOOTHING = 1.0
"""Standard deviation of the Gaussian that both frames pass first, in pixels."""
STEPS = 8
"""Steps of Gauss and Newton; always so many, so that nothing is read from the device in between."""
REACH = 3
"""Pixels that a shift may have at most, its surroundings for interpolation included."""
_EDGE = REACH + 1
_MOST = REACH - 2.0
_TINY = 1e-30


def ecc_shift(pairs: Tensor, start: Tensor) -> Tensor:
    """Return the shift of pairs that are aligned to a pixel.

    Parameters
    ----------
    pairs : Tensor
        (n, 2, height, width), floating point: anchor and target; 32 pixels or more along both.
    start : Tensor
        (n, 2): dy, dx to begin with, within one pixel of zero.

    Returns
    -------
    Tensor
        (n, 3): dy, dx, and the correlation there.
    """
    smooth = gaussian_filter(pairs, SMOOTHING)
    anchor = smooth[:, 0]
    target = _centred(_inside(smooth[:, 1], _EDGE))
    at = start
    for _ in range(STEPS):
        warped, slopes = _warped(anchor, at)
        at = (at + _step(warped, slopes, target)).clamp(-_MOST, _MOST)
    warped, _ = _warped(anchor, at)
    norms = (warped.square().sum(1) * target.square().sum(1)).sqrt()
    return torch.cat((at, ((warped * target).sum(1) / (norms + _TINY))[:, None]), dim=1)


def _step(warped: Tensor, slopes: Tensor, target: Tensor) -> Tensor:
    """Return what raises the correlation most, (n, 2), in the first order: equations 14 to 16."""
    of_anchor, of_target = ((slopes * image[:, None]).sum(2) for image in (warped, target))
    known = _solved(slopes, of_anchor)
    energy = warped.square().sum(1) - (of_anchor * known).sum(1)
    shared = (warped * target).sum(1) - (of_target * known).sum(1)
    contrast = energy / torch.where(shared.abs() < _TINY, _TINY, shared)
    return _solved(slopes, contrast[:, None] * of_target - of_anchor)


def _solved(slopes: Tensor, right: Tensor) -> Tensor:
    """Return what the curvature of the slopes, two by two, makes the right side of: (n, 2)."""
    down, across = slopes.unbind(1)
    a, b, d = (down * down).sum(1), (down * across).sum(1), (across * across).sum(1)
    y, x = right.unbind(1)
    determinant = (a * d - b * b).clamp(min=_TINY)
    return torch.stack((d * y - b * x, a * x - b * y), dim=1) / determinant[:, None]


def _warped(anchor: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    """Return the anchor's inside at a shift, centred, (n, pixels), and its slopes along y and x, (n, 2, pixels)."""
    places = torch.arange(-REACH, REACH + 1, device=at.device)
    rows, columns = _cubic(places - at[:, :1]), _cubic(places - at[:, 1:])
    image = _weighed(_weighed(anchor, rows, 1), columns, 2)
    down = 0.5 * (image[..., 2:, 1:-1] - image[..., :-2, 1:-1])
    across = 0.5 * (image[..., 1:-1, 2:] - image[..., 1:-1, :-2])
    slopes = torch.stack((_centred(down), _centred(across)), dim=1)
    return _centred(_inside(image, 1)), slopes


def _weighed(images: Tensor, weights: Tensor, axis: int) -> Tensor:
    """Correlate an axis of (n, height, width) with weights of each image, (n, k), without padding."""
    # A sum of shifted views: no library may choose less precision for it, as for a convolution.
    size = images.shape[axis] - weights.shape[1] + 1
    total = images.narrow(axis, 0, size) * weights[:, 0, None, None]
    for place in range(1, weights.shape[1]):
        total.addcmul_(images.narrow(axis, place, size), weights[:, place, None, None])
    return total


def _cubic(distance: Tensor) -> Tensor:
    """Return the weights of cubic convolution (Keys 1981, a = −1/2)."""
    t = distance.abs()
    near = (1.5 * t - 2.5) * t * t + 1
    far = ((-0.5 * t + 2.5) * t - 4) * t + 2
    return torch.where(t <= 1, near, torch.where(t < 2, far, torch.zeros_like(t)))


def _inside(image: Tensor, edge: int) -> Tensor:
    return image[..., edge:-edge, edge:-edge]


def _centred(image: Tensor) -> Tensor:
    flat = image.flatten(1)
    return flat - flat.mean(1, keepdim=True)


def _samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    generator = np.random.default_rng(0)
    for height, width, shift in ((60, 81, (0.37, -0.21)), (97, 64, (-0.6, 0.45))):
        y, x = np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)
        soft = np.fft.fft2(generator.normal(size=(height, width))) * np.exp(-40 * (y**2 + x**2))
        moved = np.fft.ifft2(soft * np.exp(2j * np.pi * (y * shift[0] + x * shift[1]))).real
        pairs = np.stack([np.fft.ifft2(soft).real, 3 + 2 * moved])[None]
        yield Sample((torch.from_numpy(pairs).to(device, dtype), torch.zeros((1, 2), device=device, dtype=dtype)))


def _oracle(pairs: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Climb the correlation of the frames, moved by their spectra, with slopes from differences."""
    return np.stack([_climbed(*pair) for pair in pairs])


def _climbed(anchor: np.ndarray, target: np.ndarray) -> list[float]:
    y, x = np.fft.fftfreq(anchor.shape[0])[:, None], np.fft.fftfreq(anchor.shape[1])
    smooth = np.exp(-2 * (np.pi * SMOOTHING) ** 2 * (y**2 + x**2))
    inside = (slice(_EDGE + 4, -_EDGE - 4),) * 2

    def correlation(at: np.ndarray) -> float:
        turned = smooth * np.exp(2j * np.pi * (y * at[0] + x * at[1]))
        moved = np.fft.ifft2(np.fft.fft2(anchor) * turned).real[inside]
        fixed = np.fft.ifft2(np.fft.fft2(target) * smooth).real[inside]
        return float(np.corrcoef(moved.ravel(), fixed.ravel())[0, 1])

    at, step = np.zeros(2), 0.25
    while step > 1e-5:
        around = [at + step * np.array(move) for move in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))]
        best = max(around, key=correlation)
        at, step = (best, step) if (best != at).any() else (at, step / 2)
    return [float(at[0]), float(at[1]), correlation(at)]


KERNELS = (KernelInfo("ecc_shift", ecc_shift, _samples, _oracle, {torch.float32: (0, 0.01), torch.float64: (0, 0.01)}),)
