"""What one item is: an image file; for training, all images together; for export, a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from safelight.core.errors import InputError, OutputError, SafelightError, UsageError
from safelight.core.pipeline import Found, Item, Refusal
from safelight.formats.microscopy import FoundImages, check_output, find_images, open_image
from safelight.pipelines.denoise.comparison import check_shape, find_clean
from safelight.pipelines.denoise.options import ExportOptions, ImageOptions, PredictionOptions, TrainingOptions

MODEL = "model.safetensors"


@dataclass(frozen=True)
class ImageItem:
    """An image to denoise: where it is and what its header says."""

    path: Path
    shape: tuple[int, ...]
    axes: str
    dtype: np.dtype[Any]

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self.size("C")

    def size(self, axis: str) -> int:
        """Return the length of an axis, 1 where the image does not have it."""
        return dict(zip(self.axes, self.shape, strict=True)).get(axis, 1)


def find_items(options: ImageOptions) -> Found:
    """Find the images that the input names; each one that can be opened is an item.

    Images whose number of channels differs from the first one's are left out: one model denoises all.

    Raises
    ------
    InputError
        The input does not exist or names no image.
    UsageError
        One output file is named for several images, or it is one of the inputs.
    """
    found = _find_images(options.input)
    items: list[Item] = []
    refused = list(found.refused)
    names = _unique_names(found.paths)
    for path, name in zip(found.paths, names, strict=True):
        try:
            image = _look(path, options.axes)
            _check_channels(image, items)
            if isinstance(options, TrainingOptions):
                _check_size(image, options)
            item = Item(name, (path,), image)
            if isinstance(options, PredictionOptions):
                _check_clean(image, options)
                target = choose_target(item, options, options.run_folder())
                check_output(target.path, image.shape, image.axes, target.dtype)
            items.append(item)
        except SafelightError as error:
            refused.append(Refusal(path.name, error))
    _check_output(options, items)
    return Found(tuple(items), tuple(refused))


def _find_images(patterns: Sequence[str]) -> FoundImages:
    """Find the images that all patterns name, each once; of several patterns, one that names none stops no other."""
    if len(patterns) == 1:
        return find_images(patterns[0])
    images: dict[Path, Path] = {}
    refused: list[Refusal] = []
    for pattern in patterns:
        try:
            found = find_images(pattern)
        except SafelightError as error:
            refused.append(Refusal(Path(pattern).name, error))
            continue
        refused += found.refused
        for path in found.paths:
            images.setdefault(path.resolve(), path)
    return FoundImages(tuple(images.values()), tuple(refused))


@dataclass(frozen=True)
class Target:
    """Where a denoised image goes, and the type of its pixels."""

    path: Path
    dtype: np.dtype[Any]


def choose_target(item: Item, options: PredictionOptions, folder: Path) -> Target:
    """Return the file and the type of a denoised image: the input's format and float32 by default.

    PNG, which holds no real numbers, gets the input's type.

    Raises
    ------
    OutputError
        The result would replace the input.
    """
    source: ImageItem = item.payload
    suffix = _suffix(source.path) if options.format == "same" else f".{options.format}"
    named = options.out_file if isinstance(options, ImageOptions) else None
    path = named or folder / f"{item.name}{suffix}"
    if path.resolve() == source.path.resolve():
        raise OutputError("the result would replace the input", path=path, remedy="name another folder with --out")
    keeps_type = options.dtype == "input" or path.suffix.lower() == ".png"
    return Target(path, source.dtype if keeps_type else np.dtype(np.float32))


def _suffix(path: Path) -> str:
    """Return the suffix that says the format, both parts where there are two (``.ome.tif``)."""
    parts = path.suffixes[-2:]
    return "".join(parts) if len(parts) == 2 and parts[0].lower() == ".ome" else path.suffix


def find_training_set(options: ImageOptions) -> Found:
    """Find the images that the input names; all of them together are one item."""
    found = find_items(options)
    if not found.items:
        return found
    paths = tuple(path for item in found.items for path in item.inputs)
    return Found((Item("model", paths, tuple(found.items)),), found.refused)


def find_model(options: ExportOptions) -> Found:
    """Find the trained model that the input names."""
    path = model_path(options.input)
    return Found((Item(path.parent.name or "model", (path,), path),))


def model_path(path: Path) -> Path:
    """Return the model's file: the path itself, or the model in a run's folder.

    Raises
    ------
    InputError
        There is none.
    """
    chosen = path / MODEL if path.is_dir() else path
    if not chosen.is_file():
        raise InputError(
            "there is no trained model here",
            path=chosen,
            expected=f"{MODEL}, or the folder of a run that trained one",
            remedy="train one with 'safelight denoise train'",
        )
    return chosen


def _look(path: Path, axes: str | None) -> ImageItem:
    with open_image(path, axes) as image:
        return ImageItem(path, image.shape, image.axes, image.dtype)


def _check_channels(image: ImageItem, items: Sequence[Item]) -> None:
    if items and image.channels != items[0].payload.channels:
        raise InputError(
            f"it has {image.channels} channel(s)",
            path=image.path,
            expected=f"{items[0].payload.channels}, as the first image has",
            remedy="denoise images of different kinds in runs of their own",
        )


def _check_clean(image: ImageItem, options: PredictionOptions) -> None:
    """Refuse an image without a clean reference of its shape before time is spent on it."""
    if options.clean is None:
        return
    clean = find_clean(image.path, options.clean)
    with open_image(clean, image.axes) as reference:
        check_shape(reference, image.shape)


def _check_size(image: ImageItem, options: TrainingOptions) -> None:
    """Leave out an image that is smaller than a patch, so that the others can be trained on."""
    least = max(options.patch_size or 0, 2 * 2**options.depth)
    if min(image.size("Y"), image.size("X")) < least:
        raise InputError(
            f"an image of {image.size('Y')}×{image.size('X')} pixels is smaller than a training patch",
            path=image.path,
            expected=f"at least {least} pixels along Y and X",
            remedy="a smaller --patch-size or --depth, or denoise it with 'safelight denoise predict'",
        )


def _unique_names(paths: Sequence[Path]) -> list[str]:
    """Return one name per path: without suffixes where that is unique, otherwise with folder and suffix."""
    short = [path.name.split(".")[0] or path.name for path in paths]
    counts = Counter(short)
    return [
        name if counts[name] == 1 else "_".join((*path.parent.parts[-1:], path.name.replace(".", "_")))
        for name, path in zip(short, paths, strict=True)
    ]


def _check_output(options: ImageOptions, items: Sequence[Item]) -> None:
    if options.out_file is None:
        return
    if len(items) > 1:
        raise UsageError(f"--out {options.out} is one file, the input has {len(items)} images", remedy="name a folder")
    if any(options.out_file.resolve() == path.resolve() for item in items for path in item.inputs):
        raise UsageError(f"--out {options.out} is the input itself", remedy="name another file")
