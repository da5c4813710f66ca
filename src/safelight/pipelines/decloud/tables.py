"""Means over the images of a test: by measure and region, by band, by cloud cover; the cloudy input beside."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from safelight.core.pipeline import Record
from safelight.pipelines.decloud.radiometry import BANDS

IDENTITY = "identity_"
"""Begins the name of a score of the cloudy input itself: what doing nothing would give."""
COVER_EDGES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)

Row = dict[str, Any]


def by_measure(metrics: Sequence[Mapping[str, float]]) -> list[Row]:
    """Return for each measure the mean of the network's and of the input's, over the images that have it."""
    names = dict.fromkeys(name for found in metrics for name in found if not name.startswith(IDENTITY))
    return [
        {"name": name, "network": _mean(metrics, name), "identity": _mean(metrics, IDENTITY + name)} for name in names
    ]


def by_band(details: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Return for each band the means over the images of ``details["bands"]`` and ``details["identity_bands"]``."""
    return [
        {
            "name": band,
            "network": {name: _mean([d["bands"][band] for d in details], name) for name in ("psnr", "mae", "rmse")},
            "identity": {
                name: _mean([d["identity_bands"][band] for d in details], name) for name in ("psnr", "mae", "rmse")
            },
        }
        for band in (BANDS if details else ())
    ]


def by_cover(metrics: Sequence[Mapping[str, float]], covers: Sequence[float]) -> list[Row]:
    """Return the means over images whose share of cloud is between two edges, for each pair that has images."""
    rows = []
    for low, high in pairwise(COVER_EDGES):
        last = high == COVER_EDGES[-1]
        found = [m for m, cover in zip(metrics, covers, strict=True) if low <= cover < high or (last and cover == high)]
        if found:
            measures = {row["name"]: row for row in by_measure(found)}
            rows.append({"low": low, "high": high, "images": len(found), "measures": measures})
    return rows


def history_entry(records: Mapping[str, Record]) -> dict[str, Any]:
    """Return what a test's entry in the history says besides the averages: results by image, band and cloud cover."""
    metrics = [record.metrics for record in records.values()]
    details: list[Mapping[str, Any]] = [record.details for record in records.values()]
    means = {row["name"]: row["network"] for row in by_measure(metrics)}
    return {
        "avg_psnr": means.get("psnr"),
        "avg_ssim": means.get("ssim"),
        "num_images": len(records),
        "num_test_images": len(records),
        "results_per_image": [
            {"image": name, "psnr": record.metrics["psnr"], "ssim": record.metrics["ssim"]}
            for name, record in records.items()
        ],
        "by_measure": by_measure(metrics),
        "by_band": by_band(details),
        "by_cloud_cover": by_cover(metrics, [detail["cloud_cover"] for detail in details]),
    }


def _mean(found: Iterable[Mapping[str, float]], name: str) -> float | None:
    values = [scores[name] for scores in found if name in scores]
    return sum(values) / len(values) if values else None
