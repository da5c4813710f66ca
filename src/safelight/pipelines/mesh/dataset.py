"""Data sets of rendered objects: ``…/CATEGORY/ITEM/rendering/NN.png`` beside ``rendering_metadata.txt``.

The ground truth is points beside ``rendering``, or the published ``CATEGORY_ITEM_NN.dat`` anywhere in the data set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from safelight.core.errors import InputError, SafelightError
from safelight.core.pipeline import Found, Item, Refusal
from safelight.formats.arrays import ONLY, read_arrays
from safelight.formats.legacy_pickle import read_pickle
from safelight.formats.mesh import read_mesh
from safelight.pipelines.mesh.camera_files import from_rows, read_rows
from safelight.pipelines.mesh.cameras import WORLD_SCALE, Cameras
from safelight.pipelines.mesh.options import DataOptions
from safelight.pipelines.mesh.views import View, as_images, read_view

CAMERAS = "rendering_metadata.txt"
TRUTHS = ("gt_points_normals.npz", "points.npz", "points.npy", "points.xyz", "points.ply")
"""Names of the ground truth beside the folder ``rendering``, in the frame of the models."""
PUBLISHED = ".dat"
"""Kind of the published ground truth, in the frame of the leading camera."""
RENDERING = "rendering"
_LARGEST = 1 << 30
_LARGEST_LIST = 64 << 20


@dataclass(frozen=True, eq=False)
class Truth:
    """Points on the surface of an object.

    Parameters
    ----------
    points : array
        (n, 3) float64.
    in_camera : bool
        Whether they are in the frame of the leading camera, at the scale of the meshes; else in that of the model.
    normals : array, optional
        (n, 3) float64: of the surface at the points, in the same frame; training needs them.
    """

    points: NDArray[np.float64]
    in_camera: bool
    normals: NDArray[np.float64] | None = None


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
    """Find all objects of a data set, or those of a list; those that lack something are refused by name.

    Raises
    ------
    InputError
        The folder or list does not exist or holds no objects.
    """
    root = options.data.parent if options.data.is_file() else options.data
    if not root.is_dir():
        raise InputError("there is no such folder, nor list", path=options.data)
    listed = _read_list(options.data) if options.data.is_file() else None
    published = {path.stem: path for path in sorted(root.rglob(f"*{PUBLISHED}"))}
    items, refused, missing = [], [], set(listed or ())
    for cameras in sorted(root.rglob(f"{RENDERING}/{CAMERAS}")):
        home = cameras.parent.parent
        name = "_".join((*home.relative_to(root).parts[-2:], f"{options.use_views[0]:02}"))
        if listed is not None and name not in listed:
            continue
        missing.discard(name)
        try:
            category = home.parent.name if home.parent != root else home.name
            found = _look(category, cameras, published.get(name), options.use_views)
        except SafelightError as error:
            refused.append(Refusal(name, error))
            continue
        items.append(Item(name, (*found.views, found.cameras, found.truth), found))
    refused += [Refusal(name, _no_views(root, options.use_views[0])) for name in sorted(missing)]
    if not items and not refused:
        raise InputError(
            "holds no objects",
            path=options.data,
            expected=f"folders CATEGORY/ITEM/{RENDERING} with {CAMERAS} and views",
        )
    return Found(tuple(items), tuple(refused))


def read_views(rendered: Rendered, focal: float, blend: bool = False) -> tuple[list[View], Cameras, Tensor]:
    """Read the views of an object; ``blend`` as for ``read_view``.

    Returns
    -------
    list of View
    Cameras
        Of one sample; ``focal`` is in pixels of 224.
    Tensor
        (views, 3, 224, 224), blue first, 0 to 1: what the networks see.

    Raises
    ------
    InputError
        A picture or the file of cameras cannot be read.
    """
    cameras = from_rows(rendered.rows()[None], focal)
    views = [read_view(path, blend) for path in rendered.views]
    return views, cameras, as_images(views)


def read_truth(path: Path) -> Truth:
    """Return the points of a ground truth, and their normals where it has them.

    Raises
    ------
    InputError
        It cannot be read, has no points, or some that are not finite.
    UnsafeInputError
        It is a pickle that holds anything but arrays.
    """
    if path.suffix == PUBLISHED:
        return _truth(_points_of_pickle(path), path, in_camera=True)
    if path.suffix not in (".npz", ".npy"):
        return Truth(read_mesh(path).vertices, in_camera=False)
    if path.stat().st_size > _LARGEST:
        raise InputError("is too large for points", path=path)
    try:
        values = _values(read_arrays(path))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"cannot be read as points ({error})", path=path) from None
    return _truth(values, path, in_camera=False)


def in_camera_frame(truth: Truth, cameras: Cameras) -> NDArray[np.float64]:
    """Return the points of a ground truth in the frame of the leading camera, at the scale of the meshes."""
    if truth.in_camera:
        return truth.points
    axes, origin = cameras.axes[0, 0].numpy(), cameras.origin[0, 0].numpy()
    placed: NDArray[np.float64] = (truth.points * WORLD_SCALE - origin) @ axes.T
    return placed


def normals_in_camera_frame(truth: Truth, cameras: Cameras) -> NDArray[np.float64] | None:
    """Return the normals of a ground truth, if it has any, in the frame of the leading camera."""
    if truth.in_camera or truth.normals is None:
        return truth.normals
    turned: NDArray[np.float64] = truth.normals @ cameras.axes[0, 0].numpy().T
    return turned


def _points_of_pickle(path: Path) -> NDArray[np.float64]:
    """Return points and normals of a published ground truth: an array, or a tuple of the picture and that array."""
    content = read_pickle(path)
    points = content[1] if isinstance(content, (tuple, list)) and len(content) == 2 else content
    if not isinstance(points, np.ndarray) or points.dtype.kind not in "fiu":
        raise InputError("holds no points", path=path, expected="an array (n, 6), or a picture and that array")
    return points.astype(np.float64)


def _values(arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
    """Return points and normals side by side: an array that has both, or arrays by name."""
    names = [ONLY] if ONLY in arrays else ["points", *({"normals"} & arrays.keys())]
    return np.concatenate([np.asarray(arrays[name], np.float64) for name in names], axis=1)


def _truth(values: NDArray[np.float64], path: Path, in_camera: bool) -> Truth:
    """Return columns as points, and as normals where there are six."""
    if values.ndim != 2 or not values.size or values.shape[1] < 3 or not np.isfinite(values[:, :3]).all():
        raise InputError("has no points, or some that are not finite", path=path)
    return Truth(values[:, :3], in_camera, values[:, 3:6] if values.shape[1] >= 6 else None)


def _read_list(path: Path) -> frozenset[str]:
    """Return the names in a list of ``CATEGORY_ITEM_NN.dat``, one in a line."""
    if path.stat().st_size > _LARGEST_LIST:
        raise InputError("is too large for a list of objects", path=path)
    try:
        lines = path.read_text(encoding="utf-8").split()
    except UnicodeDecodeError as error:
        raise InputError(f"cannot be read as a list of objects ({error})", path=path) from None
    return frozenset(PurePosixPath(line).name.removesuffix(PUBLISHED) for line in lines)


def _no_views(root: Path, leading: int) -> InputError:
    return InputError(
        "is listed, and has no views",
        path=root,
        expected=f"CATEGORY_ITEM_{leading:02}, view {leading} being the leading one, and a folder CATEGORY/ITEM",
    )


def _look(category: str, cameras: Path, published: Path | None, numbers: tuple[int, ...]) -> Rendered:
    home = cameras.parent.parent
    views = tuple(cameras.with_name(f"{number:02}.png") for number in numbers)
    if missing := [view.name for view in views if not view.is_file()]:
        raise InputError(f"lacks {', '.join(missing)}", path=cameras.parent)
    truth = next((home / name for name in TRUTHS if (home / name).is_file()), published)
    if truth is None:
        raise InputError("has no ground truth", path=home, expected=f"one of {', '.join(TRUTHS)}, or a published .dat")
    return Rendered(category, views, numbers, cameras, truth)
