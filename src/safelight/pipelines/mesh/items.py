"""What one item is: the views of one object with their cameras; for conversion, a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safelight.core.errors import InputError
from safelight.core.pipeline import Found, Item
from safelight.pipelines.mesh.options import MESH_SUFFIXES, ConvertOptions, ViewOptions


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
    if options.out.resolve() in {path.resolve() for path in inputs}:
        raise InputError("it would replace one of the inputs", path=options.out, remedy="another --out")
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
    if options.out.resolve() == options.input.resolve():
        raise InputError("it would replace the checkpoint", path=options.out, remedy="another --out")
    template = (options.template,) if options.template else ()
    return Found((Item(options.out.stem, (options.input, *template)),))
