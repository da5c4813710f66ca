"""What a person sees while a job runs, and what a program reads."""

from __future__ import annotations

import io
import json

import pytest

from safelight.console import SECONDS_BETWEEN_LINES, Console
from safelight.core.events import Event, Severity
from safelight.core.options import CommonOptions

SKIPPED = Event("item_skipped", data={"name": "cells"})


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("safelight.console.time.monotonic", clock.monotonic)
    return clock


def shown(stream: io.StringIO) -> list[str]:
    return stream.getvalue().splitlines()


def test_a_long_job_says_now_and_then_how_far_it_is(clock: Clock) -> None:
    stream = io.StringIO()
    view = Console(CommonOptions(lang="en"), stream)
    for second in range(26):
        clock.now = 1000.0 + second
        view.progress(second, 100, "denoising_progress", name="cells")
    assert len(shown(stream)) == 25 // SECONDS_BETWEEN_LINES
    assert shown(stream)[0] == "Denoising cells: 10 %, about 90 s left"


def test_a_resumed_job_does_not_count_what_was_done_before(clock: Clock) -> None:
    stream = io.StringIO()
    view = Console(CommonOptions(lang="en"), stream)
    view.progress(50, 100, "denoising_progress", name="cells")
    clock.now += SECONDS_BETWEEN_LINES
    view.progress(60, 100, "denoising_progress", name="cells")
    assert shown(stream) == ["Denoising cells: 60 %, about 40 s left"]


def test_a_job_of_which_nothing_is_done_does_not_say_how_long_it_takes(clock: Clock) -> None:
    stream = io.StringIO()
    view = Console(CommonOptions(lang="en"), stream)
    for _ in range(3):
        view.progress(0, 18, "denoising_progress", name="cells")
        clock.now += SECONDS_BETWEEN_LINES
    assert shown(stream) == []


def test_a_short_job_says_nothing_of_its_progress(clock: Clock) -> None:
    stream = io.StringIO()
    view = Console(CommonOptions(lang="en"), stream)
    view.progress(0, 1, "denoising_progress", name="cells")
    view.progress(1, 1, "denoising_progress", name="cells")
    assert shown(stream) == []


@pytest.mark.parametrize(
    ("options", "severities"),
    [
        ({}, ["info", "warning", "error"]),
        ({"quiet": True}, ["warning", "error"]),
        ({"verbose": True}, ["debug", "info", "warning", "error"]),
    ],
)
def test_how_much_is_said_is_as_asked_for(options: dict[str, bool], severities: list[str]) -> None:
    stream = io.StringIO()
    view = Console(CommonOptions(lang="en", **options), stream)
    for severity in Severity:
        view.show(Event("item_skipped", severity, {"name": severity.value}))
    assert shown(stream) == [f"Already done: {severity}" for severity in severities]


def test_json_goes_to_standard_output_and_nothing_else_does(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    view = Console(CommonOptions(json_events=True))
    view.show(SKIPPED)
    clock.now += 100
    view.progress(1, 2, "denoising_progress", name="cells")
    said = capsys.readouterr()
    assert json.loads(said.out)["key"] == "item_skipped"
    assert said.err == ""


def test_json_is_quiet_too_if_it_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    for options, severities in (({}, [*Severity]), ({"quiet": True}, [Severity.WARNING, Severity.ERROR])):
        view = Console(CommonOptions(json_events=True, **options))
        for severity in Severity:
            view.show(Event("item_skipped", severity, {"name": "cells"}))
        assert [json.loads(line)["severity"] for line in capsys.readouterr().out.splitlines()] == severities


def test_names_are_no_markup() -> None:
    stream = io.StringIO()
    Console(CommonOptions(lang="en"), stream).show(Event("item_skipped", data={"name": "[red]cells[0]"}))
    assert shown(stream) == ["Already done: [red]cells[0]"]


class Window(io.StringIO):
    """A terminal's window."""

    def isatty(self) -> bool:
        return True


def test_names_are_no_markup_in_a_progress_bar_either() -> None:
    window = Window()
    view = Console(CommonOptions(lang="en"), window)
    for done in (1, 2):
        view.progress(done, 2, "denoising_progress", name="[/red]cells")
    assert "Denoising [/red]cells" in window.getvalue()
