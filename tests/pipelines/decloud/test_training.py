"""Training: it learns, resumes exactly, does not depend on memory, keeps the best, and suits several processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from safelight.core.checkpoint import Checkpoint
from safelight.core.device import Device
from safelight.core.errors import InputError, UsageError
from safelight.core.events import EventLog
from safelight.core.execute import Executor
from safelight.core.memory import VirtualDevice
from safelight.pipelines.decloud.footprint import plan_step
from safelight.pipelines.decloud.network import GLFCR, Architecture
from safelight.pipelines.decloud.patches import Patch
from safelight.pipelines.decloud.training import Trained, Training, TrainingSettings, rate_at, start_model
from safelight.pipelines.decloud.triplets import Triplet, read_data_set
from sentinel import write_triplet

CPU = Device(torch.device("cpu"))
TINY = Architecture(features=8, growth=8, stages=1, layers=2)


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SAFELIGHT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def triplets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Triplet, ...]:
    root = tmp_path_factory.mktemp("data")
    names = [f"{letter}.tif" for letter in "abc"]
    for seed, name in enumerate(names):
        write_triplet(root, name, (48, 48), seed)
    (root / "data.csv").write_text("\n".join(f"1,s1,s2,s2_cloudy,{name}" for name in names))
    return read_data_set(root, None).triplets


class StoppedError(Exception):
    pass


def trained(
    triplets: tuple[Triplet, ...],
    held_out: tuple[Triplet, ...] = (),
    checkpoint: Path | None = None,
    stop_at: int | None = None,
    device: Device = CPU,
    virtual: VirtualDevice | None = None,
    on_step: Callable[[int], None] = lambda _: None,
    **settings: Any,
) -> tuple[Trained, EventLog]:
    events = EventLog()
    executor = Executor(device, events, virtual=virtual)
    chosen = TrainingSettings(**{"epochs": 2, "crop_size": 32, "learning_rate": 1e-3, **settings})
    training = Training(start_model(TINY, 0), triplets, held_out, chosen, device, executor)

    def stop(step: int) -> None:
        on_step(step)
        if step == stop_at:
            assert checkpoint is not None
            Checkpoint(checkpoint, training._identity(), events).save(training._state())
            raise StoppedError

    return training.run(checkpoint, on_step=stop), events


def same(a: Trained, b: Trained) -> bool:
    return a.curve == b.curve and all(torch.equal(t, b.last.weights[name]) for name, t in a.last.weights.items())


def test_the_rate_is_the_published_one() -> None:
    rates = [rate_at(epoch, 1e-4) for epoch in range(30)]
    assert rates[:6] == [1e-4] * 6
    assert rates[6:11] == [5e-5] * 5
    assert rates[11:16] == [2.5e-5] * 5
    assert rates[16:21] == [1.25e-5] * 5
    assert rates[21:26] == [6.25e-6] * 5
    assert rates[26:] == [3.125e-6] * 4


def test_a_crop_may_lie_anywhere_and_in_eight_orientations(triplets: tuple[Triplet, ...]) -> None:
    chosen = TrainingSettings(crop_size=32, augment=True)
    training = Training(start_model(TINY, 0), triplets, (), chosen, CPU, Executor(CPU, EventLog()))
    place = torch.arange(48 * 48.0).view(1, 48, 48)
    patch = Patch(place, place, place, place, (), ())
    corners, orientations = set(), set()
    for draws in torch.rand((2000, 3), generator=torch.Generator().manual_seed(0)).tolist():
        crop, *others = training._crop(patch, draws)
        assert all(torch.equal(crop, other) for other in others)
        corners.add(divmod(int(crop.min()), 48))
        orientations.add((int(crop[0, 0, 1] - crop[0, 0, 0]), int(crop[0, 1, 0] - crop[0, 0, 0])))
    assert corners == {(y, x) for y in range(17) for x in range(17)}
    assert len(orientations) == 8


def test_two_images_are_overfitted_within_a_small_budget(triplets: tuple[Triplet, ...]) -> None:
    result, _ = trained(triplets[:2], epochs=12, learning_rate=5e-3)
    assert result.curve.training_loss[-1] < result.curve.training_loss[0] / 2


@pytest.mark.parametrize("stop_at", [2, 3, 4])
def test_a_stopped_training_goes_on_as_if_it_had_not_been(
    tmp_path: Path, triplets: tuple[Triplet, ...], stop_at: int
) -> None:
    options: dict[str, Any] = {"augment": True, "clip_gradient": 1.0}
    whole, _ = trained(triplets[:2], triplets[2:], **options)
    with pytest.raises(StoppedError):
        trained(triplets[:2], triplets[2:], tmp_path / "c", stop_at, **options)
    steps: list[int] = []
    resumed, _ = trained(triplets[:2], triplets[2:], tmp_path / "c", on_step=steps.append, **options)
    assert steps == list(range(stop_at + 1, 5)), "what was done is not done again"
    assert same(resumed, whole)
    longer, _ = trained(triplets[:2], triplets[2:], tmp_path / "c", epochs=3, **options)
    assert longer.curve.training_loss[:2] == whole.curve.training_loss


def test_a_checkpoint_of_another_training_is_replaced_and_a_damaged_one_named(
    tmp_path: Path, triplets: tuple[Triplet, ...]
) -> None:
    trained(triplets[:1], checkpoint=tmp_path / "c")
    _, events = trained(triplets[:2], checkpoint=tmp_path / "c")
    assert "checkpoint_replaced" in events.keys()
    (tmp_path / "c").write_bytes(b"PK broken")
    with pytest.raises(InputError, match="checkpoint is damaged"):
        trained(triplets[:2], checkpoint=tmp_path / "c")


def test_memory_that_runs_short_splits_the_batch_and_changes_nothing_else(triplets: tuple[Triplet, ...]) -> None:
    plenty, _ = trained(triplets, batch_size=3)
    short, events = trained(triplets, batch_size=3, virtual=VirtualDevice(fail_at={300}))
    assert "micro_batch" in events.keys()
    assert short.curve.training_loss == pytest.approx(plenty.curve.training_loss, rel=1e-5)
    for name, tensor in plenty.last.weights.items():
        torch.testing.assert_close(short.last.weights[name], tensor, rtol=0, atol=1e-4)


def test_the_best_weights_by_validation_are_kept(triplets: tuple[Triplet, ...]) -> None:
    result, _ = trained(triplets[:2], triplets[2:], epochs=4, learning_rate=0.05)
    scores = result.curve.validation_psnr
    assert len(scores) == 4
    best = scores.index(max(scores)) + 1
    again, _ = trained(triplets[:2], triplets[2:], epochs=best, learning_rate=0.05)
    assert all(torch.equal(tensor, again.last.weights[name]) for name, tensor in result.best.weights.items())


def test_an_image_that_cannot_be_read_is_left_out_and_named(tmp_path: Path, triplets: tuple[Triplet, ...]) -> None:
    (tmp_path / "x.tif").write_bytes(b"II*\0")
    bad = Triplet("bad", "train", None, tmp_path / "x.tif", triplets[0].clear, triplets[0].cloudy)
    _, events = trained((triplets[0], bad), batch_size=2)
    assert [event.key for event in events].count("left_out_of_training") == 1
    with pytest.raises(InputError, match="no training image can be read"):
        trained((bad,))


def test_a_loss_that_is_no_number_ends_the_training(triplets: tuple[Triplet, ...]) -> None:
    with pytest.raises(UsageError, match="no number any more"):
        trained(triplets[:2], epochs=6, learning_rate=1e18)


def test_mixed_precision_trains_alike(triplets: tuple[Triplet, ...]) -> None:
    exact, _ = trained(triplets[:2], epochs=4)
    mixed, _ = trained(triplets[:2], epochs=4, device=Device(torch.device("cpu"), amp=True))
    assert mixed.curve.training_loss[-1] == pytest.approx(exact.curve.training_loss[-1], rel=0.1)


def test_a_step_is_planned() -> None:
    plan = plan_step(TINY, 4, 32, Executor(CPU, EventLog()))
    assert plan.extent == 4
    assert plan.dry_run.per_row > 28 * 32 * 32 * 4
    larger = plan_step(Architecture(features=16, growth=16, stages=2, layers=2), 4, 32, Executor(CPU, EventLog()))
    assert larger.dry_run.per_row > plan.dry_run.per_row


def test_every_trained_weight_gets_a_gradient() -> None:
    """DistributedDataParallel, for whoever prefers it, waits for ever for a gradient that never comes."""
    network = GLFCR(TINY)
    network(torch.rand(1, 13, 32, 32), torch.rand(1, 2, 32, 32)).mean().backward()
    assert all(parameter.grad is not None for parameter in network.parameters() if parameter.requires_grad)
