"""Which samples of which frame are outliers: for drizzle, which takes the frames' own pixels and not the registered."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from safelight.core.kernel import KernelInfo, Sample
from safelight.kernels.combine import BLOCK_PIXELS, BLOCK_SAMPLES
from safelight.kernels.ordering import sort_frames
from safelight.kernels.rejection import (
    REJECTIONS,
    Rejection,
    less,
    median_of_sorted,
    positions_of,
    reject,
    reject_oracle,
    surely_keeps_all,
)

TOO_LOW, TOO_HIGH = 1, 2
"""What is said of a rejected sample; 0 of the others."""


def verdicts(samples: Tensor, scale: Tensor, offset: Tensor, rejection: Rejection) -> Tensor:
    """Judge every sample of every pixel, as ``combine`` does before it adds up the survivors.

    Parameters
    ----------
    samples : Tensor
        (…, n), float32 or float64: n frames. What is not finite is invalid.
    scale, offset : Tensor
        (n,): a sample x is judged as ``scale * x + offset``.
    rejection : Rejection

    Returns
    -------
    Tensor
        (…, n), uint8: ``TOO_LOW``, ``TOO_HIGH``, or 0 for samples that are kept or invalid.
    """
    n = samples.shape[-1]
    flat = samples.reshape(-1, n)
    judged = torch.empty(flat.shape, dtype=torch.uint8, device=samples.device)
    step = max(BLOCK_PIXELS, BLOCK_SAMPLES // n)
    starts = range(0, flat.shape[0], step)
    for start in starts[:1] if samples.is_meta else starts:  # all blocks take as much memory as the first
        block = flat[start : start + step].T * scale[:, None] + offset[:, None]
        judged[start : start + step] = _of_block(block, rejection).T
    return judged.view(samples.shape)


def _of_block(block: Tensor, rejection: Rejection) -> Tensor:
    """Judge (n, pixels)."""
    if rejection.siril_guards:
        block = block / (block != 0)  # 0/0 is NaN: no data
    values, frames = sort_frames(block, torch.arange(block.shape[0], device=block.device))
    total = less(values, values.new_full((), math.inf)).sum(0)
    level = median_of_sorted(values, torch.zeros_like(total), total)
    deviations = torch.nan_to_num(values - level, nan=0.0, posinf=0.0)
    judged = torch.zeros(block.shape, dtype=torch.uint8, device=block.device)
    if rejection.method in ("kappa_sigma", "winsorized_sigma_clip"):
        pixels = positions_of(~surely_keeps_all(deviations, total, rejection))
    else:
        pixels = torch.arange(block.shape[1], device=block.device)
    low, high = reject(deviations.index_select(1, pixels), total[pixels], level[pixels], rejection)
    found = (TOO_LOW * low + TOO_HIGH * high).to(torch.uint8)
    in_order = torch.empty_like(found).scatter_(0, frames.index_select(1, pixels), found)
    return judged.index_copy_(1, pixels, in_order)


def _samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(0)
    for n in (1, 4, 13):
        samples = 1000 + 20 * torch.randn((2, 35, n), generator=generator, dtype=torch.float64)
        samples[torch.rand((2, 35, n), generator=generator) < 0.08] += 900
        samples[torch.rand((2, 35, n), generator=generator) < 0.05] = math.nan
        samples[1, 3] = math.nan
        scale = 0.5 + torch.rand((2, n), generator=generator, dtype=torch.float64)
        inputs = (samples.to(device, dtype), *scale.to(device, dtype))
        for rejection in REJECTIONS:
            yield Sample((*inputs, rejection))


def _oracle(samples: np.ndarray, scale: np.ndarray, offset: np.ndarray, rejection: Rejection) -> np.ndarray:
    judged = np.zeros(samples.shape, np.uint8)
    for place in np.ndindex(samples.shape[:-1]):
        x = samples[place] * scale + offset
        order = np.argsort(x)[: np.isfinite(x).sum()]
        level = float(np.median(x[order])) if len(order) else 0.0
        verdict = reject_oracle(x[order], level, rejection)
        judged[(*place, order)] = np.where(verdict < 0, TOO_LOW, TOO_HIGH * (verdict > 0))
    return judged


_EXACT = {torch.float32: (0.0, 0.0), torch.float64: (0.0, 0.0)}
KERNELS = (KernelInfo("verdicts", verdicts, _samples, _oracle, _EXACT),)
