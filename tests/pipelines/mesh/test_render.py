"""What is rendered is where the cameras in the file say, and ``mesh test`` finds it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from safelight.cli import run
from safelight.formats.mesh import Mesh, write_mesh
from safelight.pipelines.mesh.camera_files import from_rows, read_rows
from safelight.pipelines.mesh.dataset import find_objects, in_camera_frame, read_truth
from safelight.pipelines.mesh.options import DataOptions
from safelight.pipelines.mesh.render import normalised
from safelight.pipelines.mesh.silhouettes import intersection_over_union, silhouette
from safelight.pipelines.mesh.views import read_view

FOCAL = 245.0
SCREW = Mesh(  # no rotation, and no mirror, makes it itself
    np.array([[0, 0, 0], [5, 0, 0], [0, 4, 0], [1, 1, 6], [5, 0, 2.5]]),
    np.array([[0, 2, 1], [0, 3, 2], [1, 4, 0], [0, 4, 3], [1, 2, 4], [4, 2, 3]]),
)


def render(*arguments: object) -> int:
    return run(["mesh", "render", *map(str, arguments), "--device", "cpu"])


def read_alpha(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as picture:
        return np.asarray(picture)[..., 3]


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("render")
    (folder / "models" / "screw").mkdir(parents=True)
    write_mesh(folder / "models" / "screw" / "a.obj", SCREW)
    assert render(folder / "models", "--out", folder / "out", "--results", folder / "results") == 0
    return folder / "out"


def test_mesh_test_finds_all_views_of_it(rendered: Path) -> None:
    (item,) = find_objects(DataOptions(data=rendered, use_views=tuple(range(24)))).items
    assert item.name == "screw_a_00"
    assert item.payload.category == "screw"
    assert len(item.payload.rows()) == 24
    assert [read_view(view).silhouette.shape for view in item.payload.views] == [(137, 137)] * 24


def test_cameras_are_those_of_the_published_renderings(rendered: Path) -> None:
    azimuth, elevation, yaw, distance, _ = read_rows(rendered / "screw/a/rendering/rendering_metadata.txt").T
    assert azimuth.min() < 60
    assert azimuth.max() > 300
    assert ((elevation >= 25) & (elevation <= 30)).all()
    assert ((distance >= 0.65) & (distance <= 0.95)).all()
    assert not yaw.any()


def test_points_are_inside_the_silhouettes(rendered: Path) -> None:
    (item,) = find_objects(DataOptions(data=rendered, use_views=tuple(range(24)))).items
    cameras = from_rows(item.payload.rows()[None], FOCAL)
    points = torch.from_numpy(in_camera_frame(read_truth(item.payload.truth), cameras))
    pixels = cameras.pixels(points[None])[0].numpy() * (137 / 224)
    shares = []
    for view, path in zip(pixels, item.payload.views, strict=True):
        column, row = np.floor(view[((view >= 0) & (view < 137)).all(axis=1)]).astype(int).T
        shares.append((read_alpha(path)[row, column] > 0).mean())
    assert np.mean(shares) >= 0.98
    assert min(shares) >= 0.96, "a face seen from its edge lies on few rays"


def test_outlines_are_those_of_the_mesh(rendered: Path) -> None:
    (item,) = find_objects(DataOptions(data=rendered, use_views=tuple(range(24)))).items
    cameras = from_rows(item.payload.rows()[None], FOCAL)
    axes, origin = cameras.axes[0, 0].numpy(), cameras.origin[0, 0].numpy()
    vertices = torch.from_numpy((normalised(SCREW).vertices * 0.57 - origin) @ axes.T)
    for pixels, path in zip(cameras.pixels(vertices[None])[0].numpy(), item.payload.views, strict=True):
        opaque = read_alpha(path) > 127
        assert intersection_over_union(silhouette(pixels, SCREW.faces, opaque.shape), opaque) > 0.93


def test_edges_are_smooth_and_faces_are_shaded(rendered: Path) -> None:
    picture = np.asarray(Image.open(rendered / "screw/a/rendering/00.png"))
    assert set(np.unique(picture[..., 3])) == {0, 64, 128, 191, 255}
    assert not picture[picture[..., 3] == 0].any()
    assert len(np.unique(picture[picture[..., 3] == 255])) >= 3
    assert (picture[picture[..., 3] == 64][:, 0] >= 60).all(), "colour is not weighted with opacity"


def test_points_lie_on_the_surface_and_normals_stand_on_it(rendered: Path) -> None:
    with np.load(rendered / "screw/a/points.npz") as arrays:
        points, normals = arrays["points"].astype(float), arrays["normals"].astype(float)
    assert points.shape == normals.shape == (8192, 3)
    corners = normalised(SCREW).vertices[SCREW.faces]
    across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    height = np.abs(np.einsum("nfi,fi->nf", points[:, None] - corners[:, 0], across))
    assert height.min(axis=1).max() < 1e-6
    assert (np.abs(normals @ across.T).max(axis=1) > 1 - 1e-6).all()
    size = np.ptp(normalised(SCREW).vertices, axis=0)
    np.testing.assert_allclose(np.linalg.norm(size), 1)


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    write_mesh(tmp_path / "a.ply", SCREW)
    contents = []
    for folder, seed in (("one", 3), ("two", 3), ("other", 4)):
        common = ("--count", 2, "--results", tmp_path / "results")
        assert render(tmp_path / "a.ply", "--out", tmp_path / folder, "--seed", seed, *common) == 0
        files = [path for path in sorted((tmp_path / folder / "a").rglob("*")) if path.is_file()]
        assert len(files) == 4
        contents.append([path.read_bytes() for path in files])
    assert contents[0] == contents[1]
    assert all(one != other for one, other in zip(contents[0], contents[2], strict=True))


@pytest.mark.parametrize(
    ("mesh", "problem"),
    [
        (Mesh(SCREW.vertices, np.empty((0, 3), np.int64)), "has no faces"),
        (Mesh(np.ones((3, 3)), np.array([[0, 1, 2]])), "diagonal of 0"),
        (Mesh(np.array([[0.0, 0, 0], [1, 0, 0], [2, 0, 0]]), np.array([[0, 1, 2]])), "no area"),
    ],
)
def test_no_surface_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], mesh: Mesh, problem: str) -> None:
    write_mesh(tmp_path / "a.obj", mesh)
    write_mesh(tmp_path / "b.obj", SCREW)
    common = ("--count", 1, "--results", tmp_path / "results")
    assert render(tmp_path, "--out", tmp_path / "out", *common) == 1
    assert re.search(rf"a\.obj: .*{problem}", "".join(capsys.readouterr()).replace("\n", " "))
    assert (tmp_path / "out" / "b" / "points.npz").is_file(), "the others are rendered"
    assert not (tmp_path / "out" / "a").exists()


def test_an_object_that_leaves_the_picture_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_mesh(tmp_path / "rod.obj", Mesh(SCREW.vertices * (9, 0.5, 0.5), SCREW.faces))
    common = ("--out", tmp_path / "out", "--results", tmp_path / "results", "--lang", "en")
    assert render(tmp_path / "rod.obj", *common) == 0
    cut = re.search(r"rod: the object leaves the picture in (\d+) of 24", "".join(capsys.readouterr()))
    assert cut
    alphas = [read_alpha(path) for path in (tmp_path / "out").rglob("*.png")]
    inner = [np.pad(alpha[1:-1, 1:-1], 1) for alpha in alphas]
    assert sum((one != other).any() for one, other in zip(alphas, inner, strict=True)) == int(cut[1])
