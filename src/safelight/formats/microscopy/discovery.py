"""Which images are meant by a file, a folder or a glob."""

from __future__ import annotations

import glob
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePath

from safelight.core.errors import InputError, NothingToDoError
from safelight.core.events import Severity
from safelight.core.files import is_temporary
from safelight.core.pipeline import Refusal
from safelight.core.run import JOURNAL, outputs_of

SUFFIXES = (".tif", ".tiff", ".zarr", ".png", ".npy", ".npz")
_EXPECTED = "an image (TIFF, OME-TIFF, OME-Zarr, PNG, .npy or .npz), a folder of images, or a glob"


@dataclass(frozen=True)
class FoundImages:
    """The images that an input names, and what was found beside them and cannot be used.

    Parameters
    ----------
    paths : tuple of Path
        Sorted, without repetition.
    refused : tuple of Refusal
        Files of other kinds, with the reason.
    """

    paths: tuple[Path, ...]
    refused: tuple[Refusal, ...] = ()


def find_images(input: str | Path, *, pattern: str = "*") -> FoundImages:
    """Return the images that a file, a folder or a glob names.

    Hidden and temporary files, results of earlier runs and what lies inside the folder of a run are skipped. A
    ``.zarr`` folder is one image. Subfolders are searched only by a glob with ``**``.

    Parameters
    ----------
    input : str or Path
        A file, a folder, or a glob such as ``data/*.tif``.
    pattern : str
        Which names to take from a folder.

    Raises
    ------
    InputError
        The input does not exist, or is a file of another kind.
    NothingToDoError
        The folder or the glob has no image.
    """
    path = Path(input).expanduser()
    if path.exists():
        if not path.is_dir() and not path.is_file():  # a pipe would be waited for
            raise InputError("is not a file", path=path, expected=_EXPECTED)
        if path.is_dir() and not is_image(path):
            return _choose(path, path, path.glob(pattern))
        if not is_image(path):
            raise _unsupported(path)
        return FoundImages((path,))
    if not glob.has_magic(str(input)):
        raise InputError("does not exist", path=path, expected=_EXPECTED, remedy="check the path")
    return _choose(path, _base(path), _expand(path))


def is_image(path: Path) -> bool:
    """Return whether a path has the suffix of an image, or is a zarr folder."""
    if path.is_dir():
        zarr = (".zgroup", ".zarray", "zarr.json")
        return path.suffix.lower() == ".zarr" or any((path / name).is_file() for name in zarr)
    return path.suffix.lower() in SUFFIXES


def _choose(named: Path, base: Path, candidates: Iterable[Path]) -> FoundImages:
    """Return the images among candidates, none of which lies in another image or in a run's folder."""
    outputs = _outputs_of_runs(base)
    visible = [path for path in sorted(set(candidates)) if not _is_hidden(path, base)]
    own = [path for path in visible if path.resolve() not in outputs and not _is_within_unit(path, base)]
    images = tuple(path for path in own if is_image(path) and (path.is_file() or path.is_dir()))
    if not images:
        raise NothingToDoError(
            f"no image among the {len(own)} files there" if own else "no file there",
            path=named,
            expected=_EXPECTED,
            remedy="name another folder, or a glob such as 'data/**/*.tif' to search subfolders",
        )
    others = [path for path in own if path.is_file() and not is_image(path)]
    return FoundImages(images, tuple(Refusal(path.name, _unsupported(path), Severity.WARNING) for path in others))


def _base(pattern: Path) -> Path:
    """Return the folder at which a glob starts."""
    parts = pattern.parts
    plain = next(number for number, part in enumerate(parts) if glob.has_magic(part))
    return Path(*parts[:plain])


def _expand(pattern: Path) -> Iterable[Path]:
    base = _base(pattern)
    return base.glob(str(pattern.relative_to(base)))


def _is_hidden(path: Path, base: Path) -> bool:
    return is_temporary(path) or any(part.startswith(".") for part in _below(path, base).parts)


def _is_within_unit(path: Path, base: Path) -> bool:
    """Return whether a path lies inside a zarr image or a run's folder below the base."""
    folders = [base / part for part in _below(path, base).parents if part != PurePath()]
    return any(is_image(folder) or (folder / JOURNAL).is_file() for folder in folders)


def _below(path: Path, base: Path) -> PurePath:
    return path.relative_to(base) if path.is_relative_to(base) else path


def _outputs_of_runs(base: Path) -> set[Path]:
    """Return what runs in this folder, or in the folders directly in it, have written."""
    journals = [base / JOURNAL, *base.glob(f"*/{JOURNAL}")]
    return {path.resolve() for journal in journals for path in outputs_of(journal)}


def _unsupported(path: Path) -> InputError:
    return InputError(
        f"a {path.suffix or 'nameless'} file is not an image that can be read",
        path=path,
        expected=", ".join(SUFFIXES),
        remedy="convert it to OME-TIFF, for instance with Bio-Formats",
    )
