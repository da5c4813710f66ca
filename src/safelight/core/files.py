"""Files that appear whole or not at all, paths that stay inside their root, sizes checked before allocating."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from safelight.core.errors import InputError, OutputError, UnsafeInputError
from safelight.core.messages import format_bytes

_BLOCK = 1 << 20
_TEMPORARY = re.compile(r"^\.(?P<name>.+)\.[0-9a-f]{8}\.part(\.[A-Za-z0-9.]+)?$")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary file's path beside ``path``; when the block succeeds, it becomes ``path``.

    The file is flushed to the disk before it is renamed; when the block fails it is removed.

    Raises
    ------
    OutputError
        The folder cannot be written, the disk is full, or a folder has the name.
    """
    if path.is_dir():
        raise OutputError("a folder has this name", path=path, remedy="remove it, or name another output")
    with _temporary(path) as temporary:
        with _output_errors(path):
            temporary.touch()
            mode = temporary.stat().st_mode
        yield temporary
        with _output_errors(path):
            temporary.chmod(mode)  # some writers make files that only their owner can read
            _flush(temporary)
            temporary.replace(path)
            _flush(path.parent)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a new temporary folder beside ``path``; when the block succeeds, it becomes ``path``.

    A folder that has the name already is replaced.

    Raises
    ------
    OutputError
        The folder cannot be written, the disk is full, or a file has the name.
    """
    if path.exists() and not path.is_dir():
        raise OutputError("a file has this name", path=path, remedy="remove it, or name another output")
    with _temporary(path) as temporary:
        with _output_errors(path):
            temporary.mkdir()
        yield temporary
        with _output_errors(path):
            for file in temporary.rglob("*"):
                _flush(file)
            _replace_folder(temporary, path)
            _flush(path.parent)


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    # The suffix is kept, because writers choose the format by it.
    suffix = "".join(path.suffixes[-2:]) if path.suffix else ""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part{suffix}")
    try:
        with _output_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
    finally:
        _remove(temporary)


def _replace_folder(new: Path, path: Path) -> None:
    if not path.exists():
        new.rename(path)
        return
    old = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    path.rename(old)
    new.rename(path)
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows cannot open a folder
        return
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _output_errors(path: Path) -> Iterator[None]:
    """Turn the system's refusal to write into an OutputError that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in _REMEDIES:
            raise
        raise output_error(path, error) from error


_REMEDIES = {
    errno.ENOSPC: ("the disk is full", "free some space, or choose an output folder on another disk"),
    errno.EDQUOT: ("the disk quota is used up", "free some space, or choose another output folder"),
    errno.EFBIG: ("the file would be larger than the system allows", "choose another disk or format"),
    errno.EROFS: ("the disk is read-only", "choose another output folder"),
    errno.EACCES: ("writing is not allowed", "choose another output folder, or change its permissions"),
    errno.EPERM: ("writing is not allowed", "choose another output folder, or change its permissions"),
    errno.ENOTDIR: ("a part of the path is a file, not a folder", "choose another output folder"),
    errno.EEXIST: ("a part of the path is a file, not a folder", "choose another output folder"),
    errno.ENAMETOOLONG: ("the name is too long", "choose a shorter name"),
}


def output_error(path: Path, error: OSError) -> OutputError:
    """Return the error for people of a failed write."""
    unknown = (error.strerror or str(error), "choose another output folder")
    problem, remedy = _REMEDIES.get(error.errno or 0, unknown)
    return OutputError(f"cannot be written: {problem}", path=path, remedy=remedy)


def remove_leftovers(folder: Path) -> list[Path]:
    """Remove the temporary files that a killed run left anywhere in a folder, and return their paths."""
    leftovers = [path for path in sorted(folder.rglob("*")) if _TEMPORARY.match(path.name)]
    for path in leftovers:
        _remove(path)
    return leftovers


def is_temporary(path: Path) -> bool:
    """Return whether a path is one of our temporary files."""
    return _TEMPORARY.match(path.name) is not None


def inside(root: Path, path: Path | str) -> Path:
    """Return ``path``, taken relative to ``root``, as an absolute path inside it.

    Raises
    ------
    UnsafeInputError
        The path leaves the root: through ``..``, an absolute path, a drive or a symbolic link.
    """
    base = root.resolve()
    text = str(path)
    target = (base / text.replace("\\", "/")).resolve()
    if re.match(r"^[A-Za-z]:", text) or not target.is_relative_to(base):
        raise UnsafeInputError(f"{text!r} leads out of the folder", path=root, expected="a path inside it")
    return target


@dataclass(frozen=True)
class Limits:
    """How large an input may claim to be.

    Parameters
    ----------
    max_bytes : int, optional
        Most bytes of pixels to hold at once; by default 80 % of the memory that is available.
    expansion : float
        Most bytes of pixels per byte of a compressed file.
    """

    max_bytes: int | None = None
    expansion: float = 2000.0

    def check_claim(self, path: Path, claimed_bytes: int, compressed: bool) -> None:
        """Refuse a header that claims more than the file can hold.

        Raises
        ------
        UnsafeInputError
            The claim cannot be true: nothing of that size may be allocated.
        """
        size = path.stat().st_size if path.is_file() else None
        if size is None:
            return
        most = size * (self.expansion if compressed else 1.0)
        if claimed_bytes > most:
            raise UnsafeInputError(
                f"its header claims {format_bytes(claimed_bytes)} of pixels, the file has {format_bytes(size)}",
                path=path,
                expected="a header that agrees with the file",
                remedy="check whether the file was copied whole",
            )

    def check_allocation(self, path: Path, wanted_bytes: int) -> None:
        """Refuse to read more at once than memory can hold.

        Raises
        ------
        UnsafeInputError
            The part is larger than the limit.
        """
        most = self.max_bytes if self.max_bytes is not None else int(psutil.virtual_memory().available * 0.8)
        if wanted_bytes > most:
            raise UnsafeInputError(
                f"reading {format_bytes(wanted_bytes)} at once is more than the {format_bytes(most)} allowed",
                path=path,
                remedy="convert it to OME-Zarr, which is read in parts",
            )


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, or of a folder's relative names and contents in sorted order.

    Raises
    ------
    InputError
        The path is missing or cannot be read.
    """
    total = hashlib.sha256()
    try:
        if path.is_dir():
            for file in sorted(child for child in path.rglob("*") if child.is_file()):
                total.update(file.relative_to(path).as_posix().encode() + b"\0")
                total.update(digest(file).encode())
            return total.hexdigest()
        with path.open("rb") as stream:
            while block := stream.read(_BLOCK):
                total.update(block)
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", path=path) from error
    return total.hexdigest()
