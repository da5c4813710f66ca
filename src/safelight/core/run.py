"""A run owns a folder: its journal, its events and its record. A killed run goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import math
import platform
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from safelight.core.errors import JournalError
from safelight.core.events import as_value
from safelight.core.files import atomic_write, digest, output_error, remove_leftovers, remove_leftovers_of
from safelight.core.lines import append_line, locked, read_lines
from safelight.core.pipeline import Item, Record

JOURNAL = "journal.jsonl"
EVENTS = "events.jsonl"
RECORD = "run.json"
LOCK = ".run.lock"


class _Output(BaseModel):
    model_config = ConfigDict(strict=True)

    path: str
    sha256: str


class _Entry(BaseModel):
    """What a line of the journal must be to count as a finished item."""

    model_config = ConfigDict(strict=True)

    item: str
    fingerprint: str
    outputs: list[_Output]
    metrics: dict[str, float | str]
    details: dict[str, Any]


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
    _entries: dict[str, _Entry] = field(default_factory=dict, init=False)
    _fingerprints: dict[str, str] = field(default_factory=dict, init=False)
    _digests: dict[Path, str] = field(default_factory=dict, init=False)

    @contextmanager
    def open(self, fresh: bool = False) -> Iterator[Run]:
        """Hold the folder, read its journal and remove what a killed run left behind.

        Parameters
        ----------
        fresh : bool
            Forget what earlier runs finished, and whose the folder was; their outputs stay until they are replaced.

        Raises
        ------
        JournalError
            The folder belongs to another job.
        OutputError
            The folder cannot be written, or another run is using it.
        """
        with ExitStack() as held:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                held.enter_context(locked(self.folder / LOCK))
                self._take_over(fresh)
            except OSError as error:
                raise output_error(self.folder, error) from error
            yield self

    def finished(self, item: Item) -> Record | None:
        """Return the record of an item that needs not be done again.

        It must have been made from equal inputs with equal options, and its outputs must still be what they were.
        """
        self._fingerprints[item.name] = self.fingerprint(item)
        entry = self._entries.get(item.name)
        if entry is None or entry.fingerprint != self._fingerprints[item.name]:
            return None
        outputs = {self.folder / output.path: output.sha256 for output in entry.outputs}
        if not all(path.exists() and digest(path) == known for path, known in outputs.items()):
            return None
        self._digests |= outputs
        metrics = {name: float(value) for name, value in entry.metrics.items()}
        return Record(tuple(outputs), metrics, entry.details)

    def finish(self, item: Item, record: Record) -> None:
        """Journal that an item is done; its outputs must be on the disk.

        It is journalled as made from the inputs that ``finished`` saw before the work: an input that changed meanwhile
        is done again by the next run.
        """
        for path in record.outputs:
            self._digests[path] = digest(path)
            if not path.resolve().is_relative_to(self.folder.resolve()):
                remove_leftovers_of(path)
        fingerprint = self._fingerprints.get(item.name) or self.fingerprint(item)
        entry = {
            "item": item.name,
            "fingerprint": fingerprint,
            "outputs": self.describe_outputs(record),
            "metrics": {name: _exact(number) for name, number in record.metrics.items()},
            "details": as_value(record.details),
        }
        self._append(entry)
        self._entries[item.name] = _Entry.model_validate(entry)

    def fingerprint(self, item: Item) -> str:
        """Return the digest of everything that decides an item's result."""
        inputs = [[path.name, digest(path)] for path in item.inputs]
        whole = json.dumps([self.job, item.name, as_value(self.options), self.shared, inputs], sort_keys=True)
        return hashlib.sha256(whole.encode()).hexdigest()

    def describe_outputs(self, record: Record) -> list[dict[str, str]]:
        """Return the path, relative to the folder where it is inside, and the digest of every output."""
        for path in record.outputs:
            if path not in self._digests:
                self._digests[path] = digest(path)
        return [{"path": self._relative(path), "sha256": self._digests[path]} for path in record.outputs]

    def write_record(self, document: Mapping[str, Any]) -> Path:
        """Write ``run.json`` whole."""
        path = self.folder / RECORD
        with atomic_write(path) as temporary:
            text = json.dumps(as_value(document), indent=2, allow_nan=False)
            temporary.write_text(text + "\n", encoding="utf-8")
        return path

    def _take_over(self, fresh: bool) -> None:
        """Read the journal, or start one."""
        if fresh:
            (self.folder / JOURNAL).unlink(missing_ok=True)
        journal = read_lines(self.folder / JOURNAL)
        owner = next((entry["job"] for entry in journal if "job" in entry), None)
        if owner is None:
            self._append({"job": self.job})
        elif owner != self.job:
            raise JournalError(
                f"the folder belongs to 'safelight {owner}'",
                path=self.folder,
                expected=f"a new folder, or one of 'safelight {self.job}'",
                remedy="choose another --out, or take this one over with --fresh",
            )
        self._entries = {entry.item: entry for entry in filter(None, map(_as_entry, journal))}
        remove_leftovers(self.folder)

    def _append(self, entry: Mapping[str, Any]) -> None:
        try:
            append_line(self.folder / JOURNAL, json.dumps(entry, allow_nan=False))
        except OSError as error:
            raise output_error(self.folder / JOURNAL, error) from error

    def _relative(self, path: Path) -> str:
        folder, absolute = self.folder.resolve(), path.resolve()
        return absolute.relative_to(folder).as_posix() if absolute.is_relative_to(folder) else str(absolute)


def outputs_of(journal: Path) -> list[Path]:
    """Return the files that a journal says were written."""
    entries = filter(None, map(_as_entry, read_lines(journal)))
    return [journal.parent / output.path for entry in entries for output in entry.outputs]


def _as_entry(line: Mapping[str, Any]) -> _Entry | None:
    try:
        return _Entry.model_validate(line)
    except ValidationError:  # whose folder it is, or a line of another program
        return None


def _exact(number: float) -> float | str:
    """Return a number that JSON has, or the name of one that it has not, so that ``float`` gives it back."""
    return float(number) if math.isfinite(number) else str(float(number))


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
