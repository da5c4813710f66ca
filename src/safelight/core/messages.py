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
    """Return the language to speak: as requested, else SAFELIGHT_LANG, else the locale's, else English."""
    system = locale.getlocale()[0]
    for candidate in (requested, os.environ.get("SAFELIGHT_LANG"), os.environ.get("LANG"), system):
        if candidate and candidate[:2].lower() in LANGUAGES:
            return candidate[:2].lower()
    return "en"


def translate(event: Event, language: str) -> str:
    """Return the sentence for an event. A number of bytes (a value named ``*_bytes``) is made readable."""
    values = {name: _readable(name, value) for name, value in event.data.items()}
    return catalogue(language)[event.key].format(**values)


def _readable(name: str, value: object) -> object:
    if name.endswith("_bytes") and isinstance(value, int | float):
        return format_bytes(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(str(element) for element in value)
    return value


def format_bytes(size: float) -> str:
    """Return a size for people, in binary units: ``1536`` gives ``1.5 KiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
