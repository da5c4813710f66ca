"""What a training takes, planned by a dry run of its step before it begins."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from safelight.core.errors import OutOfMemoryError
from safelight.core.execute import Executor
from safelight.core.kernel import TrainingStep
from safelight.core.plan import Plan
from safelight.pipelines.denoise.masking import BlindSpots, MaskingSettings
from safelight.pipelines.denoise.network import Architecture, UNet

_COPIES_OF_WEIGHTS = 5
"""The network's own, Adam's two moments, the average of the weights, and the best average so far."""

DATA_SHARE = 0.4
"""Of the budget, what the training data may take; the rest is for the step."""

_LIBRARIES = 24 * 2**20
"""What oneDNN's code, autograd's threads and the like take on the CPU at their first use, measured."""

_OVERHEAD = 1.15
"""Peak of a step over that of its tensors on the CPU, where the allocator leaves gaps; 1.1 to 1.5 were measured."""


@dataclass(frozen=True)
class Batch:
    """A batch of patches of which only the size matters.

    Parameters
    ----------
    extent : int
        Patches.
    shape : tuple of int
        Of a patch, (C, [Z,] Y, X).
    """

    extent: int
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32

    def read(self, start: int, stop: int) -> Tensor:
        """Return patches of zeros."""
        return torch.zeros((stop - start, *self.shape))


def plan_step(
    architecture: Architecture,
    masking: MaskingSettings,
    patch: tuple[int, ...],
    batch: int,
    executor: Executor,
    data_bytes: int = 0,
) -> Plan:
    """Return the memory plan of a training step: its rows are patches of the batch.

    Parameters
    ----------
    architecture : Architecture
    masking : MaskingSettings
    patch : tuple of int
        Spatial size of the patches.
    batch : int
        Patches of a step.
    executor : Executor
    data_bytes : int
        What the training data takes on the device; see ``pool_bytes``.
    """
    with torch.device("meta"):
        network = UNet(architecture)
    kept = data_bytes + (_LIBRARIES if executor.device.is_cpu else 0)
    a, sides = architecture, "×".join(map(str, patch))
    # The batch is in the name, so that measurements of one size do not correct another's plan.
    name = f"training unet{a.dims}d depth {a.depth} features {a.features}×{a.channels}, {batch} of {sides}"
    hidden = round(math.prod(patch) * masking.percent / 100)
    step = TrainingStep(name, network, partial(_loss, network, hidden), _COPIES_OF_WEIGHTS, kept)
    overhead = _OVERHEAD if executor.device.is_cpu else 1.0
    return executor.plan(step, Batch(batch, (architecture.channels, *patch)), overhead)


def _loss(network: UNet, hidden: int, patches: Tensor) -> Tensor:
    """Return the loss of (B, C, [Z,] Y, X) at so many blind spots each; drawing and hiding take less, and before."""
    values = patches.new_empty((len(patches), network.architecture.channels, hidden))
    spots = BlindSpots(patches, values.long(), values, values)
    return spots.loss_sum(network(patches)) / spots.weights.sum()


def data_limit(executor: Executor) -> int:
    """Return how many bytes the training data may take on the device."""
    return int(executor.budget.bytes * DATA_SHARE)


def check_fits(plan: Plan, held_bytes: int, whole_bytes: int) -> None:
    """Refuse a training of which not even one patch at a time fits.

    Parameters
    ----------
    plan : Plan
        From ``plan_step``.
    held_bytes, whole_bytes : int
        What of the training data was to be held on the device, and all of them.

    Raises
    ------
    OutOfMemoryError
        Says the smallest budget that would do. With it more of the data is held as well.
    """
    if plan.fits:
        return
    step = plan.smallest_bytes - held_bytes
    raise OutOfMemoryError(
        f"{plan.kernel} at a time does not fit, even in parts of one",
        needed=step + min(whole_bytes, math.ceil(step * DATA_SHARE / (1 - DATA_SHARE))),
        allowed=plan.budget.bytes,
        remedy="a higher --memory-limit, or a smaller --patch-size or --features",
    )
