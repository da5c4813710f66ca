"""``safelight settings``: a job's settings as a file."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safelight.console import Console
from safelight.core.errors import UsageError
from safelight.core.events import EventLog
from safelight.core.files import atomic_write
from safelight.core.options import CommonOptions
from safelight.core.pipeline import Command, Pipeline
from safelight.core.settings import Gathered
from safelight.core.settings_file import as_toml

TOML = ".toml"


def write(pipeline: Pipeline, command: Command[Any], gathered: Gathered[Any], path: Path | None) -> int:
    """Write settings to standard output, or to a file; return the exit status.

    Parameters
    ----------
    path : Path, optional
        Ends in ``.toml``, or as the files of the program that the command can take over.

    Raises
    ------
    UsageError
        A value is wrong, or the file's name has another ending.
    OutputError
        The file cannot be written.
    """
    gathered.check()
    values = gathered.values()
    _say(gathered, values)
    foreign = command.foreign
    if path is None:
        sys.stdout.write(as_toml(pipeline, command, values))
    elif path.suffix.lower() == TOML:
        with atomic_write(path) as temporary:
            temporary.write_text(as_toml(pipeline, command, values), encoding="utf-8")
    elif foreign is not None and path.suffix.lower() == foreign.suffix:
        defaults = {name: field.default for name, field in command.Options.model_fields.items()}
        foreign.save(path, gathered.document, {**defaults, **values})
    else:
        endings = [TOML] if foreign is None else [TOML, foreign.suffix]
        raise UsageError(f"--save {path}: its ending tells no format", expected=" or ".join(endings))
    return 0


def _say(gathered: Gathered[Any], values: Mapping[str, Any]) -> None:
    """Say on standard error where the settings came from."""
    voice = {name: value for name, value in values.items() if name in CommonOptions.model_fields}
    console, events = Console(CommonOptions(**voice)), EventLog()
    events.subscribe(console.show)
    gathered.say(events)
