"""The frame of every report: one HTML file with everything inside, to read, show and print.

It says what was not done, what to note, and how it was done; a pipeline's own template adds what was found.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from safelight.core.events import Event, Severity
from safelight.core.files import atomic_write
from safelight.core.messages import choose_language, format_bytes, translate

REPORT = "report.html"


def write_report(folder: Path, document: Mapping[str, Any], package: str, **own: Any) -> Path:
    """Write ``report.html`` from a pipeline's template.

    Parameters
    ----------
    folder : Path
        The run's folder.
    document : mapping
        The run's record, as in ``run.json``.
    package : str
        Where the template ``report.html.j2`` is; it extends this package's ``frame.html.j2``.
    **own
        What the template takes besides ``run``, ``t`` (English, French → the reader's), ``options``, ``events`` and
        ``memory``.

    Returns
    -------
    Path

    Raises
    ------
    OutputError
        The report cannot be written.
    """
    language = report_language(document)
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package, "."), PackageLoader("safelight.core", "templates")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": partial(format_number, language=language),
        "bytes": partial(_format_bytes, language=language),
    }
    text = environment.get_template("report.html.j2").render(
        t=_speaker(language),
        language=language,
        run=document,
        options=_shown_options(document["options"]),
        created=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        events=list(_sentences(document["events"], language)),
        memory=_largest(document["memory"]),
        **own,
    )
    path = folder / REPORT
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")  # names of files are any bytes
    return path


def report_language(document: Mapping[str, Any]) -> str:
    """Return the language of a run's report."""
    return choose_language(document["options"].get("lang"))


def format_number(value: float | None, digits: int = 2, *, language: str) -> str:
    """Return a number for people, a dash where there is none."""
    if value is None:
        return "–"
    text = f"{value:.{digits}f}".replace("-", "−")
    return text.replace(".", ",") if language == "fr" else text


def data_url(png: bytes) -> str:
    """Return a picture as an address that holds it."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _format_bytes(value: float, *, language: str) -> str:
    text = format_bytes(value)
    return text.replace(".", ",").replace("B", "o") if language == "fr" else text


def _speaker(language: str) -> Callable[[str, str], str]:
    """Return the function by which the template says a thing in the reader's language."""
    return lambda english, french: french if language == "fr" else english


def _shown_options(options: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in options.items() if value not in (None, "", False)}


def _largest(measured: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the largest of each computation: hundreds of frames are resampled, but that is one line of a table."""
    largest: dict[tuple[str, str], Mapping[str, Any]] = {}
    for entry in measured:
        known = largest.setdefault((entry["kernel"], entry["device"]), entry)
        if entry["measured_bytes"] > known["measured_bytes"]:
            largest[entry["kernel"], entry["device"]] = entry
    return list(largest.values())


def _sentences(events: Sequence[Mapping[str, Any]], language: str) -> Iterator[dict[str, str]]:
    for entry in events:
        event = Event(entry["key"], Severity(entry["severity"]), entry["data"], entry["time"])
        clock = datetime.fromtimestamp(event.time).strftime("%H:%M:%S")
        yield {"time": clock, "key": event.key, "severity": event.severity.value, "text": translate(event, language)}
