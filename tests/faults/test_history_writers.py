"""Four processes that write one history at once lose no run, and whoever looks on sees whole files."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

from safelight.core.history import ALL_RUNS, LOCK, SUMMARY, TRUTH

WRITERS, RUNS = 4, 50
WRITER = """
import sys
from pathlib import Path
from safelight.core.history import append
print("ready", flush=True)
sys.stdin.readline()
for run in range(int(sys.argv[2])):
    append(Path("."), {
        "timestamp": "2026-11-21T12:00:00+01:00",
        "model_name": f"writer {sys.argv[1]}",
        "averages": {"psnr": run / 7},
        "num_items": run,
        "notes": "a comma, a quote \\" and a line\\n" * 20,
    })
assert "torch" not in sys.modules, "writing a line of history must not take seconds to import"
"""


def start(results: Path) -> list[subprocess.Popen[str]]:
    """Start the writers and let them go at one moment."""
    commands = [[sys.executable, "-c", WRITER, str(number), str(RUNS)] for number in range(WRITERS)]
    writers = [
        subprocess.Popen(
            command, cwd=results, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for command in commands
    ]
    for writer in writers:
        assert writer.stdout is not None
        writer.stdout.readline()
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    return writers


def look(results: Path) -> tuple[int, int, int]:
    """Return how many runs each file has now; a file that is half there cannot be read, and fails the test."""
    if not (results / SUMMARY).exists():
        return 0, 0, 0
    summary = list(csv.reader(io.StringIO((results / SUMMARY).read_text(encoding="utf-8")), strict=True))
    assert {len(row) for row in summary} == {5}
    whole, _, _ = (results / TRUTH).read_bytes().rpartition(b"\n")  # the last line may be being written
    truth = [json.loads(line) for line in whole.splitlines()]
    return len(summary) - 1, len(json.loads((results / ALL_RUNS).read_text())), len(truth)


def test_no_run_is_lost_and_every_file_is_whole_at_every_moment(tmp_path: Path) -> None:
    writers = start(tmp_path)
    seen = [look(tmp_path)]
    while any(writer.poll() is None for writer in writers):
        seen.append(look(tmp_path))
    complaints = [writer.communicate()[1] for writer in writers]
    assert [writer.returncode for writer in writers] == [0] * WRITERS, complaints

    lines = [json.loads(line) for line in (tmp_path / TRUTH).read_text().splitlines()]
    assert Counter(line["model_name"] for line in lines) == {f"writer {number}": RUNS for number in range(WRITERS)}
    assert len({line["result_file"] for line in lines}) == WRITERS * RUNS
    assert look(tmp_path) == (WRITERS * RUNS,) * 3
    assert json.loads((tmp_path / ALL_RUNS).read_text()) == lines
    assert all(json.loads((tmp_path / line["result_file"]).read_text()) == line for line in lines)
    assert len({summary for summary, _, _ in seen}) > 10  # the reader did look on while they wrote
    for before, after in pairwise(seen):
        assert all(old <= new for old, new in zip(before, after, strict=True)), "a run vanished for a moment"

    expected = {TRUTH, ALL_RUNS, SUMMARY, LOCK, *(line["result_file"] for line in lines)}
    assert {path.name for path in tmp_path.iterdir()} == expected
