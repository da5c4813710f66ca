"""Runs the real command line in forked children of one process: starting an interpreter with torch takes seconds each.

A child kills itself, without a chance to clean up, when a function is called for so many times: no moment can be
missed. Or its files may not grow past a size, as on a disk that fills up.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STEM = """
import importlib, json, os, resource, signal, sys
from safelight import cli
from safelight.pipelines.mosaic import process, report

def kill_at(module, path, calls):
    *owner, name = path.split(".")
    holder = importlib.import_module(module)
    for part in owner:
        holder = getattr(holder, part)
    function, left = getattr(holder, name), [calls]
    def counted(*arguments, **keywords):
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **keywords)
    setattr(holder, name, counted)

def limit_files(size):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

for line in sys.stdin:
    told = json.loads(line)
    child = os.fork()
    if child == 0:
        sys.stderr.close()
        sys.stderr = open(told["said"], "w", buffering=1)
        if told["kill"]:
            kill_at(*told["kill"])
        if told["limit"]:
            limit_files(told["limit"])
        os._exit(cli.run(told["arguments"]))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""

Moment = tuple[str, str, int]
"""A module, a function or method in it, and its how-manieth call."""


class Stem:
    """Starts runs of the mosaic.

    Attributes
    ----------
    said : str
        What the last run told the user.
    """

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self._process = process
        self._folder = folder

    @property
    def said(self) -> str:
        return (self._folder / "said").read_text()

    def mosaic(self, frames: Path, out: Path, *, kill: Moment | None = None, limit: int | None = None) -> int:
        """Make a mosaic; return how it ended."""
        arguments = ["mosaic", "run", str(frames), "--out", str(out), "--solver", "none", "--lang", "en"]
        arguments += ["--results", str(out.parent / "results")]
        told = {"arguments": arguments, "kill": kill, "limit": limit, "said": str(self._folder / "said")}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(told) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


@contextmanager
def stem() -> Iterator[Stem]:
    """Start the process that all runs are forked from."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "SAFELIGHT_CACHE": folder, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", STEM]
        with subprocess.Popen(command, stdin=-1, stdout=-1, text=True, env=environment) as process:
            yield Stem(process, Path(folder))
            assert process.stdin is not None
            process.stdin.close()
