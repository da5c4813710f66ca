"""The history of all runs. ``history.jsonl`` is the truth, append-only; the other files are derived from it."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from safelight.core.errors import OutputError
from safelight.core.events import as_value
from safelight.core.files import atomic_write, output_error, remove_leftovers_of
from safelight.core.lines import append_line, locked, open_lines, read_lines

TRUTH = "history.jsonl"
ALL_RUNS = "results_history.json"
SUMMARY = "results_summary.csv"
LOCK = ".history.lock"
SECONDS_FOR_OTHERS = 120.0
"""How long other runs may take to write their lines; each needs some milliseconds."""

Entry = Mapping[str, Any]


class _Line(BaseModel):
    """What a line must be to count as a run; it may say more."""

    model_config = ConfigDict(strict=True)

    model_name: str
    averages: dict[str, float | None]
    timestamp: str = ""
    seconds: float = 0.0
    notes: str = ""
    result_file: str = ""


def check(results: Path) -> None:
    """See to it before a long job that its history can be written after it.

    Raises
    ------
    OutputError
        The folder cannot be made or written.
    """
    try:
        results.mkdir(parents=True, exist_ok=True)
        with locked(results / LOCK, SECONDS_FOR_OTHERS):
            os.close(open_lines(results / TRUTH))
    except OSError as error:
        problem = output_error(results, error).problem
        raise OutputError(
            f"the history of the runs {problem}", path=results, remedy="name another folder with --results"
        ) from error


def append(results: Path, entry: Entry) -> Path:
    """Add one run to the history and bring the derived files up to date.

    Safe with any number of writers and when killed at any moment: the line is written in one piece under a lock, the
    derived files replace the old ones whole, and what a killed writer did not derive the next one does.

    Parameters
    ----------
    results : Path
        The folder of the history; made if missing.
    entry : mapping
        ``timestamp`` (ISO 8601), ``model_name``, ``averages`` (a mapping of numbers), ``num_…``, ``notes`` and
        anything else. The line also has the name of the run's own file, ``result_file``.

    Returns
    -------
    Path
        The run's own ``result_{model_name}_{YYYYmmdd_HHMMSS}.json``.

    Raises
    ------
    OutputError
        The folder cannot be written or the disk is full.
    """
    try:
        results.mkdir(parents=True, exist_ok=True)
        with locked(results / LOCK, SECONDS_FOR_OTHERS):
            own = _own_file(results, entry)
            line = as_value({**entry, "result_file": own.name})
            append_line(results / TRUTH, json.dumps(line, allow_nan=False))
            _derive(results)
    except OSError as error:
        raise output_error(results, error) from error
    return own


def read(results: Path) -> list[dict[str, Any]]:
    """Return every run of the history, oldest first. A line that is no run, or torn by a crash, is passed over.

    Raises
    ------
    InputError
        The history cannot be read.
    """
    return [line for line in read_lines(results / TRUTH) if _is_run(line)]


def compare(entries: Sequence[Entry], names: Sequence[str]) -> list[Entry]:
    """Return the newest run of each model name, in the order of ``names``."""
    newest = {str(entry.get("model_name")): entry for entry in entries}
    return [newest[name] for name in names if name in newest]


def metrics_of(entries: Sequence[Entry]) -> list[str]:
    """Return the names of all averaged metrics, in order of first appearance."""
    return list(dict.fromkeys(name for entry in entries for name in entry.get("averages", {})))


def _is_run(line: Entry) -> bool:
    try:
        _Line.model_validate(line)
    except ValidationError:
        return False
    return True


def _own_file(results: Path, entry: Entry) -> Path:
    """Return a new name for the run's own file; runs of one second get numbers."""
    name = re.sub(r"[^\w.-]+", "_", str(entry["model_name"])).encode()[:120].decode(errors="ignore") or "run"
    time = datetime.fromisoformat(str(entry["timestamp"])).strftime("%Y%m%d_%H%M%S")
    taken = {earlier.get("result_file") for earlier in read(results)}
    path, number = results / f"result_{name}_{time}.json", 2
    while path.name in taken or path.exists():
        path, number = results / f"result_{name}_{time}_{number}.json", number + 1
    return path


def _derive(results: Path) -> None:
    """Write every file that follows from the truth; of the runs' own files, those that are missing."""
    entries = read(results)
    for entry in entries:
        own = results / Path(entry.get("result_file", "")).name
        if not own.exists():
            _write(own, json.dumps(entry, indent=2))
    _write(results / ALL_RUNS, json.dumps(entries, indent=1))
    _write(results / SUMMARY, _as_csv(entries))


def _write(path: Path, text: str) -> None:
    remove_leftovers_of(path)  # first: once a run's own file is there, nobody looks beside it again
    with atomic_write(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8", errors="backslashreplace", newline="\n")


def _as_csv(entries: Sequence[Entry]) -> str:
    """Return ``timestamp, model_name, averages…, num_…, notes``, one row per run, the columns of all runs."""
    metrics = metrics_of(entries)
    numbers = list(dict.fromkeys(name for entry in entries for name in entry if name.startswith("num_")))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["timestamp", "model_name", *metrics, *numbers, "notes"])
    for entry in entries:
        averages = entry.get("averages", {})
        values = [*(averages.get(name) for name in metrics), *(entry.get(name) for name in numbers)]
        writer.writerow([entry.get("timestamp"), entry.get("model_name"), *values, entry.get("notes")])
    return text.getvalue().rstrip("\n")
