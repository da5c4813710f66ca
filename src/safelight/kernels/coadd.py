"""Blend stacks that lie on one grid, with all that is known about their pixels."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from safelight.core.kernel import KernelInfo, Sample
from safelight.kernels.combine import combine
from safelight.kernels.rejection import Rejection, positions_of

LAYERS = ("image", "weight", "variance", "n_eff", "count", "low", "high")
"""What is blended, in this order: see ``combine.Combined``."""


def coadd(layers: Tensor, rejection: Rejection) -> Tensor:
    """Blend rows of stacks by their weights.

    Parameters
    ----------
    layers : Tensor
        (rows, 7, channels, width, stacks): ``LAYERS``; a stack is left out where its image is NaN or its weight 0.
    rejection : Rejection
        Of stacks that disagree with the others; it needs three or more.

    Returns
    -------
    Tensor
        (rows, 7, channels, width): the mean Σwx/Σw; Σw; its variance Σw²v/(Σw)²; the effective number of frames
        (Σw)²/Σ(w²/n); the number of frames Σn; how many samples were rejected in all stacks as too low, and as too
        high. Where there is no stack the image and the variance are NaN, the others 0.
    """
    image, weight, *_ = layers.unbind(1)
    used = (weight > 0) & ~image.isnan()
    blended = torch.where(used[:, None], layers, 0).sum(-1)  # all there is to do where there is only one stack
    stacks = used.sum(-1)
    for unknown in ("image", "variance"):
        blended[:, LAYERS.index(unknown)].masked_fill_(stacks == 0, torch.nan)
    planes = blended.transpose(0, 1).flatten(1)
    shared = positions_of((stacks > 1).flatten())
    planes.index_copy_(1, shared, _blend(layers.movedim((-1, 1), (0, 1)).flatten(2).index_select(2, shared), rejection))
    return planes.view(-1, *stacks.shape).transpose(0, 1)


def _blend(layers: Tensor, rejection: Rejection) -> Tensor:
    """Return the mean (7, pixels) of stacks (stacks, 7, pixels)."""
    image, weight, variance, n_eff, count, low, high = layers.movedim(0, -1)
    used = (weight > 0) & ~image.isnan()
    image = image.masked_fill(weight <= 0, torch.nan)
    blended = combine(image, weight, variance.nan_to_num(0).sqrt(), rejection=rejection)
    # The same samples are rejected whatever they weigh, so other weights add up over the same survivors.
    squares = combine(image, weight.square() / n_eff.clamp(min=1), rejection=rejection).weight
    frames = combine(image, count, rejection=rejection).weight
    effective = torch.where(blended.weight > 0, blended.weight.square() / squares, 0)
    low, high = (torch.where(used, samples, 0).sum(-1) for samples in (low, high))
    return torch.stack([blended.image, blended.weight, blended.variance, effective, frames, low, high])


def _samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(0)
    for stacks in (1, 4):
        layers = torch.rand((3, len(LAYERS), 2, 5, stacks), generator=generator, dtype=torch.float64) + 0.5
        layers[:, 3:] = (10 * layers[:, 3:]).ceil()
        layers[0, 0, :, 2] = torch.nan
        layers[1, 1, :, 3] = 0
        yield Sample((layers.to(device, dtype), Rejection("none")))


def _oracle(layers: np.ndarray, rejection: Rejection) -> np.ndarray:
    image, weight, variance, n_eff, *counts = np.moveaxis(layers, 1, 0)
    used = ~np.isnan(image) & (weight > 0)
    w = np.where(used, weight, 0)
    total = w.sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        blended = (w * np.where(used, image, 0)).sum(-1) / total
        noise = (w**2 * variance).sum(-1) / total**2
        effective = np.where(total > 0, total**2 / (w**2 / n_eff).sum(-1), 0)
    return np.stack([blended, total, noise, effective, *((count * used).sum(-1) for count in counts)], axis=1)


KERNELS = (KernelInfo("coadd", coadd, _samples, _oracle),)
