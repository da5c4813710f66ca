"""The standard streams as they are found: closed, on a full disk, of another encoding, or read by nobody."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import TextIO

_STANDARD = range(3)


def settle() -> None:
    """Make the standard streams usable, whatever the caller has left of them.

    What is closed leads to nothing: else a file of the run would get its number, and with it what a library prints.
    Characters that the encoding does not have are written as their numbers.
    """
    for number in _STANDARD:
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free: this one
            os.set_inheritable(number, True)
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream: Any = getattr(sys, name) or os.fdopen(number, "w", closefd=False)
        stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, stream)


def lead_to_nothing(stream: TextIO) -> None:
    """Throw away what is written to a stream from now on, and what it could not write so far."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    with suppress(OSError):
        stream.flush()


class Patient:
    """A stream that falls silent when it cannot be written: messages stop no run.

    Parameters
    ----------
    stream : text stream
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text, or nothing."""
        try:
            return self._stream.write(text)
        except OSError:
            lead_to_nothing(self._stream)
            return len(text)

    def flush(self) -> None:
        """Hand on what was written, or throw it away."""
        try:
            self._stream.flush()
        except OSError:
            lead_to_nothing(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
