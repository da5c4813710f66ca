"""Training as published: L1, Adam, a rate that is halved every five epochs; resumes exactly where it was stopped."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor, nn

from safelight.core.checkpoint import Checkpoint, digest_of, identity_of, seeded
from safelight.core.device import Device
from safelight.core.errors import InputError, UsageError
from safelight.core.execute import Executor
from safelight.core.options import Settings
from safelight.kernels.metrics import psnr
from safelight.pipelines.decloud.footprint import plan_step
from safelight.pipelines.decloud.model import CloudModel
from safelight.pipelines.decloud.network import GLFCR, Architecture
from safelight.pipelines.decloud.patches import Patch, middle, read_patch
from safelight.pipelines.decloud.team import ALONE, Team
from safelight.pipelines.decloud.triplets import Triplet

_EPOCHS_AT_FIRST_RATE, _EPOCHS_PER_HALVING = 1, 5
_ORIENTATIONS = 8


class TrainingSettings(Settings):
    """How a network is trained."""

    epochs: int = Field(30, ge=1, description="Passes over the training images.")
    batch_size: int = Field(1, ge=1, description="Images per step.")
    crop_size: int = Field(128, ge=16, multiple_of=16, description="Side of the part of an image that a step sees.")
    learning_rate: float = Field(1e-4, gt=0, description="Rate of the first epochs.")
    clip_gradient: float | None = Field(None, gt=0, description="Largest norm of a step's gradient.")
    augment: bool = Field(False, description="Flip and rotate.")
    seed: int = Field(0, ge=0, description="Seed of every random draw.")


@dataclass
class Curve:
    """How training went, one value per epoch; validation is empty where there are no images for it."""

    rate: list[float] = field(default_factory=list)
    training_loss: list[float] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)
    validation_psnr: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Trained:
    """The network after the last epoch, the best by validation (the last without any), and how training went."""

    last: CloudModel
    best: CloudModel
    curve: Curve


@dataclass(frozen=True)
class Batch:
    """Crops for one step, on the device: cloudy, clear (B, 13, Y, X), sar (B, 2, Y, X), kept (layers, 4, B)."""

    cloudy: Tensor
    clear: Tensor
    sar: Tensor
    kept: Tensor


def rate_at(epoch: int, first: float) -> float:
    """Return the learning rate of an epoch, counted from 0: halved at the 6th, 11th, 16th and so on."""
    halvings = max(epoch - _EPOCHS_AT_FIRST_RATE, 0) // _EPOCHS_PER_HALVING
    return math.ldexp(first, -halvings)


class Training:
    """A network being trained.

    Every random draw depends on the seed, the epoch and the step only: a training that was stopped goes on as if it
    had not been, and memory that runs short changes nothing but the time.

    Parameters
    ----------
    start : CloudModel
        The weights to begin with.
    training, validation : sequence of Triplet
    settings : TrainingSettings
    device : Device
    executor : Executor
        Does each step in as many parts as memory needs.
    team : Team
        The processes that share the images of every step; the result does not depend on how many they are.

    Attributes
    ----------
    plan : Plan
        Of a step's memory; its rows are the images that are done at once.
    """

    def __init__(
        self,
        start: CloudModel,
        training: Sequence[Triplet],
        validation: Sequence[Triplet],
        settings: TrainingSettings,
        device: Device,
        executor: Executor,
        team: Team = ALONE,
    ) -> None:
        self.settings, self.curve = settings, Curve()
        self._training, self._validation = list(training), list(validation)
        self._device, self._executor, self._team = device, executor, team
        self._network: GLFCR = copy.deepcopy(start.network()).to(device.torch_device)  # the start stays as it is
        self._forward = device.compile(self._network)
        self._trained = [parameter for parameter in self._network.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.Adam(self._trained, settings.learning_rate)
        self._start = start
        share = len(team.share(range(settings.batch_size)))
        self.plan = plan_step(start.architecture, share, settings.crop_size, executor)
        self._at_once = self.plan.rows
        self._epoch, self._step = 0, 0
        self._total, self._images = 0.0, 0
        self._best_psnr = -math.inf
        self._best: dict[str, Tensor] | None = None
        self._left_out: dict[str, str] = {}

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which every image is seen once."""
        return -(-len(self._training) // self.settings.batch_size)

    def run(
        self,
        checkpoint: Path | None = None,
        on_epoch: Callable[[int, Curve], None] = lambda *_: None,
        on_step: Callable[[int], None] = lambda _: None,
    ) -> Trained:
        """Train to the end, from the checkpoint if there is one.

        Parameters
        ----------
        checkpoint : Path, optional
            Written after every epoch, and within one now and then.
        on_epoch : callable
            ``(epochs done, curve)``.
        on_step : callable
            ``(steps done in all)``.

        Raises
        ------
        InputError
            The checkpoint is damaged, or no training image can be read.
        UsageError
            The loss is no number any more.
        OutOfMemoryError
            Not even one image fits.
        """
        kept = Checkpoint(checkpoint, self._identity(), self._executor.events)
        self._restore(kept)
        while self._epoch < self.settings.epochs:
            order = torch.randperm(len(self._training), generator=self._generator()).tolist()
            while self._step < self.steps_per_epoch:
                first = self._step * self.settings.batch_size
                self._do_step([self._training[n] for n in order[first : first + self.settings.batch_size]])
                self._step += 1
                on_step(self._epoch * self.steps_per_epoch + self._step)
                if self._team.rank == 0 and kept.is_due():
                    kept.save(self._state())
            self._end_epoch()
            if self._team.rank == 0:
                kept.save(self._state())
            on_epoch(self._epoch, self.curve)
        last = self._weights()
        return Trained(self._model(last), self._model(self._best or last), self.curve)

    def _do_step(self, triplets: Sequence[Triplet]) -> None:
        batch = self._draw(triplets)
        share = 0 if batch is None else len(batch.clear)
        images = sum(self._team.gather(share))
        if not images:
            return
        for group in self._optimizer.param_groups:
            group["lr"] = rate_at(self._epoch, self.settings.learning_rate)
        self._network.train()
        self._optimizer.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=self._device.torch_device)
        if batch is not None:
            loss = self._backward(batch, images)
        self._team.add_up([loss, *self._gradients()])
        if self.settings.clip_gradient is not None:
            nn.utils.clip_grad_norm_(self._trained, self.settings.clip_gradient)
        self._optimizer.step()
        self._total += loss.item() * images
        self._images += images

    def _backward(self, batch: Batch, images: int) -> Tensor:
        """Do the backward pass of a share of a step of so many images, and return what it adds to the loss."""

        def loss_of(start: int, stop: int) -> Tensor:
            with self._device.autocast():
                clear = self._forward(batch.cloudy[start:stop], batch.sar[start:stop], batch.kept[:, :, start:stop])
            difference: Tensor = clear.float() - batch.clear[start:stop]
            return difference.abs().sum() / (images * batch.clear[0].numel())

        size = len(batch.clear)
        loss, self._at_once = self._executor.step(loss_of, size, self._optimizer.zero_grad, min(self._at_once, size))
        return loss

    def _gradients(self) -> list[Tensor]:
        """Return the gradient of every trained weight; zero where none of this process's images could be read."""
        for parameter in self._trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return [parameter.grad for parameter in self._trained if parameter.grad is not None]

    def _draw(self, triplets: Sequence[Triplet]) -> Batch | None:
        """Return crops of this process's images that can be read, at random places; None where none can."""
        generator = self._generator(self._step)
        kept = self._network.draw_kept(len(triplets), generator)
        draws = torch.rand((len(triplets), 3), generator=generator).tolist()
        drawn = []
        for number in self._team.share(range(len(triplets))):
            patch = self._read(triplets[number])
            if patch is not None:
                drawn.append((number, self._crop(patch, draws[number])))
        if not drawn:
            return None
        where = self._device.torch_device
        cloudy, clear, sar = (
            torch.stack(images).to(where) for images in zip(*(crop for _, crop in drawn), strict=True)
        )
        return Batch(cloudy, clear, sar, kept[:, :, [number for number, _ in drawn]].to(where))

    def _crop(self, patch: Patch, draws: Sequence[float]) -> list[Tensor]:
        """Return cloudy, clear and sar at one random place, in one random orientation if that is wanted."""
        side = self.settings.crop_size
        top, left = (int(draw * (size - side + 1)) for draw, size in zip(draws, patch.size, strict=False))
        images = [image[:, top : top + side, left : left + side] for image in (patch.cloudy, patch.clear, patch.sar)]
        if not self.settings.augment:
            return images
        flip, turns = divmod(int(draws[2] * _ORIENTATIONS), _ORIENTATIONS // 2)
        return [image.rot90(turns, (1, 2)).flip(2) if flip else image.rot90(turns, (1, 2)) for image in images]

    def _read(self, triplet: Triplet) -> Patch | None:
        """Return a triplet, or say once that it cannot be read."""
        try:
            return read_patch(triplet, self.settings.crop_size)
        except InputError as error:
            self._leave_out(triplet.name, str(error))
            return None

    def _leave_out(self, name: str, error: str) -> None:
        if name not in self._left_out:
            self._left_out[name] = error
            self._executor.events.error("left_out_of_training", error=error)

    def _end_epoch(self) -> None:
        """Close the epoch: its losses, the validation, the best weights so far."""
        scores = self._validate()
        for found in self._team.gather(self._left_out):
            for name, error in found.items():
                self._leave_out(name, error)
        if not self._images:
            raise InputError("no training image can be read", expected="triplets as the messages above ask for")
        loss = self._total / self._images
        if not math.isfinite(loss):
            raise UsageError("the loss is no number any more", remedy="a smaller --learning-rate, or --clip-gradient 1")
        self.curve.rate.append(rate_at(self._epoch, self.settings.learning_rate))
        self.curve.training_loss.append(loss)
        if scores is not None:
            self.curve.validation_loss.append(scores[0])
            self.curve.validation_psnr.append(scores[1])
            if scores[1] > self._best_psnr:
                self._best_psnr, self._best = scores[1], self._weights()
        self._epoch, self._step, self._total, self._images = self._epoch + 1, 0, 0.0, 0

    @torch.no_grad()
    def _validate(self) -> tuple[float, float] | None:
        """Return the mean L1 and PSNR of the validation images' middles."""
        self._network.eval()
        total = torch.zeros(3, dtype=torch.float64, device=self._device.torch_device)
        for triplet in self._team.share(self._validation):
            patch = self._read(triplet)
            if patch is None:
                continue
            cloudy, clear, sar = (
                middle(image, self.settings.crop_size)[None].to(self._device.torch_device)
                for image in (patch.cloudy, patch.clear, patch.sar)
            )
            with self._device.autocast():
                result = self._network(cloudy, sar).float()
            loss = (result - clear).abs().mean()
            total += torch.stack((loss, psnr(result, clear, 1.0), torch.ones_like(loss)))
        self._team.add_up([total])
        loss_sum, decibel_sum, images = total.tolist()
        return (loss_sum / images, decibel_sum / images) if images else None

    def _generator(self, step: int = -1) -> torch.Generator:
        """Return the source of an epoch's order, or of a step's draws."""
        return seeded(self.settings.seed, self._epoch, step)

    def _weights(self) -> dict[str, Tensor]:
        return {name: tensor.detach().cpu().clone() for name, tensor in self._network.state_dict().items()}

    def _model(self, weights: dict[str, Tensor]) -> CloudModel:
        facts = {"settings": self.settings.model_dump(mode="json"), "curve": asdict(self.curve)}
        return CloudModel(self._start.architecture, weights, facts)

    def _identity(self) -> str:
        """Return the digest of what decides how training goes; more epochs only let it go further."""
        return identity_of(
            self._start.architecture.model_dump(mode="json"),
            self.settings.model_dump(mode="json", exclude={"epochs"}),
            [triplet.name for triplet in self._training],
            [triplet.name for triplet in self._validation],
            digest_of(self._start.weights),
        )

    def _state(self) -> dict[str, object]:
        return {
            "network": self._network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "epoch": self._epoch,
            "step": self._step,
            "total": self._total,
            "images": self._images,
            "curve": asdict(self.curve),
            "best": self._best,
            "best_psnr": self._best_psnr,
        }

    def _restore(self, kept: Checkpoint) -> None:
        state = kept.load()
        if state is None:
            return
        self._network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._epoch, self._step = state["epoch"], state["step"]
        self._total, self._images = state["total"], state["images"]
        self.curve = Curve(**state["curve"])
        self._best, self._best_psnr = state["best"], state["best_psnr"]


def start_model(architecture: Architecture, seed: int) -> CloudModel:
    """Return random weights that depend on the seed only; the caller's random state stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return CloudModel.untrained(architecture)
