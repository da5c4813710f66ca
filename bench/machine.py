"""What a table of results says about the machine and the code that made it."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import psutil
import torch

ROOT = Path(__file__).resolve().parent.parent


def describe(script: str) -> list[str]:
    """Return the lines of a heading: command, machine, versions, commit and how busy the machine is."""
    load = psutil.getloadavg()[0]
    return [
        f"- {command(script)}",
        f"- {hardware()}; {platform.system()} {platform.release()}",
        f"- Python {platform.python_version()}, torch {torch.__version__}, {torch.get_num_threads()} thread(s)",
        f"- {datetime.now():%Y-%m-%d}; commit {commit()}; load average at the start {load:.1f}",
    ]


def command(script: str) -> str:
    """Return the command that was typed."""
    return shlex.join(["python", script, *sys.argv[1:]])


def hardware() -> str:
    """Return how many cores of which processor there are, and how much memory."""
    memory = psutil.virtual_memory().total / 2**30
    return f"{os.cpu_count()} cores of {_processor()}, {memory:.0f} GiB"


def commit() -> str:
    """Return the commit that is checked out, ``-dirty`` where files differ from it."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return described.stdout.strip() or "unknown"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
