"""What happened, as data: an Event has a key, a severity, values and a time, never free text.

The sentences live in ``locales/*.json``; ``messages.translate`` makes them. An EventLog writes each event as
one JSON line and hands it to its subscribers.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

Value = str | int | float | bool | None | list["Value"] | dict[str, "Value"]


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
            "data": dict(self.data),
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
        with self._lock:
            self._events.append(event)
            for subscriber in self._subscribers:
                subscriber(event)
        return event

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
        """Append every event, those so far included, to a file of JSON lines while the block runs."""
        with path.open("a", encoding="utf-8") as file:

            def write(event: Event) -> None:
                file.write(json.dumps(event.as_json()) + "\n")
                file.flush()

            with self._lock:
                for event in self._events:
                    write(event)
                self._subscribers.append(write)
            try:
                yield
            finally:
                with self._lock:
                    self._subscribers.remove(write)
