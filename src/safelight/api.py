"""Jobs from Python: what the command line does, with its options as keywords."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from safelight.core.events import EventLog, Value
from safelight.core.options import public_names
from safelight.core.registry import find
from safelight.core.runner import Outcome, run_command
from safelight.core.settings import gather
from safelight.core.settings_file import demand_known


def run(
    pipeline: str,
    command: str,
    /,
    *,
    events: EventLog | None = None,
    progress: Callable[..., None] = lambda *_, **__: None,
    **options: Any,
) -> Outcome:
    """Run a job: what ``safelight PIPELINE COMMAND`` does.

    Parameters
    ----------
    pipeline, command : str
        The job, for instance ``"mosaic", "run"``.
    events : EventLog, optional
        Hears what happens; subscribe to it. Without one it stands only in the run's folder.
    progress : callable
        ``progress(done, total, key, **data)`` is told how far a long job is.
    **options
        As on the command line, with underscores: ``kappa_low=2.5``. Those that are not given come from the environment,
        from the file that ``config`` names, or are the defaults.

    Returns
    -------
    Outcome
        The record of every finished item, the error of every failed one, and ``exit_status``. Where it has a
        ``handover``, the device is lost to this process; the same job goes on in a fresh one.

    Raises
    ------
    UsageError
        There is no such job or option, or a value is wrong.
    SafelightError
        The run as a whole cannot go on. The error of a single item is in the outcome instead.
    """
    owner, job = find(pipeline, command)
    names = public_names(job.Options)
    demand_known(options, names, f"{pipeline} {command}")
    gathered = gather(owner, job, {names[name]: value for name, value in options.items()}, os.environ)
    log = EventLog() if events is None else events
    gathered.say(log)
    return run_command(owner, job, gathered.options(), log, progress)


def plan(
    pipeline: str, command: str, /, *, events: EventLog | None = None, **options: Any
) -> tuple[Mapping[str, Value], ...]:
    """Return the memory plans of a job, without running it: what ``safelight plan`` says.

    Parameters
    ----------
    pipeline, command, events, **options
        As for ``run``.

    Returns
    -------
    tuple of mapping
        One per kernel: ``kernel``, ``device``, ``extent`` in rows, ``rows`` at a time in so many ``chunks``,
        ``predicted_bytes`` of the ``budget_bytes`` that may be used, and the ``reason`` for the budget.

    Raises
    ------
    SafelightError
        As for ``run``.
    """
    log = EventLog() if events is None else events
    before = len(log)
    run(pipeline, command, events=log, **{**options, "dry_run": True})
    return tuple(event.data for event in list(log)[before:] if event.key == "plan")
