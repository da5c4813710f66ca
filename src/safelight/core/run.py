"""A run owns a folder: its journal, its events and its record. A killed run goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import math
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from safelight.core.errors import JournalError
from safelight.core.files import atomic_write, digest, output_error, remove_leftovers
from safelight.core.lines import append_line, locked, read_lines
from safelight.core.pipeline import Item, Record

JOURNAL = "journal.jsonl"
EVENTS = "events.jsonl"
RECORD = "run.json"


@dataclass
class Run:
    """The journal of one command in one folder.

    Parameters
    ----------
    folder : Path
    job : str
        What the folder belongs to, for instance ``"denoise run"``.
    options : mapping
        The options on which results depend; JSON types.
    shared : str
        Digest of what all items share, for instance the trained model.
    """

    folder: Path
    job: str
    options: Mapping[str, Any] = field(default_factory=dict)
    shared: str = ""
    _entries: dict[str, dict[str, Any]] = field(default_factory=dict, init=False)

    @contextmanager
    def open(self, fresh: bool = False) -> Iterator[Run]:
        """Hold the folder, read its journal and remove what a killed run left behind.

        Parameters
        ----------
        fresh : bool
            Forget what earlier runs finished; their outputs stay until they are replaced.

        Raises
        ------
        JournalError
            The folder belongs to another job.
        OutputError
            The folder cannot be written, or another run is using it.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = self.folder / ".lock"
            lock.touch()
        except OSError as error:
            raise output_error(self.folder, error) from error
        with locked(lock, wait=False):
            self._check_owner()
            remove_leftovers(self.folder)
            if fresh:
                (self.folder / JOURNAL).unlink(missing_ok=True)
            self._read_journal()
            yield self

    def finished(self, item: Item) -> Record | None:
        """Return the record of an item that needs not be done again.

        It must have been made from equal inputs with equal options, and its outputs must still be what they were.
        """
        entry = self._entries.get(item.name)
        if entry is None or entry["fingerprint"] != self.fingerprint(item):
            return None
        outputs = {self._absolute(output["path"]): output["sha256"] for output in entry["outputs"]}
        if not all(path.exists() and digest(path) == known for path, known in outputs.items()):
            return None
        return Record(tuple(outputs), entry["metrics"], entry["details"])

    def finish(self, item: Item, record: Record) -> None:
        """Journal that an item is done; its outputs must be on the disk."""
        entry = {
            "item": item.name,
            "fingerprint": self.fingerprint(item),
            "outputs": self.describe_outputs(record),
            "metrics": without_nan(record.metrics),
            "details": without_nan(record.details),
        }
        self._append(entry)
        self._entries[item.name] = entry

    def fingerprint(self, item: Item) -> str:
        """Return the digest of everything that decides an item's result."""
        inputs = [[path.name, digest(path)] for path in item.inputs]
        whole = json.dumps([self.job, item.name, dict(self.options), self.shared, inputs], sort_keys=True)
        return hashlib.sha256(whole.encode()).hexdigest()

    def describe_outputs(self, record: Record) -> list[dict[str, str]]:
        """Return the path, relative to the folder where it is inside, and the digest of every output."""
        return [{"path": self._relative(path), "sha256": digest(path)} for path in record.outputs]

    def write_record(self, document: Mapping[str, Any]) -> Path:
        """Write ``run.json`` whole."""
        path = self.folder / RECORD
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(without_nan(document), indent=2) + "\n", encoding="utf-8")
        return path

    def _check_owner(self) -> None:
        owners = [entry["job"] for entry in read_lines(self.folder / JOURNAL) if "job" in entry]
        if owners and owners[0] != self.job:
            raise JournalError(
                f"the folder belongs to 'safelight {owners[0]}'",
                path=self.folder,
                expected=f"a new folder, or one of 'safelight {self.job}'",
                remedy="choose another --out",
            )

    def _read_journal(self) -> None:
        journal = read_lines(self.folder / JOURNAL)
        self._entries = {entry["item"]: entry for entry in journal if "item" in entry}
        if not any("job" in entry for entry in journal):
            self._append({"job": self.job})

    def _append(self, entry: Mapping[str, Any]) -> None:
        try:
            append_line(self.folder / JOURNAL, json.dumps(entry, allow_nan=False))
        except OSError as error:
            raise output_error(self.folder / JOURNAL, error) from error

    def _relative(self, path: Path) -> str:
        folder, absolute = self.folder.resolve(), path.resolve()
        return absolute.relative_to(folder).as_posix() if absolute.is_relative_to(folder) else str(absolute)

    def _absolute(self, path: str) -> Path:
        return self.folder / path


def without_nan(value: Any) -> Any:
    """Return a value of JSON types in which numbers that JSON does not have are None."""
    if isinstance(value, Mapping):
        return {str(name): without_nan(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@cache
def versions() -> dict[str, str]:
    """Return the versions of Python, Safelight and what it computes with."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in ("safelight", "torch", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
