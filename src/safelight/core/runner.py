"""Runs a command of a pipeline over its items: journalled, resumable, one failure at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from safelight.core import history
from safelight.core.allocator import release_freed_memory
from safelight.core.books import Books
from safelight.core.books import Outcome as Outcome  # what run_command returns
from safelight.core.cluster import ClusterPool, check_cluster
from safelight.core.device import select
from safelight.core.errors import CancelledError, NothingToDoError, as_failure
from safelight.core.events import EventLog, Severity, Value
from safelight.core.execute import Executor
from safelight.core.handover import Handover
from safelight.core.memory import is_sticky
from safelight.core.options import CommonOptions
from safelight.core.pipeline import Command, Context, Found, Item, Pipeline, Prepared, Refusal
from safelight.core.run import EVENTS, Run, versions
from safelight.core.sharing import share_out
from safelight.core.worker import Process, attempt, shared_with_workers
from safelight.core.workers import LocalPool, devices_for_workers

Progress = Callable[..., None]

PREPARATION = "(preparation)"
"""Stands for ``prepare`` among the names of items at which the device was lost."""


@contextmanager
def _in_words() -> Iterator[None]:
    """Turn what the system refuses outside of the items, such as to list a folder, into an error for people."""
    try:
        yield
    except OSError as error:
        raise as_failure(error) from error


@_in_words()
def run_command(
    pipeline: Pipeline,
    command: Command[Any],
    options: CommonOptions,
    events: EventLog,
    progress: Progress,
    before: Handover | None = None,
) -> Outcome:
    """Run one command over everything that its options name.

    Parameters
    ----------
    pipeline, command, options
        What to run.
    events : EventLog
        Where to say what happens.
    progress : callable
        ``progress(done, total, key, data)`` shows how far a long job is.
    before : Handover, optional
        From the process that began this run and lost its device.

    Returns
    -------
    Outcome
        With a ``handover`` when the device is lost: the run is not over, a fresh process must go on with it.

    Raises
    ------
    NothingToDoError
        Nothing usable was found.
    CancelledError
        The user stopped it; says what is kept.
    SafelightError
        The run as a whole cannot go on: no output folder, no device, training failed.
    """
    started = time.monotonic()
    before = before or Handover()
    if before.lost:
        options = options.model_copy(update={"fresh": False})
    device = select(options, events)
    found = command.find_items(options)
    _say_refused(found.refused, events)
    _demand_items(found.items)
    folder = command.folder(options)
    outcome = Outcome(folder, found, options.strict, seconds=dict(before.item_seconds))
    context = Context(device, Executor.from_options(device, options, events), events, folder, progress)
    if options.dry_run:
        _say_plan(command, options, context, found.items)
        return outcome
    history.check(options.results)
    if options.cluster:
        check_cluster(options.cluster)
    run = Run(folder, f"{pipeline.name} {command.name}", command.options_of_result(options))
    with run.open(options.fresh), events.recorded(folder / EVENTS):
        _Job(pipeline, command, options, context, run, outcome, before, started).do()
    return outcome


def _say_plan(command: Command[Any], options: CommonOptions, context: Context, items: Sequence[Item]) -> None:
    for plan in command.plan_prepare(items, options, context) if command.plan_prepare else ():
        context.events.info("plan", **plan.describe())
    for item in items:
        context.events.info("item_planned", name=item.name, folder=str(context.folder))
        for plan in command.plan(item, options, context) if command.plan else ():
            context.events.info("plan", **plan.describe())


def _say_refused(refused: Sequence[Refusal], events: EventLog) -> None:
    for refusal in refused:
        events.emit("item_refused", refusal.severity, name=refusal.name, error=str(refusal.error))


def _demand_items(items: Sequence[Item]) -> None:
    if not items:
        raise NothingToDoError("nothing usable was found", expected="at least one input that can be read")


@dataclass
class _Job:
    """One run while its folder is held."""

    pipeline: Pipeline
    command: Command[Any]
    options: CommonOptions
    context: Context
    run: Run
    outcome: Outcome
    before: Handover
    started: float
    at: str = PREPARATION
    books: Books = field(init=False)

    def __post_init__(self) -> None:
        executor = self.context.executor
        self.books = Books(self.run, self.outcome, self.events, executor, list(self.before.lost))

    @property
    def events(self) -> EventLog:
        return self.context.events

    @property
    def seconds(self) -> float:
        """How long the run has taken, in the processes before this one too."""
        return self.before.seconds + time.monotonic() - self.started

    def do(self) -> None:
        """Do everything that is not done, or as much as the device and the user allow."""
        try:
            self._do_all()
        except KeyboardInterrupt:
            raise self._cancelled() from None
        except RuntimeError as error:
            if not is_sticky(error):
                raise
            self._hand_over(str(error).split("\n", 1)[0])

    def _do_all(self) -> None:
        found = self.outcome.found
        if self.before.lost:
            self.events.info("run_continued", pipeline=self.pipeline.name, command=self.command.name)
        else:
            self.events.info(
                "run_started", pipeline=self.pipeline.name, command=self.command.name, items=len(found.items)
            )
        prepared = self._prepare(found.items)
        items = found.items if prepared.items is None else prepared.items
        self.outcome.found = Found(items, found.refused + prepared.refused)
        _demand_items(items)
        self._do_items(items, prepared)
        if self.command.finish is not None and self.outcome.records:
            self._do_item(self.command.finish, self._last_item(), prepared)
        self._conclude()

    def _prepare(self, items: Sequence[Item]) -> Prepared:
        self.books.demand_device(PREPARATION)
        prepared = self.command.prepare(items, self.options, self.context) if self.command.prepare else Prepared()
        release_freed_memory()
        self.run.shared = prepared.digest
        _say_refused(prepared.refused, self.events)
        return prepared

    def _do_items(self, items: Sequence[Item], prepared: Prepared) -> None:
        """Do all items: one after the other in this process, or shared among workers."""
        places = self._places(len(items))
        if len(places) < 2 and not self.options.cluster:
            for item in items:
                self._do_item(self.command.process, item, prepared)
            return
        self.context.device.empty_cache()
        folder, process = self.context.folder, self.command.process
        with (
            shared_with_workers(process, self.options, folder, prepared.value, len(places)) as work,
            ClusterPool(self.options.cluster, work) if self.options.cluster else LocalPool(work, places) as pool,
        ):
            self.events.info("items_shared", items=len(items), workers=pool.size, places=pool.where)
            share_out(items, pool, self.books, self.context.progress)

    def _places(self, items: int) -> tuple[str, ...]:
        """Return the devices of the workers that there is something to do for."""
        if self.options.workers == 1 or items == 1:
            return ()
        device, wanted = self.context.device, min(self.options.workers, items)
        places = devices_for_workers(device, self.options)[:wanted]
        if len(places) < wanted:
            self.events.warning("workers_limited", workers=len(places), wanted=wanted, device=str(device.torch_device))
        return places

    def _do_item(self, process: Process, item: Item, prepared: Prepared) -> None:
        """Do one item in this process, unless it is done."""
        self.at = item.name
        if self.books.is_to_do(item):
            self.books.settle(item, attempt(process, item, self.options, self.context, prepared.value))

    def _last_item(self) -> Item:
        """Return the item of ``finish``: it is made from all that the items wrote."""
        records = self.outcome.records
        item = Item(
            self.pipeline.name, tuple(path for record in records.values() for path in record.outputs), dict(records)
        )
        Found((*self.outcome.found.items, item))  # refuses a second item of that name
        return item

    def _hand_over(self, reason: str) -> None:
        """Write down what a fresh process needs to go on: to this one the device is lost."""
        self.books.lose_device(str(self.context.device.torch_device), self.at, reason)
        handover = Handover(
            lost=tuple(self.books.lost),
            seconds=self.seconds,
            item_seconds=self.outcome.seconds,
            events=self._events_as_json(),
        )
        self.outcome.handover = handover.write(self.context.folder)

    def _cancelled(self) -> CancelledError:
        done, items = len(self.outcome.records), len(self.outcome.found.items)
        fresh = " without --fresh" if self.options.fresh else ""
        return CancelledError(
            f"stopped with {done} of {items} item(s) done; all that was finished is kept in {self.context.folder}",
            remedy=f"run the same command again{fresh}: it goes on from there",
        )

    def _events_as_json(self) -> tuple[dict[str, Any], ...]:
        return (*self.before.events, *(event.as_json() for event in self.events))

    def _conclude(self) -> None:
        """Write the record, the report and the history, and say how it went."""
        outcome, context = self.outcome, self.context
        records = tuple(outcome.records.values())
        averages = dict(self.command.summarise(records))
        self._say_missed(self.command.audit(records))
        done = len(outcome.records.keys() & outcome.seconds.keys())
        counts = {
            "done": done,
            "skipped": len(outcome.records) - done,
            "failed": len(outcome.failed),
            "refused": len(outcome.found.refused),
        }
        document = self._document(averages)
        if self.command.report is not None:
            report = self.command.report(context.folder, document)
            self.events.info("report_written", path=str(report))
        entry = {
            "timestamp": datetime.now().astimezone().isoformat(timespec="seconds"),
            "model_name": self.options.model_name or self.pipeline.name,
            "pipeline": self.pipeline.name,
            "command": self.command.name,
            "folder": str(context.folder.resolve()),
            "averages": averages,
            "num_items": len(outcome.found.items),
            **{f"num_{name}": count for name, count in counts.items()},
            "seconds": round(self.seconds, 3),
            "device": str(context.device.torch_device),
            "notes": self.options.notes,
            **self.command.entry(outcome.records),
        }
        if self.options.compile and outcome.seconds and not self.books.compiled():
            self.events.warning("nothing_compiled")
        self.events.info("run_finished", folder=str(context.folder), **counts)
        self.run.write_record({**document, "events": self._events_as_json()})
        history.append(self.options.results, entry)

    def _say_missed(self, checks: Sequence[Mapping[str, Value]]) -> None:
        """Say which checks the results do not pass, also those of an earlier run."""
        self.outcome.missed = len(checks)
        severity = Severity.ERROR if self.options.strict else Severity.WARNING
        for check in checks:
            self.events.emit("audit_missed", severity, **check)

    def _document(self, averages: Mapping[str, float]) -> dict[str, Any]:
        """Return the run's record: everything needed to know what was done, with what, and how it went."""
        outcome, context = self.outcome, self.context
        return {
            "pipeline": self.pipeline.name,
            "command": self.command.name,
            "options": self.options.model_dump(mode="json"),
            "versions": versions(),
            "device": context.device.active(),
            "seconds": self.seconds,
            "memory": context.executor.memory_record(),
            "timings": self.books.timings(),
            "workers": self.books.workers,
            "averages": averages,
            "items": [
                {
                    "name": name,
                    "seconds": outcome.seconds.get(name),
                    "metrics": dict(record.metrics),
                    "details": dict(record.details),
                    "outputs": self.run.describe_outputs(record),
                }
                for name, record in outcome.records.items()
            ],
            "failed": [{"name": name, "error": str(error)} for name, error in outcome.failed.items()],
            "refused": [{"name": r.name, "error": str(r.error)} for r in outcome.found.refused],
            "events": self._events_as_json(),
        }
