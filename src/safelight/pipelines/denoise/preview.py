"""The picture that shows, while training goes on, how far it is: a part of the noisy image and its denoised equal."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from safelight.core.device import Device
from safelight.pipelines.denoise.frames import Frames
from safelight.pipelines.denoise.model import DenoiseModel
from safelight.pipelines.denoise.pictures import draw_pair
from safelight.pipelines.denoise.prediction import Predictor
from safelight.pipelines.denoise.training import Epoch

_SHARE = 0.01
"""Of the time of training, what previews may take."""
_SEARCHED = 1024


class Preview:
    """Draws ``preview.png`` after an epoch, as often as takes a hundredth of the time, and at the end.

    Parameters
    ----------
    path : Path
        Of the picture, which is replaced whole.
    frames : Frames
        The image of which the part with most to see is shown.
    patch : sequence of int
        Spatial size of the training patches. Twice the width and height are shown: predicting these takes no more
        memory than a training step of one patch.
    device : Device
    """

    def __init__(self, path: Path, frames: Frames, patch: Sequence[int], device: Device) -> None:
        self.path = path
        self._device = device
        self._noisy = _liveliest_part(frames, patch)
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


def _liveliest_part(frames: Frames, patch: Sequence[int]) -> Tensor:
    """Return the part of the middle sample with most to see, (1, C, [Z,] Y, X).

    It is twice as wide and high as a patch where the image is, and lies in the middle 1024 × 1024 pixels.
    """
    *depth, height, width = patch
    wanted = (*depth, 2 * height, 2 * width)
    sides = [whole if whole <= size else side for whole, size, side in zip(wanted, frames.spatial, patch, strict=True)]
    most = (*sides[:-2], *(max(side, _SEARCHED) for side in sides[-2:]))
    searched = [min(sizes) for sizes in zip(frames.spatial, most, strict=True)]
    starts = [(size - side) // 2 for size, side in zip(frames.spatial, searched, strict=True)]
    region = tuple(slice(start, start + side) for start, side in zip(starts, searched, strict=True))
    middle = torch.from_numpy(frames.read(len(frames) // 2, region))
    y, x = _corner_of_most_contrast(middle, sides[-2], sides[-1])
    return middle[None, ..., y : y + sides[-2], x : x + sides[-1]].contiguous()


def _corner_of_most_contrast(pixels: Tensor, height: int, width: int) -> tuple[int, int]:
    """Return the corner (y, x) of the part whose means of 8 × 8 pixels differ most: structure, not noise."""
    plane = torch.nan_to_num(pixels.reshape(-1, *pixels.shape[-2:]), posinf=0.0, neginf=0.0).mean(0)
    corners = [
        (y, x)
        for y in range(0, plane.shape[0] - height + 1, height // 2)
        for x in range(0, plane.shape[1] - width + 1, width // 2)
    ]
    contrast = [
        float(functional.avg_pool2d(plane[None, y : y + height, x : x + width], 8).std(correction=0))
        for y, x in corners
    ]
    return corners[contrast.index(max(contrast))]
