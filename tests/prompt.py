"""What a user types at the prompt, done in this process: to start an interpreter with torch takes seconds each time.

What needs a process of its own (signals, pipes, workers, a lost device) starts one.
"""

from __future__ import annotations

import io
import os
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from safelight import cli


@dataclass(frozen=True)
class Answer:
    """How a command ended, what it wrote, and what it said."""

    status: int
    output: str
    said: str


def prompt(folder: Path, *arguments: str) -> Answer:
    """Run ``safelight`` with these arguments in a folder, in English unless they say otherwise."""
    variables = {"SAFELIGHT_LANG": "en", "SAFELIGHT_CACHE": str(folder / "cache")}
    output, said = io.StringIO(), io.StringIO()
    with chdir(folder), patch.dict(os.environ, variables), redirect_stdout(output), redirect_stderr(said):
        status = cli.run(arguments)
    return Answer(status, output.getvalue(), said.getvalue())
