"""Files of JSON lines that many processes append to, and the lock that they share."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safelight.core.errors import InputError, OutputError

_SECONDS_BETWEEN_TRIES = 0.01


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return every JSON object of a file of JSON lines. A missing file has none; a torn line is passed over.

    Raises
    ------
    InputError
        The file cannot be read.
    """
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", path=path) from error
    return [entry for line in lines if (entry := _parse(line)) is not None]


def append_line(path: Path, line: str) -> None:
    """Append one line in one piece and flush it to the disk.

    Only one process may do so at a time: hold a lock.

    Raises
    ------
    OSError
        The line could not be written whole; nothing of it is there.
    """
    descriptor = open_lines(path)
    try:
        write_line(descriptor, line)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_lines(path: Path) -> int:
    """Open a file of JSON lines for ``write_line`` and return its descriptor; a torn last line is mended first."""
    if path.exists():
        _mend(path)
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)


def write_line(descriptor: int, line: str) -> None:
    """Write one line in one piece at the end of a file.

    Raises
    ------
    OSError
        The line could not be written whole; nothing of it is there.
    """
    before, whole = os.fstat(descriptor).st_size, (line + "\n").encode()
    try:
        if os.write(descriptor, whole) < len(whole):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError:
        os.ftruncate(descriptor, before)
        raise


@contextmanager
def locked(path: Path, timeout: float = 0) -> Iterator[None]:
    """Hold an exclusive lock on a file. The system releases it when the process ends, however it ends.

    Parameters
    ----------
    path : Path
        Made if missing, and left there: removing it would let two processes hold two locks of one name.
    timeout : float
        How many seconds to wait for another process.

    Raises
    ------
    OutputError
        Another process still holds the lock.
    OSError
        The file cannot be made.
    """
    from filelock import FileLock, Timeout  # takes 30 ms, which ``--help`` does not have

    path.touch()
    lock = FileLock(path)
    try:
        lock.acquire(timeout, poll_interval=_SECONDS_BETWEEN_TRIES)
    except Timeout:
        raise OutputError(
            "another run is using this folder", path=path.parent, remedy="wait for it, or choose another folder"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _mend(path: Path) -> None:
    """End a last line that lacks only its end; cut off one that a crash has torn."""
    with path.open("r+b") as file:
        if not file.seek(0, os.SEEK_END):
            return
        file.seek(-1, os.SEEK_END)
        if file.read(1) == b"\n":
            return
        file.seek(0)
        whole = file.read()
        start = whole.rfind(b"\n") + 1
        if _parse(whole[start:]) is None:
            file.truncate(start)
        else:
            file.write(b"\n")


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None
