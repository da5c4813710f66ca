"""Every option of ``denoise``, with unit, bounds and default."""

from __future__ import annotations

from mimetypes import guess_type
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from safelight.core.options import CommonOptions, PathPatterns, Seconds, Settings
from safelight.pipelines.denoise.structure import parse_structure

OutputFormat = Literal["same", "tif", "ome.tif", "ome.zarr", "npy", "npz", "png"]
IMAGE_SUFFIXES = (".tif", ".tiff", ".zarr", ".npy", ".npz", ".png")


def _field(panel: str, default: Any, description: str, **bounds: Any) -> Any:
    return Field(default, description=description, json_schema_extra={"panel": panel}, **bounds)


class ImageOptions(CommonOptions):
    """What is read and where results go."""

    input: PathPatterns = Field(min_length=1, description="Files, folders, or globs such as 'data/*.tif'.")
    out: Path | None = Field(
        None, description="Folder for the results, or one file's name; 'NAME_denoised' by default."
    )
    axes: str | None = Field(
        None,
        pattern="^[STCZYXstczyx]{2,6}$",
        description="Order of the input's axes, for instance ZYX or TCYX; read from the file by default.",
    )

    @field_validator("out")
    @classmethod
    def _out_can_be_written(cls, out: Path | None) -> Path | None:
        kind = guess_type(out.name)[0] if out else None
        if out and kind and kind.startswith("image/") and out.suffix.lower() not in IMAGE_SUFFIXES:
            raise ValueError(f"{out.suffix} cannot be written; it can be {', '.join(IMAGE_SUFFIXES)}, or a folder")
        return out

    @property
    def out_file(self) -> Path | None:
        """The one file that ``out`` names, if it names a file."""
        return self.out if self.out is not None and self.out.suffix.lower() in IMAGE_SUFFIXES else None

    def run_folder(self) -> Path:
        """Return the folder that the run owns."""
        if self.out_file is not None:
            return self.out_file.with_name(self.out_file.name.replace(".", "_") + "_run")
        return self.out or Path(f"{self._stem() or 'images'}_denoised")

    def _stem(self) -> str:
        """Return the name of the one input, or of the folder that all inputs are in; it may be empty."""
        if len(self.input) == 1:
            named = Path(self.input[0].replace("*", "").replace("?", "").rstrip("/"))
            return named.name.split(".")[0] or named.parent.name
        folders = {Path(pattern).parent for pattern in self.input}
        return folders.pop().name if len(folders) == 1 else ""


class TrainingOptions(Settings):
    """How the network is built and trained."""

    method: Literal["n2v2", "n2v"] = _field(
        "Training", "n2v2", "Sets the four switches below: N2V2 without checkerboards, or plain N2V."
    )
    residual: bool | None = _field("Training", None, "Network predicts a correction to its input (N2V2: no).")
    top_skip: bool | None = _field("Training", None, "Skip connection at full resolution (N2V2: no).")
    blur_pool: bool | None = _field("Training", None, "Max-blur-pool instead of max-pool (N2V2: yes).")
    replacement: Literal["median", "mean", "uniform"] | None = _field(
        "Training", None, "What replaces a hidden pixel (N2V2: median, N2V: uniform)."
    )
    structure: str = _field(
        "Training",
        "none",
        "structN2V: hides correlated neighbours too: none, auto, horizontal, vertical, cross, "
        "or rows of 0 and 1 such as 01110 or 010/111/010.",
        pattern="^(none|auto|horizontal|vertical|cross|[01]+(/[01]+)*)$",
    )
    structure_radius: int = _field(
        "Training", 4, "Pixels each way that horizontal, vertical and cross hide.", ge=1, le=15
    )
    dimensions: Literal["auto", "2", "3"] = _field(
        "Training", "auto", "2 treats planes one by one, 3 uses the neighbours in Z (auto: 3 from 16 planes)."
    )
    joint_channels: bool = _field("Training", False, "One network sees all channels; else one per channel.")
    depth: int = _field("Training", 2, "Number of poolings.", ge=1, le=5)
    features: int = _field("Training", 32, "Feature maps of the first level.", ge=4, le=256)
    patch_size: int | None = _field("Training", None, "Side of a training patch in pixels.", ge=16, le=1024)
    batch_size: int | None = _field("Training", None, "Patches per step.", ge=1, le=4096)
    mask_percentage: float | None = _field("Training", None, "Share of hidden pixels in percent.", gt=0, le=10)
    steps: int | None = _field("Training", None, "Number of training steps.", ge=1)
    time_budget: Seconds | None = _field("Training", None, "Time to train, for instance 10min.", gt=0)
    learning_rate: float | None = _field("Training", None, "Highest learning rate.", gt=0, le=1)
    augment: bool = _field("Training", True, "Eight-fold flips and rotations.")
    validation_patches: int = _field("Training", 32, "Patches that watch the training.", ge=1, le=1024)
    weights: Literal["last", "best"] = _field(
        "Training", "last", "Which weights are used: the last, or the best by validation loss."
    )
    seed: int = _field("Training", 0, "Seed of every random draw.", ge=0)

    @field_validator("structure")
    @classmethod
    def _drawn_masks_have_a_centre(cls, structure: str) -> str:
        if structure[0] in "01":
            parse_structure(structure)
        return structure


class PredictionOptions(Settings):
    """How images are denoised with a trained network."""

    tile_size: int | None = _field(
        "Prediction", None, "Side of a tile in pixels; as large as memory allows by default.", ge=32
    )
    augmented_prediction: bool = _field(
        "Prediction", False, "Mean over the eight flips and rotations: slower, a little better."
    )
    dtype: Literal["float32", "input"] = _field("Prediction", "float32", "Type of the result's pixels.")
    format: OutputFormat = _field("Prediction", "same", "File format of the results.")
    clean: Path | None = _field(
        "Prediction", None, "Clean reference, a file or a folder with the same names: gives PSNR and SSIM."
    )
    data_range: float | None = _field(
        "Prediction", None, "Range for PSNR and SSIM; the clean image's max - min by default.", gt=0
    )

    @model_validator(mode="after")
    def _range_needs_clean(self) -> Self:
        if self.data_range is not None and self.clean is None:
            raise ValueError("--data-range needs --clean")
        return self


class RunOptions(ImageOptions, TrainingOptions, PredictionOptions):
    """Train on the noisy images and denoise them."""


class TrainOptions(ImageOptions, TrainingOptions):
    """Train on the noisy images."""


class PredictOptions(ImageOptions, PredictionOptions):
    """Denoise with a trained model."""

    model: Path = Field(description="A trained model: model.safetensors, or the folder of the run that made it.")


class ExportOptions(CommonOptions):
    """Export a trained model."""

    input: Path = Field(description="A trained model: model.safetensors, or the folder of the run that made it.")
    out: Path = Field(description="Folder for the exported files.")
    formats: tuple[Literal["bmz", "onnx"], ...] = Field(
        ("bmz", "onnx"), description="bmz: a BioImage Model Zoo package; onnx: an ONNX network."
    )
    authors: tuple[str, ...] = Field((), description="Names of the model's authors, for the bmz package.")
    licence: str = Field(
        "CC-BY-4.0", description="Licence of the weights in the bmz package, an SPDX identifier such as CC0-1.0."
    )
