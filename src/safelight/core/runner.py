"""Runs a command of a pipeline over its items: journalled, resumable, one failure at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from safelight.core import history
from safelight.core.device import Device, select
from safelight.core.errors import NothingToDoError, SafelightError
from safelight.core.events import EventLog, Severity, Value
from safelight.core.execute import Executor
from safelight.core.memory import is_out_of_memory
from safelight.core.options import CommonOptions
from safelight.core.pipeline import Command, Context, Found, Item, Pipeline, Record
from safelight.core.run import Run

Progress = Callable[..., None]


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Parameters
    ----------
    folder : Path
        The run's folder.
    records : mapping
        The record of every finished item by name, those of an earlier run included.
    skipped : tuple of str
        Items that an earlier run had finished.
    failed : mapping
        The error of every failed item by name.
    found : Found
    strict : bool
    """

    folder: Path
    records: Mapping[str, Record]
    skipped: tuple[str, ...]
    failed: Mapping[str, SafelightError]
    found: Found
    strict: bool = False

    @property
    def exit_status(self) -> int:
        """Zero when nothing failed and nothing was left out that should not be."""
        left_out = [refusal for refusal in self.found.refused if self.strict or _is_error(refusal.severity)]
        return int(bool(self.failed or left_out))


def _is_error(severity: Severity) -> bool:
    return severity is Severity.ERROR
