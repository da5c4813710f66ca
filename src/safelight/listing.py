"""``safelight history``: the runs as a table."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from safelight.core.errors import InputError
from safelight.core.history import compare, metrics_of, read

LOWER_IS_BETTER = ("loss", "rmse", "chamfer", "error", "seconds")


def show(names: tuple[str, ...], results: Path, last: int, as_json: bool) -> int:
    """Print the newest runs, or the newest run of each name side by side.

    Raises
    ------
    InputError
        There is no history, or a name is not in it.
    """
    entries: Sequence[Any] = read(results)
    if not entries:
        raise InputError("no run is recorded here", path=results, remedy="name the folder with --results")
    missing = sorted(set(names) - {entry.get("model_name") for entry in entries})
    if missing:
        raise InputError(f"no run is called {missing[0]!r}", path=results, remedy="safelight history lists the names")
    chosen = compare(entries, names) if names else entries[-last:]
    if as_json:
        sys.stdout.writelines(json.dumps(entry) + "\n" for entry in chosen)
    else:
        Console(file=sys.stdout, soft_wrap=not sys.stdout.isatty()).print(_table(chosen, mark_best=bool(names)))
    return 0


def _table(entries: Sequence[Any], mark_best: bool) -> Table:
    metrics = metrics_of(entries)
    table = Table("time", "name", "job", "done", "failed", *metrics, "seconds", "notes")
    best = {metric: _best(entries, metric) for metric in metrics} if mark_best else {}
    for entry in entries:
        values = [_number(entry["averages"].get(metric), best.get(metric)) for metric in metrics]
        done = entry["num_done"] + entry["num_skipped"]
        job = f"{entry['pipeline']} {entry['command']}"
        times = (entry["timestamp"][:19].replace("T", " "), entry["model_name"], job)
        table.add_row(*times, str(done), str(entry["num_failed"]), *values, f"{entry['seconds']:.1f}", entry["notes"])
    return table


def _best(entries: Sequence[Any], metric: str) -> float | None:
    values = [value for entry in entries if (value := entry["averages"].get(metric)) is not None]
    choose = min if any(word in metric.lower() for word in LOWER_IS_BETTER) else max
    return choose(values) if len(values) > 1 else None


def _number(value: float | None, best: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" + (" ★" if value == best else "")
