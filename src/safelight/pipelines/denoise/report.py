"""The report of a run: one HTML file with everything inside, for a microscopist to read, show and print."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from safelight.core.events import Event, Severity
from safelight.core.files import atomic_write, inside
from safelight.core.messages import choose_language, format_bytes, translate
from safelight.pipelines.denoise.curves import draw_curves, draw_loss
from safelight.pipelines.denoise.pictures import draw_pictures

__all__ = ["draw_pictures", "write_report"]

REPORT = "report.html"
LOSSES = "losses.json"
MOST_PICTURED = 20
"""Images whose pictures are in the report; those of more would make it too heavy to open."""

WIDESPREAD = 0.05
"""Share of the tiles with structure in them from which the verdict is red."""

_VERDICTS = ("none", "good", "fair", "bad")
_METRICS = (
    ("psnr", "PSNR (dB)", 2),
    ("scale_invariant_psnr", "SI-PSNR (dB)", 2),
    ("ssim", "SSIM", 4),
    ("high_pass_ratio", "HF", 2),
)


def write_report(folder: Path, document: Mapping[str, Any]) -> Path:
    """Write ``report.html``, with the pictures and the losses that the run left in its folder.

    Parameters
    ----------
    folder : Path
        The run's folder.
    document : mapping
        The run's record, as in ``run.json``. An item's ``details["channels"]``, where it has them, each have a
        ``name``, ``diagnostics`` (``Diagnostics.as_json()``) and ``pictures`` (paths in the folder by name, as
        ``draw_pictures`` names them).

    Returns
    -------
    Path

    Raises
    ------
    OutputError
        The report cannot be written.
    """
    language = choose_language(document["options"].get("lang"))
    environment = Environment(
        loader=PackageLoader("safelight.pipelines.denoise", "."),
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
        items=[_item(folder, item, n < MOST_PICTURED, language) for n, item in enumerate(document["items"])],
        most_pictured=MOST_PICTURED,
        loss=_loss(folder, language),
        memory=[measured for measured in document["memory"] if isinstance(measured, Mapping)],
    )
    path = folder / REPORT
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def format_number(value: float | None, digits: int = 2, *, language: str) -> str:
    """Return a number for people, a dash where there is none."""
    if value is None:
        return "–"
    text = f"{value:.{digits}f}".replace("-", "−")
    return text.replace(".", ",") if language == "fr" else text


def _format_bytes(value: float, *, language: str) -> str:
    text = format_bytes(value)
    return text.replace(".", ",").replace("B", "o") if language == "fr" else text


def _speaker(language: str) -> Callable[[str, str], str]:
    """Return the function by which the template says a thing in the reader's language."""
    return lambda english, french: french if language == "fr" else english


def _shown_options(options: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in options.items() if value not in (None, "", False)}


def _sentences(events: Sequence[Mapping[str, Any]], language: str) -> Iterator[dict[str, str]]:
    for entry in events:
        event = Event(entry["key"], Severity(entry["severity"]), entry["data"], entry["time"])
        clock = datetime.fromtimestamp(event.time).strftime("%H:%M:%S")
        yield {"time": clock, "key": event.key, "severity": event.severity.value, "text": translate(event, language)}


def _item(folder: Path, item: Mapping[str, Any], pictured: bool, language: str) -> dict[str, Any]:
    looks = [_look(folder, channel, pictured, language) for channel in item["details"].get("channels", ())]
    return {
        "name": item["name"],
        "metrics": _metric_rows(item["metrics"]),
        "gaussian_sigma": item["metrics"].get("gaussian_sigma"),
        "outputs": item["outputs"],
        "looks": looks,
        "verdict": max((look["verdict"] for look in looks), key=_VERDICTS.index, default="none"),
        "pictured": pictured,
    }


def _look(folder: Path, channel: Mapping[str, Any], pictured: bool, language: str) -> dict[str, Any]:
    """Return what is shown of one channel of an image."""
    diagnostics = channel["diagnostics"]
    pictures = {}
    if pictured:
        curves = draw_curves(diagnostics, language)
        files = {kind: inside(folder, path) for kind, path in channel["pictures"].items()}
        pictures = {kind: _data_url(path.read_bytes()) for kind, path in files.items() if path.is_file()}
        pictures |= {kind: _data_url(curve) for kind, curve in curves.items()}
    return {
        "name": channel["name"],
        "diagnostics": diagnostics,
        "verdict": _verdict(diagnostics),
        "pictures": pictures,
        "crops": sorted({kind.split("_")[0] for kind in pictures if kind.startswith("crop")}),
        "views": [kind for kind in ("noisy", "denoised", "residual", "clean") if kind in pictures],
    }


def _metric_rows(metrics: Mapping[str, float]) -> list[dict[str, Any]]:
    """Return a row per metric that was measured: of the input, of the best Gaussian, of the result."""
    return [
        {
            "name": name,
            "label": label,
            "digits": digits,
            "values": [metrics.get(f"input_{name}"), metrics.get(f"gaussian_{name}"), metrics[name]],
        }
        for name, label, digits in _METRICS
        if name in metrics
    ]


def _verdict(diagnostics: Mapping[str, Any]) -> str:
    """Return ``good``, ``fair`` or ``bad``: how much structure was removed with the noise."""
    structure = diagnostics["structure"]
    if not structure["found"]:
        return "good"
    return "bad" if structure["structured"] >= WIDESPREAD * structure["tiles"] else "fair"


def _loss(folder: Path, language: str) -> str | None:
    """Return the curve of the losses, of a run that trained for more than one epoch."""
    path = folder / LOSSES
    if not path.is_file():
        return None
    losses = json.loads(path.read_text(encoding="utf-8"))
    return _data_url(draw_loss(losses, language)) if len(losses["steps"]) > 1 else None


def _data_url(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
