"""An undocumented command or option fails, and so does a documented one that does not exist."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from safelight.cli import run
from safelight.core.options import CommonOptions, flag, public_names
from safelight.core.pipeline import Command, Pipeline
from safelight.core.registry import registered

ROOT = Path(__file__).parents[2]
OTHER_PROGRAM = re.compile(r"(?:^|`) *(?:apt|dask|pip) [^`\n]*", re.MULTILINE)
PAGES = {
    path.name: OTHER_PROGRAM.sub("", path.read_text(encoding="utf-8"))
    for path in (ROOT / "README.md", *ROOT.glob("docs/guide/*.md"))
}
COMMANDS = [(point.load(), command) for point in registered().values() for command in point.load().commands]
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
EVERYWHERE = {"--help", "--version"}
JOB = re.compile(r"safelight (?:plan |settings )?([a-z]+) ([a-z]+)(.*?)(?:`|$)", re.MULTILINE)


@pytest.fixture(scope="module")
def sections() -> dict[str, str]:
    """What the generated page of commands says of each."""
    page: str = runpy.run_path(str(ROOT / "docs" / "conf.py"))["commands_page"]()
    parts = re.split(r"^## safelight (.*)$", page, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def words(text: str) -> str:
    """Return a text without the frames and line breaks of ``--help``."""
    return "".join(re.sub(r"[│╭╮╰╯─*]", " ", text).split())


def test_every_command_has_a_section(sections: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    run(["--help"])
    listed = re.findall(r"^│ ([a-z]+)  ", capsys.readouterr().out, re.MULTILINE)
    jobs = [f"{pipeline.name} {command.name}" for pipeline, command in COMMANDS]
    plain = [name for name in listed if name not in registered()]
    assert set(plain) >= {"plan", "settings"}
    assert sorted(sections) == sorted([*jobs, *plain])


@pytest.mark.parametrize(("pipeline", "command"), COMMANDS, ids=lambda part: part.name)
def test_every_option_is_described_on_the_page_of_commands(
    sections: dict[str, str], pipeline: Pipeline, command: Command[Any]
) -> None:
    section = sections[f"{pipeline.name} {command.name}"]
    assert "--empty" not in section, "a list is emptied by leaving it out"
    for public, name in public_names(command.Options).items():
        assert flag(public) in OPTION.findall(section)
        description = command.Options.model_fields[name].description
        assert description, f"{flag(public)} has no description"
        assert words(description)[:20] in words(section)


@pytest.mark.parametrize("name", sorted(registered()))
def test_every_command_is_explained_by_a_person(name: str) -> None:
    """On the pipeline's page of the guide, or in the README."""
    told = PAGES["README.md"] + PAGES[f"{name}.md"]
    jobs = [f"safelight {name} {command.name}" for pipeline, command in COMMANDS if pipeline.name == name]
    assert [job for job in jobs if job not in told] == []


@pytest.mark.parametrize("page", PAGES)
def test_a_page_names_only_options_that_exist(sections: dict[str, str], page: str) -> None:
    known = {option for section in sections.values() for option in OPTION.findall(section)}
    assert set(OPTION.findall(PAGES[page])) <= known | EVERYWHERE


@pytest.mark.parametrize("page", PAGES)
def test_a_page_shows_only_jobs_that_exist_with_options_that_they_have(sections: dict[str, str], page: str) -> None:
    for pipeline, command, rest in JOB.findall(PAGES[page]):
        if pipeline in registered():
            known = set(OPTION.findall(sections[f"{pipeline} {command}"] + sections["settings"]))
            assert set(OPTION.findall(rest)) <= known | EVERYWHERE


@pytest.mark.parametrize("pipeline", sorted({f"{name}.md" for name in registered()} & PAGES.keys()))
def test_the_page_of_a_pipeline_names_only_options_of_its_own(sections: dict[str, str], pipeline: str) -> None:
    name = pipeline.removesuffix(".md")
    known = {option for job in sections for option in OPTION.findall(sections[job]) if job.split()[0] == name}
    assert set(OPTION.findall(PAGES[pipeline])) <= known | EVERYWHERE


def test_every_common_option_is_a_setting_of_every_command() -> None:
    for _, command in COMMANDS:
        assert CommonOptions.model_fields.keys() <= command.Options.model_fields.keys()
