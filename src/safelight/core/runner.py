"""Runs a command of a pipeline over its items: journalled, resumable, one failure at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from safelight.core import history
from safelight.core.device import select
from safelight.core.errors import InputError, NothingToDoError, SafelightError
from safelight.core.events import EventLog, Severity
from safelight.core.execute import Executor
from safelight.core.options import CommonOptions
from safelight.core.pipeline import Command, Context, Found, Item, Pipeline, Prepared, Record, Refusal
from safelight.core.run import EVENTS, Run, versions

Progress = Callable[..., None]


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
        Whether anything left out is an error.
    records : dict
        The record of every finished item by name, those of an earlier run included.
    seconds : dict
        How long each item took that was done now.
    failed : dict
        The error of every failed item by name.
    """

    folder: Path
    found: Found
    strict: bool = False
    records: dict[str, Record] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    failed: dict[str, SafelightError] = field(default_factory=dict)

    @property
    def exit_status(self) -> int:
        """Zero when nothing failed and nothing was left out that should not be."""
        left_out = [r for r in self.found.refused if self.strict or r.severity is Severity.ERROR]
        return int(bool(self.failed or left_out))


def run_command(
    pipeline: Pipeline, command: Command[Any], options: CommonOptions, events: EventLog, progress: Progress
) -> Outcome:
    """Run one command over everything that its options name.

    Raises
    ------
    NothingToDoError
        Nothing usable was found.
    SafelightError
        The run as a whole cannot go on: no output folder, no device, training failed.
    """
    started = time.monotonic()
    device = select(options, events)
    found = command.find_items(options)
    _say_refused(found.refused, events)
    _demand_items(found.items)
    folder = command.folder(options)
    outcome = Outcome(folder, found, options.strict)
    context = Context(device, Executor.from_options(device, options, events), events, folder, progress)
    if options.dry_run:
        _say_plan(command, options, context, found.items)
        return outcome
    run = Run(folder, f"{pipeline.name} {command.name}", command.options_of_result(options))
    with run.open(options.fresh), events.recorded(folder / EVENTS):
        events.info("run_started", pipeline=pipeline.name, command=command.name, items=len(found.items))
        prepared = command.prepare(found.items, options, context) if command.prepare else Prepared()
        run.shared = prepared.digest
        _say_refused(prepared.refused, events)
        items = found.items if prepared.items is None else prepared.items
        outcome.found = Found(items, found.refused + prepared.refused)
        _demand_items(items)
        for item in items:
            _do_item(command.process, item, options, context, prepared, run, outcome)
        if command.finish is not None and outcome.records:
            last = _last_item(pipeline.name, outcome)
            _do_item(command.finish, last, options, context, prepared, run, outcome)
        _conclude(pipeline, command, options, context, run, outcome, time.monotonic() - started)
    return outcome


def _say_plan(command: Command[Any], options: CommonOptions, context: Context, items: Sequence[Item]) -> None:
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


def _last_item(name: str, outcome: Outcome) -> Item:
    """Return the item of ``finish``: it is made from all that the items wrote."""
    inputs = tuple(path for record in outcome.records.values() for path in record.outputs)
    item = Item(name, inputs, dict(outcome.records))
    Found((*outcome.found.items, item))  # refuses a second item of that name
    return item


def _do_item(
    process: Callable[[Item, Any, Context, Any], Record],
    item: Item,
    options: CommonOptions,
    context: Context,
    prepared: Prepared,
    run: Run,
    outcome: Outcome,
) -> None:
    """Do one item unless it is done; a failure is recorded and does not stop the others."""
    started = time.monotonic()
    try:
        record = run.finished(item)
        if record is not None:
            context.events.info("item_skipped", name=item.name)
        else:
            context.events.debug("item_started", name=item.name)
            record = process(item, options, context, prepared.value)
            run.finish(item, record)
            outcome.seconds[item.name] = time.monotonic() - started
            context.events.info("item_finished", name=item.name, seconds=outcome.seconds[item.name])
        outcome.records[item.name] = record
    except SafelightError as error:
        _fail(item, error, context, outcome)
    except OSError as error:
        _fail(item, InputError(error.strerror or str(error), path=error.filename), context, outcome)


def _fail(item: Item, error: SafelightError, context: Context, outcome: Outcome) -> None:
    outcome.failed[item.name] = error
    context.events.error("item_failed", name=item.name, error=str(error))


def _conclude(
    pipeline: Pipeline,
    command: Command[Any],
    options: CommonOptions,
    context: Context,
    run: Run,
    outcome: Outcome,
    seconds: float,
) -> None:
    """Write the record, the report and the history, and say how it went."""
    events = context.events
    averages = dict(command.summarise(tuple(outcome.records.values())))
    skipped = len(outcome.records) - len(outcome.seconds)
    counts = {
        "done": len(outcome.seconds),
        "skipped": skipped,
        "failed": len(outcome.failed),
        "refused": len(outcome.found.refused),
    }
    document = _document(pipeline, command, options, context, run, outcome, averages, seconds)
    if command.report is not None:
        report = command.report(context.folder, document)
        events.info("report_written", path=str(report))
    entry = {
        "timestamp": datetime.now().astimezone().isoformat(timespec="seconds"),
        "model_name": options.model_name or pipeline.name,
        "pipeline": pipeline.name,
        "command": command.name,
        "folder": str(context.folder.resolve()),
        "averages": averages,
        "num_items": len(outcome.found.items),
        **{f"num_{name}": count for name, count in counts.items()},
        "seconds": round(seconds, 3),
        "device": str(context.device.torch_device),
        "notes": options.notes,
    }
    events.info("run_finished", folder=str(context.folder), **counts)
    run.write_record({**document, "events": [event.as_json() for event in events]})
    history.append(options.results, entry)


def _document(
    pipeline: Pipeline,
    command: Command[Any],
    options: CommonOptions,
    context: Context,
    run: Run,
    outcome: Outcome,
    averages: Mapping[str, float],
    seconds: float,
) -> dict[str, Any]:
    """Return the run's record: everything needed to know what was done, with what, and how it went."""
    return {
        "pipeline": pipeline.name,
        "command": command.name,
        "options": options.model_dump(mode="json"),
        "versions": versions(),
        "device": context.device.active(),
        "seconds": seconds,
        "memory": context.executor.memory_record(),
        "averages": averages,
        "items": [
            {
                "name": name,
                "seconds": outcome.seconds.get(name),
                "metrics": dict(record.metrics),
                "details": dict(record.details),
                "outputs": run.describe_outputs(record),
            }
            for name, record in outcome.records.items()
        ],
        "failed": [{"name": name, "error": str(error)} for name, error in outcome.failed.items()],
        "refused": [{"name": r.name, "error": str(r.error)} for r in outcome.found.refused],
        "events": [event.as_json() for event in context.events],
    }
