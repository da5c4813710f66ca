"""Every option of ``mosaic``, with unit, bounds and default; the names are those of the field."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from safelight.core.options import CommonOptions

BayerPattern = Literal["auto", "none", "RGGB", "BGGR", "GRBG", "GBRG"]
Solver = Literal["auto", "none", "astrometry.net", "astap"]
Normalisation = Literal["none", "linear_fit", "sky_mean", "additive", "multiplicative", "additive_with_scaling"]
Weighting = Literal["none", "noise_variance", "noise_fwhm"]
RejectionMethod = Literal[
    "none", "kappa_sigma", "winsorized_sigma_clip", "linear_fit_clip", "percentile", "minmax", "median"
]
Interpolation = Literal["bilinear", "bicubic", "lanczos3"]
DrizzleKernel = Literal["square", "turbo", "point"]


def _field(panel: str, default: Any, description: str, **bounds: Any) -> Any:
    return Field(default, description=description, json_schema_extra={"panel": panel}, **bounds)


class RunOptions(CommonOptions):
    """From FITS frames to one mosaic."""

    input: Path = Field(description="A folder of FITS frames, searched with its subfolders, or one frame.")
    out: Path = Field(description="Folder for the mosaic, the report and the work in progress.")

    bayer_pattern: BayerPattern = _field(
        "Frames", "auto", "Colour filter array; auto reads BAYERPAT, none takes frames as monochrome."
    )
    bias: Path | None = _field("Frames", None, "Master bias, or a folder of bias frames.")
    dark: Path | None = _field("Frames", None, "Master dark, or a folder of dark frames.")
    flat: Path | None = _field("Frames", None, "Master flat, or a folder of flat frames.")

    solver: Solver = _field(
        "Registration",
        "auto",
        "Plate solver for frames without a WCS; auto takes astrometry.net's solve-field or ASTAP where installed; "
        "none aligns by matching stars.",
    )
    wcs_sidecar: bool = _field("Registration", False, "Take the WCS from NAME.wcs.txt beside each frame.")
    max_residual: float = _field(
        "Registration", 2.0, "Frames whose stars are off by more pixels than this (rms) are left out.", gt=0, le=20
    )
    interpolation: Interpolation = _field("Registration", "bicubic", "How frames are resampled.")

    normalisation: Normalisation = _field(
        "Stacking", "sky_mean", "How frames are brought to one level before they are compared."
    )
    weighting: Weighting = _field("Stacking", "noise_variance", "What a frame counts for.")
    radial_weight: bool = _field(
        "Stacking", False, "Let a pixel count less the further it lies from the middle of its frame."
    )
    radial_feather: float = _field(
        "Stacking", 0.8, "Radial weight: by which share the corners of a frame count less than its middle.", gt=0, lt=1
    )
    radial_power: float = _field(
        "Stacking", 2.0, "Radial weight: power of the distance from the middle by which it falls.", gt=0, le=20
    )
    rejection: RejectionMethod = _field("Stacking", "winsorized_sigma_clip", "How outliers are found.")
    kappa_low: float = _field("Stacking", 3.0, "Rejection below, in standard deviations.", gt=0, le=20)
    kappa_high: float = _field("Stacking", 3.0, "Rejection above, in standard deviations.", gt=0, le=20)
    percentile_low: float = _field("Stacking", 0.2, "Percentile clipping below, share of the median.", gt=0, lt=1)
    percentile_high: float = _field("Stacking", 0.1, "Percentile clipping above, share of the median.", gt=0, lt=1)
    reject_lowest: int = _field("Stacking", 1, "Min/max rejection: lowest samples dropped per pixel.", ge=0)
    reject_highest: int = _field("Stacking", 1, "Min/max rejection: highest samples dropped per pixel.", ge=0)
    combine: Literal["mean", "median"] = _field("Stacking", "mean", "How the surviving samples are combined.")

    drizzle: float | None = _field(
        "Drizzle",
        None,
        "Drizzle onto a grid so many times finer than the frames, each colour from its own sites without demosaicing; "
        "outliers are rejected on registered frames before.",
        ge=1,
        le=4,
    )
    pixfrac: float = _field("Drizzle", 1.0, "Side of a drop over that of its pixel.", ge=0.01, le=1)
    drizzle_kernel: DrizzleKernel = _field(
        "Drizzle",
        "square",
        "Shape of the drops: square turns with the frame, turbo is a square along the grid, point a point. "
        "All of them conserve flux.",
    )

    pixel_scale: float | None = _field(
        "Mosaic", None, "Arc seconds per pixel; the frames' own by default.", gt=0, le=3600
    )
    final_assembly: Literal["reproject_coadd", "incremental"] = _field(
        "Mosaic",
        "reproject_coadd",
        "reproject_coadd compares all groups pixel by pixel and rejects where three or more overlap; incremental adds "
        "one at a time, for more groups than memory holds rows of.",
    )
    match_background: bool = _field("Mosaic", True, "Match gain, offset and gradient of overlapping groups.")
    feather: int = _field("Mosaic", 64, "Width of the blend at the edges of a group, in pixels.", ge=0, le=4096)
    min_coverage: float = _field(
        "Mosaic",
        0.0,
        "Crop to the rows and columns where some pixel has this share of the best coverage; 0 keeps the whole field.",
        ge=0,
        lt=1,
    )

    @model_validator(mode="after")
    def _one_source_of_wcs(self) -> Self:
        if self.wcs_sidecar and self.solver in ("astrometry.net", "astap"):
            raise ValueError("wcs_sidecar and solver exclude each other")
        return self

    @model_validator(mode="after")
    def _drizzle_is_a_mean(self) -> Self:
        if self.drizzle is not None and "median" in (self.combine, self.rejection):
            raise ValueError("drizzle is a weighted mean: it excludes combine median and rejection median")
        if self.drizzle is not None and self.pixel_scale is not None:
            raise ValueError("drizzle and pixel_scale exclude each other: both set the size of a pixel")
        return self

    def run_folder(self) -> Path:
        """Return the folder that the run owns."""
        return self.out
