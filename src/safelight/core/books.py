"""The books of a run: which items are done, which have failed, where the device was lost, what it all took."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from safelight.core.device import compiled_graphs
from safelight.core.errors import DeviceError, SafelightError, as_failure
from safelight.core.events import EventLog, Severity, Value
from safelight.core.execute import Executor
from safelight.core.pipeline import Found, Item, Record
from safelight.core.run import Run
from safelight.core.worker import Done, Failed, Usage

LOSSES_PER_ITEM = 2
"""How often the device may be lost at an item; then the item has failed."""


@dataclass
class Outcome:
    """How a run ended.

    Parameters
    ----------
    folder : Path
        The run's folder.
    found : Found
        What discovery found and left out.
    strict : bool
        Whether anything left out, and any check that a result does not pass, is an error.
    records : dict
        The record of every finished item by name, those of an earlier run included.
    seconds : dict
        How long each item took that this run has done.
    failed : dict
        The error of every failed item by name.
    missed : int
        Checks that the results do not pass.
    handover : Path, optional
        The device is lost to this process: what a fresh one needs to go on with the run.
    """

    folder: Path
    found: Found
    strict: bool = False
    records: dict[str, Record] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    failed: dict[str, SafelightError] = field(default_factory=dict)
    missed: int = 0
    handover: Path | None = None

    @property
    def exit_status(self) -> int:
        """Zero when all is done, nothing failed and nothing was left out that should not be."""
        left_out = [r for r in self.found.refused if self.strict or r.severity is Severity.ERROR]
        return int(bool(self.handover or self.failed or left_out or (self.strict and self.missed)))


@dataclass
class Books:
    """Journals, records and says how each item ended, whoever did it.

    Parameters
    ----------
    run : Run
    outcome : Outcome
    events : EventLog
    executor : Executor
        Of this process.
    lost : list of str
        The items at which the device was lost, one entry per loss.
    """

    run: Run
    outcome: Outcome
    events: EventLog
    executor: Executor
    lost: list[str]
    _usage: dict[str, Usage] = field(default_factory=dict, init=False)

    def is_to_do(self, item: Item) -> bool:
        """Return whether an item is neither done nor bound to fail."""
        with self._failing(item):
            record = self.run.finished(item)
            if record is None:
                self.demand_device(item.name)
                return True
            if item.name not in self.outcome.seconds:
                self.events.info("item_skipped", name=item.name)
            self.outcome.records[item.name] = record
        return False

    def settle(self, item: Item, result: Done | Failed) -> None:
        """Journal an item that is done, or record its failure."""
        if isinstance(result, Failed):
            self._fail(item, result.error)
            return
        with self._failing(item):
            self.run.finish(item, result.record)
            self.outcome.seconds[item.name] = result.seconds
            self.events.info("item_finished", name=item.name, seconds=result.seconds)
            self.outcome.records[item.name] = result.record

    def sort_as(self, items: Iterable[Item]) -> None:
        """Bring what was done in any order into the order of the items, as a single process would have done it."""
        records, failed = self.outcome.records, self.outcome.failed
        names = [item.name for item in items]
        self.outcome.records = {name: records[name] for name in names if name in records}
        self.outcome.failed = {name: failed[name] for name in names if name in failed}

    def lose_device(self, device: str, at: str, reason: str) -> None:
        """Say and count that the device was lost."""
        self.events.warning("device_lost", device=device, name=at, reason=reason)
        self.lost.append(at)

    def demand_device(self, at: str) -> None:
        """Refuse to go on where the device was lost too often.

        Raises
        ------
        DeviceError
        """
        if self.lost.count(at) >= LOSSES_PER_ITEM:
            raise DeviceError(
                f"the device was lost {LOSSES_PER_ITEM} times at {at}, in fresh processes",
                remedy="--device cpu, and safelight doctor",
            )

    def add_usage(self, usage: Usage) -> None:
        """Note what a worker has taken so far."""
        self._usage[usage.worker] = usage
        self.executor.measured.extend(usage.measured)

    @property
    def workers(self) -> dict[str, str]:
        """The device of each worker that did something."""
        return {usage.worker: usage.device for usage in self._usage.values()}

    def compiled(self) -> bool:
        """Return whether anything was compiled, in whatever process."""
        return bool(compiled_graphs() or any(usage.graphs for usage in self._usage.values()))

    def timings(self) -> list[dict[str, Value]]:
        """Return how long the chunks of each kernel took, in this process and in each worker."""
        of_workers = [{**times, "worker": usage.worker} for usage in self._usage.values() for times in usage.timings]
        return self.executor.timing_record() + of_workers

    def _fail(self, item: Item, error: SafelightError) -> None:
        self.outcome.failed[item.name] = error
        self.events.error("item_failed", name=item.name, error=str(error))

    @contextmanager
    def _failing(self, item: Item) -> Iterator[None]:
        """Record the failure of an item, which does not stop the others."""
        try:
            yield
        except (SafelightError, OSError) as error:
            self._fail(item, as_failure(error))
