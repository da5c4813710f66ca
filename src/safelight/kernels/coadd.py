"""Blend stacks that lie on one grid, with all that is known about their pixels."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from safelight.core.kernel import KernelInfo, Sample
from safelight.kernels.combine import combine, rows_of_block
from safelight.kernels.rejection import Rejection, positions_of, sum_of

LAYERS = ("image", "weight", "variance", "n_eff", "count", "low", "high")
"""What is blended, in this order: see ``combine.Combined``."""

_FEWEST_JUDGED = 3
"""Stacks of which one can be an outlier."""


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
    rows, _, channels, width, stacks = layers.shape
    blended = layers.new_empty((len(LAYERS), rows, channels, width))
    step = rows_of_block(channels * width, len(LAYERS) * stacks)
    starts = range(0, rows, step)
    for start in starts[:1] if layers.is_meta else starts:  # all blocks take as much memory as the first
        block = layers[start : start + step].movedim((-1, 1), (0, 1))
        blended[:, start : start + step] = _blend(block.flatten(2), rejection).view(block.shape[1:])
    return blended.transpose(0, 1)


def _blend(layers: Tensor, rejection: Rejection) -> Tensor:
    """Return the blended layers (7, pixels) of stacks (stacks, 7, pixels)."""
    image, weight, variance, n_eff, *samples = layers.unbind(1)
    used = (weight > 0) & ~image.isnan()
    stacks = used.sum(0)
    w = torch.where(used, weight, 0)
    total = sum_of(w.clone())
    level = sum_of(torch.where(used, image, 0)) / stacks
    mean = level + sum_of(w * torch.where(used, image - level, 0)) / total
    noise = sum_of(torch.where(used, w.square() * variance, 0)) / total.square()
    effective = total.square() / sum_of(w.square() / n_eff.clamp(min=1))
    alone = stacks == 1  # what is blended with nothing stays as it is, to the last digit
    noise, effective = (
        torch.where(alone, sum_of(torch.where(used, own, 0)), blended)
        for own, blended in ((variance, noise), (n_eff, effective))
    )
    numbers = (sum_of(torch.where(used, of, 0)) for of in samples)
    blended = torch.stack([mean, total, noise, torch.where(stacks > 0, effective, 0), *numbers])
    if len(layers) < _FEWEST_JUDGED:
        return blended
    judged = positions_of(stacks >= _FEWEST_JUDGED)
    if judged.shape[0] == 0:
        return blended
    return blended.index_copy_(1, judged, _blend_surviving(layers.index_select(2, judged), rejection))


def _blend_surviving(layers: Tensor, rejection: Rejection) -> Tensor:
    """Return the same without the outliers among the stacks."""
    image, weight, variance, n_eff, count, low, high = layers.movedim(0, -1)
    used = (weight > 0) & ~image.isnan()
    image = image.masked_fill(weight <= 0, torch.nan)
    # The same stacks are rejected whatever they weigh, so other weights add up over the same survivors.
    weights = torch.stack([weight, weight.square() / n_eff.clamp(min=1), count])
    noise = variance.nan_to_num(0).sqrt()
    survivors = combine(image.expand_as(weights), weights, noise.expand_as(weights), rejection=rejection)
    total, squares, frames = survivors.weight
    low, high = (torch.where(used, samples, 0).sum(-1) for samples in (low, high))
    image, variance = survivors.image[0], survivors.variance[0]
    return torch.stack([image, total, variance, total.square() / squares, frames, low, high])


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
