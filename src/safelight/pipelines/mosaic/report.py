"""The report of a mosaic: the picture, the audit, and what became of every frame."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from safelight.core import report as frame
from safelight.core.files import inside

SHOWN_PIXELS = 1200
"""Longest side of the picture in the report; the preview beside it is larger."""

_CHECKS = {
    "noise_gain": (
        "Noise gain: how much less noise the stack has than one frame",
        "Gain en bruit : combien de fois moins de bruit qu'une seule image",
        2,
    ),
    "flux_conservation": (
        "Change of the stars' light",
        "Variation de la lumière des étoiles",
        4,
    ),
    "fwhm_growth": ("Growth of the stars' width", "Élargissement des étoiles", 4),
    "astrometric_residual": (
        "Distance of the stars from their places in the frames (px)",
        "Distance des étoiles à leur place dans les images (px)",
        3,
    ),
    "seam_step": (
        "Step at the seam (σ of one frame)",
        "Saut à la jointure (σ d'une seule image)",
        3,
    ),
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
    stacks = [item for item in document["items"] if "frames" in item["details"]]
    checks = [check for item in document["items"] for check in item["details"]["checks"]]
    return frame.write_report(
        folder,
        document,
        "safelight.pipelines.mosaic",
        stacks=stacks,
        frames=[{**record, "group": item["name"]} for item in stacks for record in item["details"]["frames"]],
        checks=[_shown(check, english) for check in checks],
        picture=_picture(folder, document),
        outputs=[output for item in document["items"] for output in item["outputs"]],
    )


def _shown(check: Mapping[str, Any], english: bool) -> dict[str, Any]:
    in_english, in_french, digits = _CHECKS[check["name"]]
    return {**check, "label": in_english if english else in_french, "digits": digits}


def _picture(folder: Path, document: Mapping[str, Any]) -> str | None:
    """Return the preview, small enough for a page; None where the mosaic failed."""
    paths = [
        output["path"] for item in document["items"] for output in item["outputs"] if output["path"].endswith(".png")
    ]
    if not paths:
        return None
    with Image.open(inside(folder, paths[-1])) as picture:
        picture.thumbnail((SHOWN_PIXELS, SHOWN_PIXELS))
        buffer = io.BytesIO()
        picture.save(buffer, format="png")
    return frame.data_url(buffer.getvalue())
