"""What a user meets at the prompt: Ctrl-C, a closed pipe, a lost device, a wrong word."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from prompt import prompt
from safelight.cli import READER_GONE, run
from safelight.core.history import append

PIPELINE = '''
"""Copies text files; the first word of each says what happens on the way."""
import time
from pathlib import Path
from safelight.core.files import atomic_write
from safelight.core.options import CommonOptions
from safelight.core.pipeline import Command, Found, Item, Pipeline, Record

done_by_this_process = []

class Options(CommonOptions):
    input: Path
    out: Path

def find_items(options):
    return Found(tuple(Item(file.stem, (file,), file) for file in sorted(options.input.iterdir())))

def process(item, options, context, prepared):
    text, marker = item.payload.read_text(), context.folder / f"{item.name}.begun"
    if not marker.exists():
        marker.touch()
        if text.startswith("assert"):
            raise RuntimeError("CUDA error: device-side assert triggered\\nCUDA kernel errors might be reported later")
        if text.startswith("wait"):
            time.sleep(120)
    done_by_this_process.append(item.name)
    out = context.folder / f"{item.name}.txt"
    with atomic_write(out) as part:
        part.write_text(" ".join(done_by_this_process))
    return Record((out,), {"letters": float(len(text))})

COPY = Command("copy", "Copy.", Options, lambda options: options.out, find_items, process)
PIPELINE = Pipeline("copyline", "Copy text files.", (COPY,))
'''
COPY = ("copyline", "copy", "texts", "--out", "out", "--device", "cpu")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with three texts, and with a pipeline for PYTHONPATH."""
    facts = tmp_path / "site" / "copyline-1.dist-info"
    facts.mkdir(parents=True)
    (facts.parent / "copyline.py").write_text(PIPELINE)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: copyline\nVersion: 1\n")
    (facts / "entry_points.txt").write_text("[safelight.pipelines]\ncopyline = copyline:PIPELINE\n")
    (tmp_path / "texts").mkdir()
    for name in "abc":
        (tmp_path / "texts" / f"{name}.txt").write_text("one two")
    return tmp_path


def start(home: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(home / "site"), "SAFELIGHT_LANG": "en"}
    return subprocess.Popen(
        [sys.executable, "-m", "safelight", *arguments],
        cwd=home,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Return the exit status, the output and what was said."""
    output, said = process.communicate(timeout=120)
    assert "Traceback" not in said
    return process.returncode, output, said


def record(home: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((home / "out" / "run.json").read_text())
    return document


def test_a_lost_device_costs_nothing_but_a_fresh_process(home: Path) -> None:
    (home / "texts" / "b.txt").write_text("assert")
    status, _, said = finish(start(home, *COPY, "--fresh", "--compile"))
    assert status == 0, said
    assert "b: the device cpu is lost (CUDA error: device-side assert triggered)" in said
    assert (home / "out" / "a.txt").read_text() == "a"
    assert (home / "out" / "c.txt").read_text() == "b c", "b and c by the second process, which did not do a again"
    (entry,) = (home / "results" / "history.jsonl").read_text().splitlines()
    assert json.loads(entry)["num_done"] == 3
    events = [event["key"] for event in record(home)["events"]]
    assert events.count("item_finished") == 3
    assert events.count("run_started") == events.count("run_finished") == 1
    assert events.count("settings_from_environment") == 1
    assert "nothing_compiled" in events


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")
def test_ctrl_c_says_in_one_line_what_is_kept_and_how_to_go_on(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "texts" / "b.txt").write_text("wait")
    process = start(home, *COPY, "--quiet")
    deadline = time.monotonic() + 120
    while not (home / "out" / "b.begun").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    status, _, said = finish(process)
    assert status == 130
    (line,) = said.splitlines()
    assert "1 of 3 item(s) done" in line
    assert "kept in out" in line
    assert "run the same command again" in line
    monkeypatch.syspath_prepend(home / "site")
    monkeypatch.delitem(sys.modules, "copyline", raising=False)
    assert prompt(home, *COPY).status == 0
    assert (home / "out" / "c.txt").read_text() == "b c"


def test_a_reader_of_events_that_goes_away_stops_no_run(home: Path) -> None:
    process = start(home, *COPY, "--json")
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["key"] == "settings_from_environment"
    process.stdout.close()
    status = process.wait(timeout=120)
    assert process.stderr is not None
    said = process.stderr.read()
    process.stderr.close()
    assert status == 0
    (line,) = said.splitlines()
    assert "Nobody reads the output any more" in line
    assert not record(home)["failed"]
    assert len(record(home)["items"]) == 3


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash's PIPESTATUS")
@pytest.mark.parametrize("arguments", ["history --json --last 9999", "copyline copy texts --out out --device cpu 2>&1"])
def test_a_closed_pipe_is_no_accident(home: Path, arguments: str) -> None:
    # More than a pipe holds (64 KiB on Linux): a shorter list may be written whole before `head` is gone.
    (home / "results").mkdir()
    lines = (json.dumps({"model_name": f"run {number}", "averages": {}}) + "\n" for number in range(9999))
    (home / "results" / "history.jsonl").write_text("".join(lines))
    script = f"{sys.executable} -m safelight {arguments} | head -n 1; exit ${{PIPESTATUS[0]}}"
    environment = {**os.environ, "PYTHONPATH": str(home / "site"), "SAFELIGHT_LANG": "en"}
    outcome = subprocess.run(
        ["bash", "-c", script], cwd=home, env=environment, capture_output=True, text=True, check=False
    )
    assert outcome.returncode == (READER_GONE if arguments.startswith("history") else 0)
    assert len(outcome.stdout.splitlines()) == 1
    assert outcome.stderr == ""


def shell(home: Path, script: str) -> subprocess.CompletedProcess[str]:
    """Run a script in which $safelight is the program."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(home / "site"),
        "SAFELIGHT_LANG": "en",
        "safelight": f"{sys.executable} -m safelight",
    }
    return subprocess.run(["sh", "-c", script], cwd=home, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.skipif(os.name == "nt", reason="Windows' shell cannot close streams")
@pytest.mark.parametrize("closed", ["<&- >&- 2>&-", "--json >&-"])
def test_closed_streams_stop_nobody_and_mix_with_no_file(home: Path, closed: str) -> None:
    outcome = shell(home, f"$safelight {' '.join(COPY)} {closed}")
    assert outcome.returncode == 0, outcome.stderr
    assert "Traceback" not in outcome.stderr
    lines = (home / "out" / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["key"] for line in lines][-1] == "run_finished"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux' /dev/full")
@pytest.mark.parametrize(
    ("line", "status"),
    [
        (f"{' '.join(COPY)} 2>/dev/full", 0),  # messages stop no run
        ("history >/dev/full", 1),
        ("--help >/dev/full", 1),
    ],
)
def test_a_full_disk_behind_a_stream_is_no_accident(home: Path, line: str, status: int) -> None:
    append(home / "results", {"timestamp": "2026-01-01T01", "model_name": "a", "averages": {}})
    outcome = shell(home, f"$safelight {line}")
    assert outcome.returncode == status, outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert ("No space left" in outcome.stderr) == bool(status)


def test_a_terminal_that_lacks_characters_shows_their_numbers(home: Path) -> None:
    entry = {"timestamp": "2026-01-01T01", "model_name": "débruité", "averages": {}}
    append(home / "results", entry)
    outcome = shell(home, "PYTHONIOENCODING=ascii $safelight history")
    assert outcome.returncode == 0, outcome.stderr
    assert "d\\xe9bruit\\xe9" in outcome.stdout


@pytest.fixture
def here(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same folder, its pipeline for ``prompt``."""
    monkeypatch.syspath_prepend(home / "site")
    monkeypatch.delitem(sys.modules, "copyline", raising=False)
    return home


def test_what_the_system_refuses_before_the_first_item_is_said_in_a_sentence(here: Path) -> None:
    answer = prompt(here, *COPY[:2], "nowhere", *COPY[3:])
    assert answer.status == 1
    assert "safelight: nowhere: No such file or directory." in answer.said


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")
def test_ctrl_c_while_modules_load_ends_without_a_word(home: Path) -> None:
    loading = home / "loading"
    with (home / "site" / "copyline.py").open("a") as module:
        module.write(f"Path({str(loading)!r}).touch()\ntime.sleep(120)\n")
    process = start(home, "--help")
    deadline = time.monotonic() + 60
    while not loading.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert finish(process) == (-signal.SIGINT, "", "")


@pytest.mark.parametrize(
    ("code", "reason"),
    [("import nowhere", "No module named 'nowhere'"), ("PIPELINE = 3", "copyline:PIPELINE is no Pipeline")],
)
def test_a_broken_package_costs_only_its_own_pipeline(here: Path, code: str, reason: str) -> None:
    (here / "site" / "copyline.py").write_text(code)
    answer = prompt(here, *COPY)
    assert answer.status == 2
    assert f"the pipeline copyline cannot be loaded: {reason}. Try: install the package copyline again" in answer.said
    assert prompt(here, "--help").status == 0
    assert prompt(here, "denoise", "--help").status == 0


def test_a_plan_runs_nothing_even_where_names_follow_a_dash(here: Path) -> None:
    answer = prompt(here, "plan", *COPY[:2], *COPY[3:], "--", "--", "texts")
    assert answer.status == 0
    assert "Would do a, into out" in answer.said
    assert not (here / "out").exists()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("denois run cells.tif", 'Did you mean "denoise"'),
        ("denoise rum cells.tif", 'Did you mean "run"'),
        ("denoise run cells.tif --setps 3", "Did you mean --steps"),
        ("denoise run", "--input is missing: files, folders, or globs such as 'data/*.tif'"),
        ("denoise run cells.tif --steps 0", "--steps 0: input should be greater than or equal to 1"),
        ("denoise run cells.tif --memory-limit 2XB", "--memory-limit 2XB: '2XB' is not a size"),
        ("denoise run cells.tif --safety-fraction 2", "--safety-fraction 2.0: input should be less than or equal to"),
        ("denoise run cells.tif --compile-mode fast", "max-autotune"),
        ("denoise run cells.tif --lang de", '"en", "fr"'),
        ("denoise run cells.tif --quiet --verbose", "quiet and verbose exclude each other"),
        ("denoise run cells.tif --device tpu", "--device tpu: there is no such kind of device"),
        ("plan", "no job was given"),
        ("plan denoise", "safelight plan denoise run"),
        ("plan doctor now", "'doctor now' is no job"),
        ("history --last 0", "--last 0"),
        ("demo nothing", "there is no demo called 'nothing'. Expected: denoise."),
        ("demo mosaic", "there is no demo called 'mosaic'. Expected: denoise."),
    ],
)
def test_a_wrong_word_is_answered_in_a_sentence(
    line: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cells.tif").touch()
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "history.jsonl").write_text('{"model_name": "a", "averages": {}}\n')
    assert run(line.split()) == 2
    said = capsys.readouterr().err
    assert expected in " ".join(said.replace("│", "").split())
    assert not list(tmp_path.glob("*_denoised"))


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A history of three runs: two of one name, and one of another program that says little."""
    monkeypatch.chdir(tmp_path)
    common = {"pipeline": "denoise", "command": "run", "num_items": 2, "num_failed": 0, "notes": "", "seconds": 4.2}
    for hour, name, psnr, loss in ((1, "plain", 20.0, 0.5), (2, "plain", 28.0, 0.4), (3, "blurred", 27.0, 0.3)):
        averages = {"psnr": psnr, "validation_loss": loss}
        append(
            tmp_path / "results",
            {"timestamp": f"2026-01-01T0{hour}", "model_name": name, "averages": averages, **common},
        )
    append(tmp_path / "results", {"timestamp": "2026-01-01T04", "model_name": "other", "averages": {}})
    return tmp_path


def test_history_lists_the_newest_runs(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["history", "--last", "2"]) == 0
    heads, *rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert heads[:3] == ["name", "time", "job"]
    assert [row[0] for row in rows] == ["blurred", "other"]
    assert {"27", "0.3", "4.2"} <= set(rows[0])


def test_history_compares_the_newest_run_of_each_name(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["history", "plain", "blurred"]) == 0
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    assert rows["psnr"] == ["28", "★", "27"]
    assert rows["validation_loss"] == ["0.4", "0.3", "★"]
    assert run(["history", "plain", "unknown"]) == 1
    assert "no run is called 'unknown'" in capsys.readouterr().err


def test_history_shows_names_and_notes_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("[/red]a", "[bold]b"):
        entry = {
            "timestamp": "2026-01-01T01",
            "model_name": name,
            "averages": {"[/x]psnr": 1.0},
            "notes": "[/] :smile:",
        }
        append(tmp_path / "results", entry)
    assert run(["history"]) == 0
    assert run(["history", "[/red]a", "[bold]b"]) == 0
    said = capsys.readouterr().out
    for text in ("[/red]a", "[bold]b", "[/x]psnr", "[/] :smile:"):
        assert said.count(text) >= 2


def test_doctor_says_what_works_and_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "cpu" in [device["name"] for device in found["devices"]]
    assert set(found["precision"]) == {"amp", "tf32", "compile"}
    assert found["extras"]["micro"] == []
    assert "dev" not in found["extras"]
