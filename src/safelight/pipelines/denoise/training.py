"""Training on the noisy images themselves: nothing in a step waits for the device."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from safelight.core.allocator import release_freed_memory
from safelight.core.checkpoint import Checkpoint, identity_of
from safelight.core.device import Device
from safelight.core.errors import InputError
from safelight.core.events import Value
from safelight.core.execute import Executor
from safelight.core.options import Seconds, Settings
from safelight.core.peak import PeakMemory
from safelight.pipelines.denoise.footprint import check_fits, data_limit, plan_step
from safelight.pipelines.denoise.frames import Frames
from safelight.pipelines.denoise.masking import BlindSpots, Masker, MaskingSettings
from safelight.pipelines.denoise.model import DenoiseModel, Normalisation
from safelight.pipelines.denoise.network import Architecture, UNet
from safelight.pipelines.denoise.sampling import PatchSampler, Pool, Symmetries, pool_bytes, whole_bytes
from safelight.pipelines.denoise.schedule import default_steps, learning_rate_at


class TrainingSettings(Settings):
    """How long and how fast a network is trained."""

    steps: int | None = Field(None, ge=1, description="Training steps; by the data's size if not given.")
    time_budget: Seconds | None = Field(None, gt=0, description="Seconds to train; the schedule adapts to it.")
    batch_size: int = Field(16, ge=1, description="Patches per step.")
    patch_size: int | None = Field(None, ge=8, description="Side of a patch; 64 for images, 32 for volumes.")
    learning_rate: float = Field(1e-3, gt=0, le=1, description="Highest learning rate.")
    average: float = Field(
        0.99, ge=0, lt=1, description="What the average of the weights, which is the model, keeps of itself per step."
    )
    augment: bool = Field(True, description="Flip and rotate patches, eight orientations.")
    validation_patches: int = Field(32, ge=1, description="Patches that watch the training, masked once.")
    epoch_steps: int = Field(50, ge=1, description="Steps between two looks at the losses.")
    seed: int = Field(0, ge=0, description="Seed of every random draw.")


@dataclass
class Losses:
    """The losses of each epoch, and the step at which it ended."""

    steps: list[int] = field(default_factory=list)
    training: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Epoch:
    """How far training is, told after every epoch.

    Parameters
    ----------
    step : int
    share : float
        Of the whole training, 0 to 1.
    seconds : float
        Spent so far, those before an interruption included.
    losses : Losses
    preview : callable
        Returns the model as it is now.
    """

    step: int
    share: float
    seconds: float
    losses: Losses
    preview: Callable[[], DenoiseModel]


@dataclass(frozen=True)
class Trained:
    """The models of the last step and of the lowest validation loss, and how training went."""

    last: DenoiseModel
    best: DenoiseModel
    losses: Losses
    has_gaps: bool


def patch_shape(images: Sequence[Frames], architecture: Architecture, wanted: int | None) -> tuple[int, ...]:
    """Return the size of the training patches: as wanted, or as large as the images allow.

    Raises
    ------
    InputError
        An image is too small to train on, or smaller than the patches that were asked for.
    """
    smallest = [min(sizes) for sizes in zip(*(image.spatial for image in images), strict=True)]
    unit = architecture.alignment
    default = (64, 64) if architecture.dims == 2 else (16, 32, 32)
    sides = (wanted,) * architecture.dims if wanted else default
    patch = tuple(min(side, most) // unit * unit for side, most in zip(sides, smallest, strict=True))
    least = 2 * unit
    if min(patch) < least or (wanted and min(smallest) < wanted):
        raise InputError(
            f"an image of {'×'.join(map(str, smallest))} pixels is smaller than a training patch",
            expected=f"at least {max(wanted or 0, least)} pixels along every axis",
            remedy="a smaller --patch-size, a smaller --depth, or --dimensions 2",
        )
    return patch


class Training:
    """One network being trained on a pool of noisy images.

    Parameters
    ----------
    images : sequence of Frames
        With equal numbers of channels.
    architecture : Architecture
    masking : MaskingSettings
    settings : TrainingSettings
    device : Device
    executor : Executor
        Does each step in as many parts as memory needs.
    data : str
        Digest of the images: a checkpoint of others is not continued.

    Attributes
    ----------
    plan : Plan
        Of a step's memory, the data included.
    at_once : int
        Patches of a micro-batch: as many as the plan allows, fewer after memory ran out.
    peak_bytes : int or None
        What the training took at most, known when it has run; None where it cannot be told.

    Raises
    ------
    InputError
        The images are constant, empty of finite values, or smaller than a patch.
    OutOfMemoryError
        Not even one patch at a time fits.
    """

    def __init__(
        self,
        images: Sequence[Frames],
        architecture: Architecture,
        masking: MaskingSettings,
        settings: TrainingSettings,
        device: Device,
        executor: Executor,
        data: str = "",
    ) -> None:
        self.first_image = images[0]
        self._data = data
        self.architecture, self.masking, self.settings = architecture, masking, settings
        self.patch = patch_shape(images, architecture, settings.patch_size)
        self.steps = settings.steps or (None if settings.time_budget else default_steps(images))
        self.losses = Losses()
        self.step_number = 0
        self.seconds = 0.0
        self._started = 0.0
        self._device, self._executor = device, executor
        where = device.torch_device
        most_data = data_limit(executor)
        held = pool_bytes(images, most_data)
        self.plan = plan_step(architecture, masking, self.patch, settings.batch_size, executor, held)
        check_fits(self.plan, held, whole_bytes(images))
        self.at_once = self.plan.rows
        release_freed_memory()  # else what an earlier job of this process has left would count as nothing taken
        self._peak = PeakMemory(device)
        self.peak_bytes: int | None = None
        crop = tuple(4 * side for side in self.patch)
        self.pool = Pool(images, where, most_data, crop, settings.seed)
        if len(self.pool.moments.constant()) == self.pool.channels:
            raise InputError(
                "the images are constant or have no finite value: there is no noise to learn",
                expected="images with noise",
            )
        self.normalisation: Normalisation = self.pool.moments.normalisation()
        self.pool.normalise(self.normalisation)
        symmetries = Symmetries.of(masking.structure) if settings.augment else Symmetries(False, False, False)
        self._sampler = PatchSampler(self.pool, self.patch, symmetries)
        self._masker = Masker(masking, self.patch, where)
        self._generator = torch.Generator(where).manual_seed(settings.seed)
        self._network = self._new_network()
        self._forward = device.compile(self._network)
        self._averaged = self._new_network().eval()
        self._tensors = _floating(self._network)
        self._averages = _floating(self._averaged)
        parameters = list(self._network.parameters())
        self._optimizer = torch.optim.Adam(
            parameters, settings.learning_rate, betas=(0.9, 0.99), fused=device.kind in ("cpu", "cuda")
        )
        self._total = torch.zeros((), device=where)
        self._validation = self._draw_validation()
        self._best_loss = math.inf
        self._best = self._weights()

    @property
    def share(self) -> float:
        """How much of the training is done, 0 to 1."""
        by_steps = self.step_number / self.steps if self.steps else 0.0
        budget = self.settings.time_budget
        return min(max(by_steps, self.seconds / budget if budget else 0.0), 1.0)

    def run(self, checkpoint: Path | None = None, on_epoch: Callable[[Epoch], None] | None = None) -> Trained:
        """Train to the end, or from the checkpoint to the end.

        Parameters
        ----------
        checkpoint : Path, optional
            Written whole after an epoch, as often as takes no noticeable time, and at the end; one of the same
            training is continued, bit for bit on the CPU.
        on_epoch : callable, optional
            Called after every epoch.
        """
        kept = Checkpoint(checkpoint, self._identity(), self._executor.events)
        self._restore(kept)
        if self.at_once < self.settings.batch_size:
            self._executor.events.info("training_in_parts", size=self.at_once, batch=self.settings.batch_size)
        self._started = time.monotonic() - self.seconds
        first, parts = self.step_number, self.at_once
        while self.share < 1:
            steps = self._run_epoch()
            self._look(steps)
            self.pool.refresh(crops=4)
            self.seconds = time.monotonic() - self._started
            if self.share >= 1 or kept.is_due():
                kept.save(self._state())
            if on_epoch is not None:
                on_epoch(Epoch(self.step_number, self.share, self.seconds, self.losses, self.model))
        if self.step_number > first and self.at_once == parts:  # else it is that of parts that did not fit
            self.peak_bytes = self._peak.bytes()
        release_freed_memory()
        return Trained(self.model(), self._model_of(self._best), self.losses, self.pool.has_gaps)

    def step(self) -> None:
        """Do one step: draw, hide, predict, compare, improve, average. Waits for nothing."""
        spots = self.draw(self.settings.batch_size)
        self._optimizer.zero_grad(set_to_none=True)
        hidden = spots.weights.sum().clamp(min=1)

        def loss_of(start: int, stop: int) -> Tensor:
            return spots.loss_sum(self._predict(self._forward, spots.visible[start:stop]), start, stop) / hidden

        loss, self.at_once = self._executor.step(
            loss_of, self.settings.batch_size, self._optimizer.zero_grad, self.at_once
        )
        self._total += loss
        self._optimizer.step()
        self.step_number += 1
        self._average()

    def model(self) -> DenoiseModel:
        """Return the model as it is now."""
        return self._model_of(self._weights())

    def _new_network(self) -> UNet:
        # The network's own random state: the caller's is neither used nor changed.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.settings.seed)
            network = UNet(self.architecture)
        layout = torch.channels_last if self.architecture.dims == 2 else torch.channels_last_3d
        network.to(memory_format=layout)  # type: ignore[call-overload]  # torch's stubs lack it
        return network.to(self._device.torch_device).train()

    def _average(self) -> None:
        """Let the averaged network follow the trained one: quickly at first, later like an average of many steps.

        Its error is below that of any single step, long before the learning rate has come down (Polyak averaging).
        """
        kept = min(self.settings.average, self.step_number / (self.step_number + 9))
        get_ema_multi_avg_fn(kept)(self._averages, self._tensors, None)  # type: ignore[no-untyped-call]

    def draw(self, batch: int) -> BlindSpots:
        """Draw patches and hide pixels of them."""
        patches = self._sampler.gather(*self._sampler.draw(batch, self._generator))
        draws = self._masker.draw(batch, self.pool.channels, self._generator)
        return self._masker.hide(patches, draws)

    def _draw_validation(self) -> BlindSpots:
        """Draw the patches that watch the training; hide their pixels once, a batch at a time, as steps do."""
        count, size = self.settings.validation_patches, self.settings.batch_size
        patches = self._sampler.gather(*self._sampler.draw(count, self._generator))
        draws = self._masker.draw(count, self.pool.channels, self._generator)
        parts = [slice(start, start + size) for start in range(0, count, size)]
        return BlindSpots.joined([self._masker.hide(patches[part], draws.part(part)) for part in parts])

    def _predict(self, network: Callable[[Tensor], Tensor], visible: Tensor) -> Tensor:
        with self._device.autocast():
            prediction: Tensor = network(visible)
        return prediction

    def _run_epoch(self) -> int:
        """Do the steps of one epoch; return how many."""
        first = self.step_number
        self._total.zero_()
        while self.step_number - first < self.settings.epoch_steps and self.share < 1:
            rate = learning_rate_at(self.share, self.settings.learning_rate)
            for group in self._optimizer.param_groups:
                group["lr"] = rate
            self.step()
            if self.settings.time_budget:
                self.seconds = time.monotonic() - self._started
        return self.step_number - first

    def _look(self, steps: int) -> None:
        """Read the losses: the only time per epoch that waits for the device."""
        with torch.no_grad():
            total = torch.zeros((), device=self._device.torch_device)
            for start in range(0, self.settings.validation_patches, self.at_once):
                part = slice(start, start + self.at_once)
                prediction = self._predict(self._averaged, self._validation.visible[part])
                total += self._validation.loss_sum(prediction, start, part.stop)
        both = torch.stack((self._total / steps, total / self._validation.weights.sum()))
        training, validation = both.tolist()
        self.losses.steps.append(self.step_number)
        self.losses.training.append(training)
        self.losses.validation.append(validation)
        if validation < self._best_loss:
            self._best_loss, self._best = validation, self._weights()

    def _weights(self) -> dict[str, Tensor]:
        return {name: tensor.detach().cpu().clone() for name, tensor in self._averaged.state_dict().items()}

    def _model_of(self, weights: dict[str, Tensor]) -> DenoiseModel:
        facts: dict[str, Value] = {
            "steps": self.step_number,
            "seconds": round(self.seconds, 1),
            "patch": list(self.patch),
            "settings": self.settings.model_dump(mode="json"),
            "masking": self.masking.model_dump(mode="json"),
            "final_training_loss": self.losses.training[-1] if self.losses.training else None,
            "final_validation_loss": self.losses.validation[-1] if self.losses.validation else None,
        }
        return DenoiseModel(
            self.architecture,
            self.normalisation,
            weights,
            "CZYX"[-1 - self.architecture.dims :] if self.pool.channels > 1 else "ZYX"[-self.architecture.dims :],
            self.masking.structure,
            facts,
        )

    def _identity(self) -> str:
        """Return the digest of everything that decides how the training goes."""
        return identity_of(
            self.architecture.model_dump(mode="json"),
            self.masking.model_dump(mode="json"),
            self.settings.model_dump(mode="json"),
            asdict(self.normalisation),
            self.steps,
            list(self.patch),
            self._data,
        )

    def _state(self) -> dict[str, object]:
        return {
            "network": self._network.state_dict(),
            "averaged": self._averaged.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "generator": self._generator.get_state(),
            "pool": self.pool.state(),
            "step": self.step_number,
            "at_once": self.at_once,
            "seconds": self.seconds,
            "losses": asdict(self.losses),
            "best": self._best,
            "best_loss": self._best_loss,
        }

    def _restore(self, kept: Checkpoint) -> None:
        state = kept.load()
        if state is None:
            return
        self._network.load_state_dict(state["network"])
        self._averaged.load_state_dict(state["averaged"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._generator.set_state(state["generator"])
        self.pool.restore(state["pool"])
        self.at_once = min(self.at_once, state["at_once"])  # batch normalisation would see other parts
        self.step_number, self.seconds = state["step"], state["seconds"]
        self.losses = Losses(**state["losses"])
        self._best, self._best_loss = state["best"], state["best_loss"]


def _floating(network: UNet) -> list[Tensor]:
    """Return the weights and the running statistics, not the counters, as they are in the network."""
    return [tensor for tensor in network.state_dict().values() if tensor.is_floating_point()]
