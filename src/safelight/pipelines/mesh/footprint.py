"""What a step of training takes, by a dry run before it begins."""

from __future__ import annotations

import copy
from functools import partial

import torch
from torch import Tensor

from safelight.core.execute import Executor
from safelight.core.kernel import TrainingStep
from safelight.core.plan import Plan
from safelight.core.stream import TensorSource
from safelight.pipelines.mesh.cameras import SIDE, Cameras
from safelight.pipelines.mesh.stages import Stage

_COPIES_OF_WEIGHTS = 4
"""The network's own, Adam's two moments, and the best so far; the gradients are counted by the dry run."""


def plan_step(stage: Stage, batch: int, views: int, executor: Executor) -> Plan:
    """Return the memory plan of a training step."""
    images = torch.zeros(()).expand(batch, views, 3, SIDE, SIDE)
    stage = copy.deepcopy(stage).to(torch.device("meta"))
    name = f"training {stage.name}, {stage.template.levels[-1].vertices} vertices"
    step = TrainingStep(name, stage.network, partial(_loss, stage), _COPIES_OF_WEIGHTS)
    return executor.plan(step, TensorSource(images))


def _loss(stage: Stage, images: Tensor) -> Tensor:
    """Return a loss of (samples, views, 3, 224, 224): those of a training take little beside a block's features."""
    shape = images.shape[:2]
    pairs = images.new_ones((*shape, 2), dtype=torch.float64)
    cameras = Cameras(pairs.new_ones((*shape, 3, 3)), pairs.new_ones((*shape, 3)), pairs, pairs)
    return torch.stack([after.sum() for _, after in stage(images, cameras)]).sum()
