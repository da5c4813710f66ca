"""A filter whose weights differ from pixel to pixel: every pixel and channel brings its own.

Zhou et al. 2019, "Spatio-temporal filter adaptive network for video deblurring" (filter adaptive convolution).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from safelight.core.kernel import KernelInfo, Sample


def dynamic_filter(padded: Tensor, weights: Tensor) -> Tensor:
    """Cross-correlate each channel with weights that vary over the image.

    out[n, c, y, x] = Σ padded[n, c, y + i, x + j] · weights[n, c·k² + i·k + j, y, x]

    Parameters
    ----------
    padded : Tensor
        (B, C, Y + k − 1, X + k − 1): the image with its border.
    weights : Tensor
        (B, C·k², Y, X), of the same dtype.

    Returns
    -------
    Tensor
        (B, C, Y, X).

    Raises
    ------
    ValueError
        The shapes do not belong together.
    """
    batch, channels, height, width = padded.shape
    taps, left_over = divmod(weights.shape[1], channels)
    size = math.isqrt(taps)
    if left_over or size**2 != taps or weights.shape[2:] != (height - size + 1, width - size + 1):
        raise ValueError(f"weights of {tuple(weights.shape)} do not fit an image of {tuple(padded.shape)}")
    apply: Callable[..., Tensor] = _DynamicFilter.apply
    return apply(padded, weights.view(batch, channels, taps, *weights.shape[2:]), size)


class _DynamicFilter(Function):
    """Tap by tap in place: unfolding the image first takes k² times its memory and 15 times as long on the CPU."""

    @staticmethod
    def forward(ctx: Any, padded: Tensor, weights: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(padded, weights)
        ctx.size = size
        result = padded.new_zeros(padded.shape[0], padded.shape[1], *weights.shape[3:])
        for tap, view in enumerate(_shifted(padded, size)):
            result.addcmul_(view, weights[:, :, tap])
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (gradient,) = gradients
        padded, weights = ctx.saved_tensors
        of_padded, of_weights = torch.zeros_like(padded), torch.empty_like(weights)
        views = zip(_shifted(padded, ctx.size), _shifted(of_padded, ctx.size), strict=True)
        for tap, (view, of_view) in enumerate(views):
            of_view.addcmul_(gradient, weights[:, :, tap])
            torch.mul(gradient, view, out=of_weights[:, :, tap])
        return of_padded, of_weights, None


def _shifted(padded: Tensor, size: int) -> list[Tensor]:
    """Return the k² views of an image that its taps see, in the order of the weights."""
    height, width = (side - size + 1 for side in padded.shape[2:])
    return [padded[:, :, i : i + height, j : j + width] for i in range(size) for j in range(size)]


def _samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(0)
    for size in (1, 3, 5):
        image = torch.randn((2, 3, 7, 9), generator=generator, dtype=torch.float64)
        padded = nn.functional.pad(image, (size // 2,) * 4, mode="replicate")
        weights = torch.randn((2, 3 * size**2, 7, 9), generator=generator, dtype=torch.float64)
        yield Sample((padded.to(device, dtype), weights.to(device, dtype)))


def _oracle(padded: np.ndarray, weights: np.ndarray) -> np.ndarray:
    batch, channels = padded.shape[:2]
    size = math.isqrt(weights.shape[1] // channels)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(2, 3))
    taps = weights.reshape(batch, channels, size, size, *weights.shape[2:])
    return np.asarray(np.einsum("bcyxij,bcijyx->bcyx", windows, taps))


KERNELS = (KernelInfo("dynamic_filter", dynamic_filter, _samples, _oracle),)
