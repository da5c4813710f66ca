"""Files of JSON lines that many processes append to, and the lock that they share."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from safelight.core.errors import OutputError


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return every JSON object of a file of JSON lines. A missing file has none; a torn line is passed over."""
    lines = path.read_bytes().splitlines() if path.exists() else []
    return [entry for line in lines if (entry := _parse(line)) is not None]


def append_line(path: Path, line: str) -> None:
    """Append one line in one piece and flush it to the disk; a torn last line is closed first.

    Raises
    ------
    OSError
        The line could not be written whole.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        whole = (("\n" if _ends_torn(descriptor) else "") + line + "\n").encode()
        if os.write(descriptor, whole) < len(whole):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold an exclusive lock on a file. The system releases it when the process ends, however it ends.

    Raises
    ------
    OutputError
        ``wait`` is False and another process holds the lock.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        raise OutputError(
            "another run is using this folder", path=path.parent, remedy="wait for it, or choose another folder"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _ends_torn(descriptor: int) -> bool:
    size = os.fstat(descriptor).st_size
    if size == 0:
        return False
    os.lseek(descriptor, size - 1, os.SEEK_SET)
    return os.read(descriptor, 1) != b"\n"


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None
