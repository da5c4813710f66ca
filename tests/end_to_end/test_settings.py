"""One file of settings, made by a command, used by others, recorded by the run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from safelight.cli import run
from sky import take

PIPELINE = '''
"""Counts the words of text files."""
from pathlib import Path
from typing import Literal
from pydantic import Field
from safelight.core.files import atomic_write
from safelight.core.options import CommonOptions
from safelight.core.pipeline import Command, Found, Item, Pipeline, Record

class Options(CommonOptions):
    input: Path = Field(description="A folder of text files.")
    out: Path = Field(description="Folder for the counts.")
    least: int = Field(1, ge=1, description="Shortest word that counts, in letters.")
    kinds: tuple[Literal["words", "lines"], ...] = Field(("words",), description="What is counted.")

def find_items(options):
    return Found(tuple(Item(file.stem, (file,), file) for file in sorted(options.input.iterdir())))

def process(item, options, context, prepared):
    out = context.folder / f"{item.name}.count"
    with atomic_write(out) as part:
        part.write_text(str(sum(len(word) >= options.least for word in item.payload.read_text().split())))
    return Record((out,))

COUNT = Command("count", "Count words.", Options, lambda options: options.out, find_items, process)
PIPELINE = Pipeline("wordline", "Count words.", (COUNT,))
'''
SETTINGS = """
memory_limit = "1GiB"
[wordline.count]
input = "texts"
out = "counts"
least = 4
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a text and a file of settings, beside the working folder, and a pipeline that is registered."""
    facts = tmp_path / "site" / "wordline-1.dist-info"
    facts.mkdir(parents=True)
    (facts.parent / "wordline.py").write_text(PIPELINE)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: wordline\nVersion: 1\n")
    (facts / "entry_points.txt").write_text("[safelight.pipelines]\nwordline = wordline:PIPELINE\n")
    monkeypatch.syspath_prepend(str(facts.parent))
    home = tmp_path / "home"
    (home / "texts").mkdir(parents=True)
    (home / "texts" / "a.txt").write_text("one two three four")
    (home / "my.toml").write_text(SETTINGS)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("SAFELIGHT_LANG", "en")
    return home


def record(home: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((home / "counts" / "run.json").read_text())
    return document


def test_a_run_takes_its_settings_from_everywhere_and_records_those_it_used(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SAFELIGHT_LEAST", "5")
    monkeypatch.setenv("SAFELIGHT_KINDS", "words,lines")
    assert run(["wordline", "count", "--config", str(home / "my.toml"), "--notes", "here"]) == 0
    assert (home / "counts" / "a.count").read_text() == "1"
    options = record(home)["options"]
    assert (options["least"], options["kinds"], options["notes"]) == (5, ["words", "lines"], "here")
    assert options["memory_limit"] == 1 << 30
    assert options["config"] == str(home / "my.toml")
    events = {event["key"]: event["data"] for event in record(home)["events"]}
    assert events["settings_from_file"]["settings"] == ["memory_limit", "input", "out"]
    assert "SAFELIGHT_KINDS" in events["settings_from_environment"]["settings"]
    assert events["setting_overruled"]["by"] == "SAFELIGHT_LEAST"
    assert f"Settings from {home / 'my.toml'}: memory_limit, input, out" in capsys.readouterr().err


def test_a_plan_and_a_dry_run_know_the_file_and_do_nothing(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = ["wordline", "count", "--config", str(home / "my.toml")]
    for arguments in (["plan", *job], [*job, "--dry-run"]):
        assert run(arguments) == 0
        assert f"Would do a, into {home / 'counts'}" in capsys.readouterr().err
    assert not (home / "counts").exists()


def test_language_and_json_come_from_the_environment_and_the_file_too(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = ["wordline", "count", "--config", str(home / "my.toml"), "--dry-run"]
    monkeypatch.setenv("SAFELIGHT_LANG", "fr")
    assert run(job) == 0
    assert "Réglages lus dans" in capsys.readouterr().err
    monkeypatch.delenv("SAFELIGHT_LANG")
    (home / "my.toml").write_text(SETTINGS + "lang = 'fr'\n")
    assert run(job) == 0
    assert "Réglages lus dans" in capsys.readouterr().err
    (home / "my.toml").write_text(SETTINGS + "json = true\n")
    assert run(job) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out.splitlines()[0])["key"] == "settings_from_file"
    assert shown.err == ""


@pytest.mark.parametrize(
    ("text", "status", "complaint"),
    [
        ("least = 0", 2, "my.toml: least is 0: input should be greater than or equal to 1."),
        ("leest = 1", 2, "my.toml: leest is no setting of wordline count. Expected: least."),
        ("least = ", 1, "my.toml: is not TOML: Invalid value (at end of document)"),
        ("input = 'nowhere'", 2, "--out is missing: folder for the counts."),
        (None, 1, "my.toml: cannot be read: No such file or directory"),
    ],
)
def test_a_bad_file_is_one_clear_error(
    home: Path, capsys: pytest.CaptureFixture[str], text: str | None, status: int, complaint: str
) -> None:
    (home / "my.toml").unlink()
    if text is not None:
        (home / "my.toml").write_text(text)
    job = ["wordline", "count", "--config", str(home / "my.toml")]
    for arguments in (job, ["plan", *job]):
        assert run(arguments) == status
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("safelight: ")
        assert complaint in line


def test_settings_that_a_command_writes_make_the_same_run(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["wordline", "count", "../home/texts", "--out", "../home/counts", "--least", "4", "--kinds", "lines"]
    assert run(given) == 0
    direct = record(home)["options"]
    capsys.readouterr()
    assert run(["settings", *given]) == 0
    (home / "made.toml").write_text(capsys.readouterr().out)
    assert run(["settings", *given, "--save", str(home / "saved.toml")]) == 0
    assert capsys.readouterr().out == ""
    assert (home / "saved.toml").read_text() == (home / "made.toml").read_text()
    assert run(["wordline", "count", "--config", str(home / "made.toml")]) == 0
    again = record(home)["options"]
    paths = ("input", "out", "config")
    assert {n: v for n, v in again.items() if n not in paths} == {n: v for n, v in direct.items() if n not in paths}
    assert all(Path(again[name]).samefile(direct[name]) for name in paths[:2])


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "no job was given"),
        (["wordline"], "'wordline' is no job of a pipeline"),
        (["wordline", "count", "--least", "0"], "--least 0: input should be greater than or equal to 1"),
        (["wordline", "count", "--save", "my.json"], "--save my.json: its ending tells no format. Expected: .toml"),
        (["mosaic", "run", "--save", "my.yaml"], "Expected: .toml or .json"),
    ],
)
def test_settings_that_cannot_be_written_are_one_clear_error(
    home: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], complaint: str
) -> None:
    assert run(["settings", *arguments]) == 2
    shown = capsys.readouterr()
    assert complaint in shown.err
    assert shown.out == ""


def test_settings_need_no_torch() -> None:
    code = (
        "import sys\nfrom safelight.cli import run\nrun(['settings', 'mosaic', 'run', '--kappa-low', '2.5'])\n"
        "assert not {'torch', 'numpy'} & sys.modules.keys()"
    )
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "\nkappa_low = 2.5\n" in outcome.stdout


OLD = {"observer": "Élodie", "stack_use_gpu": "no", "rejection": "kappa_sigma", "kappa_low": 2, "kappa_high": 4}


@pytest.fixture
def old(home: Path) -> Path:
    """A configuration of the program that mosaic replaces."""
    (home / "old.json").write_text(json.dumps(OLD))
    return home / "old.json"


def test_mosaic_takes_over_the_configuration_of_the_program_it_replaces(
    old: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    take(old.parent / "lights", frames=2)
    monkeypatch.setenv("SAFELIGHT_KAPPA_HIGH", "5")
    job = ["mosaic", "run", str(old.parent / "lights"), "--out", "m94", "--config", str(old), "--kappa-low", "1"]
    assert run([*job, "--dry-run"]) == 0
    said = capsys.readouterr().err
    assert f"{old}: settings that Safelight does not have stay as they are: observer" in said
    assert f"Settings from {old}: rejection, stack_use_gpu" in said
    assert f"kappa_low of {old} is not used: --kappa-low goes before it" in said
    assert f"kappa_high of {old} is not used: SAFELIGHT_KAPPA_HIGH goes before it" in said
    assert run([*job[:-2], "--dry-run", "--device", "nowhere"]) == 2
    assert json.loads(old.read_text()) == OLD, "it is only read"


def test_what_the_old_program_knows_besides_survives_saving(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = old.with_name("new.json")
    assert run(["settings", "mosaic", "run", "--config", str(old), "--kappa-low", "1", "--save", str(new)]) == 0
    document = json.loads(new.read_text())
    assert document["observer"] == "Élodie"
    assert (document["kappa_low"], document["kappa_high"], document["stack_use_gpu"]) == (1.0, 4.0, False)
    capsys.readouterr()
    assert run(["settings", "mosaic", "run", "--config", str(new)]) == 0
    again = capsys.readouterr().out
    assert run(["settings", "mosaic", "run", "--config", str(old), "--kappa-low", "1"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("#")]
    assert set(lines) <= set(again.splitlines())


def test_a_bad_configuration_of_the_old_program_is_one_clear_error(
    old: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old.write_text('{"use_gpu_phase5": "perhaps"}')
    assert run(["mosaic", "run", "lights", "--out", "m94", "--config", str(old)]) == 2
    assert f"{old}: use_gpu_phase5 is 'perhaps'. Expected: one of 1, true" in capsys.readouterr().err
    old.write_text("[]")
    assert run(["mosaic", "run", "lights", "--out", "m94", "--config", str(old)]) == 1
    assert f"{old}: holds a JSON list" in capsys.readouterr().err
