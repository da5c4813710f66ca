"""Objects of a data set, and their ground truth as it is published."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from safelight.core.errors import InputError, UnsafeInputError
from safelight.pipelines.mesh.camera_files import from_rows
from safelight.pipelines.mesh.dataset import find_objects, in_camera_frame, read_truth
from safelight.pipelines.mesh.options import DataOptions

ROWS = np.array([[30.0, 27.0, 0.0, 0.8, 25.0]])
POINTS = np.random.default_rng(0).uniform(-0.5, 0.5, (40, 6)).astype(np.float32)


def add_object(root: Path, category: str, item: str, *, truth: bool = True) -> None:
    folder = root / category / item / "rendering"
    folder.mkdir(parents=True)
    np.savetxt(folder / "rendering_metadata.txt", ROWS)
    Image.new("RGBA", (5, 5)).save(folder / "00.png")
    if truth:
        np.savez(folder.parent / "points.npz", points=POINTS)


def found_in(data: Path) -> tuple[list[str], dict[str, str]]:
    found = find_objects(DataOptions(data=data, use_views=(0,)))
    return [item.name for item in found.items], {refusal.name: str(refusal.error) for refusal in found.refused}


def test_names_are_category_item_and_view(tmp_path: Path) -> None:
    add_object(tmp_path / "ShapeNetRendering", "plane", "a")
    assert found_in(tmp_path) == (["plane_a_00"], {})


def test_a_list_says_which_objects(tmp_path: Path) -> None:
    for item in "abc":
        add_object(tmp_path, "plane", item)
    (tmp_path / "test_list.txt").write_text("plane_c_00.dat\nplane_b_05.dat\nData/plane_a_00.dat\n")
    names, refused = found_in(tmp_path / "test_list.txt")
    assert names == ["plane_a_00", "plane_c_00"]
    assert list(refused) == ["plane_b_05"]
    assert "is listed, and has no views" in refused["plane_b_05"]
    assert "CATEGORY_ITEM_00, view 0 being the leading one" in refused["plane_b_05"]


def test_an_object_without_ground_truth_is_named(tmp_path: Path) -> None:
    add_object(tmp_path, "plane", "a", truth=False)
    names, refused = found_in(tmp_path)
    assert not names
    assert "has no ground truth" in refused["plane_a_00"]


@pytest.mark.parametrize("content", [POINTS, (np.zeros((4, 4, 3), np.uint8), POINTS)], ids=["train", "test"])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_published_ground_truth_is_in_the_frame_of_the_leading_camera(
    tmp_path: Path, content: object, protocol: int
) -> None:
    add_object(tmp_path / "images", "plane", "a", truth=False)
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "plane_a_00.dat").write_bytes(pickle.dumps(content, protocol))
    (item,) = find_objects(DataOptions(data=tmp_path, use_views=(0,))).items
    points = in_camera_frame(read_truth(item.payload.truth), from_rows(ROWS[None], 245.0))
    np.testing.assert_array_equal(points, POINTS[:, :3].astype(np.float64))


def test_other_ground_truth_is_in_the_frame_of_the_model(tmp_path: Path) -> None:
    np.savez(tmp_path / "points.npz", points=np.zeros((1, 3)))
    (point,) = in_camera_frame(read_truth(tmp_path / "points.npz"), from_rows(ROWS[None], 245.0))
    np.testing.assert_allclose(point, [0, 0, -0.8], atol=1e-12)


class Runs:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch ran",)


def test_a_pickle_that_runs_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.dat").write_bytes(pickle.dumps((POINTS, Runs())))
    with pytest.raises(UnsafeInputError, match="system"):
        read_truth(tmp_path / "a.dat")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"points": POINTS}, "holds no points"),
        ([POINTS.tolist(), POINTS.tolist()], "holds no points"),
        (POINTS[0], "has no points"),
        (POINTS[:0], "has no points|no data"),
        (POINTS * np.nan, "not finite"),
    ],
)
def test_no_points(tmp_path: Path, content: object, problem: str) -> None:
    (tmp_path / "a.dat").write_bytes(pickle.dumps(content))
    with pytest.raises(InputError, match=problem) as caught:
        read_truth(tmp_path / "a.dat")
    assert caught.value.path == tmp_path / "a.dat"


@pytest.mark.parametrize("name", ["points.npz", "points.npy"])
def test_damaged_ground_truth_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    np.savez_compressed(path, points=POINTS) if name.endswith("z") else np.save(path, POINTS)
    whole = path.read_bytes()
    for size in (0, len(whole) // 2):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError) as caught:
            read_truth(path)
        assert caught.value.path == path


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        found_in(tmp_path / "none")
