"""The picture that shows, while training goes on, how far it is: a part of the noisy image and its denoised equal."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from safelight.core.device import Device
from safelight.pipelines.denoise.frames import Frames
from safelight.pipelines.denoise.model import DenoiseModel
from safelight.pipelines.denoise.pictures import draw_pair
from safelight.pipelines.denoise.prediction import Predictor
from safelight.pipelines.denoise.training import Epoch

_SHARE = 0.01
"""Of the time of training, what previews may take."""


class Preview:
    """Draws ``preview.png`` after an epoch, as often as takes a hundredth of the time, and at the end.

    Parameters
    ----------
    path : Path
        Of the picture, which is replaced whole.
    frames : Frames
        The image whose middle is shown.
    patch : sequence of int
        Spatial size of the training patches. Twice the width and height are shown: predicting these takes no more
        memory than a training step of one patch.
    device : Device
    """

    def __init__(self, path: Path, frames: Frames, patch: Sequence[int], device: Device) -> None:
        self.path = path
        self._device = device
        self._noisy = _middle_of(frames, patch)
        self._drawn_at = 0.0
        self._seconds = 0.0

    def __call__(self, epoch: Epoch) -> None:
        """Draw the model as it is now, if it is time."""
        if epoch.share < 1 and epoch.seconds - self._drawn_at < self._seconds / _SHARE:
            return
        before = time.monotonic()
        draw_pair(self.path, self._noisy[0].numpy(), self._denoise(epoch.preview())[0].numpy())
        self._drawn_at, self._seconds = epoch.seconds, time.monotonic() - before

    def _denoise(self, model: DenoiseModel) -> Tensor:
        where = self._device.torch_device
        predictor = Predictor(model).eval().to(where)
        with torch.inference_mode(), self._device.autocast():
            denoised: Tensor = predictor(self._noisy.to(where))
        return denoised.cpu()


def _middle_of(frames: Frames, patch: Sequence[int]) -> Tensor:
    """Return the middle of the middle sample, (1, C, [Z,] Y, X), twice as wide and high as a patch where it can be."""
    *depth, height, width = patch
    wanted = (*depth, 2 * height, 2 * width)
    sides = [whole if whole <= size else side for whole, size, side in zip(wanted, frames.spatial, patch, strict=True)]
    starts = [(size - side) // 2 for size, side in zip(frames.spatial, sides, strict=True)]
    region = tuple(slice(start, start + side) for start, side in zip(starts, sides, strict=True))
    return torch.from_numpy(frames.read(len(frames) // 2, region))[None]
