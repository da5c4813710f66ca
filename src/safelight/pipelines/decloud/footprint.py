"""What a step of training takes, by a dry run before it begins."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from safelight.core.execute import Executor
from safelight.core.kernel import TrainingStep
from safelight.core.plan import Plan
from safelight.core.stream import TensorSource
from safelight.pipelines.decloud.network import GLFCR, OPTICAL_BANDS, SAR_BANDS, Architecture

_COPIES_OF_WEIGHTS = 3
"""The network's own and Adam's two moments; the gradients are counted by the dry run."""


def plan_step(architecture: Architecture, batch: int, side: int, executor: Executor) -> Plan:
    """Return the memory plan of a training step."""
    with torch.device("meta"):
        network = GLFCR(architecture)
    images = torch.zeros(()).expand(batch, 2 * OPTICAL_BANDS + SAR_BANDS, side, side)
    a = architecture
    name = f"training glf-cr {a.stages}×{a.layers}, features {a.features}+{a.growth}"
    step = TrainingStep(name, network, partial(_loss, network), _COPIES_OF_WEIGHTS)
    return executor.plan(step, TensorSource(images))


def _loss(network: GLFCR, images: Tensor) -> Tensor:
    """Return the loss of (B, 28, Y, X): cloudy, radar, clear."""
    cloudy, sar, clear = torch.split(images, [OPTICAL_BANDS, SAR_BANDS, OPTICAL_BANDS], 1)
    loss: Tensor = (network(cloudy, sar) - clear).abs().mean()
    return loss
