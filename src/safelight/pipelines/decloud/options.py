"""Every option of ``decloud``, with unit, bounds and default."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from safelight.core.options import CommonOptions, Settings

Split = Literal["train", "val", "test", "all"]


def _field(panel: str, default: Any, description: str, **bounds: Any) -> Any:
    return Field(default, description=description, json_schema_extra={"panel": panel}, **bounds)


class DataOptions(CommonOptions):
    """Which triplets of images are used."""

    data: Path = Field(description="Folder of the data set: with data.csv, or laid out as SEN12MS-CR was released.")
    table: Path | None = Field(
        None, description="CSV with 5 or 7 columns, without header; data.csv of the folder if there is one."
    )
    crop_size: int = Field(
        128, ge=16, multiple_of=16, description="Side in pixels of the part of a patch that is used; tests: its middle."
    )


class MaskOptions(Settings):
    """Where clouds are."""

    cloud_threshold: float = _field("Clouds", 0.2, "Score from which a pixel counts as cloudy, 0 to 1.", gt=0, le=1)


class TestOptions(DataOptions, MaskOptions):
    """Score a network on images whose cloud-free counterpart is known."""

    weights: Path = Field(description="A model of 'decloud train', or a published checkpoint.")
    split: Split = Field("test", description="Which part of the data set.")
    profile: bool = Field(False, description="Count operations and time each stage of the network.")
    out: Path = Field(Path("decloud_test"), description="Folder for the report, the pictures and the record.")


class TrainOptions(DataOptions):
    """Train the network."""

    out: Path = Field(Path("decloud_model"), description="Folder for the model, the checkpoint and the report.")
    weights: Path | None = Field(None, description="A model to start from; random weights by default.")
    epochs: int = _field("Training", 30, "Passes over the training images.", ge=1)
    batch_size: int = _field("Training", 1, "Images per step.", ge=1)
    learning_rate: float = _field(
        "Training", 1e-4, "Rate at first; halved at the 7th epoch and every five after.", gt=0
    )
    clip_gradient: float | None = _field("Training", None, "Largest norm of a step's gradient, for instance 1.0.", gt=0)
    augment: bool = _field("Training", False, "Flip and rotate patches, eight orientations.")
    allow_leaks: bool = _field("Training", False, "Train although a scene is in two splits.")
    seed: int = _field("Training", 0, "Seed of every random draw.", ge=0)
    features: int = _field("Network", 96, "Feature maps of a block.", ge=8)
    growth: int = _field("Network", 48, "Feature maps that each layer of a block adds.", ge=8, multiple_of=8)
    stages: int = _field("Network", 6, "Blocks.", ge=1)
    layers: int = _field("Network", 5, "Layers of a block.", ge=1)

    @model_validator(mode="after")
    def _weights_say_the_architecture(self) -> Self:
        if self.weights is not None and self.model_fields_set & {"features", "growth", "stages", "layers"}:
            raise ValueError(
                "weights say how large the network is: features, growth, stages and layers do not go with it"
            )
        return self

    @model_validator(mode="after")
    def _an_image_for_each_worker(self) -> Self:
        if self.batch_size < self.workers:
            raise ValueError("workers share the images of a step: batch_size must be at least as many")
        return self


class PredictOptions(CommonOptions, MaskOptions):
    """Remove the clouds of a scene."""

    s2: Path = Field(description="The cloudy scene: Sentinel-2 L1C, 13 bands, reflectance × 10000.")
    s1: Path = Field(description="Radar of the same place: Sentinel-1, VV and VH in dB.")
    weights: Path = Field(description="A model of 'decloud train', or a published checkpoint.")
    out: Path = Field(description="The image to write, a cloud-optimised GeoTIFF.")
    align_sar: bool = Field(False, description="Resample the radar image onto the grid of the scene where they differ.")
    keep_clear: bool = _field("Clouds", False, "Keep pixels under a clear sky exactly as they are.")
    mask: Path | None = _field(
        "Clouds",
        None,
        "Where clouds and shadows are, for --keep-clear: classes (0 is clear, as OmniCloudMask writes them), or "
        "probabilities as real numbers (as s2cloudless does); told from the scene by default.",
    )
    mask_probability: float = _field(
        "Clouds", 0.4, "Probability from which a pixel of --mask counts as cloudy.", gt=0, le=1
    )
    tile_size: int | None = _field(
        "Tiles", None, "Side of a tile in pixels; 512, or as large as memory allows, by default.", ge=64, multiple_of=16
    )
    margin: int = _field("Tiles", 64, "How near to its edge, in pixels, a tile is used.", ge=16, multiple_of=16)

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        if self.mask is not None and not self.keep_clear:
            raise ValueError("mask needs keep_clear")
        if self.tile_size is not None and self.tile_size < smallest_tile(self.margin):
            raise ValueError(f"tile_size must be at least {smallest_tile(self.margin)} with margins of {self.margin}")
        return self

    def run_folder(self) -> Path:
        """Return the folder that the run owns."""
        return self.out.with_name(self.out.name.split(".")[0] + "_run")


def smallest_tile(margin: int) -> int:
    """Return the least side of a tile between two margins."""
    return 2 * margin + 32


class ConvertOptions(CommonOptions):
    """Turn a checkpoint into a model of ours."""

    input: Path = Field(description="A checkpoint of PyTorch, or a safetensors file.")
    out: Path = Field(description="The model to write, for instance w.safetensors.")

    def run_folder(self) -> Path:
        """Return the folder that the run owns."""
        return self.out.with_name(self.out.name.split(".")[0] + "_run")
