"""Workers of a Dask cluster that runs already. All machines must see the same folders under the same paths.

Dask carries paths and options there, and small records back. What happens meanwhile comes as events of a topic.
"""

from __future__ import annotations

import contextlib
import math
import queue
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError as NoAnswerError
from dataclasses import replace
from importlib import import_module
from typing import Any, Self

import torch

from safelight.core.errors import CancelledError, DeviceError, UsageError, WorkerError
from safelight.core.events import Event, Severity, Value
from safelight.core.memory import HOST_FRACTION
from safelight.core.options import CommonOptions
from safelight.core.pipeline import Item
from safelight.core.worker import Failed, Lost, Share, Told, Usage, Work, Worker
from safelight.core.workers import TakeItem, died

SECONDS_TO_CONNECT = 10.0
SECONDS_BETWEEN_CHECKS = 2.0
SECONDS_WITHOUT_WORKERS = 60.0
"""How long a cluster may have no worker before the run gives up: dead ones are replaced in a few seconds."""
STOPPED = "stopped"
_ADDRESS = re.compile(r"(?:(?:tcp|tls|ucx|wss?)://)?[^/\s]+:[0-9]{1,5}")
"""Checked here: with any other, Dask waits for half a minute and leaves tracebacks behind."""


def check_cluster(address: str) -> None:
    """Make sure that there is a cluster, before anything else is done.

    Raises
    ------
    UsageError
        As ``ClusterPool``.
    """
    _connect(address).close()


def _connect(address: str) -> Any:
    expected = "the address that 'dask scheduler' prints, for instance tcp://10.0.0.1:8786"
    if not _ADDRESS.fullmatch(address):
        raise UsageError(f"--cluster {address}: this is no address", expected=expected)
    try:
        client = _dask().Client(address, timeout=SECONDS_TO_CONNECT, set_as_default=False)
    except (OSError, ValueError) as error:
        raise UsageError(f"--cluster {address}: no Dask scheduler answers", expected=expected) from error
    if not _workers_of(client):
        client.close()
        raise UsageError(f"--cluster {address}: it has no workers", remedy="dask worker " + address)
    return client


def _dask() -> Any:
    """Return the package, which has no types and takes a second to import."""
    try:
        return import_module("distributed")
    except ImportError as error:
        raise UsageError("--cluster needs Dask", remedy="pip install 'safelight[cluster]'") from error


def _workers_of(client: Any) -> dict[str, dict[str, Any]]:
    """Return what the scheduler knows of each worker, by address."""
    workers: dict[str, dict[str, Any]] = client.scheduler_info()["workers"]
    return workers


class ClusterPool:
    """Workers of a Dask cluster.

    Parameters
    ----------
    address : str
        Of its scheduler.
    work : Work

    Raises
    ------
    UsageError
        Dask is missing, nothing answers at the address, or the cluster has no workers.
    """

    def __init__(self, address: str, work: Work) -> None:
        self.where: list[Value] = [address]
        self._client = _connect(address)
        self._work = work
        self._topic = f"safelight-{secrets.token_hex(8)}"
        self._in_hand: dict[str, tuple[Item, Any]] = {}
        self._news: queue.Queue[tuple[str, Told | None]] = queue.Queue()
        self.size = len(_workers_of(self._client))
        self._last_seen = time.monotonic()
        self._client.subscribe_topic(self._topic, self._hear)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Leave the cluster. An item in work stops when it next tells something."""
        with contextlib.suppress(OSError):  # the scheduler may be gone
            if self._in_hand:
                self._client.set_metadata([self._topic, STOPPED], True)
                self._client.cancel([future for _, future in self._in_hand.values()], force=True)
            self._client.unsubscribe_topic(self._topic)
            self._client.close()

    def run(self, take: TakeItem) -> Iterator[tuple[Item, Told]]:
        """Do all items and yield what the workers tell of each."""
        while True:
            self._hand_out(take)
            if not self._in_hand:
                return
            try:
                name, told = self._news.get(timeout=SECONDS_BETWEEN_CHECKS)
            except queue.Empty:
                self._demand_workers()
                continue
            if name not in self._in_hand:  # said after its end
                continue
            item, future = self._in_hand[name]
            if told is not None:
                yield item, told
                continue
            del self._in_hand[name]
            for at_last in self._result(item, future):
                yield item, at_last

    def _hand_out(self, take: TakeItem) -> None:
        # One for each: a record that waits in a worker until it is fetched would be lost with it.
        while len(self._in_hand) < max(self.size, 1):
            item = take()
            if item is None:
                return
            key = f"{self._topic}-{secrets.token_hex(4)}"
            future = self._client.submit(do_item, self._work, item, self._topic, key=key, pure=False)
            self._in_hand[item.name] = (item, future)
            future.add_done_callback(self._noting_the_end_of(item.name))

    def _noting_the_end_of(self, name: str) -> Callable[[object], None]:
        return lambda _: self._news.put((name, None))

    def _hear(self, event: tuple[float, dict[str, Any]]) -> None:
        """Take what a worker tells of an item in work. Called from the client's own thread."""
        told = event[1]
        if "share" in told:
            self._news.put((told["item"], Share(told["share"])))
        else:
            self._news.put((told["item"], Event(told["key"], Severity(told["severity"]), told["data"], told["time"])))

    def _result(self, item: Item, future: Any) -> list[Told]:
        """Return what came of an item, at whose end the worker was alive or dead."""
        try:
            address, told = future.result()
        except _dask().KilledWorker:
            return [Failed(died(item, "died"))]
        except NoAnswerError:
            raise WorkerError("the Dask cluster is gone", remedy="the same command goes on from here") from None
        if any(isinstance(each, Lost) for each in told):
            self._restart(address)
        result: list[Told] = told
        return result

    def _restart(self, address: str) -> None:
        """Replace the process of a worker that has lost its device."""
        try:
            self._client.restart_workers([address])
        except ValueError as error:
            raise DeviceError(
                f"the worker at {address} has lost its device, and has no nanny to restart it",
                remedy="restart it, then the same command goes on",
            ) from error

    def _demand_workers(self) -> None:
        self.size = len(_workers_of(self._client))
        if self.size:
            self._last_seen = time.monotonic()
        elif time.monotonic() - self._last_seen > SECONDS_WITHOUT_WORKERS:
            raise WorkerError("the Dask cluster has no workers any more", remedy="the same command goes on from here")


# What follows runs in the workers.

_one_at_a_time = threading.Lock()
"""A Dask worker may have several threads; an item has the whole process."""
_latest: dict[str, tuple[Worker, _Teller]] = {}


def do_item(work: Work, item: Item, topic: str) -> tuple[str, list[Told]]:
    """Do one item in a Dask worker, and return the worker's address and what came of it.

    Dask gives the item of a worker that died to another one; so that it does not kill all of them, this one refuses.
    """
    here, client = _dask().get_worker(), _dask().get_client()
    with _one_at_a_time:
        if client.get_metadata([topic, "begun", item.name], False):
            client.set_metadata([topic, "begun", item.name], False)  # the run may give it again
            return here.address, [Failed(died(item, "died"))]
        client.set_metadata([topic, "begun", item.name], True)
        with contextlib.chdir(work.current):
            worker, teller = _worker_for(work, topic, here, client)
            teller.item, teller.usage = item.name, []
            result = worker.do(item)
        client.set_metadata([topic, "begun", item.name], False)
    return here.address, [*teller.usage, result]


def _worker_for(work: Work, topic: str, here: Any, client: Any) -> tuple[Worker, _Teller]:
    """Return this process as a worker of the run; of earlier runs it keeps nothing."""
    if topic not in _latest:
        _latest.clear()
        teller = _Teller(topic, here, client)
        _latest[topic] = Worker(replace(work, **_place(work.options, here, client)), teller), teller
    return _latest[topic]


def _place(options: CommonOptions, here: Any, client: Any) -> dict[str, Any]:
    """Return which device this worker has, and how many share the memory of its machine."""
    workers = _workers_of(client)
    machine = workers[here.address]["host"]
    neighbours = sorted(address for address, worker in workers.items() if worker["host"] == machine)
    device, gpus = options.device, torch.cuda.device_count()
    if device in ("auto", "cuda") and gpus:
        device = f"cuda:{neighbours.index(here.address) % gpus}"
    limits = (options.memory_limit, _limit_of(here, len(neighbours)))
    limit = min((limit for limit in limits if limit is not None), default=None)
    return {
        "options": options.model_copy(update={"device": device, "memory_limit": limit}),
        "workers": len(neighbours),
    }


def _limit_of(here: Any, neighbours: int) -> int | None:
    """Return the memory of all workers of this machine, as if each had what Dask allows this one."""
    allowed = here.memory_manager.memory_limit
    return None if allowed is None else math.floor(allowed * HOST_FRACTION) * neighbours


class _Teller:
    """Tells the run what happens in this worker; ends the item when the run has been stopped."""

    def __init__(self, topic: str, here: Any, client: Any) -> None:
        self.item = ""
        self.usage: list[Usage] = []
        self._topic = topic
        self._here = here
        self._client = client
        self._last_check = time.monotonic()

    def __call__(self, told: Told) -> None:
        if isinstance(told, Usage):
            self.usage.append(told)
        elif isinstance(told, Share):
            self._here.log_event(self._topic, {"item": self.item, "share": told.done})
        elif isinstance(told, Event):
            self._here.log_event(self._topic, {"item": self.item, **told.as_json()})
        if time.monotonic() - self._last_check > SECONDS_BETWEEN_CHECKS:
            self._last_check = time.monotonic()
            if self._client.get_metadata([self._topic, STOPPED], False):
                raise CancelledError("the run was stopped")
