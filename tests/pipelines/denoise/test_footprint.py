"""The memory of a training: planned before it begins, measured, and planned better the next time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from safelight.core.device import Device
from safelight.core.errors import OutOfMemoryError
from safelight.core.events import EventLog
from safelight.core.execute import Executor
from safelight.core.memory import Budget, Ledger
from safelight.core.peak import PeakMemory
from safelight.core.plan import Corrections, Plan
from safelight.pipelines.denoise.footprint import check_fits, data_limit, plan_step
from safelight.pipelines.denoise.frames import ArrayImage, Frames
from safelight.pipelines.denoise.masking import MaskingSettings
from safelight.pipelines.denoise.network import Architecture, UNet
from safelight.pipelines.denoise.sampling import pool_bytes, whole_bytes
from safelight.pipelines.denoise.training import Training, TrainingSettings

CPU = Device(torch.device("cpu"))
MIB = 2**20


def executor(folder: Path, budget: int = 2**34) -> Executor:
    return Executor(CPU, EventLog(), budget=Budget(budget, "free"), corrections=Corrections(folder))


@pytest.mark.parametrize(
    "architecture",
    [Architecture(), Architecture(residual=True, top_skip=True, blur_pool=False), Architecture(dims=3, features=8)],
    ids=["N2V2", "N2V", "3-D"],
)
def test_the_dry_run_takes_what_a_step_takes(tmp_path: Path, architecture: Architecture) -> None:
    shape = (64, 64) if architecture.dims == 2 else (16, 32, 32)
    image = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    settings = TrainingSettings(steps=2, batch_size=4, validation_patches=4)
    frames = Frames(ArrayImage(image, "ZYX"[-image.ndim :]), architecture.dims)
    training = Training([frames], architecture, MaskingSettings(), settings, CPU, executor(tmp_path))
    training.step()  # Adam's moments exist from here on
    with Ledger() as ledger:
        training.step()
    cost = training.plan.dry_run
    assert 0.95 < (cost.peak(4) - cost.constants) / ledger.peak < 1.05


def test_weights_their_copies_and_the_data_count(tmp_path: Path) -> None:
    architecture = Architecture(features=8)
    weights = sum(p.numel() * 4 for p in UNet(architecture).parameters())
    plans = [
        plan_step(architecture, MaskingSettings(), (32, 32), 4, executor(tmp_path), data_bytes)
        for data_bytes in (0, 100 * MIB)
    ]
    assert plans[1].predicted_bytes - plans[0].predicted_bytes == 100 * MIB
    assert plans[0].dry_run.constants > 5 * weights


def test_a_small_budget_plans_parts_of_the_batch(tmp_path: Path) -> None:
    plan = plan_step(Architecture(), MaskingSettings(), (64, 64), 16, executor(tmp_path, 100 * MIB))
    assert plan.fits
    assert 1 <= plan.rows < 16


def test_a_measurement_corrects_the_plans_of_its_kind_only(tmp_path: Path) -> None:
    def plan(batch: int) -> Plan:
        return plan_step(Architecture(features=8), MaskingSettings(), (32, 32), batch, executor(tmp_path))

    before, other = plan(4), plan(8)
    Corrections(tmp_path).put(before.kernel, torch.float32, before.cost.input_row, CPU, 1.25)
    kept = before.cost.constants
    dry_run = before.dry_run.bytes(4) - kept
    assert plan(4).predicted_bytes - kept == pytest.approx(1.25 * dry_run, rel=0.01)
    assert plan(8).predicted_bytes == other.predicted_bytes


@pytest.mark.parametrize("side", [16, 4000])
def test_a_limit_below_one_patch_is_refused_with_the_smallest_that_works(tmp_path: Path, side: int) -> None:
    frames = [Frames(ArrayImage(np.zeros((side, side), np.uint8), "YX"), 2)]

    def refuse(budget: int) -> None:
        runner = executor(tmp_path, budget)
        held = pool_bytes(frames, data_limit(runner))
        check_fits(plan_step(Architecture(), MaskingSettings(), (16, 16), 4, runner, held), held, whole_bytes(frames))

    with pytest.raises(OutOfMemoryError, match="does not fit") as refused:
        refuse(MIB)
    refuse(refused.value.needed)
    with pytest.raises(OutOfMemoryError):
        refuse(int(0.99 * refused.value.needed))


def test_a_training_knows_what_it_took_once_it_has_run(tmp_path: Path) -> None:
    frames = Frames(ArrayImage(np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32), "YX"), 2)
    settings = TrainingSettings(steps=2, batch_size=4, validation_patches=4, patch_size=32)
    checkpoint = tmp_path / "checkpoint"

    def run() -> int | None:
        training = Training(
            [frames], Architecture(features=8), MaskingSettings(), settings, CPU, executor(tmp_path / "corrections")
        )
        training.run(checkpoint)
        return training.peak_bytes

    if PeakMemory(CPU).bytes() is None:
        pytest.skip("this system does not tell a process's peak memory")
    assert run() is not None  # 0 where the process had that much to spare
    assert run() is None  # it was finished: nothing was measured


def test_what_an_earlier_training_of_this_process_has_left_counts_as_taken(tmp_path: Path) -> None:
    if PeakMemory(CPU).bytes() is None:
        pytest.skip("this system does not tell a process's peak memory")
    frames = Frames(ArrayImage(np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32), "YX"), 2)
    settings = TrainingSettings(steps=1, validation_patches=1)
    for folder in (tmp_path / "one", tmp_path / "two"):
        training = Training([frames], Architecture(), MaskingSettings(), settings, CPU, executor(folder))
        training.run()
        assert training.peak_bytes is not None
        assert training.peak_bytes > 0.8 * training.plan.predicted_bytes
        del training
        assert len([torch.zeros(2 * MIB) for _ in range(40)]) == 40  # as denoising does between two trainings
