"""Workers on this machine: each a supervised process of its own, so that one that dies takes only its item along."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing import connection
from types import TracebackType
from typing import Protocol, Self

from safelight.core.device import Device, devices
from safelight.core.errors import WorkerError
from safelight.core.events import Value
from safelight.core.files import remove_leftovers
from safelight.core.options import CommonOptions
from safelight.core.pipeline import Item
from safelight.core.worker import Broken, Done, Failed, Lost, Ready, Told, Work, packed, serve

TakeItem = Callable[[], Item | None]
"""Gives the next item to do, None when there is none now."""

SECONDS_TO_END = 5.0
"""How long a worker that is asked to end may take; then it is killed."""

_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


class Pool(Protocol):
    """Workers that do items.

    Attributes
    ----------
    size : int
        How many there are at most.
    where : list
        Where they compute.
    """

    @property
    def size(self) -> int: ...  # noqa: D102
    @property
    def where(self) -> list[Value]: ...  # noqa: D102

    def run(self, take: TakeItem) -> Iterator[tuple[Item, Told]]:
        """Do all items and yield what the workers tell of each, in its order; at last how it ended.

        ``take`` is asked for an item whenever a worker has none.
        """
        ...


def devices_for_workers(device: Device, options: CommonOptions) -> tuple[str, ...]:
    """Return the device of each worker: the CPU is shared, a GPU has one worker."""
    if device.is_cpu:
        return ("cpu",) * options.workers
    if ":" in options.device:
        return (str(device.torch_device),)
    found = (info.name for info in devices() if info.name.partition(":")[0] == device.kind)
    return tuple(found)[: options.workers]


class LocalPool:
    """Workers on this machine, started when there is something to do.

    Parameters
    ----------
    work : Work
    places : sequence of str
        The device of each worker.
    """

    def __init__(self, work: Work, places: Sequence[str]) -> None:
        self.size = len(places)
        self.where: list[Value] = [*dict.fromkeys(places)]
        self._work = work
        self._vacant = list(places)
        self._workers: list[_LocalWorker] = []
        self._one_was_ready = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            for worker in self._workers:
                worker.ask_to_end()
            deadline = time.monotonic() + SECONDS_TO_END
            for worker in self._workers:
                worker.wait_for_end(deadline - time.monotonic())
        finally:  # also when Ctrl-C is pressed again
            for worker in self._workers:
                worker.kill()

    def run(self, take: TakeItem) -> Iterator[tuple[Item, Told]]:
        """Do all items and yield what the workers tell of each."""
        while True:
            self._hand_out(take)
            busy = [worker for worker in self._workers if worker.item is not None]
            if not busy:
                return
            for worker in _with_news(busy):
                yield from self._news_of(worker)

    def _hand_out(self, take: TakeItem) -> None:
        idle = [worker for worker in self._workers if worker.item is None]
        for worker in [worker for worker in idle if worker.has_ended()]:
            idle.remove(worker)
            self._dismiss(worker)
        while idle or self._vacant:
            item = take()
            if item is None:
                return
            if not idle:
                idle.append(self._start())
            idle.pop().give(item)

    def _start(self) -> _LocalWorker:
        place = self._vacant.pop(0)
        options = self._work.options.model_copy(update={"device": place})
        worker = _LocalWorker(replace(self._work, options=options), place)
        self._workers.append(worker)
        return worker

    def _news_of(self, worker: _LocalWorker) -> Iterator[tuple[Item, Told]]:
        """Yield what a worker has told; the item of one that has died has failed."""
        item = worker.item
        assert item is not None
        for told in worker.news():
            self._one_was_ready |= isinstance(told, Ready)
            if isinstance(told, Broken):
                raise told.error
            if isinstance(told, Done | Failed):
                worker.item = None
            if isinstance(told, Lost):
                self._dismiss(worker)
            yield item, told
            if worker.item is None or isinstance(told, Lost):
                return
        if worker.has_ended():
            worker.wait_for_end(SECONDS_TO_END)
            self._dismiss(worker)
            if not self._one_was_ready:
                raise WorkerError(
                    f"no worker process can start: the first {worker.cause()}",
                    remedy="--workers 1; in a script, if __name__ == '__main__' around what starts the run",
                )
            yield item, Failed(died(item, worker.cause()))

    def _dismiss(self, worker: _LocalWorker) -> None:
        """Make room for another worker, and remove what this one leaves."""
        worker.kill()
        self._workers.remove(worker)
        self._vacant.append(worker.place)
        remove_leftovers(self._work.folder)


class _LocalWorker:
    """The parent's end of one worker process."""

    def __init__(self, work: Work, place: str) -> None:
        self.place = place
        self.item: Item | None = None
        context = multiprocessing.get_context("spawn")
        self._channel, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs,), name="safelight-worker", daemon=True)
        with _environment(_ONE_THREAD), _interrupts_held_back():
            self._process.start()
        theirs.close()
        self._ended = False
        self._send(work)

    def give(self, item: Item) -> None:
        """Have an item done."""
        self.item = item
        self._send(item)

    def _send(self, thing: Work | Item) -> None:
        content = packed(thing)
        with suppress(OSError):  # it has died; that is seen where its news are read
            self._channel.send_bytes(content)

    def waits_on(self) -> tuple[connection.Connection, int]:
        """Return what is ready when the worker has told something or has ended."""
        return self._channel, self._process.sentinel

    def news(self) -> Iterator[Told]:
        """Yield what the worker has told since."""
        try:
            while self._channel.poll():
                yield self._channel.recv()
        except (EOFError, OSError):
            self._ended = True

    def has_ended(self) -> bool:
        """Return whether the worker tells nothing any more; what it told at last must have been read."""
        return self._ended or (not self._process.is_alive() and not self._channel.poll())

    def cause(self) -> str:
        """Return how the process ended."""
        status = self._process.exitcode
        if status is not None and status < 0:
            return f"was killed by signal {_name_of(-status)}"
        return f"ended with status {status}"

    def ask_to_end(self) -> None:
        """Have the worker end: at once when it is in the middle of an item."""
        self._channel.close()
        if self.item is not None:
            self._process.terminate()

    def wait_for_end(self, seconds: float) -> None:
        """Wait until the process has ended, for so long."""
        self._process.join(max(seconds, 0))

    def kill(self) -> None:
        """End the process, whatever it does."""
        self._channel.close()
        self._process.kill()
        self._process.join()


def _with_news(workers: Sequence[_LocalWorker]) -> list[_LocalWorker]:
    """Wait until a worker has told something or has ended, and return those that have."""
    by_handle = {handle: worker for worker in workers for handle in worker.waits_on()}
    return list(dict.fromkeys(by_handle[handle] for handle in connection.wait(list(by_handle))))  # type: ignore[index]


def died(item: Item, cause: str) -> WorkerError:
    """Return the failure of an item whose worker has died."""
    return WorkerError(
        f"the worker process {cause} in the middle of it",
        path=item.inputs[0] if item.inputs else None,
        remedy="if memory ran out, fewer workers or a --memory-limit; the same command tries it again",
    )


def _name_of(number: int) -> str:
    known = {entry.value: entry.name for entry in signal.Signals}
    return known.get(number, str(number))


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables for the processes that the block starts: libraries read them when they are loaded."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Keep Ctrl-C from the processes that the block starts until they can leave it to this one; it is not lost here."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
