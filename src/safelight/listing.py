"""``safelight history``: the runs as a table."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from safelight.core.errors import InputError, UsageError
from safelight.core.history import compare, metrics_of, read

LISTED_METRICS = 3
WIDTH_OF_FILES = 200
"""Characters in a line where the output is no terminal."""
LOWER_IS_BETTER = ("loss", "rmse", "chamfer", "error", "seconds")


def show(names: tuple[str, ...], results: Path, last: int, as_json: bool) -> int:
    """Print the newest runs, or the newest run of each name side by side.

    Raises
    ------
    InputError
        There is no history, or a name is not in it.
    UsageError
        ``last`` is less than 1.
    """
    entries: Sequence[Any] = read(results)
    if not entries:
        raise InputError("no run is recorded here", path=results, remedy="name the folder with --results")
    if last < 1:
        raise UsageError(f"--last {last}: there is no such number of runs", expected="1 or more")
    missing = sorted(set(names) - {entry.get("model_name") for entry in entries})
    if missing:
        raise InputError(f"no run is called {missing[0]!r}", path=results, remedy="safelight history lists the names")
    chosen = compare(entries, names) if names else entries[-last:]
    if as_json:
        sys.stdout.writelines(json.dumps(entry) + "\n" for entry in chosen)
    else:
        table = _side_by_side(chosen) if names else _list(chosen)
        sys.stdout.write(_as_text(table, None if sys.stdout.isatty() else WIDTH_OF_FILES))
    return 0


def _as_text(table: Table, width: int | None) -> str:
    """Return a table as text. Names and notes are shown as they are, whatever brackets or colons they hold."""
    console = Console(file=sys.stdout, width=width, markup=False, emoji=False, highlight=False)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def _list(entries: Sequence[Any]) -> Table:
    """Return one row per run, with the first metrics only."""
    metrics = metrics_of(entries)[:LISTED_METRICS]
    table = Table("name", "time", "job", "items", "failed", *metrics, "seconds", "notes", box=None)
    for entry in entries:
        table.add_row(*_facts(entry), *(_number(entry["averages"].get(m)) for m in metrics), *_end(entry))
    return table


def _side_by_side(entries: Sequence[Any]) -> Table:
    """Return one column per run and one row per metric, the best value of each marked."""
    labels = ("name", "time", "job", "items", "failed")
    names, *facts = zip(*map(_facts, entries), strict=True)
    table = Table("", *names, box=None)
    for label, values in zip(labels[1:], facts, strict=True):
        table.add_row(label, *values)
    for metric in metrics_of(entries):
        best = _best(entries, metric)
        table.add_row(metric, *(_number(entry["averages"].get(metric), best) for entry in entries))
    for label, values in zip(("seconds", "notes"), zip(*map(_end, entries), strict=True), strict=True):
        table.add_row(label, *values)
    return table


def _facts(entry: Any) -> tuple[str, ...]:
    time = entry.get("timestamp", "")[:19].replace("T", " ")
    job = f"{entry.get('pipeline', '')} {entry.get('command', '')}"
    return (entry["model_name"], time, job, str(entry.get("num_items", "")), str(entry.get("num_failed", "")))


def _end(entry: Any) -> tuple[str, str]:
    return (f"{entry['seconds']:.1f}" if "seconds" in entry else "", entry.get("notes", ""))


def _best(entries: Sequence[Any], metric: str) -> float | None:
    values = [value for entry in entries if (value := entry["averages"].get(metric)) is not None]
    choose = min if any(word in metric.lower() for word in LOWER_IS_BETTER) else max
    return choose(values) if len(values) > 1 else None


def _number(value: float | None, best: float | None = None) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" + (" ★" if value == best else "")
