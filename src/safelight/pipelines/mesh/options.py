"""Every option of ``mesh``, with unit, bounds and default."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from safelight.core.options import CommonOptions, Seconds, Settings
from safelight.pipelines.mesh.variant import CoarseVariant, RefineVariant, departure

POINTS_SUFFIX = ".xyz"
MESH_SUFFIXES = (".glb", ".obj", ".ply", POINTS_SUFFIX)
FRAMES_SUFFIX = ".json"
"""Of files of cameras that say their lenses; rows of text do not."""
Frame = Literal["camera", "world"]
Stage = Literal["coarse", "refine"]


def _field(panel: str, default: Any, description: str, **bounds: Any) -> Any:
    return Field(default, description=description, json_schema_extra={"panel": panel}, **bounds)


class PictureOptions(Settings):
    """How pictures become what the networks see."""

    blend_alpha: bool = departure(
        "Views: blend half-transparent pixels with white, and resize as Pillow does (Design B)."
    )


class ViewOptions(CommonOptions, PictureOptions):
    """Photographs of one object and where they were taken from."""

    views: tuple[Path, ...] = Field(min_length=1, description="Photographs of one object, the first one leads.")
    cameras: Path = Field(
        description="Their cameras: azimuth, elevation, yaw, distance, field of view in a row of text per view, "
        "or a transforms.json."
    )
    weights: tuple[Path, ...] = Field(
        min_length=1, description="Weights of both stages, in one file or in two ('mesh convert' makes them)."
    )
    out: Path = Field(description="The mesh to write: .glb, .obj, .ply or .xyz.")

    focal: float | None = _field(
        "Cameras",
        None,
        "Focal length of cameras in text, in pixels of a picture of 224 × 224; by default that of the weights.",
        gt=0,
    )
    frame: Frame = _field(
        "Mesh",
        "camera",
        "Where the mesh is: in the frame of the first camera as published, or in the cameras' world.",
    )
    colours: bool = _field("Mesh", False, "Colour each vertex as the views that see it do; not in .xyz.")

    @model_validator(mode="after")
    def _place_for_colours(self) -> Self:
        if self.colours and self.out.suffix.lower() == POINTS_SUFFIX:
            raise ValueError(f"colours: a {POINTS_SUFFIX} file has none, the others have")
        return self

    @model_validator(mode="after")
    def _one_focal_length(self) -> Self:
        if self.focal is not None and self.cameras.suffix.lower() == FRAMES_SUFFIX:
            raise ValueError(f"focal: {self.cameras.name} says it itself")
        return self

    def run_folder(self) -> Path:
        """Return the folder that the run owns."""
        return self.out.with_name(f"{self.out.stem}_run")


class PredictOptions(ViewOptions, CoarseVariant, RefineVariant):
    """From photographs to a mesh."""


class RefineOptions(ViewOptions, RefineVariant):
    """Move the vertices of a mesh to where the views agree."""

    input: Path = Field(description="The mesh, in the frame of the first camera.")


class DataOptions(CommonOptions):
    """A data set of rendered objects."""

    data: Path = Field(
        description="Folders CATEGORY/ITEM/rendering with views, rendering_metadata.txt, and ground truth beside; "
        "or a list of objects, beside such folders."
    )
    use_views: tuple[int, ...] = _field(
        "Data", (0, 6, 7), "Numbers of the views to use, the leading one first.", min_length=1
    )


class TestOptions(DataOptions, PictureOptions, CoarseVariant, RefineVariant):
    """Measure the meshes of a data set."""

    out: Path = Field(Path("mesh_test"), description="Folder for the results.")
    weights: tuple[Path, ...] = Field(min_length=1, description="Weights of both stages, in one file or in two.")
    tau: float = _field(
        "Metrics",
        1e-4,
        "Squared distance within which a point counts as found; the F-score is also given at twice that.",
        gt=0,
    )
    focal: float | None = _field(
        "Cameras", None, "Focal length in pixels of 224 × 224; by default what the weights were trained with.", gt=0
    )
    batch_size: int = _field(
        "Speed", 1, "Objects that go through the coarse network together; a GPU is faster with some.", ge=1, le=1024
    )

    @model_validator(mode="after")
    def _one_way_to_share(self) -> Self:
        if self.batch_size > 1 and (self.workers > 1 or self.cluster):
            raise ValueError("batch_size above 1 and workers exclude each other: workers take objects one by one")
        return self

    def run_folder(self) -> Path:
        """Return the folder that the run owns."""
        return self.out


class TrainOptions(DataOptions):
    """Train one stage."""

    stage: Stage = Field(description="The stage to train: coarse, or refine, which begins with a trained coarse one.")
    out: Path | None = Field(
        None,
        description="Folder for the weights, the checkpoint and the report; mesh_coarse or mesh_refine by default.",
    )
    validation_data: Path | None = _field(
        "Data", None, "Objects that tell which weights are best, a folder or a list; by default some of the data's own."
    )
    coarse: Path | None = _field("Stages", None, "refine: weights of the coarse stage, whose meshes are refined.")
    weights: Path | None = _field("Stages", None, "Weights of the stage to start from; random ones by default.")
    template: Path | None = _field(
        "Stages", None, "coarse: the closed mesh to deform; an ellipsoid of 156 vertices by default."
    )
    own_views: bool = _field(
        "Stages", True, "coarse: look each view up in its own maps; as published, all look at the first view's."
    )
    focal: float = _field("Cameras", 245.0, "coarse: focal length in pixels of 224 × 224.", gt=0)
    epochs: int | None = _field(
        "Training",
        None,
        "Passes over the data; 50 (coarse) or 10 (refine) unless --steps or --time-budget is given.",
        ge=1,
    )
    steps: int | None = _field("Training", None, "Number of training steps.", ge=1)
    time_budget: Seconds | None = _field("Training", None, "Time to train, for instance 10min.", gt=0)
    batch_size: int = _field("Training", 1, "Objects per step.", ge=1)
    learning_rate: float = _field("Training", 1e-5, "Rate of every step.", gt=0)
    validate_every: int | None = _field("Training", None, "Steps between two validations; an epoch by default.", ge=1)
    seed: int = _field("Training", 0, "Seed of every random draw.", ge=0)

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        if (self.stage == "refine") != (self.coarse is not None):
            raise ValueError("coarse goes with the stage refine, which needs it")
        given = ", ".join(sorted(self.model_fields_set & {"template", "own_views", "focal"}))
        if given and (self.stage == "refine" or self.weights is not None):
            raise ValueError(f"the weights to start from say it already: {given} does not go with them")
        return self

    def run_folder(self) -> Path:
        """Return the folder that the run owns."""
        return self.out or Path(f"mesh_{self.stage}")


class ConvertOptions(CommonOptions):
    """From a checkpoint to a file of weights."""

    input: Path = Field(
        description="A TensorFlow checkpoint (.index beside .data), an .npz, or a checkpoint of PyTorch."
    )
    out: Path = Field(description="The safetensors file to write.")
    template: Path | None = Field(
        None,
        description="The mesh that the coarse stage was trained with: any closed mesh, or the published .dat or .npz.",
    )
    focal: float = Field(248.0, gt=0, description="Focal length in pixels that it was trained with; 248 as published.")
    join: Path | None = Field(None, description="A file of weights whose other stage is to be in the same file.")

    def run_folder(self) -> Path:
        """Return the folder that the run owns."""
        return self.out.with_name(f"{self.out.stem}_run")


class RenderOptions(CommonOptions):
    """From meshes to a data set."""

    input: Path = Field(description="A mesh (.obj, .ply, .glb), or a folder of meshes CATEGORY/ITEM.")
    out: Path = Field(Path("rendered"), description="Folder for the data set.")
    count: int = Field(24, ge=1, le=1000, description="Views of each mesh.")
    side: int = Field(137, ge=8, le=1024, description="Width and height of a view in pixels.")
    points: int = Field(8192, ge=1, le=1_000_000, description="Points on the surface: the ground truth.")
    focal: float = Field(245.0, gt=0, description="Focal length in pixels of 224 × 224; 245 as ShapeNet's renderings.")
    seed: int = Field(0, ge=0, description="Of the cameras and the points.")

    def run_folder(self) -> Path:
        """Return the folder that the run owns."""
        return self.out
