"""Files that appear whole or not at all, paths that stay inside their root, sizes checked before allocating."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from safelight.core.errors import InputError, OutputError, SafelightError, UnsafeInputError
from safelight.core.messages import format_bytes

_BLOCK = 1 << 20
_TEMPORARY = re.compile(r"^\.(?P<name>.+)\.(?P<pid>\d+)-[0-9a-f]{8}\.(?P<role>part|old)(\..*)?$", re.DOTALL)
_FULL = 1 << 16
"""A disk with fewer free bytes is full: what is left are ends of blocks."""
_CLOCK_ERROR = 2.0
"""Seconds by which the start of a process may be reported too late."""


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary file's path beside ``path``; when the block succeeds, it becomes ``path``.

    The file is flushed to the disk before it is renamed; when the block fails it is removed. What a killed process
    leaves behind is found by ``remove_leftovers``.

    Raises
    ------
    OutputError
        The folder cannot be written, the disk is full, or a folder, a device or a pipe has the name.
    """
    with _output_errors(path):
        if path.is_dir():
            raise OutputError("a folder has this name", path=path, remedy="remove it, or name another output")
        if path.exists() and not path.is_file():  # /dev/null, a pipe: renaming would put a file in its place
            raise OutputError("this is no ordinary file", path=path, remedy="name another output")
        path.parent.mkdir(parents=True, exist_ok=True)
    with _becoming(path, lambda temporary: temporary.replace(path)) as temporary:
        with _output_errors(path):
            temporary.touch()
            mode = temporary.stat().st_mode
        yield temporary
        with suppress(OSError):  # a disk without permissions
            temporary.chmod(mode)  # some writers make files that only their owner can read


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a new temporary folder beside ``path``; when the block succeeds, it becomes ``path``.

    A folder that has the name already is replaced.

    Raises
    ------
    OutputError
        The folder cannot be written, the disk is full, or a file has the name.
    """
    with _output_errors(path):
        if path.exists() and not path.is_dir():
            raise OutputError("a file has this name", path=path, remedy="remove it, or name another output")
        path.parent.mkdir(parents=True, exist_ok=True)
    with _becoming(path, lambda temporary: _replace_folder(temporary, path)) as temporary:
        with _output_errors(path):
            temporary.mkdir()
        yield temporary


@contextmanager
def scratch_file(path: Path) -> Iterator[Path]:
    """Yield the path of a file beside ``path`` that is gone after the block; ``remove_leftovers`` finds it as well."""
    temporary = _beside(path, "part")
    try:
        with _output_errors(path):
            temporary.touch(mode=0o600, exist_ok=False)
        yield temporary
    finally:
        _remove(temporary)


@contextmanager
def _becoming(path: Path, rename: Callable[[Path], object]) -> Iterator[Path]:
    temporary = _beside(path, "part")
    try:
        with _Writing(path, temporary):
            yield temporary
        with _output_errors(path):
            for written in (*temporary.rglob("*"), temporary):
                _flush(written)
            rename(temporary)
            _flush(path.parent)
    finally:
        _remove(temporary)


def _beside(path: Path, role: str) -> Path:
    """Return a name for a temporary. The suffix is kept, because writers choose the format by it."""
    suffix = "".join(path.suffixes[-2:])
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.{role}{suffix}")


def _replace_folder(new: Path, path: Path) -> None:
    """Rename a folder to a name that another one may have. Until the new one is there, the old one can come back."""
    if not path.exists():
        new.rename(path)
        return
    old = _beside(path, "old")
    path.rename(old)
    try:
        new.rename(path)
    except OSError:
        old.rename(path)
        raise
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):  # as for the folder: a leftover is found again, the error that led here matters more
            path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows cannot open a folder
        return
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network disks cannot flush folders
            raise
    finally:
        os.close(descriptor)


@contextmanager
def _output_errors(path: Path) -> Iterator[None]:
    """Turn the system's refusal to write into an OutputError that says what to do."""
    try:
        yield
    except OSError as error:
        raise output_error(path, error) from error


class _Writing:
    """The same for a block that also does other things, such as reading inputs and computing.

    An error that names another file is left as it is. Whatever fails on a full disk is taken for its consequence,
    because writers hide it: NumPy and tifffile raise an OSError without a number, torch a RuntimeError.
    """

    def __init__(self, path: Path, temporary: Path) -> None:
        self._path, self._temporary = path, temporary

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if not isinstance(error, Exception) or isinstance(error, SafelightError):
            return
        number = errno.ENOSPC if self._disk_is_full() else self._number(error)
        if number is not None:
            raise output_error(self._path, OSError(number, os.strerror(number))) from error

    def _number(self, error: Exception) -> int | None:
        """Return the system's number of an error of writing; None for other errors."""
        if isinstance(error, OSError) and isinstance(error.filename, str):
            own = Path(error.filename).resolve().is_relative_to(self._temporary.resolve())
            return error.errno if own else None
        told = re.search(r"\(os error (\d+)\)", str(error))  # Rust's libraries say it so, for instance safetensors
        number = int(told[1]) if told else _number_behind(error)
        return number if number in _OF_WRITING else None

    def _disk_is_full(self) -> bool:
        disk = shutil.disk_usage(self._path.parent)
        return disk.total > 0 and disk.free < _FULL


def _number_behind(error: BaseException) -> int | None:
    """Return the system's number of an error, or of the one that led to it: torch hides it behind one of its own."""
    behind: BaseException | None = error
    while behind is not None and not isinstance(behind, OSError):
        behind = behind.__cause__ or behind.__context__
    return None if behind is None else behind.errno


_OF_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
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
    """Remove what killed processes left anywhere in a folder, and return the paths that are gone.

    Temporaries of processes that are alive stay: another run may own a part of the folder. A folder that was about to
    be replaced gets its name back.
    """
    found = [Path(at, name) for at, folders, files in os.walk(folder) for name in (*folders, *files)]
    return [path for path in found if _is_abandoned(path) and _restore_or_remove(path)]


def remove_leftovers_of(path: Path) -> None:
    """Remove what killed processes left beside one output."""
    for other in path.parent.iterdir():
        match = _TEMPORARY.match(other.name)
        if match and match["name"] == path.name and _is_abandoned(other):
            _restore_or_remove(other)


def is_temporary(path: Path) -> bool:
    """Return whether a path is one of our temporary files or folders."""
    return _TEMPORARY.match(path.name) is not None


def _is_abandoned(path: Path) -> bool:
    """Return whether a path is a temporary whose process has ended, even if another process has its number now."""
    match = _TEMPORARY.match(path.name)
    if match is None or not path.exists():
        return False
    try:
        process = psutil.Process(int(match["pid"]))
        started, zombie = process.create_time(), process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
    except psutil.AccessDenied:  # another user's, alive
        return False
    return zombie or started > path.stat().st_mtime + _CLOCK_ERROR


def _restore_or_remove(leftover: Path) -> bool:
    match = _TEMPORARY.match(leftover.name)
    assert match is not None
    path = leftover.with_name(match["name"])
    if match["role"] == "old" and not path.exists():
        leftover.rename(path)
    else:
        _remove(leftover)
    return True


def inside(root: Path, path: Path | str) -> Path:
    """Return ``path``, taken relative to ``root``, as an absolute path inside it.

    Both separators count on every system, because manifests travel.

    Raises
    ------
    UnsafeInputError
        The path leaves the root: through ``..``, an absolute path, a drive or a symbolic link.
    """
    text = str(path)
    try:
        base = root.resolve()
        target = (base / text.replace("\\", "/")).resolve()
    except (ValueError, RuntimeError, OSError):  # a null byte, a loop of symbolic links
        base, target = root, Path()
    if re.match(r"^[A-Za-z]:", text) or not target.is_relative_to(base):
        raise UnsafeInputError(f"{text!r} leads out of the folder", path=root, expected="a path inside it")
    return target


@dataclass(frozen=True)
class Limits:
    """How large an input may claim to be.

    Parameters
    ----------
    max_bytes : int, optional
        Most bytes of pixels to hold at once; by default the host's memory budget.
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
        if not path.is_file():
            return
        size = path.stat().st_size
        most = size * (self.expansion if compressed else 1.0)
        if not 0 <= claimed_bytes <= most:
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
        most = self.max_bytes if self.max_bytes is not None else _host_bytes()
        if wanted_bytes > most:
            raise UnsafeInputError(
                f"reading {format_bytes(wanted_bytes)} at once is more than the {format_bytes(most)} allowed",
                path=path,
                remedy="more memory, --memory-limit where it is set, or a file format that is read in parts",
            )


def _host_bytes() -> int:
    from safelight.core.memory import host_budget  # imports torch, which no other part of this file needs

    return host_budget().bytes


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
            names = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
            for name in names:
                total.update(os.fsencode(name) + b"\0" + digest(path / name).encode())
            return total.hexdigest()
        with path.open("rb") as stream:
            while block := stream.read(_BLOCK):
                total.update(block)
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", path=path) from error
    return total.hexdigest()
