"""Settings come from the command line, the environment, a file and the defaults, in this order; slips are errors."""

from __future__ import annotations

import datetime
import os
import re
import tomllib
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st
from pydantic import Field

from safelight.core.errors import InputError, UsageError
from safelight.core.options import Bytes, CommonOptions, PathPatterns, Seconds
from safelight.core.pipeline import Command, Found, Pipeline, Record
from safelight.core.registry import registered
from safelight.core.settings import Gathered, gather
from safelight.core.settings_file import as_toml, toml


class Options(CommonOptions):
    """One option of every kind."""

    input: PathPatterns = Field(description="What to read.")
    out: Path = Field(description="Where to write.")
    dark: Path | None = Field(None, description="A dark.")
    flats: tuple[Path, ...] = Field((), description="Flats.")
    formats: tuple[Literal["a", "b"], ...] = Field(("a", "b"), description="Formats.")
    kappa_low: float = Field(3.0, description="Rejection below.", gt=0)
    kappa_high: float = Field(3.0, description="Rejection above.", gt=0)
    steps: int | None = Field(None, description="Steps.")
    least: Bytes = Field(1024, description="A size.")
    patience: Seconds | None = Field(None, description="A duration.")
    match: bool = Field(True, description="Whether to match.")
    title: str = Field("", description="A text.")
    method: Literal["mean", "median"] = Field("mean", description="How.")


RUN = Command("run", "Run.", Options, lambda options: options.out, lambda _: Found(()), lambda *_: Record())
TRAIN = Command("train", "Train.", Options, lambda options: options.out, lambda _: Found(()), lambda *_: Record())
PIPELINE = Pipeline("stacker", "Stacks.", (RUN, TRAIN))
ALL_COMMANDS = [(point.load(), command) for point in registered().values() for command in point.load().commands]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "my.toml"


def from_file(file: Path, text: str, environment: dict[str, str] | None = None, **given: Any) -> Gathered[Options]:
    file.write_text(text, encoding="utf-8")
    return gather(PIPELINE, RUN, {"config": file, **given}, environment or {})


def values(gathered: Gathered[Options]) -> dict[str, Any]:
    return {name: value for name, value in gathered.values().items() if name != "config"}


def said(gathered: Gathered[Options]) -> dict[str, Any]:
    return {event.key: dict(event.data) for event in gathered.said}


def test_the_command_line_goes_before_the_environment_that_before_the_file_that_before_the_defaults(file: Path) -> None:
    text = "input = 'x'\nout = 'y'\nkappa_low = 1\nkappa_high = 1\nsteps = 1"
    environment = {"SAFELIGHT_KAPPA_LOW": "2", "SAFELIGHT_KAPPA_HIGH": "2"}
    options = from_file(file, text, environment, kappa_low=4.0).options()
    assert (options.kappa_low, options.kappa_high, options.steps, options.title) == (4.0, 2.0, 1, "")


def test_it_is_said_what_came_from_where_and_what_gave_way(file: Path) -> None:
    gathered = from_file(file, "kappa_low = 1\nsteps = 1", {"SAFELIGHT_KAPPA_LOW": "2", "SAFELIGHT_MATCH": "no"})
    assert said(gathered) == {
        "settings_from_file": {"file": str(file), "settings": ["steps"]},
        "settings_from_environment": {"settings": ["SAFELIGHT_KAPPA_LOW", "SAFELIGHT_MATCH"]},
        "setting_overruled": {"setting": "kappa_low", "place": str(file), "by": "SAFELIGHT_KAPPA_LOW"},
    }
    gathered = gather(PIPELINE, RUN, {"kappa_low": 1}, {"SAFELIGHT_KAPPA_LOW": "2"})
    assert said(gathered)["setting_overruled"] == {
        "setting": "SAFELIGHT_KAPPA_LOW",
        "place": "SAFELIGHT_KAPPA_LOW",
        "by": "--kappa-low",
    }
    assert gather(PIPELINE, RUN, {"kappa_low": 1}, {"HOME": "/"}).said == ()


def test_the_environment_can_name_the_file(file: Path) -> None:
    file.write_text("steps = 7")
    assert gather(PIPELINE, RUN, {}, {"SAFELIGHT_CONFIG": str(file)}).values()["steps"] == 7


@pytest.mark.parametrize(
    ("variable", "text", "name", "value"),
    [
        ("MEMORY_LIMIT", "2GiB", "memory_limit", 2 << 30),
        ("PATIENCE", "10min", "patience", 600.0),
        ("KAPPA_LOW", "2.5", "kappa_low", 2.5),
        ("MATCH", "off", "match", False),
        ("FORMATS", "b, a", "formats", ("b", "a")),
        ("FLATS", "one,two", "flats", (Path("one"), Path("two"))),
        ("INPUT", "one,two/*.tif", "input", ("one", "two/*.tif")),
        ("DARK", "dark", "dark", Path("dark")),
        ("JSON", "1", "json_events", True),
        ("LANG", "fr", "lang", "fr"),
    ],
)
def test_what_a_variable_may_say(variable: str, text: str, name: str, value: object) -> None:
    assert gather(PIPELINE, RUN, {}, {f"SAFELIGHT_{variable}": text}).values() == {name: value}


def test_an_empty_variable_says_nothing() -> None:
    assert gather(PIPELINE, RUN, {}, {"SAFELIGHT_KAPPA_LOW": ""}).values() == {}


@pytest.mark.parametrize(
    ("variable", "text", "complaint"),
    [
        ("KAPPA_LOW", "three", "SAFELIGHT_KAPPA_LOW is three: input should be a valid number"),
        ("KAPPA_LOW", "-1", "SAFELIGHT_KAPPA_LOW is -1: input should be greater than 0"),
        ("MEMORY_LIMIT", "much", "SAFELIGHT_MEMORY_LIMIT is much: 'much' is not a size; write for instance 2GiB"),
        ("METHOD", "mode", "SAFELIGHT_METHOD is mode: input should be 'mean' or 'median'"),
        ("FORMATS", "a,c", "SAFELIGHT_FORMATS is a,c: input should be 'a' or 'b'"),
    ],
)
def test_a_wrong_variable_is_named(variable: str, text: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=re.escape(complaint)):
        gather(PIPELINE, RUN, {}, {f"SAFELIGHT_{variable}": text})


def test_a_variable_that_is_nearly_a_setting_is_pointed_out() -> None:
    gathered = gather(PIPELINE, RUN, {}, {"SAFELIGHT_KAPA_LOW": "2", "SAFELIGHT_CACHE": "/tmp", "SAFELIGHT_X": "1"})
    assert gathered.values() == {}
    assert said(gathered) == {"variable_unknown": {"variable": "SAFELIGHT_KAPA_LOW", "near": ["SAFELIGHT_KAPPA_LOW"]}}


def test_a_table_of_the_job_goes_before_what_is_for_all_and_other_jobs_are_none_of_its_business(file: Path) -> None:
    text = """
        steps = 1
        title = "for all"
        [stacker.run]
        steps = 2
        [stacker.train]
        steps = 3
        nonsense = true
        [denoise.run]
        steps = 4
    """
    gathered = from_file(file, text)
    assert values(gathered) == {"steps": 2, "title": "for all"}
    assert said(gathered)["settings_of_other_jobs"]["tables"] == ["denoise", "stacker.train"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("kapa_low = 1", "kapa_low is no setting of stacker run. Expected: kappa_low"),
        ("kappa-low = 1", "kappa-low is no setting of stacker run. Expected: kappa_low"),
        ("[stacker.run]\nkapa_low = 1", "stacker.run.kapa_low is no setting of stacker run. Expected: kappa_low"),
        ("[stacker.rum]\nsteps = 1", "stacker.rum is no setting of stacker run. Expected: run"),
        (
            "[stacker]\nsteps = 1",
            "stacker.steps is no setting of stacker run. Try: safelight settings stacker run, for a file with all",
        ),
        ("[staker.run]\nsteps = 1", "staker is no setting of stacker run. Expected: stacker"),
        ("[sharpener.run]\nradius = 1", "sharpener is no setting of stacker run. Try: safelight settings stacker run"),
        ("json_events = true", "json_events is no setting of stacker run"),
        ("config = 'other.toml'", "config is no setting of stacker run"),
        ("stacker.run = 3", "stacker.run is 3. Expected: a table"),
        ("stacker = 3", "stacker is no setting of stacker run"),
        ("kappa_low = 'three'", 'kappa_low is "three": input should be a valid number'),
        ("kappa_low = '3'", 'kappa_low is "3": input should be a valid number'),
        ("kappa_low = true", "kappa_low is true: input should be a valid number"),
        ("kappa_low = -1.5", "kappa_low is -1.5: input should be greater than 0"),
        ("kappa_low = nan", "kappa_low is nan: input should be greater than 0"),
        ("kappa_low = [1]", "kappa_low is [1]: input should be a valid number"),
        ("kappa_low = {a = 1}", "kappa_low is {a = 1}: input should be a valid number"),
        ("steps = 2.5", "steps is 2.5: input should be a valid integer"),
        ("steps = 2000-01-01", "steps is 2000-01-01: input should be a valid integer"),
        ("match = 1", "match is 1: input should be a valid boolean"),
        ("match = 'yes'", 'match is "yes": input should be a valid boolean'),
        ("dark = 3", "dark is 3: input should be a valid string"),
        ("title = 3", "title is 3: input should be a valid string"),
        ("method = 'mode'", "method is \"mode\": input should be 'mean' or 'median'"),
        ("formats = 'a'", 'formats is "a": input should be a valid array'),
        ("formats = ['a', 'c']", "formats is [\"a\", \"c\"]: input should be 'a' or 'b'"),
        ("memory_limit = 'much'", "memory_limit is \"much\": 'much' is not a size"),
    ],
)
def test_a_wrong_file_is_an_error_that_names_file_setting_value_and_what_was_expected(
    file: Path, text: str, complaint: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(f"{file}: {complaint}")):
        from_file(file, text)


@pytest.mark.parametrize("content", [b"kappa_low 3", b"a = 1\na = 2", b"a = " + b"[" * 99_999, b"title = '\xe9'"])
def test_a_file_that_is_no_toml_is_named(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(InputError, match=re.escape(f"{file}: is not TOML")):
        gather(PIPELINE, RUN, {"config": file}, {})


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing.toml", tmp_path):
        with pytest.raises(InputError, match=re.escape(f"{path}: cannot be read")):
            gather(PIPELINE, RUN, {"config": path}, {})


def test_files_of_windows_editors_are_read(file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbftitle = '\xc3\xa9'\r\nsteps = 1\r\n")
    assert values(gather(PIPELINE, RUN, {"config": file}, {})) == {"title": "é", "steps": 1}


def test_paths_in_a_file_are_relative_to_it_and_others_are_not(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    folder = file.parent
    text = "input = 'data/*.tif'\nout = '/abs'\ndark = '~/dark'\nflats = ['a', '../b']\ntitle = 'data'"
    assert values(from_file(file, text)) == {
        "input": (f"{folder}/data/*.tif",),
        "out": Path("/abs"),
        "dark": Path("/home/me/dark"),
        "flats": (folder / "a", folder / "../b"),
        "title": "data",
    }
    assert gather(PIPELINE, RUN, {}, {"SAFELIGHT_DARK": "dark"}).values() == {"dark": Path("dark")}


def test_a_path_may_stand_alone_where_several_can(file: Path) -> None:
    assert from_file(file, "input = ['/a', '/b*']").values()["input"] == ("/a", "/b*")
    assert Options(input="a", out="o").input == Options(input=Path("a"), out="o").input == ("a",)


def test_what_is_missing_or_wrong_is_named_as_the_user_knows_it(file: Path) -> None:
    with pytest.raises(UsageError, match=r"--out is missing: where to write\.$"):
        gather(PIPELINE, RUN, {"input": "x"}, {}).options()
    both = {"input": "x", "out": Path("y")}
    with pytest.raises(UsageError, match="--kappa-low -2: input should be greater than 0"):
        gather(PIPELINE, RUN, {**both, "kappa_low": -2}, {}).options()
    with pytest.raises(UsageError, match="quiet and verbose exclude each other"):
        from_file(file, "quiet = true", {"SAFELIGHT_VERBOSE": "1"}, **both).options()
    with pytest.raises(UsageError, match=r"--input is missing.*; --steps x: input should be a valid integer"):
        gather(PIPELINE, RUN, {"out": Path("y"), "steps": "x"}, {}).options()


def test_what_is_missing_does_not_hide_what_is_wrong() -> None:
    gather(PIPELINE, RUN, {"steps": 3}, {}).check()
    with pytest.raises(UsageError, match=r"^--steps x: input should be a valid integer[^;]*$"):
        gather(PIPELINE, RUN, {"steps": "x"}, {}).check()


@drawn(
    st.fixed_dictionaries(
        {},
        optional={
            "title": st.text(st.characters(exclude_categories=["Cs"])),
            "input": st.lists(st.text(st.characters(codec="ascii", exclude_characters="\0~"), min_size=1)).map(tuple),
            "kappa_low": st.floats(min_value=0, exclude_min=True),
            "steps": st.integers(-(2**63), 2**63 - 1),
            "formats": st.lists(st.sampled_from("ab")).map(tuple),
            "flats": st.lists(st.sampled_from([Path("a b"), Path("/é/#")])).map(tuple),
            "match": st.booleans(),
            "memory_limit": st.integers(1, 2**62),
            "patience": st.floats(0, allow_infinity=False),
        },
    )
)
def test_what_is_written_is_read_again(tmp_path_factory: pytest.TempPathFactory, given: dict[str, Any]) -> None:
    file = tmp_path_factory.mktemp("settings") / "my.toml"
    text = as_toml(PIPELINE, RUN, given)
    again = values(from_file(file, text))
    for name in ("input", "flats"):
        if name in given:
            given[name] = in_full(given[name])
    assert again == given


def in_full(value: Any) -> Any:
    """Return paths as absolute ones."""
    return tuple(map(in_full, value)) if isinstance(value, tuple) else type(value)(Path.cwd() / value)


@pytest.mark.parametrize(("pipeline", "command"), ALL_COMMANDS, ids=lambda value: value.name)
def test_the_file_of_every_command_holds_every_option_described_with_its_default(
    pipeline: Pipeline, command: Command[Any], file: Path
) -> None:
    text = as_toml(pipeline, command, {})
    assert tomllib.loads(text) == {pipeline.name: {command.name: {}}}
    defaults = re.sub(r"^# ([a-z_0-9]+ = )", r"\1", text, flags=re.MULTILINE)
    file.write_text(defaults)
    settings = gather(pipeline, command, {"config": file}, {})
    fields = command.Options.model_fields
    assert {name for name in fields if not fields[name].is_required() and fields[name].default is not None} == {
        name for name in settings.settings if name != "config"
    }
    settings.check()
    for name, field in fields.items():
        if name != "config":
            assert f"\n# {field.description.split()[0]}" in text
            assert re.search(rf"\n# {field.alias or name} (is required|is not set|= )", text)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"),
        (1e-07, "1e-07"),
        (float("inf"), "inf"),
        ('a"b\\\n\x7f😀', '"a\\"b\\\\\\n\\u007f😀"'),
        (Path("a"), '"a"'),
        ((1, "x"), '[1, "x"]'),
        ({"a": False}, "{a = false}"),
        (datetime.date(2000, 1, 1), "2000-01-01"),
    ],
)
def test_values_are_written_as_toml_has_them(value: object, text: str) -> None:
    assert toml(value) == text
    written = str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
    assert tomllib.loads(f"value = {text}")["value"] == written


def test_a_path_that_toml_cannot_hold_is_refused() -> None:
    with pytest.raises(UsageError, match="the value of input is not in UTF-8"):
        as_toml(PIPELINE, RUN, {"input": os.fsdecode(b"cells\xff.tif")})
