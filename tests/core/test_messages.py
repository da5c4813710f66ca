"""Events speak the user's language."""

from __future__ import annotations

import locale

import pytest

from safelight.core.events import Event
from safelight.core.messages import choose_language, format_bytes, translate

VARIABLES = ("SAFELIGHT_LANG", "LC_ALL", "LC_MESSAGES", "LANG")


@pytest.fixture(autouse=True)
def no_language(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(locale, "getlocale", lambda: (None, None))


@pytest.mark.parametrize(
    ("requested", "environment", "language"),
    [
        (None, {}, "en"),
        ("fr", {"SAFELIGHT_LANG": "en"}, "fr"),
        (None, {"SAFELIGHT_LANG": "fr", "LANG": "en_GB.UTF-8"}, "fr"),
        (None, {"LANG": "fr_CA.UTF-8"}, "fr"),
        (None, {"LANG": "de_DE.UTF-8"}, "en"),
        (None, {"LC_ALL": "C", "LANG": "fr_FR.UTF-8"}, "en"),
        (None, {"LC_MESSAGES": "fr_FR", "LANG": "en_US"}, "fr"),
        (None, {"LC_ALL": "", "LANG": "fr_FR"}, "fr"),
        (None, {"SAFELIGHT_LANG": "klingon", "LANG": "fr_FR"}, "fr"),
    ],
)
def test_the_language_is_the_one_asked_for_then_the_environment_s(
    monkeypatch: pytest.MonkeyPatch, requested: str | None, environment: dict[str, str], language: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert choose_language(requested) == language


@pytest.mark.parametrize(("system", "language"), [("French_France", "fr"), ("English_United States", "en")])
def test_windows_tells_its_language_in_words(monkeypatch: pytest.MonkeyPatch, system: str, language: str) -> None:
    monkeypatch.setattr(locale, "getlocale", lambda: (system, "1252"))
    assert choose_language() == language


@pytest.mark.parametrize(
    ("language", "sentence"),
    [
        ("en", "Device: cuda:0 (NVIDIA H100 v1.2 B), 1.5 KiB free"),
        ("fr", "Périphérique : cuda:0 (NVIDIA H100 v1.2 B), 1,5 Kio libres"),
    ],
)
def test_sizes_are_readable_and_names_stay_as_they_are(language: str, sentence: str) -> None:
    data = {"device": "cuda:0", "hardware": "NVIDIA H100 v1.2 B", "free_bytes": 1536}
    assert translate(Event("gpu_info_summary", data=data), language) == sentence


@pytest.mark.parametrize(
    ("seconds", "english", "french"),
    [(0.123456, "0.1235", "0,1235"), (12345.678, "12346", "12346"), (7, "7", "7"), (float("nan"), "nan", "nan")],
)
def test_numbers_are_short_and_written_as_the_language_does(seconds: float, english: str, french: str) -> None:
    event = Event("item_finished", data={"name": "cells.v1.tif", "seconds": seconds})
    assert translate(event, "en") == f"Done cells.v1.tif in {english} s"
    assert translate(event, "fr") == f"Terminé : cells.v1.tif en {french} s"


def test_braces_in_a_value_are_no_placeholders() -> None:
    event = Event("item_refused", data={"name": "{name}", "error": "a {brace} and a %s"})
    assert translate(event, "en") == "Left out {name}: a {brace} and a %s"


@pytest.mark.parametrize("event", [Event("of_another_package", data={"rows": 3}), Event("plan", data={"rows": 3})])
def test_an_event_without_a_sentence_is_shown_all_the_same(event: Event) -> None:
    assert translate(event, "fr") == f"{event.key}: rows 3"


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (-2048, "-2.0 KiB"),
        (3 << 30, "3.0 GiB"),
        (1 << 50, "1024.0 TiB"),
    ],
)
def test_bytes_in_binary_units(size: int, text: str) -> None:
    assert format_bytes(size) == text
