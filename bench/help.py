"""How long ``safelight --help`` takes, beside Python alone and the help of other programs: python bench/help.py."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path

from machine import describe

ALLOWED = 300
REPEATS = 15
COMMANDS = {
    "Python alone": [sys.executable, "-c", "pass"],
    "**safelight --help**": [sys.executable, "-m", "safelight", "--help"],
    "safelight mosaic run --help": [sys.executable, "-m", "safelight", "mosaic", "run", "--help"],
    "pip --help": [sys.executable, "-m", "pip", "--help"],
    "Python and torch": [sys.executable, "-c", "import torch"],
}


def measure(command: list[str]) -> tuple[float, float]:
    """Return milliseconds by the clock and of the processor: the least of many, since other jobs only add."""
    clock, processor = [], []
    for _ in range(REPEATS):
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(command, capture_output=True, check=True)
        clock.append(time.perf_counter() - started)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        processor.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return 1000 * min(clock), 1000 * min(processor)


def main() -> None:
    """Measure, and write the table."""
    heading = describe("bench/help.py")
    measured = {name: measure(command) for name, command in COMMANDS.items()}
    ours = measured["**safelight --help**"][0]
    verdict = f"- {'met' if ours <= ALLOWED else '**missed**'}: {ours:.0f} ms, allowed are {ALLOWED}"
    rows = [f"| {name} | {clock:.0f} | {processor:.0f} |" for name, (clock, processor) in measured.items()]
    table = ["| | ms | ms of the processor |", "|---|---|---|", *rows]
    text = "\n".join(["# The command line", "", *heading, "", verdict, "", *table]) + "\n"
    (Path(__file__).parent / "results" / "help.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
