"""A pipeline written in a temporary folder, with no other file touched, is a whole pipeline."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from prompt import Answer, prompt

TOY = '''
"""Counts the words of text files."""
from pathlib import Path
from pydantic import Field
from safelight.core.errors import InputError
from safelight.core.files import atomic_write
from safelight.core.options import CommonOptions
from safelight.core.pipeline import Command, Found, Item, Pipeline, Record, Refusal

class Options(CommonOptions):
    input: Path = Field(description="A folder of text files.")
    out: Path = Field(description="Folder for the counts.")
    least: int = Field(1, ge=1, description="Shortest word that counts, in letters.")

def find_items(options):
    files = sorted(options.input.glob("*.txt"))
    empty = [file for file in files if not file.stat().st_size]
    refused = [Refusal(file.name, InputError("is empty", path=file)) for file in empty]
    items = [Item(file.stem, (file,), file) for file in files if file not in empty]
    return Found(tuple(items), tuple(refused))

def process(item, options, context, prepared):
    text = item.payload.read_text()
    if "bad" in text:
        raise InputError("holds a bad word", path=item.payload)
    with (options.input / "processed.log").open("a") as log:
        log.write(item.name + "\\n")
    count = sum(len(word) >= options.least for word in text.split())
    out = context.folder / f"{item.name}.count"
    with atomic_write(out) as part:
        part.write_text(str(count))
    return Record((out,), {"words": float(count)})

COUNT = Command("count", "Count words.", Options, lambda options: options.out, find_items, process)
PIPELINE = Pipeline("toyline", "Count the words of text files.", (COUNT,))
'''
COUNT = ("toyline", "count", "texts", "--out", "counts")


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with texts, and one on Python's path that holds the pipeline and its registry line."""
    home = tmp_path / "site"
    (home / "toyline-1.dist-info").mkdir(parents=True)
    (home / "toyline.py").write_text(TOY)
    (home / "toyline-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: toyline\nVersion: 1\n")
    (home / "toyline-1.dist-info" / "entry_points.txt").write_text(
        "[safelight.pipelines]\ntoyline = toyline:PIPELINE\n"
    )
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a.txt").write_text("one two three")
    (texts / "b.txt").write_text("four five")
    monkeypatch.syspath_prepend(home)
    monkeypatch.delitem(sys.modules, "toyline", raising=False)
    return tmp_path


def count(toy: Path, *more: str) -> Answer:
    return prompt(toy, *COUNT, *more)


def in_a_process(toy: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """Count as a user does, in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(toy / "site"), "SAFELIGHT_LANG": "en"}
    command = [sys.executable, "-m", "safelight", *COUNT, *more]
    return subprocess.run(command, cwd=toy, env=environment, capture_output=True, text=True, check=False)


def processed(toy: Path) -> list[str]:
    log = toy / "texts" / "processed.log"
    return log.read_text().split() if log.exists() else []


def test_help_shows_the_pipeline_its_options_and_the_common_ones(toy: Path) -> None:
    assert "Count the words of text files." in prompt(toy, "--help").output
    shown = prompt(toy, "toyline", "count", "--help").output
    assert "--least" in shown
    assert "--memory-limit" in shown


def test_a_run_writes_outputs_events_record_and_history(toy: Path) -> None:
    outcome = in_a_process(toy, "--notes", "first")
    assert outcome.returncode == 0, outcome.stderr
    assert (toy / "counts" / "a.count").read_text() == "3"
    document = json.loads((toy / "counts" / "run.json").read_text())
    assert [item["name"] for item in document["items"]] == ["a", "b"]
    events = [json.loads(line) for line in (toy / "counts" / "events.jsonl").read_text().splitlines()]
    assert events[-1]["key"] == "run_finished"
    (entry,) = [json.loads(line) for line in (toy / "results" / "history.jsonl").read_text().splitlines()]
    assert entry["averages"]["words"] == 2.5
    assert entry["notes"] == "first"


def test_json_writes_one_event_per_line(toy: Path) -> None:
    outcome = count(toy, "--json")
    keys = [json.loads(line)["key"] for line in outcome.output.splitlines()]
    assert {"run_started", "item_finished", "run_finished"} <= set(keys)


def test_a_second_run_does_nothing_again(toy: Path) -> None:
    count(toy)
    count(toy)
    assert processed(toy) == ["a", "b"]


def test_a_changed_input_option_or_output_is_done_again(toy: Path) -> None:
    count(toy)
    (toy / "texts" / "a.txt").write_text("one")
    count(toy)
    assert processed(toy) == ["a", "b", "a"]
    (toy / "counts" / "b.count").write_text("damaged")
    count(toy)
    assert processed(toy) == ["a", "b", "a", "b"]
    count(toy, "--least", "4")
    assert processed(toy)[4:] == ["a", "b"]
    count(toy, "--least", "4", "--fresh")
    assert processed(toy)[6:] == ["a", "b"]


def test_workers_give_what_one_process_gives_in_the_order_of_the_items(toy: Path) -> None:
    (toy / "texts" / "c.txt").write_text("a bad one")
    (toy / "texts" / "d.txt").write_text("six seven eight nine")
    assert count(toy, "--workers", "2").status == 1
    shared = {path.name: path.read_bytes() for path in (toy / "counts").glob("*.count")}
    document = json.loads((toy / "counts" / "run.json").read_text())
    assert [item["name"] for item in document["items"]] == ["a", "b", "d"]
    assert document["averages"] == {"words": 3.0}
    assert len(document["workers"]) == 2
    assert sorted(processed(toy)) == ["a", "b", "d"]
    (toy / "texts" / "c.txt").write_text("ten")
    assert count(toy).status == 0
    assert sorted(processed(toy)) == ["a", "b", "c", "d"], "another number of workers does nothing again"
    assert count(toy, "--fresh").status == 0
    assert {path.name: path.read_bytes() for path in (toy / "counts").glob("[abd].count")} == shared


def test_a_failed_item_is_named_and_the_others_are_done(toy: Path) -> None:
    (toy / "texts" / "a.txt").write_text("a bad one")
    outcome = count(toy)
    assert outcome.status == 1
    assert "a.txt: holds a bad word" in outcome.said
    assert "Traceback" not in outcome.said
    assert (toy / "counts" / "b.count").exists()
    document = json.loads((toy / "counts" / "run.json").read_text())
    assert [failure["name"] for failure in document["failed"]] == ["a"]


def test_a_refused_input_is_named(toy: Path) -> None:
    (toy / "texts" / "c.txt").write_text("")
    outcome = count(toy)
    assert outcome.status == 1
    assert "c.txt: is empty" in outcome.said


def test_a_dry_run_writes_nothing(toy: Path) -> None:
    outcome = count(toy, "--dry-run")
    assert outcome.status == 0, outcome.said
    assert not (toy / "counts").exists()
    assert not (toy / "results").exists()
    planned = prompt(toy, "plan", *COUNT)
    assert "Would do a, into counts" in planned.said
    assert not (toy / "counts").exists()


def test_history_lists_the_run(toy: Path) -> None:
    count(toy, "--model-name", "words of today")
    assert "words of today" in prompt(toy, "history").output


def test_nothing_usable_is_an_error(toy: Path) -> None:
    (toy / "texts" / "a.txt").write_text("")
    (toy / "texts" / "b.txt").write_text("")
    outcome = count(toy)
    assert outcome.status == 1
    assert "a.txt: is empty" in outcome.said


def test_it_speaks_french(toy: Path) -> None:
    assert "Terminé" in count(toy, "--lang", "fr").said
