"""What can be told, and shown, of a denoised image without a clean one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from safelight.core.events import Value
from safelight.core.pipeline import Context
from safelight.formats.microscopy import ImageFile, open_image
from safelight.pipelines.denoise.comparison import find_clean
from safelight.pipelines.denoise.diagnostics import (
    Diagnostics,
    diagnose,
    measure_leak,
    noise_correlation,
)
from safelight.pipelines.denoise.frames import Frames, Slices
from safelight.pipelines.denoise.masking import MaskingSettings
from safelight.pipelines.denoise.model import DenoiseModel
from safelight.pipelines.denoise.options import PredictionOptions
from safelight.pipelines.denoise.report import draw_pictures
from safelight.pipelines.denoise.structure import Structure

LARGEST_PART = {2: (1024, 1024), 3: (32, 512, 512)}
SHOWN_CHANNELS = 4

LARGEST_SHIFT = 4.0
"""Deviations of the training data by which an image's mean may differ from theirs before that is said."""
DEVIATIONS = (0.1, 4.0)
"""Least and largest deviation of an image, over that of the training data."""


def look_closer(
    name: str, noisy: ImageFile, denoised: ImageFile, options: PredictionOptions, model: DenoiseModel, context: Context
) -> dict[str, Value]:
    """Diagnose the middle of an image, channel by channel, draw it, and say what a person should know.

    Returns
    -------
    dict
        ``channels``: for each of the first channels its diagnostics and the names of its pictures.
    """
    dims = model.architecture.dims
    leak = _leak_of(model)
    parts = [_middle_of(noisy, dims), _middle_of(denoised, dims)]
    clean = find_clean(noisy.path, options.clean) if options.clean else None
    if clean is not None:
        with open_image(clean, noisy.axes) as reference:
            parts.append(_middle_of(reference, dims))
    channels: list[Value] = []
    for number, channel in enumerate(zip(*parts, strict=True)):
        if number == SHOWN_CHANNELS:
            context.events.info("channels_not_shown", name=name, shown=SHOWN_CHANNELS, channels=len(parts[0]))
            break
        label = name if len(parts[0]) == 1 else f"{name}_channel{number + 1}"
        _compare_with_training(label, channel[0], model, number, context)
        channels.append(_look_at_channel(label, channel, leak, context))
    return {"channels": channels}


def _compare_with_training(label: str, noisy: Tensor, model: DenoiseModel, channel: int, context: Context) -> None:
    """Say where an image is so much brighter, darker or flatter than the training data that its result means little."""
    values = noisy[noisy.isfinite()]
    if not len(values):
        return
    mean, deviation = float(values.mean()), float(values.std(correction=0))
    usual, spread = model.normalisation.mean[channel], model.normalisation.std[channel]
    flat_or_wild = deviation > 0 and not DEVIATIONS[0] <= deviation / spread <= DEVIATIONS[1]
    if flat_or_wild or abs(mean - usual) > LARGEST_SHIFT * spread:
        context.events.warning(
            "unlike_training", name=label, mean=mean, deviation=deviation, usual_mean=usual, usual_deviation=spread
        )


def _leak_of(model: DenoiseModel) -> float | None:
    """Return the leak of the blind spots that a model was trained with; None where its file does not tell these."""
    masking = model.facts.get("masking")
    return measure_leak(MaskingSettings.model_validate(masking), model.architecture.dims) if masking else None


def _look_at_channel(label: str, parts: Sequence[Tensor], leak: float | None, context: Context) -> dict[str, Value]:
    noisy, denoised, *clean = parts
    found: Diagnostics = diagnose(noisy, denoised, leak)
    for notice in found.notices(label):
        context.events.emit(notice.key, notice.severity, **notice.data)
    pictures = draw_pictures(
        context.folder, label, noisy.numpy(), denoised.numpy(), clean[0].numpy() if clean else None, diagnostics=found
    )
    shown = {kind: str(path.relative_to(context.folder)) for kind, path in pictures.items()}
    return {"name": label, "diagnostics": found.as_json(), "pictures": dict(shown)}


def suggest_structure(image: ImageFile) -> Structure:
    """Return the structural mask that an image's noise asks for; empty where it is independent enough."""
    correlation = noise_correlation(torch.nan_to_num(_middle_of(image, 2)[0], posinf=0.0, neginf=0.0))
    return correlation.suggested_structure() if correlation else ()


def _middle_of(image: ImageFile, dims: int) -> Tensor:
    """Return the middle of the middle sample, (C, [Z,] Y, X) float64."""
    frames = Frames(image, dims)
    region: Slices = tuple(
        slice((size - min(size, most)) // 2, (size - min(size, most)) // 2 + min(size, most))
        for size, most in zip(frames.spatial, LARGEST_PART[dims], strict=True)
    )
    return torch.from_numpy(frames.read(len(frames) // 2, region)).double()
