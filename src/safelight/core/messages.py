"""Sentences for events, in the user's language."""

from __future__ import annotations

import json
import locale
import os
from collections.abc import Mapping
from functools import cache
from importlib import resources
from string import Formatter

from safelight.core.events import Event

LANGUAGES = ("en", "fr")


@cache
def catalogue(language: str) -> Mapping[str, str]:
    """Return every sentence of a language by event key."""
    text = resources.files("safelight.core").joinpath(f"locales/{language}.json").read_text("utf-8")
    sentences: dict[str, str] = json.loads(text)
    return sentences


def placeholders(sentence: str) -> set[str]:
    """Return the names of a sentence's placeholders."""
    return {name for _, name, _, _ in Formatter().parse(sentence) if name}


def choose_language(requested: str | None = None) -> str:
    """Return the language to speak: as requested, else SAFELIGHT_LANG, else the locale's, else English.

    Of the locale's variables the first one set decides, as POSIX says: LC_ALL, LC_MESSAGES, LANG.
    """
    variables = (os.environ.get(name) for name in ("LC_ALL", "LC_MESSAGES", "LANG"))
    system = next(filter(None, variables), None) or locale.getlocale()[0]
    for candidate in (requested, os.environ.get("SAFELIGHT_LANG"), system):
        if candidate and candidate[:2].lower() in LANGUAGES:
            return candidate[:2].lower()
    return "en"


def translate(event: Event, language: str) -> str:
    """Return the sentence for an event, its numbers written as the language does.

    A value named ``*_bytes`` is made readable. An event that the catalogue does not have, from another package's
    pipeline, is shown by its key and its values.
    """
    sentence = catalogue(language).get(event.key)
    values = {name: _readable(name, value, language) for name, value in event.data.items()}
    if sentence is None or not placeholders(sentence) <= values.keys():
        return f"{event.key}: " + ", ".join(f"{name} {value}" for name, value in values.items())
    return sentence.format(**values)


def _readable(name: str, value: object, language: str) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_readable(name, element, language) for element in value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if name.endswith("_bytes"):
        text = format_bytes(value)
        return _in_french(text).replace("B", "o") if language == "fr" else text
    text = str(value) if isinstance(value, int) else f"{value:.0f}" if 1000 <= abs(value) < 1e15 else f"{value:.4g}"
    return _in_french(text) if language == "fr" else text


def _in_french(number: str) -> str:
    return number.replace(".", ",")


def format_bytes(size: float) -> str:
    """Return a size for people, in binary units: ``1536`` gives ``1.5 KiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
