"""Data sets of rendered objects: ``…/CATEGORY/ITEM/rendering/NN.png`` beside ``rendering_metadata.txt``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from safelight.core.errors import InputError, SafelightError
from safelight.core.pipeline import Found, Item, Refusal
from safelight.formats.mesh import read_mesh
from safelight.pipelines.mesh.camera_files import read_rows
from safelight.pipelines.mesh.cameras import WORLD_SCALE, Cameras
from safelight.pipelines.mesh.options import DataOptions

CAMERAS = "rendering_metadata.txt"
TRUTHS = ("gt_points_normals.npz", "points.npz", "points.npy", "points.xyz", "points.ply")
"""Names of the ground truth beside the folder ``rendering``, in the frame of the models."""
_RENDERING = "rendering"
_LARGEST = 1 << 30


@dataclass(frozen=True)
class Rendered:
    """One object of a data set.

    Parameters
    ----------
    category : str
    views : tuple of Path
        The views to use, the leading one first.
    numbers : tuple of int
        Their numbers: rows of the file of cameras.
    cameras, truth : Path
    """

    category: str
    views: tuple[Path, ...]
    numbers: tuple[int, ...]
    cameras: Path
    truth: Path

    def rows(self) -> NDArray[np.float64]:
        """Return the cameras of the views, (views, 5).

        Raises
        ------
        InputError
            The file has too few rows, or is damaged.
        """
        rows = read_rows(self.cameras)
        if max(self.numbers) >= len(rows):
            raise InputError(f"has {len(rows)} cameras, none of view {max(self.numbers)}", path=self.cameras)
        return rows[list(self.numbers)]


def find_objects(options: DataOptions) -> Found:
    """Find all objects of a data set; those that lack something are refused by name.

    Raises
    ------
    InputError
        The folder does not exist or holds no objects.
    """
    if not options.data.is_dir():
        raise InputError("there is no such folder", path=options.data)
    items, refused = [], []
    for cameras in sorted(options.data.rglob(f"{_RENDERING}/{CAMERAS}")):
        home = cameras.parent.parent
        name = "_".join((*home.relative_to(options.data).parts, f"{options.use_views[0]:02}"))
        try:
            found = _look(home, cameras, options)
        except SafelightError as error:
            refused.append(Refusal(name, error))
            continue
        items.append(Item(name, (*found.views, found.cameras, found.truth), found))
    if not items and not refused:
        raise InputError(
            "holds no objects",
            path=options.data,
            expected=f"folders CATEGORY/ITEM/{_RENDERING} with {CAMERAS} and views",
        )
    return Found(tuple(items), tuple(refused))


def read_truth(path: Path) -> NDArray[np.float64]:
    """Return the points (n, 3) of a ground truth, in the frame of the model.

    Raises
    ------
    InputError
        It cannot be read, has no points, or some that are not finite.
    """
    if path.suffix not in (".npz", ".npy"):
        return read_mesh(path).vertices
    if path.stat().st_size > _LARGEST:
        raise InputError("is too large for points", path=path)
    try:
        loaded = np.load(path)
        points = np.asarray(loaded if isinstance(loaded, np.ndarray) else loaded["points"], np.float64)[:, :3]
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise InputError(f"cannot be read as points ({error})", path=path) from None
    if not points.size or points.shape[1] != 3 or not np.isfinite(points).all():
        raise InputError("has no points, or some that are not finite", path=path)
    return points


def in_camera_frame(points: NDArray[np.float64], cameras: Cameras) -> NDArray[np.float64]:
    """Return points of a model in the frame of the leading camera, at the scale of the meshes."""
    axes, origin = cameras.axes[0, 0].numpy(), cameras.origin[0, 0].numpy()
    placed: NDArray[np.float64] = (points * WORLD_SCALE - origin) @ axes.T
    return placed


def _look(home: Path, cameras: Path, options: DataOptions) -> Rendered:
    views = tuple(cameras.with_name(f"{number:02}.png") for number in options.use_views)
    if missing := [view.name for view in views if not view.is_file()]:
        raise InputError(f"lacks {', '.join(missing)}", path=cameras.parent)
    truth = next((home / name for name in TRUTHS if (home / name).is_file()), None)
    if truth is None:
        raise InputError("has no ground truth", path=home, expected=f"one of {', '.join(TRUTHS)}")
    return Rendered(
        home.parent.name if home.parent != options.data else home.name, views, options.use_views, cameras, truth
    )
