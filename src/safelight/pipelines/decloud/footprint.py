"""What a step of training takes, by a dry run before it begins."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

from safelight.core.execute import Executor
from safelight.core.plan import Plan
from safelight.core.stream import TensorSource
from safelight.pipelines.decloud.network import GLFCR, OPTICAL_BANDS, SAR_BANDS, Architecture

_COPIES_OF_WEIGHTS = 3
"""The network's own and Adam's two moments; the gradients are counted by the dry run."""


@dataclass(frozen=True)
class TrainingStep:
    """A step as the Executor plans it: rows are the images of a batch.

    Parameters
    ----------
    network : GLFCR
        On the meta device.
    """

    network: GLFCR
    halo: int = 0
    alignment: int = 1
    _constants: tuple[Tensor, ...] = field(default=(), repr=False)

    @property
    def name(self) -> str:
        """As plans name it."""
        a = self.network.architecture
        return f"training glf-cr {a.stages}×{a.layers}, features {a.features}+{a.growth}"

    def to(self, device: torch.device) -> Self:
        """Return the step with what stays from step to step on a device."""
        weights = sum(tensor.nbytes for tensor in self.network.state_dict().values())
        kept = torch.empty(_COPIES_OF_WEIGHTS * weights, dtype=torch.uint8, device=device)
        return replace(self, _constants=(kept,))

    def __call__(self, chunk: Tensor) -> Tensor:
        """Do a dry run on (B, 28, Y, X) of images on the meta device: cloudy, radar, clear."""
        cloudy, sar, clear = torch.split(chunk, [OPTICAL_BANDS, SAR_BANDS, OPTICAL_BANDS], 1)
        self.network.zero_grad(set_to_none=True)
        with torch.enable_grad():
            loss = (self.network(cloudy, sar) - clear).abs().mean()
            torch.autograd.backward(loss)
        return chunk.new_empty((len(chunk), 0))


def plan_step(architecture: Architecture, batch: int, side: int, executor: Executor) -> Plan:
    """Return the memory plan of a training step."""
    with torch.device("meta"):
        network = GLFCR(architecture)
    images = torch.zeros(()).expand(batch, 2 * OPTICAL_BANDS + SAR_BANDS, side, side)
    return executor.plan(TrainingStep(network), TensorSource(images))
