"""The tree of errors. Every error carries the data that its message names.

SafelightError
├── UsageError            the options are wrong: bad value, unknown name, missing extra
├── InputError            one input is wrong: missing, corrupt, unreadable, unsupported
│   ├── UnsafeInputError  an input that must not be opened: lying header, escaping path, pickle
│   └── NothingToDoError  no usable input at all
├── OutputError           an output cannot be written: read-only, full disk, name taken
├── OutOfMemoryError      even the smallest piece does not fit; says what would have
├── DeviceError           the device is missing or lost
├── WorkerError           a worker process died
├── JournalError          a run folder belongs to another job
└── CancelledError        the user stopped the run
"""

from __future__ import annotations

import os
from pathlib import Path

_MEBIBYTE = 2**20


class SafelightError(Exception):
    """Base of all errors meant for people.

    Parameters
    ----------
    problem : str
        What is wrong, naming the value.
    path : Path, optional
        The file or folder it is about.
    expected : str, optional
        What was expected instead.
    remedy : str, optional
        What the user can do.
    """

    exit_status = 1

    def __init__(
        self,
        problem: str,
        *,
        path: Path | str | None = None,
        expected: str | None = None,
        remedy: str | None = None,
    ) -> None:
        self.problem = problem
        self.path = None if path is None else Path(path)
        self.expected = expected
        self.remedy = remedy
        super().__init__(problem)

    def __str__(self) -> str:
        parts = [self.problem if self.path is None else f"{self.path}: {self.problem}"]
        if self.expected:
            parts.append(f"Expected: {self.expected}")
        if self.remedy:
            parts.append(f"Try: {self.remedy}")
        return ". ".join(part.rstrip(".") for part in parts) + "."

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.__dict__)


def _rebuild(kind: type[SafelightError], state: dict[str, object]) -> SafelightError:
    error = kind.__new__(kind)
    error.__dict__.update(state)
    error.args = (state["problem"],)
    return error


class UsageError(SafelightError):
    """The options are wrong."""

    exit_status = 2


class InputError(SafelightError):
    """One input is missing, corrupt or unsupported."""


class UnsafeInputError(InputError):
    """An input that must not be opened: a lying header, an escaping path, a pickle."""


class NothingToDoError(InputError):
    """No usable input at all."""


class OutputError(SafelightError):
    """An output cannot be written."""


class OutOfMemoryError(SafelightError):
    """Even the smallest piece does not fit.

    Parameters
    ----------
    problem : str
        What was tried.
    needed : int
        The smallest number of bytes that would have worked.
    allowed : int
        The number of bytes that was allowed.
    """

    def __init__(self, problem: str, *, needed: int, allowed: int, remedy: str | None = None) -> None:
        unit, name = (_MEBIBYTE, "MiB") if needed >= _MEBIBYTE else (1, "bytes")
        least, tenths = -(-needed // unit), 10 * allowed // unit  # what is named does work, what was allowed does not
        most = tenths // 10 if tenths >= 10 else tenths / 10
        super().__init__(problem, expected=f"at least {least} {name}, allowed were {most:g}", remedy=remedy)
        self.needed = needed
        self.allowed = allowed


class DeviceError(SafelightError):
    """The device is missing or lost."""


class WorkerError(SafelightError):
    """A worker process died: killed, out of memory, or crashed."""


class JournalError(SafelightError):
    """A run folder belongs to another job."""


class CancelledError(SafelightError):
    """The user stopped the run."""

    exit_status = 130


def as_failure(error: SafelightError | OSError) -> SafelightError:
    """Return the error for people: what the system refuses is an input's failure, with the file that it names."""
    if isinstance(error, SafelightError):
        return error
    path = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else None  # it may be a number
    return InputError(error.strerror or str(error) or type(error).__name__, path=path)
