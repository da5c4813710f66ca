"""Every option of ``mesh``, with unit, bounds and default."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from safelight.core.options import CommonOptions

MESH_SUFFIXES = (".glb", ".obj", ".ply", ".xyz")
Frame = Literal["camera", "world"]


def _field(panel: str, default: Any, description: str, **bounds: Any) -> Any:
    return Field(default, description=description, json_schema_extra={"panel": panel}, **bounds)


class ViewOptions(CommonOptions):
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
        "Focal length in pixels of a picture of 224 × 224; by default what the weights were trained with.",
        gt=0,
    )
    frame: Frame = _field(
        "Mesh", "camera", "Where the mesh is: in the frame of the first camera as published, or upright in the world."
    )

    def run_folder(self) -> Path:
        """Return the folder that the run owns."""
        return self.out.with_name(f"{self.out.stem}_run")


class PredictOptions(ViewOptions):
    """From photographs to a mesh."""


class RefineOptions(ViewOptions):
    """Move the vertices of a mesh to where the views agree."""

    input: Path = Field(description="The mesh, in the frame of the first camera.")


class DataOptions(CommonOptions):
    """A data set of rendered objects."""

    data: Path = Field(
        description="Folders CATEGORY/ITEM/rendering with views, rendering_metadata.txt, and ground truth beside; "
        "or a list of objects, beside such folders."
    )
    out: Path = Field(Path("mesh_test"), description="Folder for the results.")
    use_views: tuple[int, ...] = _field(
        "Data", (0, 6, 7), "Numbers of the views to use, the leading one first.", min_length=1
    )

    def run_folder(self) -> Path:
        """Return the folder that the run owns."""
        return self.out


class TestOptions(DataOptions):
    """Measure the meshes of a data set."""

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
