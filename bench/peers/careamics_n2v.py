"""Train CAREamics on images for a fixed time and report what it did: a child of ``bench/denoise.py``.

Runs in CAREamics' own environment: ``python careamics_n2v.py FOLDER``, the folder as ``bench/denoise.py`` makes it.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning.pytorch  # before the stub is found: torchmetrics would take it for the real torchvision
import numpy as np
import psutil
import torch

sys.path.append(str(Path(__file__).parent / "stubs"))
from careamics import CAREamist
from careamics.config.factories.n2v_factory import create_advanced_n2v_config

UNLIMITED_EPOCHS = 1_000_000
SECONDS_BETWEEN_LINES = 30.0


class Clock(lightning.pytorch.Callback):
    """Counts steps and time from the start of training and stops it when the time is over."""

    def __init__(self, budget: float) -> None:
        self.budget = budget
        self.steps, self.seconds, self.cpu_seconds, self.learning_rate = 0, 0.0, 0.0, 0.0
        self._said = 0.0

    def on_train_start(self, *_: object) -> None:
        self._started, self._cpu_started = time.monotonic(), cpu_seconds()

    def on_train_batch_end(self, trainer: lightning.pytorch.Trainer, *_: object) -> None:
        self.steps += 1
        self.seconds = time.monotonic() - self._started
        if self.seconds >= self.budget:
            trainer.should_stop = True
            self.cpu_seconds = cpu_seconds() - self._cpu_started
            self.learning_rate = trainer.optimizers[0].param_groups[0]["lr"]
        if self.seconds - self._said >= SECONDS_BETWEEN_LINES:
            self._said = self.seconds
            print(f"    {self.seconds:.0f} s, {self.steps} steps", flush=True)


def cpu_seconds() -> float:
    """Return the CPU time of this process and of its loaders, those at work and those that have ended."""
    total = time.process_time() + sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    return total + sum(sum(child.cpu_times()[:2]) for child in psutil.Process().children(recursive=True))


def main() -> None:
    """Do the task of the folder; write the denoised images and the result there."""
    folder = Path(sys.argv[1])
    task: dict[str, Any] = json.loads((folder / "task.json").read_text())
    torch.set_num_threads(task["threads"])
    images = [np.load(path) for path in sorted((folder / "noisy").iterdir())]
    config = create_advanced_n2v_config(
        "bench",
        "array",
        "YX",
        patch_size=[64, 64],
        batch_size=16,
        num_epochs=UNLIMITED_EPOCHS,
        use_n2v2=task["options"]["method"] == "n2v2",
        trainer_params={"enable_model_summary": False},
        seed=1,
    )
    clock = Clock(task["seconds"])
    careamist = CAREamist(config, work_dir=folder / "careamics", callbacks=[clock], enable_progress_bar=False)
    careamist.train(train_data=images * task["options"]["copies"])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # CAREamics predicts with its last checkpoint, which is up to ten epochs old: give it the last weights.
    last = folder / "last.ckpt"
    careamist.trainer.save_checkpoint(last)
    started = time.monotonic()
    predictions, _ = careamist.predict(images, checkpoint=last)
    predicting = time.monotonic() - started
    for number, (image, prediction) in enumerate(zip(images, predictions, strict=True)):
        np.save(folder / "denoised" / f"{number:02}.npy", np.asarray(prediction, np.float32).reshape(image.shape))
    network = careamist.model.model
    result = {
        "steps": clock.steps,
        "seconds": clock.seconds,
        "cpu_seconds": clock.cpu_seconds,
        "predict_seconds": predicting,
        "peak_bytes": 1024 * peak,
        "loader_peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "epochs": careamist.trainer.current_epoch,
        "learning_rate": careamist.trainer.optimizers[0].param_groups[0]["lr"]
        if careamist.trainer.optimizers
        else None,
        "versions": {name: version(name) for name in ("careamics", "lightning", "torch")},
    }
    (folder / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
