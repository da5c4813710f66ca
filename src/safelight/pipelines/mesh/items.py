"""What one item is: the views of one object with their cameras, a data set to train on, a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safelight.core.errors import InputError
from safelight.core.pipeline import Found, Item
from safelight.pipelines.mesh.dataset import Rendered, find_objects
from safelight.pipelines.mesh.options import MESH_SUFFIXES, ConvertOptions, TrainOptions, ViewOptions


@dataclass(frozen=True)
class Sample:
    """The views of one object.

    Parameters
    ----------
    views : tuple of Path
        Photographs, the leading one first.
    cameras : Path
        Where they were taken from.
    mesh : Path, optional
        A mesh to begin with.
    """

    views: tuple[Path, ...]
    cameras: Path
    mesh: Path | None = None


@dataclass(frozen=True)
class TrainingSet:
    """What a stage is trained on.

    Parameters
    ----------
    objects : tuple of Rendered
    watching : tuple of Rendered
        Those that tell which weights are best; empty where none were named.
    """

    objects: tuple[Rendered, ...]
    watching: tuple[Rendered, ...]


def find_training_set(options: TrainOptions) -> Found:
    """Return the data set to train on: one item, whose objects are read while training goes on.

    Raises
    ------
    InputError
        A file of weights or a template does not exist, or there are no objects for the validation.
    """
    files = [path for path in (options.coarse, options.weights, options.template) if path is not None]
    for path in files:
        if not path.is_file():
            raise InputError("there is no such file", path=path)
    found, watching = find_objects(options), Found(())
    if options.validation_data is not None:
        watching = find_objects(options.model_copy(update={"data": options.validation_data}))
        if not watching.items:
            raise InputError("none of its objects can be used", path=options.validation_data)
    refused = (*found.refused, *watching.refused)
    if not found.items:
        return Found((), refused)
    data = TrainingSet(*(tuple(item.payload for item in part.items) for part in (found, watching)))
    # Lists alone stand for the data: taking digests of hundreds of gigabytes would take hours.
    lists = [path for path in (options.data, options.validation_data) if path is not None and path.is_file()]
    return Found((Item(options.stage, (*files, *lists), data),), refused)


def find_sample(options: ViewOptions) -> Found:
    """Return the one object that the options name.

    Raises
    ------
    InputError
        A file does not exist, or the mesh to write is of an unknown kind, or is one of the inputs.
    """
    mesh: Path | None = getattr(options, "input", None)
    inputs = (*options.views, options.cameras, *options.weights, *([mesh] if mesh else []))
    for path in inputs:
        if not path.is_file():
            raise InputError("there is no such file", path=path)
    if options.out.suffix.lower() not in MESH_SUFFIXES:
        raise InputError(
            f"its kind {options.out.suffix or '(none)'} is unknown", path=options.out, expected=", ".join(MESH_SUFFIXES)
        )
    _spare(inputs, options.out)
    return Found((Item(options.out.stem, inputs, Sample(options.views, options.cameras, mesh)),))


def find_checkpoint(options: ConvertOptions) -> Found:
    """Return the checkpoint to convert.

    Raises
    ------
    InputError
        It does not exist, or the result would replace it.
    """
    if not options.input.is_file():
        raise InputError("there is no such checkpoint", path=options.input)
    others = [path for path in (options.template, options.join) if path is not None]
    inputs = (options.input, *others)
    _spare(inputs, options.out)
    return Found((Item(options.out.stem, inputs),))


def _spare(inputs: Sequence[Path], out: Path) -> None:
    """Refuse to write over an input."""
    if out.resolve() in {path.resolve() for path in inputs}:
        raise InputError("it would replace one of the inputs", path=out, remedy="another --out")
