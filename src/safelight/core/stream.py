"""Where chunks come from and where results go; reading one chunk ahead of the computation."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from safelight.core.errors import DeviceError
from safelight.core.plan import Chunk

SECONDS_BETWEEN_CHECKS = 0.5


class Source(Protocol):
    """What a kernel runs over: ``extent`` rows (frames, tiles, samples), each of one shape and dtype."""

    @property
    def extent(self) -> int: ...  # noqa: D102
    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def dtype(self) -> torch.dtype: ...  # noqa: D102

    def read(self, start: int, stop: int) -> Tensor:
        """Return rows ``start`` to ``stop`` on the CPU, (stop − start, *shape). Called from another thread."""
        ...


class Sink(Protocol):
    """Where results go, each row exactly once, in order.

    A ``write`` during which memory runs out comes again: it must leave nothing half-done that counts twice.
    """

    def write(self, start: int, stop: int, result: Tensor) -> None:
        """Take the result of rows ``start`` to ``stop``, on the CPU."""
        ...


@runtime_checkable
class AccumulatingSink(Protocol):
    """A Sink that keeps its results on the device until memory runs short."""

    @property
    def on_device(self) -> bool: ...  # noqa: D102

    def write(self, start: int, stop: int, result: Tensor) -> None:
        """Take the result of rows ``start`` to ``stop``, on the device or on the CPU."""
        ...

    def to_host(self) -> None:
        """Move everything kept so far to the CPU, and stay there."""
        ...


@dataclass(frozen=True)
class TensorSource:
    """A tensor on the CPU as a Source along its axis 0."""

    tensor: Tensor

    @property
    def extent(self) -> int:
        """Number of rows."""
        return self.tensor.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a row."""
        return tuple(self.tensor.shape[1:])

    @property
    def dtype(self) -> torch.dtype:
        """Type of the values."""
        return self.tensor.dtype

    def read(self, start: int, stop: int) -> Tensor:
        """Return rows as a view."""
        return self.tensor[start:stop]


class TensorSink:
    """Gathers results in one tensor, on a device or on the CPU.

    Parameters
    ----------
    extent : int
        Rows in all.
    device : torch.device
        Where to gather; ``to_host`` moves it to the CPU.
    """

    def __init__(self, extent: int, device: torch.device | None = None) -> None:
        self._extent = extent
        self._device = device or torch.device("cpu")
        self._result: Tensor | None = None

    @property
    def on_device(self) -> bool:
        """Whether results are kept elsewhere than on the CPU."""
        return self._device.type != "cpu"

    @property
    def result(self) -> Tensor:
        """The gathered tensor."""
        assert self._result is not None, "nothing was written"
        return self._result

    def write(self, start: int, stop: int, result: Tensor) -> None:
        """Take the result of rows ``start`` to ``stop``."""
        if self._result is None:
            self._result = result.new_empty((self._extent, *result.shape[1:]), device=self._device)
        self._result[start:stop] = result.to(self._device)

    def to_host(self) -> None:
        """Move the gathered tensor to the CPU."""
        self._device = torch.device("cpu")
        if self._result is not None:
            self._result = self._result.cpu()


@contextmanager
def read_ahead(source: Source, chunks: Sequence[Chunk]) -> Iterator[Iterator[Tensor]]:
    """Yield an iterator over the chunks' tensors, read one ahead by another thread.

    Errors of the reader travel through the queue; every wait has a timeout and looks whether the reader lives.
    """
    if len(chunks) == 1:
        yield iter([source.read(chunks[0].read_start, chunks[0].read_stop)])
        return
    line: queue.Queue[Tensor | BaseException] = queue.Queue()
    stop, wanted = threading.Event(), threading.Semaphore()

    def read() -> None:
        try:
            for chunk in chunks:
                while not wanted.acquire(timeout=SECONDS_BETWEEN_CHECKS):  # a plan knows of one chunk ahead
                    if stop.is_set():
                        return
                if stop.is_set():
                    return
                line.put(source.read(chunk.read_start, chunk.read_stop))
        except BaseException as error:  # noqa: BLE001 - whatever it is, it ends the run there, not here
            line.put(error)

    def taken() -> Iterator[Tensor]:
        for _ in chunks:
            entry = _take(line, reader)
            wanted.release()
            if isinstance(entry, BaseException):
                raise entry
            yield entry

    reader = threading.Thread(target=read, name="safelight-read-ahead", daemon=True)
    reader.start()
    try:
        yield taken()
    finally:
        stop.set()
        wanted.release()  # so that the reader need not wait to be stopped
        reader.join()


def _take(line: queue.Queue[Tensor | BaseException], reader: threading.Thread) -> Tensor | BaseException:
    while True:
        try:
            return line.get(timeout=SECONDS_BETWEEN_CHECKS)
        except queue.Empty:
            if not reader.is_alive() and line.empty():
                raise DeviceError("the reading thread ended without a word", remedy="run again") from None
