"""Which files make a scene, and what is said about the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dng import BAYER, write_dng
from safelight.core.errors import InputError
from safelight.core.events import Severity
from safelight.core.pipeline import Found
from safelight.pipelines.pairs.items import find_items
from safelight.pipelines.pairs.options import RunOptions

SHA1 = {number: f"{number:040x}" for number in range(20)}


def touch(root: Path, *names: str) -> Path:
    """Write a small frame under each name."""
    for name in names:
        write_dng(root / name, np.full((48, 60), 2000, np.uint16), BAYER["RGGB"])
    return root


def find(root: Path, **options: Any) -> Found:
    return find_items(RunOptions(input=root, out=root / "pairs", **options))


def scenes(found: Found) -> dict[str, tuple[list[str], list[str]]]:
    """Return the file names of every scene: ground truth, and noisy."""
    return {
        item.name: ([f.path.name for f in item.payload.gt], [f.path.name for f in item.payload.noisy])
        for item in found.items
    }


def refused(found: Found) -> dict[str, str]:
    assert all(refusal.severity is Severity.WARNING for refusal in found.refused)
    return {refusal.name: refusal.error.problem for refusal in found.refused}


def test_rawnind_names_with_all_their_hazards(tmp_path: Path) -> None:
    folder = "src/Bayer/a_scene_with_underscores"
    names = [
        f"{folder}/gt/Bayer_a_scene_with_underscores_GT_ISO100_sha1={SHA1[0]}.dng",
        f"{folder}/Bayer_a_scene_with_underscores_GT_ISO50_sha1={SHA1[1]}.dng",
        f"{folder}/Bayer_a_scene_with_underscores_ISO65535_sha1={SHA1[2]}.DNG",
        f"{folder}/Bayer_a_scene_with_underscores_ISOHi 3200_sha1={SHA1[3]}.dng",
        f"{folder}/TEST_Bayer_a_scene_with_underscores_ISOUnknown_sha1={SHA1[4]}.dng",
        f"{folder}/UNK_Bayer_a_scene_with_underscores_ISO800_sha1={SHA1[5]}.dng",
    ]
    touch(tmp_path, *names)
    for stray in ("a.xmp", "a.jpg", "._a.dng", ".hidden/a.dng"):
        (tmp_path / folder / stray).parent.mkdir(exist_ok=True)
        (tmp_path / folder / stray).write_bytes(b"x")
    found = find(tmp_path)
    assert not refused(found)
    (item,) = found.items
    assert item.name == "Bayer/a_scene_with_underscores"
    assert [frame.name for frame in item.payload.gt] == [names[1], names[0]]
    assert {frame.name: frame.iso for frame in item.payload.noisy} == {
        names[2]: 65535,
        names[3]: None,
        names[4]: None,
        names[5]: 800,
    }
    assert [frame.sha1 for frame in item.payload.gt] == [SHA1[1], SHA1[0]]
    assert set(item.inputs) == {tmp_path / name for name in names}


def test_plain_folders(tmp_path: Path) -> None:
    touch(tmp_path, "desk/gt/1.dng", "desk/2.dng", "desk/3.dng", "more/sofa/GT/b.dng", "more/sofa/a.dng")
    assert scenes(find(tmp_path)) == {"desk": (["1.dng"], ["2.dng", "3.dng"]), "more/sofa": (["b.dng"], ["a.dng"])}


def test_the_dataset_may_be_one_scene(tmp_path: Path) -> None:
    root = touch(tmp_path / "desk", "gt/1.dng", "2.dng")
    assert scenes(find(root)) == {"desk": (["1.dng"], ["2.dng"])}


def test_a_scene_that_lacks_something_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "a/gt/1.dng", "b/2.dng", "c/gt/3.dng", "c/4.dng")
    found = find(tmp_path)
    assert set(scenes(found)) == {"c"}
    assert refused(found) == {"a": "the scene has no noisy frames", "b": "the scene has no ground truth"}


def test_of_two_files_with_one_digest_the_first_stays(tmp_path: Path) -> None:
    touch(
        tmp_path,
        f"a/x_ISO800_sha1={SHA1[1]}.dng",
        f"a/x_ISO801_sha1={SHA1[1]}.dng",
        f"a/gt/z_GT_ISO100_sha1={SHA1[2]}.dng",
        f"a/x_ISO900_sha1={SHA1[2]}.dng",
    )
    found = find(tmp_path)
    assert scenes(found) == {"a": ([f"z_GT_ISO100_sha1={SHA1[2]}.dng"], [f"x_ISO800_sha1={SHA1[1]}.dng"])}
    assert set(refused(found)) == {f"a/x_ISO801_sha1={SHA1[1]}.dng", f"a/x_ISO900_sha1={SHA1[2]}.dng"}
    assert all("duplicate" in problem for problem in refused(found).values())


def test_files_that_cannot_be_read_do_not_stop_the_others(tmp_path: Path) -> None:
    touch(tmp_path, "a/gt/1.dng", "a/2.dng")
    mosaic = np.full((48, 60), 2000, np.uint16)
    write_dng(tmp_path / "a" / "liar.dng", mosaic, BAYER["RGGB"], claimed=(30_000, 30_000))
    (tmp_path / "a" / "lfs.cr2").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    (tmp_path / "a" / "empty.nef").touch()
    (tmp_path / "a" / "headerless.raw").write_bytes(bytes(2 * 48 * 60))
    found = find(tmp_path)
    assert scenes(found) == {"a": (["1.dng"], ["2.dng"])}
    problems = refused(found)
    assert set(problems) == {"a/liar.dng", "a/lfs.cr2", "a/empty.nef", "a/headerless.raw"}
    assert "claims" in problems["a/liar.dng"]
    assert "git-LFS" in problems["a/lfs.cr2"]
    assert "header" in problems["a/headerless.raw"]


def test_scenes_can_be_chosen(tmp_path: Path) -> None:
    for scene in ("src/Bayer/desk-1", "src/Bayer/desk-2", "src/X-Trans/desk-3", "src/X-Trans/tree"):
        touch(tmp_path, f"{scene}/gt/1.dng", f"{scene}/2.dng")
    assert set(scenes(find(tmp_path, sensor="x-trans"))) == {"X-Trans/desk-3", "X-Trans/tree"}
    assert set(scenes(find(tmp_path, scene=("desk-*",), sensor="bayer"))) == {"Bayer/desk-1", "Bayer/desk-2"}
    assert set(scenes(find(tmp_path, scene=("Bayer/desk-1", "tree")))) == {"Bayer/desk-1", "X-Trans/tree"}
    with pytest.raises(InputError, match="no scene chair") as caught:
        find(tmp_path, scene=("chair",))
    assert "X-Trans/tree" in str(caught.value)


def test_our_own_crops_are_no_scenes(tmp_path: Path) -> None:
    touch(tmp_path, "a/gt/1.dng", "a/2.dng", "crops/a/x/0_0_gt.dng")
    found = find_items(RunOptions(input=tmp_path, out=tmp_path))
    assert set(scenes(found)) == {"a"}
    assert not found.refused


def test_a_dataset_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        find(tmp_path / "nowhere")
