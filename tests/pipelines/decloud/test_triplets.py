"""Data sets: tables of 5 and 7 columns, the released layout, official scenes, leaks, what is no triplet."""

from __future__ import annotations

from pathlib import Path

import pytest

from safelight.core.errors import InputError
from safelight.pipelines.decloud.triplets import Scene, leaks, not_official, read_data_set, scene_of


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_a_table_of_five_columns(tmp_path: Path) -> None:
    touch(tmp_path, "a/x.tif", "b/x.tif", "c/x.tif")
    (tmp_path / "data.csv").write_text("3,a,b,c,x.tif\n\n")
    data = read_data_set(tmp_path, None)
    (triplet,) = data.triplets
    assert (triplet.name, triplet.split, triplet.scene) == ("x", "test", None)
    assert [path.relative_to(tmp_path.resolve()).as_posix() for path in triplet.paths] == [
        "a/x.tif",
        "b/x.tif",
        "c/x.tif",
    ]
    assert data.of("test") == data.of("all") == data.triplets
    assert data.of("train") == ()


def test_a_table_of_seven_columns_names_the_files_in_its_own_order(tmp_path: Path) -> None:
    touch(tmp_path, "a/radar.tif", "b/clear.tif", "c/cloudy.tif")
    (tmp_path / "t.csv").write_text("2, a, b, c, clear.tif, radar.tif, cloudy.tif\n")
    (triplet,) = read_data_set(tmp_path, tmp_path / "t.csv").triplets
    assert [path.name for path in triplet.paths] == ["radar.tif", "clear.tif", "cloudy.tif"]
    assert (triplet.name, triplet.split) == ("clear", "val")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("1,a,b,c", "not one of the table"),
        ("4,a,b,c,x.tif", "not one of the table"),
        ("1,../a,b,c,x.tif", "leads out of the folder"),
        ("1,a,b,c,/etc/passwd", "no such file|leads out"),
        ("1,a,b,c,y.tif", r"y\.tif: there is no such file, which the triplet needs"),
    ],
)
def test_a_bad_line_is_named_and_the_others_are_read(tmp_path: Path, line: str, problem: str) -> None:
    touch(tmp_path, "a/x.tif", "b/x.tif", "c/x.tif")
    (tmp_path / "data.csv").write_text(f"1,a,b,c,x.tif\n{line}\n")
    data = read_data_set(tmp_path, None)
    assert len(data.triplets) == 1
    (refusal,) = data.refused
    with pytest.raises(InputError, match=problem):
        raise refusal.error


def test_the_released_layout_is_split_as_its_authors_did(tmp_path: Path) -> None:
    for roi, season, number in (("ROIs1158", "spring", 106), ("ROIs1868", "summer", 19), ("ROIs1868", "summer", 20)):
        for kind in ("s1", "s2", "s2_cloudy"):
            touch(tmp_path, f"{roi}_{season}_{kind}/{kind}_{number}/{roi}_{season}_{kind}_{number}_p30.tif")
    touch(tmp_path, "ROIs1970_fall_s1/s1_3/ROIs1970_fall_s1_3_p5.tif", "ROIs1970_fall_s1/notes.tif")
    data = read_data_set(tmp_path, None)
    assert {t.name: t.split for t in data.triplets} == {
        "ROIs1158_spring_106_p30": "test",
        "ROIs1868_summer_19_p30": "val",
        "ROIs1868_summer_20_p30": "train",
    }
    assert all("_s1_" in t.sar.name and "_s2_1" not in t.cloudy.name for t in data.triplets)
    (refusal,) = data.refused
    assert refusal.name == "ROIs1970_fall_3_p5"
    assert "no clear and no cloudy" in str(refusal.error)


@pytest.mark.parametrize(
    ("name", "scene"),
    [
        ("ROIs2017_winter_112_p797.tif", Scene("winter", 112)),
        ("ROIs1868_summer_s2_cloudy_19_p30.tif", Scene("summer", 19)),
        ("cells.tif", None),
    ],
)
def test_the_scene_is_in_the_name(name: str, scene: Scene | None) -> None:
    assert scene_of(name) == scene


def test_leaks_are_found(tmp_path: Path) -> None:
    names = ("ROIs1158_spring_1_p1.tif", "ROIs1158_spring_1_p2.tif", "ROIs1158_spring_106_p1.tif")
    touch(tmp_path, *(f"{folder}/{name}" for folder in "abc" for name in names))
    lines = [f"{split},a,b,c,{name}" for split, name in zip("131", names, strict=True)]
    (tmp_path / "data.csv").write_text("\n".join(lines))
    data = read_data_set(tmp_path, None)
    assert leaks(data.triplets) == {"spring 1": ["test", "train"]}
    assert not_official(data.triplets) == ["spring 106"]


def test_a_folder_or_table_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        read_data_set(tmp_path / "none", None)
    with pytest.raises(InputError, match=r"none\.csv"):
        read_data_set(tmp_path, tmp_path / "none.csv")
