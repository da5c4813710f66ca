"""Every option of ``pairs``, with unit, bounds and default."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from safelight.core.options import CommonOptions

SensorChoice = Literal["all", "bayer", "x-trans"]
Method = Literal["phase", "ecc"]
MaskMethod = Literal["noise", "upstream"]
CropFormat = Literal["npz", "npy", "tiff", "exr", "dng", "none"]

MIN_CONFIDENCE = 8.0
"""Of a shift that is one: frames that share nothing reach 5, frames of one scene 25 and more."""


def _field(panel: str, default: Any, description: str, **bounds: Any) -> Any:
    return Field(default, description=description, json_schema_extra={"panel": panel}, **bounds)


class RunOptions(CommonOptions):
    """From RAW scenes to aligned, masked and cropped pairs."""

    input: Path = Field(description="A dataset: src/{Bayer|X-Trans}/SCENE as RawNIND has it, or plain folders.")
    out: Path = Field(description="Folder for the manifest, masks, crops and the report.")

    sensor: SensorChoice = _field("Scenes", "all", "Only scenes of this colour filter array.")
    scene: tuple[str, ...] = _field("Scenes", (), "Only scenes of this name; * stands for anything.")

    method: Method = _field(
        "Alignment",
        "phase",
        "How a shift's fraction is found: phase by the phases of both spectra, ecc from there on by the greatest "
        "correlation, which takes longer.",
    )
    min_confidence: float = _field(
        "Alignment",
        MIN_CONFIDENCE,
        "Pairs whose correlation peak is less clear, in standard deviations, have failed.",
        ge=0,
    )

    mask: MaskMethod = _field(
        "Mask",
        "noise",
        "How moved content is told: noise compares with the noise to be expected, upstream is RawNIND's own mask.",
    )
    max_alignment_loss: float = _field(
        "Mask", 0.035, "Pairs with a larger loss are not marked as accepted; upstream's cut-off.", gt=0
    )
    min_mask_mean: float = _field(
        "Mask", 0.8, "Pairs with a smaller usable share are not marked as accepted; upstream's cut-off.", ge=0, le=1
    )

    crop_size: int = _field("Crops", 2048, "Side in pixels of the mosaic; 2048 is 1024 once packed.", ge=48, le=16384)
    overlap: int = _field("Crops", 512, "Pixels of the mosaic that neighbours share; 512 is 256 once packed.", ge=0)
    format: CropFormat = _field(
        "Crops",
        "npz",
        "npz and npy hold the packed mosaic, tiff and exr linear Rec.2020 colours, dng the mosaic as a camera file.",
    )

    @model_validator(mode="after")
    def _crops_go_on(self) -> Self:
        if self.overlap >= self.crop_size:
            raise ValueError("the overlap must be smaller than the crop size")
        return self

    def run_folder(self) -> Path:
        """Return the folder that the run owns."""
        return self.out


class VerifyOptions(CommonOptions):
    """Read all outputs of a run again."""

    input: Path = Field(description="The folder that 'pairs run' wrote.")
    dataset: Path | None = Field(None, description="Where the RAW files are; by default where the run found them.")

    def run_folder(self) -> Path:
        """Return the folder that the run owns."""
        return self.input / "verify"
