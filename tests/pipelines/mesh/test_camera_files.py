"""The same cameras, however they are written, see the same points at the same pixels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from safelight.core.errors import InputError
from safelight.formats.mesh import read_mesh
from safelight.pipelines.mesh.camera_files import read_cameras
from safelight.pipelines.mesh.cameras import Cameras
from safelight.pipelines.mesh.silhouettes import intersection_over_union, silhouette
from safelight.pipelines.mesh.views import read_view

ROWS = "250.5 29.5 0 0.65 25\n8.4 26.5 0 0.71 25\n59.5 28.9 0 0.81 25\n"
VIEWS = [Path(f"{number:02}.png") for number in range(3)]
FOCAL = 245.0
SIZE = 448
OPENCV = np.diag([1.0, -1.0, -1.0])


@pytest.fixture
def rows(tmp_path: Path) -> Cameras:
    (tmp_path / "cameras.txt").write_text(ROWS)
    return read_cameras(tmp_path / "cameras.txt", VIEWS, FOCAL)


def pixels(cameras: Cameras) -> np.ndarray:
    points = torch.tensor([[[0, 0, -0.8], [0.1, -0.05, -0.7], [-0.12, 0.08, -0.9]]], dtype=torch.float64)
    return cameras.pixels(points)[0].numpy()


def written(folder: Path, frames: list[dict[str, Any]], **intrinsics: Any) -> Path:
    path = folder / "transforms.json"
    path.write_text(json.dumps({"w": SIZE, "h": SIZE, **intrinsics, "frames": frames}))
    return path


def nerf_frames(cameras: Cameras) -> list[dict[str, Any]]:
    frames = []
    for view, axes, origin in zip(VIEWS, cameras.axes[0].numpy(), cameras.origin[0].numpy(), strict=True):
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = axes.T, origin
        frames.append({"file_path": f"./images/{view.stem}", "transform_matrix": matrix.tolist()})
    return frames


def test_rows_without_yaw_and_field_of_view(tmp_path: Path, rows: Cameras) -> None:
    (tmp_path / "short.txt").write_text("250.5 29.5 0.65\n8.4 26.5 0.71\n59.5 28.9 0.81\n")
    np.testing.assert_array_equal(pixels(read_cameras(tmp_path / "short.txt", VIEWS, FOCAL)), pixels(rows))


def test_nerf_in_any_order(tmp_path: Path, rows: Cameras) -> None:
    frames = nerf_frames(rows)[::-1]
    read = read_cameras(written(tmp_path, frames, fl_x=FOCAL * SIZE / 224), VIEWS, 1)
    np.testing.assert_allclose(pixels(read), pixels(rows), atol=1e-9)


def test_nerf_by_the_angle_of_view(tmp_path: Path, rows: Cameras) -> None:
    angle = 2 * np.arctan(112 / FOCAL)
    read = read_cameras(written(tmp_path, nerf_frames(rows), camera_angle_x=angle), VIEWS, 1)
    np.testing.assert_allclose(pixels(read), pixels(rows), atol=1e-9)


def test_without_a_size_it_is_that_of_the_pictures(tmp_path: Path, rows: Cameras) -> None:
    """As NeRF's synthetic scenes are: an angle of view, and frames."""
    views = [tmp_path / view.name for view in VIEWS]
    for view in views:
        Image.new("RGB", (SIZE, SIZE)).save(view)
    path = tmp_path / "transforms.json"
    path.write_text(json.dumps({"camera_angle_x": 2 * np.arctan(112 / FOCAL), "frames": nerf_frames(rows)}))
    np.testing.assert_allclose(pixels(read_cameras(path, views, 1)), pixels(rows), atol=1e-9)
    views[1].write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"cannot be read as a picture.*" + views[1].stem):
        read_cameras(path, views, 1)


def test_opencv(tmp_path: Path, rows: Cameras) -> None:
    """K, R and t as OpenCV's projectPoints takes them: x = K(RX + t), from the first camera's frame to the world."""
    lens = np.array([[FOCAL * 2, 0, SIZE / 2], [0, FOCAL * 2, SIZE / 2], [0, 0, 1]])
    frames, expected = [], []
    points = rows.to_world(torch.tensor([[[0.1, -0.05, -0.7]]], dtype=torch.float64))[0, 0].numpy()
    for axes, origin in zip(rows.axes[0].numpy(), rows.origin[0].numpy(), strict=True):
        turn = OPENCV @ axes
        shift = -turn @ origin
        frames.append({"K": lens.tolist(), "R": turn.tolist(), "t": shift.tolist()})
        seen = lens @ (turn @ points + shift)
        expected.append(seen[:2] / seen[2] * 224 / SIZE)
    read = read_cameras(written(tmp_path, frames), VIEWS, 1)
    np.testing.assert_allclose(pixels(read)[:, 1], expected, atol=1e-9)
    np.testing.assert_allclose(pixels(read), pixels(rows), atol=1e-9)


def test_the_first_cameras_frame_is_seen_from_its_origin(rows: Cameras) -> None:
    straight_ahead = torch.tensor([[[0.0, 0.0, -0.5]]], dtype=torch.float64)
    np.testing.assert_allclose(rows.pixels(straight_ahead)[0, 0, 0], [112, 112], atol=1e-9)


def test_a_genuine_mesh_covers_its_photographs(shared: Path) -> None:
    demo = shared / "data" / "mesh_demo"
    views = [demo / f"plane{number}.png" for number in (1, 2, 3)]
    mesh = read_mesh(demo / "predict.obj")
    cameras = read_cameras(demo / "cameras.txt", views, 248)
    for path, seen in zip(views, cameras.pixels(torch.from_numpy(mesh.vertices)[None])[0].numpy(), strict=True):
        view = read_view(path)
        drawn = silhouette(seen, mesh.faces, view.silhouette.shape)
        assert intersection_over_union(drawn, view.silhouette) > 0.75
        assert (drawn & view.silhouette).sum() / drawn.sum() > 0.9, "hardly anything of it is outside"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "cannot be read as rows of numbers"),
        ("1 2 0 0.7 25\n", r"has 1 camera\(s\) for 3 view\(s\)"),
        (ROWS.replace("26.5", "up"), "cannot be read as rows of numbers"),
        (ROWS.replace(" 25\n", "\n"), "rows of 4 numbers"),
        (ROWS.replace("0.71", "nan"), "not finite"),
        (ROWS.replace("29.5 0 ", "29.5 5 "), "yaw other than 0"),
        (ROWS.replace("0.81", "-0.81"), "not positive"),
    ],
)
def test_rows_that_are_no_cameras(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "cameras.txt").write_text(text)
    with pytest.raises(InputError, match=problem):
        read_cameras(tmp_path / "cameras.txt", VIEWS, FOCAL)


def test_frames_that_are_no_cameras(tmp_path: Path, rows: Cameras) -> None:
    frames = nerf_frames(rows)
    unnamed = [{"transform_matrix": frame["transform_matrix"]} for frame in frames]
    stretched = [{**frame, "transform_matrix": (2 * np.array(frame["transform_matrix"])).tolist()} for frame in frames]
    for wrong, problem in (
        (frames[:2], r"has no frame of 02\.png"),
        ([*frames, frames[0]], "has 2 frames of 00"),
        (unnamed[:2], r"has 2 camera\(s\) for 3 view\(s\)"),
        (stretched, "a matrix is no rotation"),
        ([{}] * 3, "KeyError: 'R'"),
    ):
        with pytest.raises(InputError, match=problem):
            read_cameras(written(tmp_path, wrong, fl_x=9), VIEWS, 1)


MIRRORED = np.diag([-1.0, 1.0, 1.0, 1.0])
NOWHERE = np.eye(4)
NOWHERE[0, 3] = np.nan


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"w": 0}, "w is 0"),
        ({"fl_x": -4}, "focal length is -4"),
        ({"fl_x": float("nan")}, "focal length is nan"),
        ({"cx": float("inf")}, "principal point"),
        ({"transform_matrix": MIRRORED.tolist()}, "no rotation"),
        ({"transform_matrix": NOWHERE.tolist()}, "a camera is nowhere"),
    ],
)
def test_a_camera_that_cannot_be_is_refused(tmp_path: Path, changed: dict[str, Any], problem: str) -> None:
    frame = {"w": SIZE, "h": SIZE, "fl_x": FOCAL, "transform_matrix": np.eye(4).tolist(), **changed}
    with pytest.raises(InputError, match=problem):
        read_cameras(written(tmp_path, [frame]), VIEWS[:1], FOCAL)


def test_an_angle_of_view_of_nothing_is_refused(tmp_path: Path) -> None:
    frame = {"camera_angle_x": 0, "transform_matrix": np.eye(4).tolist()}
    with pytest.raises(InputError, match="camera_angle_x is 0"):
        read_cameras(written(tmp_path, [frame]), VIEWS[:1], FOCAL)
