"""What a step of training takes, by a dry run before it begins."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

from safelight.core.execute import Executor
from safelight.core.plan import Plan
from safelight.core.stream import TensorSource
from safelight.pipelines.mesh.cameras import SIDE, Cameras
from safelight.pipelines.mesh.stages import Stage

_COPIES_OF_WEIGHTS = 4
"""The network's own, Adam's two moments, and the best so far; the gradients are counted by the dry run."""


@dataclass(frozen=True)
class TrainingStep:
    """A step as the Executor plans it: rows are the objects of a batch.

    Losses are of vertices only and take little beside the features of a block.

    Parameters
    ----------
    stage : Stage
        On the meta device.
    """

    stage: Stage
    halo: int = 0
    alignment: int = 1
    _constants: tuple[Tensor, ...] = field(default=(), repr=False)

    @property
    def name(self) -> str:
        """As plans name it."""
        return f"training {self.stage.name}, {self.stage.template.levels[-1].vertices} vertices"

    def to(self, device: torch.device) -> Self:
        """Return the step with what stays from step to step on a device."""
        weights = sum(tensor.nbytes for tensor in self.stage.network.state_dict().values())
        kept = torch.empty(_COPIES_OF_WEIGHTS * weights, dtype=torch.uint8, device=device)
        return replace(self, _constants=(kept,))

    def __call__(self, chunk: Tensor) -> Tensor:
        """Do a dry run on (samples, views, 3, 224, 224) on the meta device."""
        shape = chunk.shape[:2]
        pairs = chunk.new_ones((*shape, 2), dtype=torch.float64)
        cameras = Cameras(pairs.new_ones((*shape, 3, 3)), pairs.new_ones((*shape, 3)), pairs, pairs)
        self.stage.network.zero_grad(set_to_none=True)
        with torch.enable_grad():
            blocks = self.stage(chunk, cameras)
            torch.autograd.backward(torch.stack([after.sum() for _, after in blocks]).sum())
        return chunk.new_empty((len(chunk), 0))


def plan_step(stage: Stage, batch: int, views: int, executor: Executor) -> Plan:
    """Return the memory plan of a training step."""
    images = torch.zeros(()).expand(batch, views, 3, SIDE, SIDE)
    return executor.plan(TrainingStep(copy.deepcopy(stage).to(torch.device("meta"))), TensorSource(images))
