"""Training of either stage as published: Adam at one rate; resumes exactly where it was stopped."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor

from safelight.core.checkpoint import Checkpoint, digest_of, identity_of, repeatable, seeded
from safelight.core.device import Device
from safelight.core.errors import InputError, UsageError
from safelight.core.execute import Executor
from safelight.core.options import Seconds, Settings
from safelight.pipelines.mesh.cameras import Cameras
from safelight.pipelines.mesh.dataset import Rendered
from safelight.pipelines.mesh.examples import Examples, read_example
from safelight.pipelines.mesh.footprint import plan_step
from safelight.pipelines.mesh.losses import SURFACE_SAMPLES, TERMS, Joints, block_losses
from safelight.pipelines.mesh.metrics import compare
from safelight.pipelines.mesh.model import COARSE, REFINE
from safelight.pipelines.mesh.stages import Blocks, Stage, decayed

PUBLISHED_EPOCHS = {COARSE: 50, REFINE: 10}
TAU = 1e-4
"""Of the F-score that is shown: the published one."""


class TrainingSettings(Settings):
    """How a stage is trained; it ends at the first of epochs, steps and time that is given."""

    epochs: int | None = Field(None, ge=1, description="Passes over the training objects.")
    steps: int | None = Field(None, ge=1, description="Training steps.")
    time_budget: Seconds | None = Field(None, gt=0, description="Seconds to train.")
    batch_size: int = Field(1, ge=1, description="Objects per step.")
    learning_rate: float = Field(1e-5, gt=0, description="Rate of every step.")
    validate_every: int | None = Field(None, ge=1, description="Steps between two validations; an epoch if not given.")
    seed: int = Field(0, ge=0, description="Seed of every random draw.")


@dataclass
class Curve:
    """How training went, one value per validation.

    Parameters
    ----------
    steps : list of int
    terms : dict of str to list of float
        The weighted terms of the loss, means over the steps since the last validation.
    chamfer, f1 : list of float
        Means over the objects that watch: of the vertices, squared distances; the F-score in per cent.
    """

    steps: list[int] = field(default_factory=list)
    terms: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in TERMS})
    chamfer: list[float] = field(default_factory=list)
    f1: list[float] = field(default_factory=list)

    @property
    def loss(self) -> list[float]:
        """The sums of the terms."""
        return [sum(values) for values in zip(*self.terms.values(), strict=True)]

    @property
    def best(self) -> int:
        """Number of the validation with the smallest Chamfer distance."""
        return min(range(len(self.chamfer)), key=self.chamfer.__getitem__)


@dataclass(frozen=True)
class Trained:
    """The stage after the last step, and with the smallest Chamfer distance, and how training went."""

    last: Stage
    best: Stage
    curve: Curve


class Training:
    """A stage being trained.

    Every random draw depends on the seed and the step only: a training that was stopped goes on as if it had not been,
    and memory that runs short changes nothing but the time.

    Parameters
    ----------
    stage : Stage
        Where it begins; stays as it is.
    focal : float
        Of the cameras, in pixels of 224 × 224.
    objects, watching : sequence of Rendered
        Those that are trained on, and those that tell which weights are best.
    settings : TrainingSettings
    device : Device
    executor : Executor
        Does each step in as many parts as memory needs.

    Attributes
    ----------
    plan : Plan
        Of a step's memory; its rows are the objects that are done at once.
    """

    def __init__(
        self,
        stage: Stage,
        focal: float,
        objects: Sequence[Rendered],
        watching: Sequence[Rendered],
        settings: TrainingSettings,
        device: Device,
        executor: Executor,
    ) -> None:
        self.settings, self.curve = settings, Curve()
        self.step, self.seconds = 0, 0.0
        self._focal, self._objects, self._watching = focal, tuple(objects), tuple(watching)
        self._device, self._executor = device, executor
        self.plan = plan_step(stage, settings.batch_size, len(objects[0].views), executor)
        self._at_once = self.plan.rows
        self._start = [
            [network.variant.model_dump(mode="json"), digest_of(network.state_dict())] for network in stage.networks
        ]
        self._stage = copy.deepcopy(stage).to(device.torch_device)
        if device.compiles:
            for part in self._stage.compiled_parts:
                part.compile(mode=device.compile_mode)
        self._joints = [Joints.of(stage.template.levels[level], device.torch_device) for level in stage.levels]
        self._optimizer = torch.optim.Adam(decayed(self._stage.network), settings.learning_rate)
        self._totals = torch.zeros(len(TERMS), dtype=torch.float64)
        self._counted = 0
        self._best: dict[str, Tensor] = {}
        self._left_out: set[str] = set()

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which every object is seen once."""
        return -(-len(self._objects) // self.settings.batch_size)

    @property
    def share(self) -> float:
        """How much of the training is done, 0 to 1."""
        ends = (
            (self.step, self.settings.steps),
            (self.step / self.steps_per_epoch, self.settings.epochs),
            (self.seconds, self.settings.time_budget),
        )
        return min(max((done / end for done, end in ends if end is not None), default=1.0), 1.0)

    def run(
        self,
        checkpoint: Path | None = None,
        on_look: Callable[[Curve], None] = lambda _: None,
        on_step: Callable[[], None] = lambda: None,
    ) -> Trained:
        """Train to the end, from the checkpoint if there is one.

        Parameters
        ----------
        checkpoint : Path, optional
            Written after every validation, and between now and then.
        on_look : callable
            Called after every validation.
        on_step : callable
            Called after every step.

        Raises
        ------
        InputError
            The checkpoint is damaged, or none of the objects can be read.
        UsageError
            The vertices are no numbers any more.
        OutOfMemoryError
            Not even one object fits.
        """
        kept = Checkpoint(checkpoint, self._identity(), self._executor.events)
        self._restore(kept)
        started = time.monotonic() - self.seconds
        with repeatable(self._device):
            while self.share < 1:
                self._do_step()
                self.seconds = time.monotonic() - started
                on_step()
                looked = self._counted > 0 and (self._is_time_to_look() or self.share >= 1)
                if looked:
                    self._look()
                    on_look(self.curve)
                if looked or kept.is_due():
                    kept.save(self._state())
        if not self.curve.steps:
            raise _none_of("trained on")
        last, best = (self._stage.with_weights(weights) for weights in (self._weights(), self._best))
        return Trained(last, best, self.curve)

    def _do_step(self) -> None:
        examples = self._read([self._objects[number] for number in self._numbers()])
        generator = seeded(self.settings.seed, self.step)
        self.step += 1
        if examples is None:
            if all(str(rendered.cameras) in self._left_out for rendered in self._objects):
                raise _none_of("trained on")
            return
        examples = examples.to(self._device.torch_device)
        size = len(examples.targets)
        draws = torch.rand(size, len(self._joints), SURFACE_SAMPLES, 3, generator=generator)
        draws = draws.to(self._device.torch_device)
        parts: list[Tensor] = []

        def loss_of(start: int, stop: int) -> Tensor:
            terms = self._terms(examples, draws, range(start, stop)) / size
            parts.append(terms.detach())
            return terms.sum()

        def reset() -> None:
            self._optimizer.zero_grad(set_to_none=True)
            parts.clear()

        reset()
        _, self._at_once = self._executor.step(loss_of, size, reset, min(self._at_once, size))
        self._optimizer.step()
        self._totals += torch.stack(parts).sum(0).cpu()
        self._counted += 1

    def _terms(self, examples: Examples, draws: Tensor, which: range) -> Tensor:
        """Return the terms of the loss, summed over blocks and over some of the examples."""
        blocks = self._blocks(examples.images[which.start : which.stop], examples.cameras[which.start : which.stop])
        terms = [
            block_losses(
                before[n], after[n], joints, examples.targets[sample], draws[sample, number], self._stage.weights
            )
            for number, ((before, after), joints) in enumerate(zip(blocks, self._joints, strict=True))
            for n, sample in enumerate(which)
        ]
        return torch.stack(terms).sum(0)

    def _blocks(self, images: Tensor, cameras: Cameras) -> Blocks:
        with self._device.autocast():
            blocks: Blocks = self._stage(images, cameras)
        if not blocks[-1][1].isfinite().all():
            raise UsageError("the vertices are no numbers any more", remedy="a smaller --learning-rate")
        return blocks

    def _numbers(self) -> list[int]:
        """Return which objects the next step sees: every epoch all of them, in an order of its own."""
        epoch, step = divmod(self.step, self.steps_per_epoch)
        order = torch.randperm(len(self._objects), generator=seeded(self.settings.seed, epoch, -1)).tolist()
        size = self.settings.batch_size
        return order[step * size : (step + 1) * size]

    def _read(self, objects: Sequence[Rendered]) -> Examples | None:
        """Return the objects that can be read, None where none can; say once of each that it cannot."""
        found = []
        for rendered in objects:
            try:
                found.append(read_example(rendered, self._focal))
            except InputError as error:
                if (name := str(rendered.cameras)) not in self._left_out:
                    self._left_out.add(name)
                    self._executor.events.error("left_out_of_training", error=str(error))
        return Examples.joined(found) if found else None

    def _is_time_to_look(self) -> bool:
        return self.step % (self.settings.validate_every or self.steps_per_epoch) == 0

    def _look(self) -> None:
        """Close a stretch of training: its losses, the validation, the best weights so far."""
        chamfer, f1 = self._validate()
        self.curve.steps.append(self.step)
        for name, total in zip(TERMS, (self._totals / self._counted).tolist(), strict=True):
            self.curve.terms[name].append(total)
        self.curve.chamfer.append(chamfer)
        self.curve.f1.append(f1)
        if self.curve.best == len(self.curve.chamfer) - 1:
            self._best = self._weights()
        self._totals.zero_()
        self._counted = 0

    @torch.no_grad()
    def _validate(self) -> tuple[float, float]:
        """Return the mean Chamfer distance and F-score of the objects that watch."""
        scores = []
        for rendered in self._watching:
            examples = self._read([rendered])
            if examples is None:
                continue
            here = examples.to(self._device.torch_device)
            points = self._blocks(here.images, here.cameras)[-1][1][0]
            distances = compare(points.cpu().numpy(), examples.targets[0].points.numpy())
            scores.append((distances.chamfer, distances.f_score(TAU)))
        if not scores:
            raise _none_of("validated on")
        chamfer, f1 = (sum(values) / len(scores) for values in zip(*scores, strict=True))
        return chamfer, f1

    def _weights(self) -> dict[str, Tensor]:
        return {name: tensor.detach().cpu().clone() for name, tensor in self._stage.network.state_dict().items()}

    def _identity(self) -> str:
        """Return what decides how training goes; a later end only lets it go further."""
        return identity_of(
            self._stage.name,
            self._stage.template.digest,
            self._start,
            self._focal,
            self.settings.model_dump(mode="json", exclude={"epochs", "steps", "time_budget"}),
            [[str(path) for path in rendered.views] for rendered in (*self._objects, *self._watching)],
            len(self._objects),
        )

    def _state(self) -> dict[str, object]:
        return {
            "network": self._stage.network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "curve": asdict(self.curve),
            "totals": self._totals,
            "counted": self._counted,
            "best": self._best,
        }

    def _restore(self, kept: Checkpoint) -> None:
        state = kept.load()
        if state is None:
            return
        self._stage.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.curve = Curve(**state["curve"])
        self._totals, self._counted, self._best = state["totals"], state["counted"], state["best"]


def _none_of(purpose: str) -> InputError:
    return InputError(
        f"none of the objects that were drawn can be {purpose}", expected="what the messages above ask for"
    )
