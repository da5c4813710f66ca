"""The history of all runs. ``history.jsonl`` is the truth, append-only; the other files are derived from it."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from safelight.core.files import atomic_write, output_error
from safelight.core.lines import append_line, locked, read_lines

TRUTH = "history.jsonl"
ALL_RUNS = "results_history.json"
SUMMARY = "results_summary.csv"

Entry = Mapping[str, Any]


def append(results: Path, entry: Entry) -> Path:
    """Add one run to the history and bring the derived files up to date.

    Safe with any number of writers and when killed at any moment: the line is written in one piece under a lock, the
    derived files replace the old ones whole.

    Parameters
    ----------
    results : Path
        The folder of the history; made if missing.
    entry : mapping
        ``timestamp`` (ISO 8601), ``model_name``, ``notes``, numbers; JSON types only.

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
        with locked(results / ".lock"):
            append_line(results / TRUTH, json.dumps(entry, allow_nan=False))
            entries = read(results)
            own = _own_file(results, entry)
            _write(own, json.dumps(entry, indent=2))
            _write(results / ALL_RUNS, json.dumps(entries, indent=1))
            _write(results / SUMMARY, _as_csv(entries))
    except OSError as error:
        raise output_error(results, error) from error
    return own


def read(results: Path) -> list[dict[str, Any]]:
    """Return every run of the history, oldest first. A line torn by a crash is passed over."""
    return read_lines(results / TRUTH)


def compare(entries: Sequence[Entry], names: Sequence[str]) -> list[Entry]:
    """Return the newest run of each model name, in the order of ``names``."""
    newest = {str(entry.get("model_name")): entry for entry in entries}
    return [newest[name] for name in names if name in newest]


def metrics_of(entries: Sequence[Entry]) -> list[str]:
    """Return the names of all averaged metrics, in order of first appearance."""
    return list(dict.fromkeys(name for entry in entries for name in entry.get("averages", {})))


def _own_file(results: Path, entry: Entry) -> Path:
    """Return a new name for the run's own file; runs of one second get numbers."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", str(entry["model_name"])).strip("._") or "run"
    time = datetime.fromisoformat(str(entry["timestamp"])).strftime("%Y%m%d_%H%M%S")
    path = results / f"result_{name[:80]}_{time}.json"
    number = 2
    while path.exists():
        path = results / f"result_{name[:80]}_{time}_{number}.json"
        number += 1
    return path


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def _as_csv(entries: Sequence[Entry]) -> str:
    """Return ``timestamp, model_name, averages…, num_…, notes``, one row per run."""
    numbers = list(dict.fromkeys(name for entry in entries for name in entry if name.startswith("num_")))
    metrics = metrics_of(entries)
    rows = [{**entry, **entry.get("averages", {})} for entry in entries]
    text = io.StringIO()
    columns = ["timestamp", "model_name", *metrics, *numbers, "notes"]
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().rstrip("\n")
