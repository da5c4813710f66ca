"""How long computations take, when the device works while the host goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from safelight.core.device import Device
from safelight.core.events import Value


@dataclass(frozen=True)
class Timing:
    """Seconds that one call takes, over several calls.

    Parameters
    ----------
    median, lower, upper : float
        Median, 25th and 75th percentile.
    repeats : int
        Calls that were timed.
    """

    median: float
    lower: float
    upper: float
    repeats: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Timing:
        """Return the statistics of single durations.

        Raises
        ------
        ValueError
            There is none.
        """
        if not seconds:
            raise ValueError("no duration to take the median of")
        lower, median, upper = np.percentile(seconds, (25, 50, 75)).tolist()
        return cls(median, lower, upper, len(seconds))


class Stopwatch:
    """Times what a device does in each of several blocks, without making a GPU wait between them.

    On CUDA by events in the device's own stream, elsewhere by the host's clock once the device is done.

    Parameters
    ----------
    device : Device
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._seconds: list[float] = []
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def lap(self) -> Iterator[None]:
        """Time a block; one that raises does not count."""
        if self._device.kind == "cuda":
            start, stop = _event(), _event()
            stream = torch.cuda.current_stream(self._device.torch_device)
            start.record(stream)
            yield
            stop.record(stream)
            self._events.append((start, stop))
        else:
            self._device.synchronize()
            before = time.perf_counter()
            yield
            self._device.synchronize()
            self._seconds.append(time.perf_counter() - before)

    def seconds(self) -> list[float]:
        """Wait for the device and return the duration of every block."""
        self._device.synchronize()
        return self._seconds + [start.elapsed_time(stop) / 1000 for start, stop in self._events]


class ChunkTimes:
    """How long the chunks of one kernel take on one device: computing, and moving there and back.

    Parameters
    ----------
    device : Device
    warmup : int
        The first chunks, which do not count: they choose algorithms and fill caches.
    """

    def __init__(self, device: Device, warmup: int) -> None:
        self._stopwatch = Stopwatch(device)
        self._warmup = warmup
        self._rows: list[int] = []

    @contextmanager
    def chunk(self, rows: int) -> Iterator[None]:
        """Time a chunk of so many rows; one that fails does not count."""
        with self._stopwatch.lap():
            yield
        self._rows.append(rows)

    def record(self) -> dict[str, Value]:
        """Wait for the device and return the statistics as JSON values; None where every chunk was warm-up."""
        seconds, rows = self._stopwatch.seconds()[self._warmup :], self._rows[self._warmup :]
        timing = Timing.of(seconds) if seconds else None
        return {
            "chunks": len(self._rows),
            "rows": sum(self._rows),
            "warmup_chunks": len(self._rows) - len(rows),
            "median_seconds": timing.median if timing else None,
            "lower_quartile_seconds": timing.lower if timing else None,
            "upper_quartile_seconds": timing.upper if timing else None,
            "rows_per_second": sum(rows) / sum(seconds) if timing else None,
        }


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch's constructor lacks types


def measure(function: Callable[[], object], device: Device, *, warmup: int, repeats: int) -> Timing:
    """Call a function again and again and say how long a call takes on the device.

    Parameters
    ----------
    function : callable
        What it returns is thrown away.
    device : Device
        Where it computes.
    warmup : int
        Calls before the first one that counts.
    repeats : int
        Calls that count, at least 1.

    Returns
    -------
    Timing
    """
    for _ in range(warmup):
        function()
    stopwatch = Stopwatch(device)
    for _ in range(repeats):
        with stopwatch.lap():
            function()
    return Timing.of(stopwatch.seconds())
