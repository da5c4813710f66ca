"""Cameras in files: a row per view as 3D-R2N2's renderer writes them, or the transforms.json of NeRF."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from safelight.core.errors import InputError
from safelight.pipelines.mesh.cameras import SIDE, WORLD_SCALE, Cameras, orbiting
from safelight.pipelines.mesh.options import FRAMES_SUFFIX
from safelight.pipelines.mesh.views import picture_size

_COLUMNS = 5
"""Azimuth, elevation, yaw, distance, field of view; the renderer ignores the last."""
_SHORT = 3
"""Azimuth, elevation, distance."""
_EXPECTED = "azimuth, elevation, yaw, distance and field of view in each row, or azimuth, elevation and distance"
_LARGEST = 16 << 20
_OPENCV = np.diag([1.0, -1.0, -1.0])
"""From OpenCV's axes, X to the right, Y down, Z ahead, to ours."""


def read_cameras(path: Path, views: Sequence[Path], focal: float) -> Cameras:
    """Read the cameras of the views of one object.

    Parameters
    ----------
    path : Path
        Text: azimuth, elevation and yaw in degrees, distance, field of view, a row per view; or azimuth, elevation and
        distance alone. Or JSON with ``frames``,
        each with ``transform_matrix`` (camera to world, NeRF's axes) or with ``K``, ``R`` and ``t`` (world to camera,
        OpenCV's axes), and ``file_path`` where the order of the frames is not that of the views.
    views : sequence of Path
        The photographs, the leading one first.
    focal : float
        In pixels of 224: of cameras in a text file, which does not say it.

    Raises
    ------
    InputError
        It cannot be read, or does not fit the views.
    """
    if not path.is_file():
        raise InputError("there is no such file of cameras", path=path)
    if path.stat().st_size > _LARGEST:
        raise InputError("is too large for a file of cameras", path=path)
    if path.suffix.lower() == FRAMES_SUFFIX:
        return _from_frames(path, views)
    rows = read_rows(path)
    if len(rows) != len(views):
        raise _other_number(path, len(rows), len(views))
    return from_rows(rows[None], focal)


def world_scale(path: Path) -> float:
    """Return the scale of meshes to the world of a file of cameras: rows are of ShapeNet's, frames of their own."""
    return 1.0 if path.suffix.lower() == FRAMES_SUFFIX else WORLD_SCALE


def from_rows(rows: NDArray[np.float64], focal: float) -> Cameras:
    """Return the cameras of rows (samples, views, 5)."""
    azimuth, elevation, _, distance, _ = torch.from_numpy(rows).unbind(-1)
    return orbiting(azimuth, elevation, distance, focal)


def read_rows(path: Path) -> NDArray[np.float64]:
    """Return rows (views, 5): azimuth, elevation and yaw in degrees, distance, field of view; 0 what is not given.

    Raises
    ------
    InputError
        The file is missing or damaged, a yaw is not 0, or a distance not positive.
    """
    try:
        with warnings.catch_warnings(action="error"):  # of a file without rows
            rows = np.loadtxt(path, dtype=np.float64, ndmin=2)
    except (OSError, ValueError, UnicodeDecodeError, UserWarning) as error:
        raise InputError(f"cannot be read as rows of numbers ({error})", path=path, expected=_EXPECTED) from None
    if rows.shape[1] == _SHORT:
        azimuth, elevation, distance = rows.T
        nothing = np.zeros(len(rows))
        rows = np.stack([azimuth, elevation, nothing, distance, nothing], axis=1)
    if rows.shape[1] != _COLUMNS:
        raise InputError(f"has rows of {rows.shape[1]} numbers", path=path, expected=_EXPECTED)
    if not np.isfinite(rows).all():
        raise InputError("has numbers that are not finite", path=path, expected=_EXPECTED)
    if (rows[:, 2] != 0).any() or (rows[:, 3] <= 0).any():
        raise InputError(
            "has a yaw other than 0, or a distance that is not positive",
            path=path,
            remedy="write such cameras as a transforms.json",
        )
    return rows


def _from_frames(path: Path, views: Sequence[Path]) -> Cameras:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        frames = list(document["frames"])
        chosen = [_frame_of(path, frames, view, number, len(views)) for number, view in enumerate(views)]
        poses = [_pose(frame) for frame in chosen]
        lenses = [_lens({**document, **frame}, view) for frame, view in zip(chosen, views, strict=True)]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise InputError(
            f"cannot be read as cameras ({type(error).__name__}: {error})",
            path=path,
            expected="frames with transform_matrix, or with K, R and t; fl_x or camera_angle_x",
        ) from None
    axes, origin = (torch.from_numpy(np.stack(parts))[None] for parts in zip(*poses, strict=True))
    focal, centre = (torch.tensor(parts, dtype=torch.float64)[None] for parts in zip(*lenses, strict=True))
    return Cameras(axes, origin, focal, centre)


def _frame_of(
    path: Path, frames: Sequence[Mapping[str, Any]], view: Path, number: int, views: int
) -> Mapping[str, Any]:
    """Return the frame of a view: by its name where frames have names, else by its place."""
    named = [(Path(frame["file_path"]).stem, frame) for frame in frames if "file_path" in frame]
    found = [frame for name, frame in named if name == view.stem]
    if len(found) > 1:
        raise InputError(f"has {len(found)} frames of {view.stem}", path=path, expected="one camera for each view")
    if found:
        return found[0]
    if named:
        names = sorted(name for name, _ in named)
        raise InputError(f"has no frame of {view.name}", path=path, expected=f"one of {', '.join(names[:5])}")
    if len(frames) != views:
        raise _other_number(path, len(frames), views)
    return frames[number]


def _pose(frame: Mapping[str, Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the camera's axes as rows, and its place."""
    if "transform_matrix" in frame:
        matrix = np.asarray(frame["transform_matrix"], np.float64)[:3].reshape(3, 4)
        axes, origin = matrix[:, :3].T, matrix[:, 3]
    else:
        turn = np.asarray(frame["R"], np.float64).reshape(3, 3)
        axes, origin = _OPENCV @ turn, -turn.T @ np.asarray(frame["t"], np.float64).reshape(3)
    if not np.allclose(axes @ axes.T, np.eye(3), atol=1e-3) or np.linalg.det(axes) < 0:
        raise ValueError("a matrix is no rotation")
    if not np.isfinite(origin).all():
        raise ValueError("a camera is nowhere")
    return axes, origin


def _lens(frame: Mapping[str, Any], view: Path) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return focal length and principal point, x and y, in pixels of 224; without w and h, they are of the picture."""
    size = {} if {"w", "h"} <= frame.keys() else dict(zip("wh", picture_size(view), strict=True))
    width, height = (_positive(name, frame.get(name, size.get(name))) for name in "wh")
    if "K" in frame:
        matrix = np.asarray(frame["K"], np.float64).reshape(3, 3)
        across, down, x, y = matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2]
    else:
        across = float(frame["fl_x"]) if "fl_x" in frame else width / 2 / math.tan(_angle(frame) / 2)
        down = float(frame.get("fl_y", across))
        x, y = float(frame.get("cx", width / 2)), float(frame.get("cy", height / 2))
    across, down = _positive("focal length", across), _positive("focal length", down)
    if not math.isfinite(x + y):
        raise ValueError("a principal point is not finite")
    sides = SIDE / width, SIDE / height
    return (across * sides[0], down * sides[1]), (x * sides[0], y * sides[1])


def _angle(frame: Mapping[str, Any]) -> float:
    angle = _positive("camera_angle_x", frame["camera_angle_x"])
    if angle >= math.pi:
        raise ValueError(f"camera_angle_x is {angle:g}, and not below π")
    return angle


def _positive(name: str, value: Any) -> float:
    number = float(value)
    if not 0 < number < math.inf:
        raise ValueError(f"{name} is {number:g}, and not above 0")
    return number


def _other_number(path: Path, cameras: int, views: int) -> InputError:
    return InputError(f"has {cameras} camera(s) for {views} view(s)", path=path, expected="one camera for each view")
