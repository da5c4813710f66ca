"""Training: no waiting for the device, resumed bit for bit, within its time, and it denoises."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from safelight.core.device import Device
from safelight.core.errors import InputError
from safelight.core.events import EventLog
from safelight.core.execute import Executor
from safelight.core.memory import VirtualDevice
from safelight.core.plan import Corrections
from safelight.pipelines.denoise.footprint import plan_step
from safelight.pipelines.denoise.frames import ArrayImage, Frames
from safelight.pipelines.denoise.masking import Masker, MaskingSettings
from safelight.pipelines.denoise.network import Architecture
from safelight.pipelines.denoise.prediction import Predictor
from safelight.pipelines.denoise.schedule import default_steps, learning_rate_at
from safelight.pipelines.denoise.structure import line
from safelight.pipelines.denoise.training import Epoch, Training, TrainingSettings

CPU = Device(torch.device("cpu"))
SMALL = Architecture(features=4, depth=1)
SHORT: dict[str, Any] = {"steps": 6, "epoch_steps": 2, "batch_size": 4, "patch_size": 16, "validation_patches": 4}

Start = Callable[..., Training]


def noisy(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(100, 20, shape).astype(np.float32)


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Return what starts a small training; keywords are settings, or replace the image, masking or executor."""

    def start(
        image: np.ndarray | None = None,
        architecture: Architecture = SMALL,
        masking: MaskingSettings | None = None,
        executor: Executor | None = None,
        **settings: Any,
    ) -> Training:
        image = noisy(40, 48) if image is None else image
        frames = Frames(ArrayImage(image, "CZYX"[-image.ndim :]), architecture.dims)
        executor = executor or Executor(CPU, EventLog(), corrections=Corrections(tmp_path / "corrections"))
        chosen = TrainingSettings(**(SHORT | settings))
        return Training([frames], architecture, masking or MaskingSettings(percent=1), chosen, CPU, executor)

    return start


class CountDispatches(TorchDispatchMode):
    """Counts operations."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "masking",
    [
        MaskingSettings(percent=2),
        MaskingSettings(percent=2, replacement="mean"),
        MaskingSettings(percent=2, replacement="uniform", radius=5),
        MaskingSettings(percent=2, structure=line(2, "horizontal")),
    ],
    ids=["median", "mean", "uniform", "structural"],
)
@pytest.mark.parametrize("dims", [2, 3])
def test_a_step_waits_for_nothing(start: Start, masking: MaskingSettings, dims: int) -> None:
    # Fake tensors have no values: .item(), nonzero, boolean indexing or a tensor as an index raise.
    image = noisy(40, 48) if dims == 2 else noisy(16, 24, 24)
    patch = 16 if dims == 2 else 8
    training = start(image, Architecture(dims=dims, features=4, depth=1), masking, patch_size=patch)
    with FakeTensorMode(allow_non_fake_inputs=True):
        training.step()


def test_the_number_of_operations_depends_neither_on_the_batch_nor_on_the_blind_spots(start: Start) -> None:
    counts = set()
    for batch, percent in ((2, 0.5), (16, 0.5), (2, 12.0)):
        training = start(batch_size=batch, masking=MaskingSettings(percent=percent))
        with CountDispatches() as mode:
            training.draw(batch)
        drawing = mode.count
        with CountDispatches() as mode:
            training.step()
        counts.add((drawing, mode.count))
    assert len(counts) == 1
    assert drawing < 150


def test_the_losses_are_read_once_per_epoch(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    original = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: reads.append(tensor.shape) or original(tensor))
    monkeypatch.setattr(torch.Tensor, "item", lambda tensor: pytest.fail("a loss was read within an epoch"))
    start().run()
    assert reads == [torch.Size([2])] * 3


def test_augmentation_does_not_turn_noise_along_rows(start: Start) -> None:
    columns = np.tile(np.arange(48, dtype=np.float32), (40, 1))  # differs along X only

    def turned(masking: MaskingSettings) -> bool:
        visible = start(columns, masking=masking).draw(64).visible
        return bool(visible.diff(dim=-2).abs().flatten(1).median(1).values.any())

    assert turned(MaskingSettings(percent=1))
    assert not turned(MaskingSettings(percent=1, structure=line(2, "horizontal")))


def test_validation_patches_are_masked_once(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden: list[int] = []
    hide = Masker.hide
    monkeypatch.setattr(Masker, "hide", lambda masker, *drawn: hidden.append(1) or hide(masker, *drawn))
    trained = start().run()
    assert len(trained.losses.validation) == 3
    assert len(hidden) == 1 + 6, "once for validation, and once per step"


class KilledError(Exception):
    """Stands for a power cut."""


@pytest.mark.parametrize("in_ring", [False, True], ids=["whole frames", "ring of crops"])
def test_a_killed_training_ends_with_the_same_bits(
    start: Start, tmp_path: Path, in_ring: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = noisy(200, 260)
    if in_ring:
        monkeypatch.setattr("safelight.pipelines.denoise.footprint.DATA_SHARE", 1e-6)

    def training() -> Training:
        started = start(image)
        assert started.pool.whole is not in_ring
        return started

    def kill(epoch: Epoch) -> None:
        if epoch.step == 4:
            raise KilledError

    expected = training().run()
    checkpoint = tmp_path / "training.checkpoint"
    with pytest.raises(KilledError):
        training().run(checkpoint, kill)
    resumed = training().run(checkpoint)
    assert resumed.losses == expected.losses
    for ours, theirs in ((resumed.last, expected.last), (resumed.best, expected.best)):
        assert all(torch.equal(ours.weights[name], theirs.weights[name]) for name in theirs.weights)


def test_a_finished_training_is_not_done_again(start: Start, tmp_path: Path) -> None:
    checkpoint = tmp_path / "training.checkpoint"
    start().run(checkpoint)
    start().run(checkpoint, lambda epoch: pytest.fail("trained again"))


def test_a_checkpoint_of_other_settings_is_replaced_and_said(start: Start, tmp_path: Path) -> None:
    checkpoint = tmp_path / "training.checkpoint"
    start(learning_rate=0.5).run(checkpoint)
    events = EventLog()
    executor = Executor(CPU, events, corrections=Corrections(tmp_path / "corrections"))
    again = start(executor=executor).run(checkpoint)
    assert "checkpoint_replaced" in events.keys()
    assert torch.equal(again.last.weights["last.weight"], start().run().last.weights["last.weight"])


@pytest.mark.parametrize(
    "damage", [lambda whole: b"", lambda whole: b"garbage", lambda whole: whole[: len(whole) // 2]]
)
def test_a_damaged_checkpoint_is_named(start: Start, tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    checkpoint = tmp_path / "training.checkpoint"
    start().run(checkpoint)
    checkpoint.write_bytes(damage(checkpoint.read_bytes()))
    with pytest.raises(InputError, match="checkpoint is damaged") as caught:
        start().run(checkpoint)
    assert caught.value.path == checkpoint


def test_the_callers_random_state_is_left_alone(start: Start) -> None:
    torch.manual_seed(7)
    np.random.seed(7)
    random.seed(7)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    start().run()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]
    assert random.getstate() == before[2]


def test_the_seed_decides(start: Start) -> None:
    torch.manual_seed(1)
    first = start().run().last.weights["last.weight"]
    torch.manual_seed(2)
    assert torch.equal(start().run().last.weights["last.weight"], first)
    assert not torch.equal(start(seed=1).run().last.weights["last.weight"], first)


def test_a_time_budget_runs_through_the_whole_schedule(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    # A clock that ticks a second per look: twenty seconds are some steps, however fast the machine is.
    ticks = iter(range(10_000))
    monkeypatch.setattr("safelight.pipelines.denoise.training.time.monotonic", lambda: float(next(ticks)))
    training = start(steps=None, time_budget=20.0)
    shares: list[float] = []
    training.run(None, lambda epoch: shares.append(epoch.share))
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert 3 <= training.step_number <= 20


def test_the_learning_rate_rises_then_falls_to_nearly_nothing() -> None:
    rates = [learning_rate_at(share / 100, 1.0) for share in range(101)]
    top = rates.index(max(rates))
    assert max(rates) == pytest.approx(1.0)
    assert rates[:top] == sorted(rates[:top])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[0] < 0.1
    assert rates[-1] == pytest.approx(1e-3)


def test_defaults_train_long_enough() -> None:
    # An earlier port trained for 80 to 640 steps.
    one = Frames(ArrayImage(np.zeros((512, 512)), "YX"), 2)
    stack = Frames(ArrayImage(np.zeros((100, 512, 512), np.uint8), "TYX"), 2)
    assert default_steps([one]) >= 2000
    assert default_steps([stack]) > default_steps([one])


def test_running_out_of_memory_trains_on_in_smaller_parts(start: Start, tmp_path: Path) -> None:
    events = EventLog()
    executor = Executor(
        CPU, events, virtual=VirtualDevice(fail_at=[40]), corrections=Corrections(tmp_path / "corrections")
    )
    training = start(executor=executor)
    trained = training.run()
    assert [event.data["size"] for event in events if event.key == "micro_batch"] == [2]
    assert training.at_once == 2
    assert training.peak_bytes is None, "that of the parts that did not fit would mislead the next plan"
    assert trained.losses.steps == [2, 4, 6]
    assert np.isfinite(trained.losses.training).all()


def limited(tmp_path: Path, patches: int) -> Executor:
    """Return an executor with memory for a few patches of the small training."""
    corrections = Corrections(tmp_path / "corrections")
    settings = SHORT["batch_size"], Executor(CPU, EventLog(), corrections=corrections)
    cost = plan_step(SMALL, MaskingSettings(percent=1), (16, 16), *settings, data_bytes=4 * 40 * 48).cost
    return Executor(CPU, EventLog(), memory_limit=cost.bytes(patches), corrections=corrections)


def test_a_memory_limit_trains_in_parts_from_the_first_step(start: Start, tmp_path: Path) -> None:
    executor = limited(tmp_path, 2)
    training = start(executor=executor)
    shapes: list[int] = []
    training._forward.register_forward_hook(lambda network, inputs, output: shapes.append(len(inputs[0])))
    training.run()
    assert shapes == [2] * 12
    (event,) = [event for event in executor.events if event.key == "training_in_parts"]
    assert event.data == {"size": 2, "batch": 4}
    assert training.at_once == training.plan.rows
    assert training.plan.predicted_bytes <= executor.budget.bytes


def test_a_resumed_training_keeps_its_parts(start: Start, tmp_path: Path) -> None:
    checkpoint = tmp_path / "training.checkpoint"

    def kill(epoch: Epoch) -> None:
        raise KilledError

    expected = start(executor=limited(tmp_path, 2)).run()
    with pytest.raises(KilledError):
        start(executor=limited(tmp_path, 2)).run(checkpoint, kill)
    resumed = start().run(checkpoint)
    assert torch.equal(resumed.last.weights["last.weight"], expected.last.weights["last.weight"])


def test_the_model_stores_the_data_s_normalisation(start: Start) -> None:
    image = np.stack((noisy(32, 40), 5 * noisy(32, 40)))
    stack = image[:, None].repeat(2, 1)  # CZYX, planes one by one
    model = start(stack, Architecture(channels=2, features=4, depth=1)).run().last
    np.testing.assert_allclose(model.normalisation.mean, image.mean((1, 2)), rtol=1e-6)
    np.testing.assert_allclose(model.normalisation.std, image.std((1, 2)), rtol=1e-5)


def test_constant_images_are_refused(start: Start) -> None:
    with pytest.raises(InputError, match="constant"):
        start(np.full((40, 40), 7.0, np.float32))


def test_images_smaller_than_a_patch_are_refused_with_the_size_that_would_do(start: Start) -> None:
    with pytest.raises(InputError, match=r"10×40 pixels is smaller.*at least 16 pixels"):
        start(noisy(10, 40))
    assert start(noisy(31, 57, 61), Architecture(dims=3, features=2), patch_size=None).patch == (16, 32, 32)
    assert start(noisy(50, 90), patch_size=None).patch == (50, 64)


def test_gaps_are_said_and_do_no_harm(start: Start) -> None:
    image = noisy(40, 48)
    image[3, 5] = np.nan
    training = start(image)
    assert int(training.pool.values.isnan().sum()) == 1
    trained = training.run()
    assert trained.has_gaps
    assert np.isfinite(trained.losses.training).all()
    assert min(trained.losses.training) > 0.1  # a loss of 0 would be that of nothing left to learn from


def test_training_denoises(start: Start) -> None:
    y, x = np.mgrid[:96, :96] / 8
    clean = (100 + 40 * np.sin(y) * np.cos(x)).astype(np.float32)
    image = clean + np.random.default_rng(1).normal(0, 20, clean.shape).astype(np.float32)
    training = start(
        image,
        Architecture(features=8, depth=2),
        steps=150,
        epoch_steps=50,
        batch_size=8,
        patch_size=32,
        learning_rate=3e-3,
    )
    model = training.run().last
    denoised = Predictor(model).eval()(torch.from_numpy(image)[None, None])[0, 0].detach().numpy()
    error, before = np.mean((denoised - clean) ** 2), np.mean((image - clean) ** 2)
    assert error < before / 4
