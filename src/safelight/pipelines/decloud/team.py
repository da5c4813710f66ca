"""Processes of one machine that train one network together: each does its share of every batch, and gradients add up.

PyTorch's DistributedDataParallel adds gradients up inside the backward pass. A process whose memory runs short there
begins its share anew in smaller parts, and the others would wait for ever. Here they are added up after it.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from safelight.core.device import Device, select
from safelight.core.errors import SafelightError, WorkerError
from safelight.core.events import EventLog
from safelight.core.options import CommonOptions
from safelight.core.workers import SECONDS_TO_END, devices_for_workers

T = TypeVar("T")
Part = Callable[[Any, Device, "Team"], object]
"""What the other processes do, ``(options, device, team)``: a function of a module, which can be given to them."""


@dataclass(frozen=True)
class Team:
    """One process among those that train together; alone by default.

    Parameters
    ----------
    rank, size : int
        Its number, from 0, and how many there are.
    """

    rank: int = 0
    size: int = 1

    def share(self, things: Sequence[T]) -> Sequence[T]:
        """Return this process's part of what all have to do."""
        return things[self.rank :: self.size]

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors of one type and device by their sums over the team, in one exchange."""
        if self.size == 1:
            return
        joined = torch.cat([tensor.flatten() for tensor in tensors])
        distributed.all_reduce(joined)
        for tensor, total in zip(tensors, torch.split(joined, [tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(total.view_as(tensor))

    def gather(self, thing: T) -> list[T]:
        """Return what every process has, in their order."""
        if self.size == 1:
            return [thing]
        found: list[Any] = [None] * self.size
        distributed.all_gather_object(found, thing)
        return found


ALONE = Team()


@contextmanager
def gathered(device: Device, options: CommonOptions, part: Part) -> Iterator[Team]:
    """Yield this process's place in a team of ``options.workers``, whose others do their part meanwhile.

    Parameters
    ----------
    device : Device
    options : CommonOptions
    part : Part

    Raises
    ------
    WorkerError
        Another process has ended before its time; says why.
    """
    places = devices_for_workers(device, options)
    if len(places) == 1:
        yield ALONE
        return
    with TemporaryDirectory() as folder:
        others = [
            _Other(rank, len(places), Path(folder) / "meeting", options.model_copy(update={"device": place}), part)
            for rank, place in enumerate(places[1:], start=1)
        ]
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # each process has one
        try:
            for other in others:
                other.wait_until_ready()
            with _joined(Team(0, len(places)), device, Path(folder) / "meeting") as team:
                yield team
        except RuntimeError:
            ended = next((other for other in others if other.has_ended()), None)
            if ended is None:
                raise
            raise ended.error() from None
        finally:
            torch.set_num_threads(threads)
            for other in others:
                other.kill()


class _Other:
    """The first process's end of another one."""

    def __init__(self, rank: int, size: int, meeting: Path, options: CommonOptions, part: Part) -> None:
        context = multiprocessing.get_context("spawn")
        self._channel, theirs = context.Pipe()
        arguments = (Team(rank, size), meeting, options, part, theirs)
        self._process: BaseProcess = context.Process(target=_take_part, args=arguments, daemon=True)
        self._process.start()
        theirs.close()

    def wait_until_ready(self) -> None:
        """Wait until it is about to join: from then on a team's members notice when one ends."""
        connection.wait([self._channel, self._process.sentinel])
        if not self._channel.poll():
            raise self.error()
        with suppress(EOFError):
            if self._channel.recv() is None:
                return
        raise self.error()

    def has_ended(self) -> bool:
        """Return whether the process has ended, or is about to."""
        self._process.join(SECONDS_TO_END)
        return not self._process.is_alive()

    def error(self) -> WorkerError:
        """Return the error that says why it has ended."""
        self._process.join(SECONDS_TO_END)
        cause = f"ended with status {self._process.exitcode}"
        with suppress(EOFError, OSError):
            cause = str(self._channel.recv()) if self._channel.poll() else cause
        return WorkerError(
            f"a process that trains along cannot go on: {cause}",
            remedy="if memory ran out, fewer --workers: the same command goes on from the last checkpoint; "
            "in a script, if __name__ == '__main__' around what starts the run",
        )

    def kill(self) -> None:
        """End it, whatever it does."""
        self._channel.close()
        self._process.kill()
        self._process.join()


def _take_part(team: Team, meeting: Path, options: CommonOptions, part: Part, channel: connection.Connection) -> None:
    """Do a part in a process of its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends all
    try:
        torch.set_num_threads(1)
        device = select(options, EventLog())
        channel.send(None)
        with _joined(team, device, meeting):
            part(options, device, team)
    except SafelightError as error:
        channel.send(str(error))
        raise SystemExit(1) from None
    except RuntimeError as error:  # among them that another process has ended
        channel.send(str(error).partition("\n")[0])
        raise SystemExit(1) from None


@contextmanager
def _joined(team: Team, device: Device, meeting: Path) -> Iterator[Team]:
    backend = "nccl" if device.kind == "cuda" else "gloo"
    if device.kind == "cuda":
        torch.cuda.set_device(device.torch_device.index or 0)
    distributed.init_process_group(backend, init_method=meeting.as_uri(), rank=team.rank, world_size=team.size)
    try:
        yield team
    finally:
        distributed.destroy_process_group()
