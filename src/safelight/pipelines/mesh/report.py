"""The report: the mesh's outline over each photograph."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safelight.core import report as frame
from safelight.core.files import inside


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
    items = [
        {**item, "views": [_shown(folder, view) for view in item["details"]["views"]]}
        for item in document["items"]
        if "views" in item["details"]
    ]
    return frame.write_report(folder, document, "safelight.pipelines.mesh", items=items)


def _shown(folder: Path, view: Mapping[str, Any]) -> dict[str, Any]:
    return {**view, "url": frame.data_url(inside(folder, view["picture"]).read_bytes())}
