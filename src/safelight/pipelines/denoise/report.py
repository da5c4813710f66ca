"""The report of a run: one HTML file with everything inside, for a microscopist to read, show and print."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safelight.core import report as frame
from safelight.core.files import inside
from safelight.core.report import data_url
from safelight.pipelines.denoise.curves import draw_curves, draw_loss
from safelight.pipelines.denoise.pictures import draw_pictures

__all__ = ["draw_pictures", "write_report"]

LOSSES = "losses.json"
PREVIEW = "preview.png"
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
    language = frame.report_language(document)
    return frame.write_report(
        folder,
        document,
        "safelight.pipelines.denoise",
        items=[_item(folder, item, n < MOST_PICTURED, language) for n, item in enumerate(document["items"])],
        most_pictured=MOST_PICTURED,
        loss=_loss(folder, language),
        preview=data_url((folder / PREVIEW).read_bytes()) if (folder / PREVIEW).is_file() else None,
    )


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
        pictures = {kind: data_url(path.read_bytes()) for kind, path in files.items() if path.is_file()}
        pictures |= {kind: data_url(curve) for kind, curve in curves.items()}
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
    return data_url(draw_loss(losses, language)) if len(losses["steps"]) > 1 else None
