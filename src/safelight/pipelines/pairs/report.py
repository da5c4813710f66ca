"""The report of a dataset: a contact sheet of the pairs, what was measured, and what was left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safelight.core import report as frame
from safelight.core.files import inside
from safelight.pipelines.pairs.manifest import MANIFEST, Line, read_lines, unmet_limits

SHOWN_PAIRS = 200
"""Pairs on the contact sheet; the others have their pictures in the folder."""

_REASONS = {
    "other_sensor": ("another sensor", "autre capteur"),
    "other_phase": ("another filter array", "autre matrice de filtres"),
    "clipped": ("mostly clipped", "presque tout écrêté"),
    "no_signal": ("no common signal", "pas de signal commun"),
    "small_overlap": ("hardly any overlap", "presque pas de recouvrement"),
    "wrong_scene": ("another scene", "autre scène"),
    "no_light": ("no light", "pas de lumière"),
    "uneven_shift": ("uneven shift: turned, or parallax", "décalage inégal : rotation ou parallaxe"),
}


def write_report(folder: Path, document: Mapping[str, Any]) -> Path:
    """Write ``report.html``.

    Parameters
    ----------
    folder : Path
        The run's folder.
    document : mapping
        The run's record, as in ``run.json``.

    Raises
    ------
    OutputError
        The report cannot be written.
    """
    english = frame.report_language(document) == "en"
    lines = read_lines(folder / MANIFEST) if _is_done(document) else []
    left_out = {name: error for item in document["items"] for name, error in item["details"]["left_out"].items()}
    pictures = {picture.removeprefix("previews/"): picture for picture in _pictures(document)}
    chosen = _chosen(lines)
    limits = [float(document["options"][name]) for name in ("max_alignment_loss", "min_mask_mean")]
    return frame.write_report(
        folder,
        {
            **document,
            "events": [_shown(event) for event in document["events"] if event["severity"] != "debug"],
            "refused": [
                *document["refused"],
                *({"name": name, "error": error} for name, error in sorted(left_out.items())),
            ],
        },
        "safelight.pipelines.pairs",
        lines=lines,
        pairs=[{**line, "picture": _picture(folder, line, pictures)} for line in chosen],
        reason=lambda key: _REASONS.get(key, (key, key))[not english],
        unmet=lambda line: unmet_limits(line["alignment_loss"], line["mask_mean"], *limits),
    )


def _shown(event: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return an event for the log: what the table of what was not done tells is no alarm of its own."""
    told = event["key"] == "frame_left_out" or event["data"].get("name") == "frames_left_out"
    return {**event, "severity": "info"} if told else event


def _is_done(document: Mapping[str, Any]) -> bool:
    return any(item["name"] == document["pipeline"] for item in document["items"])


def _chosen(lines: Sequence[Line]) -> list[Line]:
    """Return the pairs that are shown: of too many those that need a look first, in the order of the manifest."""
    kept = sorted(lines, key=lambda line: (line["status"] == "ok", line["accepted"]))[:SHOWN_PAIRS]
    return sorted(kept, key=lambda line: (line["scene"], line["gt"], line["noisy"]))


def _pictures(document: Mapping[str, Any]) -> list[str]:
    paths = [output["path"] for item in document["items"] for output in item["outputs"]]
    return [path for path in paths if path.startswith("previews/")]


def _picture(folder: Path, line: Line, pictures: Mapping[str, str]) -> str | None:
    """Return a pair's preview as an address; None for a pair without one."""
    path = pictures.get((line["mask"] or "").removeprefix("masks/"))
    return frame.data_url(inside(folder, path).read_bytes()) if path else None
