"""Train Safelight on images for a fixed time and report what it did: a child of ``bench/denoise.py``.

``python denoise_ours.py FOLDER``, the folder as ``bench/denoise.py`` makes it. The options are those of
``safelight denoise run``, so "as shipped" is what a user gets.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from safelight.core.device import select
from safelight.core.events import EventLog
from safelight.core.execute import Executor
from safelight.formats.microscopy import open_image
from safelight.pipelines.denoise.frames import Frames, Slices
from safelight.pipelines.denoise.items import find_items
from safelight.pipelines.denoise.model import DenoiseModel
from safelight.pipelines.denoise.options import RunOptions
from safelight.pipelines.denoise.prediction import predict
from safelight.pipelines.denoise.setup import choose_setup
from safelight.pipelines.denoise.training import Epoch, Training

SECONDS_BETWEEN_LINES = 30.0
REPEATS = 30


def main() -> None:
    """Do the task of the folder; write the denoised images and the result there."""
    folder = Path(sys.argv[1])
    task: dict[str, Any] = json.loads((folder / "task.json").read_text())
    torch.set_num_threads(task["threads"])
    options = RunOptions(
        input=str(folder / "noisy"),
        out=folder / "denoised",
        axes="YX",
        device="cpu",
        time_budget=task["seconds"],
        **task["options"],
    )
    events = EventLog()
    device = select(options, events)
    executor = Executor.from_options(device, options, events)
    with ExitStack() as stack:
        items = find_items(options).items
        images = [stack.enter_context(open_image(item.payload.path, options.axes)) for item in items]
        setup = choose_setup(items, images, options, events)
        frames = [Frames(image, setup.architecture.dims) for image in images]
        training = Training(frames, setup.architecture, setup.masking, setup.training, device, executor)
        cpu_before = time.process_time()
        trained = training.run(on_epoch=Progress())
        cpu_seconds = time.process_time() - cpu_before
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        steps, seconds = training.step_number, training.seconds
        started = time.monotonic()
        for number, frame in enumerate(frames):
            np.save(folder / "denoised" / f"{number:02}.npy", denoise(trained.last, frame, executor))
        predicting = time.monotonic() - started
        result = {
            "steps": steps,
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
            "predict_seconds": predicting,
            "peak_bytes": peak,
            "planned_bytes": training.plan.predicted_bytes,
            "grown_bytes": training.peak_bytes,
            "parameters": sum(tensor.numel() for tensor in trained.last.network().parameters()),
            "sampling_share": sampling_share(training),
            "setup": {
                "architecture": setup.architecture.model_dump(mode="json"),
                "masking": setup.masking.model_dump(mode="json"),
                "training": setup.training.model_dump(mode="json"),
            },
            "versions": {name: version(name) for name in ("safelight", "torch")},
        }
    (folder / "result.json").write_text(json.dumps(result))


class Progress:
    """Says from time to time how far training is."""

    def __init__(self) -> None:
        self._said = 0.0

    def __call__(self, epoch: Epoch) -> None:
        if epoch.seconds - self._said >= SECONDS_BETWEEN_LINES:
            self._said = epoch.seconds
            print(f"    {epoch.seconds:.0f} s, {epoch.step} steps", flush=True)


def denoise(model: DenoiseModel, frames: Frames, executor: Executor) -> np.ndarray:
    """Return the denoised image."""
    denoised = np.zeros(frames.spatial, np.float32)

    def write(region: Slices, pixels: np.ndarray) -> None:
        denoised[region] = pixels

    predict(model, frames, write, executor)
    return denoised


def sampling_share(training: Training) -> float:
    """Return the share of a training step that drawing patches and hiding pixels takes: the ratio of medians."""
    draws, steps = [], []
    for _ in range(REPEATS):
        draws.append(seconds_of(lambda: training.draw(training.settings.batch_size)))
        steps.append(seconds_of(training.step))
    return statistics.median(draws) / statistics.median(steps)


def seconds_of(function: Callable[[], object]) -> float:
    """Return how long one call takes."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
