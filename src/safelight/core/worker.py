"""What a worker does: one item after another, in a process of its own. The parent keeps the journal.

A worker is told what to do in paths and options. What the items share, for instance a trained model, it reads once
from a file that the parent has written.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import platform
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection, parent_process
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch

from safelight.core.allocator import release_freed_memory
from safelight.core.device import compiled_graphs, select
from safelight.core.errors import InputError, SafelightError, UsageError, WorkerError, as_failure
from safelight.core.events import Event, EventLog, Severity, Value
from safelight.core.execute import Executor, Measured
from safelight.core.files import scratch_file
from safelight.core.memory import is_out_of_memory, is_sticky
from safelight.core.options import CommonOptions
from safelight.core.pipeline import Context, Item, Record

Process = Callable[[Item, Any, Context, Any], Record]

SECONDS_BETWEEN_SHARES = 0.2
TERMINATED = 128 + signal.SIGTERM
"""The exit status of a worker that was asked to end."""


@dataclass(frozen=True)
class Work:
    """What the workers of a run are told.

    Parameters
    ----------
    process : callable
        The command's; a worker imports it by its name.
    options : CommonOptions
    folder : Path
        The run's folder, as the parent names it: outputs are compared with it.
    shared : Path
        The file with what ``prepare`` returned for the items.
    sha256 : str
        Its digest: nothing else is unpickled.
    current : Path
        Where relative paths begin.
    workers : int
        Processes that share a machine.
    """

    process: Process
    options: CommonOptions
    folder: Path
    shared: Path
    sha256: str
    current: Path
    workers: int


@dataclass(frozen=True)
class Ready:
    """A worker has started."""


@dataclass(frozen=True)
class Share:
    """How much of its item a worker has done, from 0 to 1."""

    done: float


@dataclass(frozen=True)
class Usage:
    """What a worker has taken.

    Parameters
    ----------
    worker : str
        Its machine and the number of its process.
    device : str
    measured : tuple of Measured
        Peaks of the kernels that its last item ran.
    timings : list of dict
        How long the chunks of all its items took, by kernel and device.
    graphs : int
        Graphs that torch.compile has captured.
    """

    worker: str
    device: str
    measured: tuple[Measured, ...]
    timings: list[dict[str, Value]]
    graphs: int


@dataclass(frozen=True)
class Done:
    """An item is done; its outputs are on the disk."""

    record: Record
    seconds: float


@dataclass(frozen=True)
class Failed:
    """An item cannot be done."""

    error: SafelightError


@dataclass(frozen=True)
class Lost:
    """The worker has lost its device, and is of no use any more."""

    device: str
    reason: str


@dataclass(frozen=True)
class Broken:
    """The program is wrong: an error that nobody expected, with its traceback as a note."""

    error: BaseException


Told = Ready | Event | Share | Usage | Done | Failed | Lost | Broken


def attempt(process: Process, item: Item, options: CommonOptions, context: Context, shared: Any) -> Done | Failed:
    """Do one item, here."""
    started = time.monotonic()
    context.events.debug("item_started", name=item.name)
    try:
        record = process(item, options, context, shared)
    except (SafelightError, OSError) as error:
        return Failed(as_failure(error))
    except (MemoryError, RuntimeError) as error:  # what no plan foresaw: the other items may still fit
        if not is_out_of_memory(error):
            raise
        return Failed(_no_memory_for(item, error))
    finally:
        release_freed_memory()
    return Done(record, time.monotonic() - started)


def _no_memory_for(item: Item, error: Exception) -> SafelightError:
    return InputError(
        f"memory ran out ({str(error).partition(chr(10))[0] or type(error).__name__})",
        path=item.inputs[0] if item.inputs else None,
        remedy="fewer --workers, or a machine with more memory; the same command tries it again",
    )


class Worker:
    """Does items in this process, which does nothing else.

    Parameters
    ----------
    work : Work
    tell : callable
        Takes events and shares while an item is in hand.
    """

    def __init__(self, work: Work, tell: Callable[[Told], None]) -> None:
        torch.set_num_threads(1)
        self._work = work
        self._tell = tell
        self._shared = _read_shared(work)
        events = EventLog()
        device = select(work.options, events)
        for event in events:
            if event.severity not in (Severity.DEBUG, Severity.INFO):  # the parent has said the others
                tell(event)
        events.subscribe(tell)
        self._executor = Executor.from_options(device, work.options, events, work.workers)
        self._context = Context(device, self._executor, events, work.folder, self._progress)
        self._last_share = 0.0

    def do(self, item: Item) -> Done | Failed | Lost:
        """Do one item, and tell what it took."""
        context, measured = self._context, len(self._executor.measured)
        try:
            result = attempt(self._work.process, item, self._work.options, context, self._shared)
        except RuntimeError as error:
            if not is_sticky(error):
                raise
            return Lost(str(context.device.torch_device), str(error).split("\n", 1)[0])
        self._tell(
            Usage(
                f"{platform.node()}:{os.getpid()}",
                str(context.device.torch_device),
                tuple(self._executor.measured[measured:]),
                self._executor.timing_record(),
                compiled_graphs(),
            )
        )
        return result

    def _progress(self, done: float, total: float, key: str, /, **data: Value) -> None:
        """Tell the share done now and then. What is being done the parent cannot show for several items at once."""
        now = time.monotonic()
        if total and now - self._last_share >= SECONDS_BETWEEN_SHARES:
            self._last_share = now
            self._tell(Share(done / total))


@contextmanager
def shared_with_workers(
    process: Process, options: CommonOptions, folder: Path, shared: Any, workers: int
) -> Iterator[Work]:
    """Yield what workers have to be told, while the file that it names exists.

    Raises
    ------
    UsageError
        The pipeline cannot be sent to workers.
    """
    content = packed(shared)
    with scratch_file(folder / "shared.pickle") as path:
        path.write_bytes(content)
        sha256 = hashlib.sha256(content).hexdigest()
        yield Work(process, options, folder, path, sha256, Path.cwd(), workers)


def packed(value: object) -> bytes:
    """Return something as bytes for a worker.

    Tensors are copied: Python's own connections would share their memory between the processes.

    Raises
    ------
    UsageError
        It cannot be pickled.
    """
    try:
        return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise UsageError(
            f"this pipeline cannot be shared among workers: {error}",
            expected="functions of modules, and items that can be pickled",
            remedy="--workers 1",
        ) from error


def _read_shared(work: Work) -> Any:
    content = work.shared.read_bytes()
    if hashlib.sha256(content).hexdigest() != work.sha256:
        raise WorkerError("is not what the run has written for its workers", path=work.shared, remedy="run again")
    return pickle.loads(content)  # noqa: S301 - the parent's own, by its digest


def serve(channel: connection.Connection) -> None:
    """Do the items that come through a connection until it is closed. The main function of a local worker."""
    _heed_the_parent_only()
    with _Teller(channel) as tell:
        tell(Ready())
        worker = Worker(channel.recv(), tell)
        while True:
            try:
                item = channel.recv()
            except EOFError:
                return
            tell(worker.do(item))


def _heed_the_parent_only() -> None:
    """Leave Ctrl-C, which every process of a terminal gets, to the parent, and end when it ends.

    To be terminated unwinds the stack, so that temporary files are removed.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave)
    if hasattr(signal, "pthread_sigmask"):  # not on Windows
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_end_with_the_parent, daemon=True).start()


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(TERMINATED)


def _end_with_the_parent() -> None:
    """End this process with its parent's: nobody would journal what it does."""
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(TERMINATED)


class _Teller:
    """Tells the parent what happens here, in order, from any thread; at last what nobody expected."""

    def __init__(self, channel: connection.Connection) -> None:
        self._channel, self._lock = channel, threading.Lock()

    def __call__(self, told: Told) -> None:
        try:
            with self._lock:
                self._channel.send_bytes(packed(told))
        except OSError:  # the parent listens no more
            os._exit(TERMINATED)

    def __enter__(self) -> _Teller:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if error is None or isinstance(error, SystemExit):
            return False
        self(Broken(_portable(error)))
        return True


def _portable(error: BaseException) -> BaseException:
    """Return an error that can be sent, with its traceback as a note."""
    text = "".join(traceback.format_exception(error))
    if isinstance(error, SafelightError):
        return error
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - made here
        error.add_note(text)
        return error
    except (pickle.PicklingError, AttributeError, TypeError, ValueError):
        return RuntimeError(text)
