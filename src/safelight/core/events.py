"""What happened, as data: an Event has a key, a severity, values and a time, never free text.

The sentences live in ``locales/*.json``; ``messages.translate`` makes them. An EventLog writes each event as
one JSON line and hands it to its subscribers.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path, PurePath

from safelight.core.lines import open_lines, write_line

Value = str | int | float | bool | None | list["Value"] | dict[str, "Value"]


def as_value(value: object) -> Value:
    """Return a value as strict JSON has it: paths as text, NumPy's numbers and arrays as Python's, NaN and ±∞ as None.

    Raises
    ------
    TypeError
        JSON has nothing for this type.
    """
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, Mapping):
        return {str(name): as_value(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [as_value(part) for part in value]
    if isinstance(value, PurePath):
        return str(value)
    to_list = getattr(value, "tolist", None)  # known by its method: core imports NumPy only where it computes
    if to_list is None:
        raise TypeError(f"{value!r} of type {type(value).__name__} cannot be recorded as JSON")
    return as_value(to_list())


class Severity(StrEnum):
    """How much an event matters to a person."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True)
class Event:
    """One thing that happened.

    Parameters
    ----------
    key : str
        A key of ``locales/en.json``.
    severity : Severity
    data : mapping
        The values that the sentence's placeholders name; JSON types only.
    time : float
        Seconds since the epoch.
    """

    key: str
    severity: Severity = Severity.INFO
    data: Mapping[str, Value] = field(default_factory=dict)
    time: float = field(default_factory=time.time)

    def as_json(self) -> dict[str, Value]:
        """Return the event as a JSON object."""
        return {
            "time": self.time,
            "severity": self.severity.value,
            "key": self.key,
            "data": as_value(self.data),
        }


Subscriber = Callable[[Event], None]


class EventLog:
    """Gathers events in order and tells subscribers. Thread-safe."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._subscribers: list[Subscriber] = []
        self._lock = threading.RLock()

    def emit(self, key: str, severity: Severity = Severity.INFO, /, **data: Value) -> Event:
        """Record one event and return it."""
        event = Event(key, severity, data)
        self.add(event)
        return event

    def add(self, event: Event) -> None:
        """Record an event that another log has recorded already, for instance a worker's."""
        with self._lock:
            self._events.append(event)
            for subscriber in tuple(self._subscribers):
                subscriber(event)

    def debug(self, key: str, /, **data: Value) -> Event:
        """Record an event that only ``--verbose`` shows."""
        return self.emit(key, Severity.DEBUG, **data)

    def info(self, key: str, /, **data: Value) -> Event:
        """Record an event."""
        return self.emit(key, Severity.INFO, **data)

    def warning(self, key: str, /, **data: Value) -> Event:
        """Record an event that the user should look at."""
        return self.emit(key, Severity.WARNING, **data)

    def error(self, key: str, /, **data: Value) -> Event:
        """Record a failure."""
        return self.emit(key, Severity.ERROR, **data)

    def subscribe(self, subscriber: Subscriber) -> None:
        """Call ``subscriber`` with every event from now on."""
        with self._lock:
            self._subscribers.append(subscriber)

    def __iter__(self) -> Iterator[Event]:
        with self._lock:
            return iter(tuple(self._events))

    def __len__(self) -> int:
        return len(self._events)

    def keys(self) -> list[str]:
        """Return the keys of all events, in order."""
        return [event.key for event in self]

    @contextmanager
    def recorded(self, path: Path) -> Iterator[None]:
        """Append every event, those so far included, to a file of JSON lines while the block runs.

        A disk that refuses stops no run: it is said once, as ``events_not_recorded``.
        """
        recorder = _Recorder(path, self)
        try:
            with self._lock:
                for event in self:
                    recorder.write(event)
                self._subscribers.append(recorder.write)
            yield
        finally:
            with self._lock:
                if recorder.write in self._subscribers:
                    self._subscribers.remove(recorder.write)
            recorder.close()


class _Recorder:
    """Writes events to a file until the disk refuses one."""

    def __init__(self, path: Path, log: EventLog) -> None:
        self._path, self._log = path, log
        self._descriptor: int | None = None
        self._refused = False

    def write(self, event: Event) -> None:
        if self._refused:
            return
        try:
            if self._descriptor is None:
                self._descriptor = open_lines(self._path)
            write_line(self._descriptor, json.dumps(event.as_json(), allow_nan=False))
        except OSError as error:
            self._refused = True
            self._log.warning("events_not_recorded", path=str(self._path), reason=error.strerror or str(error))

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
