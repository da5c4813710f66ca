"""The report: the mesh's outline over each photograph, and how a training went."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safelight.core import report as frame
from safelight.core.files import inside
from safelight.pipelines.mesh.curves import draw_curves


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
    language = frame.report_language(document)
    items = [
        {**item, "views": [_shown(folder, view) for view in item["details"]["views"]]}
        for item in document["items"]
        if "views" in item["details"]
    ]
    trainings = [_training(folder, item, language) for item in document["items"] if "curve" in item["details"]]
    return frame.write_report(folder, document, "safelight.pipelines.mesh", items=items, trainings=trainings)


def _shown(folder: Path, view: Mapping[str, Any]) -> dict[str, Any]:
    return {**view, "url": frame.data_url(inside(folder, view["picture"]).read_bytes())}


def _training(folder: Path, item: Mapping[str, Any], language: str) -> dict[str, Any]:
    """Return what is shown of a training: its curves, and one object beside the truth."""
    details = item["details"]
    beside = [
        {
            **_shown(folder, pictures["view"]),
            **{kind: frame.data_url(inside(folder, pictures[kind]).read_bytes()) for kind in ("mesh", "truth")},
        }
        for pictures in details["beside"]
    ]
    curves = [frame.data_url(curve) for curve in draw_curves(details["curve"], language)]
    return {**item, "object": details["object"], "beside": beside, "curves": curves, "curve": details["curve"]}
