"""The report: how good the network is, beside doing nothing, and what it did to the images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safelight.core import report as frame
from safelight.core.files import inside
from safelight.pipelines.decloud.tables import by_band, by_cover, by_measure

MOST_PICTURED = 20
"""Images whose pictures are in the report; those of more would make it too heavy to open."""

_MEASURES = {
    "psnr": ("PSNR (dB)", 2),
    "ssim": ("SSIM", 4),
    "ssim_centred": ("SSIM, window centred", 4),
    "mae": ("MAE", 4),
    "rmse": ("RMSE", 4),
    "sam": ("SAM (°)", 2),
}
_REGIONS = {
    "": ("whole image", "image entière"),
    "cloudy": ("cloud, shadow", "nuages, ombres"),
    "clear": ("clear", "clair"),
}
_SHOWN_BY_COVER = ("psnr", "ssim", "mae", "sam")


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
    items = document["items"]
    tested = [item for item in items if "bands" in item["details"]]
    metrics, details = [item["metrics"] for item in tested], [item["details"] for item in tested]
    return frame.write_report(
        folder,
        document,
        "safelight.pipelines.decloud",
        measures=[_labelled(row) for row in by_measure(metrics)],
        bands=by_band(details),
        covers=by_cover(metrics, [detail["cloud_cover"] for detail in details]),
        shown_by_cover=[(name, *_MEASURES[name]) for name in _SHOWN_BY_COVER],
        images=[_shown(folder, item, n < MOST_PICTURED) for n, item in enumerate(items)],
    )


def _labelled(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with its measure, region and digits; regions end the name."""
    region = next((name for name in _REGIONS if name and row["name"].endswith(f"_{name}")), "")
    label, digits = _MEASURES[row["name"].removesuffix(f"_{region}") if region else row["name"]]
    return {**row, "label": label, "digits": digits, "region": _REGIONS[region]}


def _shown(folder: Path, item: Mapping[str, Any], pictured: bool) -> dict[str, Any]:
    paths = item["details"].get("pictures", {}) if pictured else {}
    pictures = {key: frame.data_url(inside(folder, path).read_bytes()) for key, path in paths.items()}
    return {**item, "pictures": pictures}
