"""A file, a folder or a glob: which images it names, what is left out and why."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from safelight.core.errors import InputError, NothingToDoError
from safelight.core.run import JOURNAL
from safelight.formats.microscopy import find_images, write_image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with three images and what else lies about."""
    image = np.ones((4, 5), np.float32)
    for name in ("b.tif", "a.ome.zarr", "C.NPY", "sub/d.tif"):
        write_image(tmp_path / name.lower(), image, "YX")
    (tmp_path / "c.npy").rename(tmp_path / "C.NPY")
    for name in ("notes.txt", ".hidden.tif", ".b.tif.0a1b2c3d.part.tif"):
        (tmp_path / name).write_text("text")
    return tmp_path


def names(paths: tuple[Path, ...]) -> list[str]:
    return [path.name for path in paths]


def test_a_folder(folder: Path) -> None:
    found = find_images(folder)
    assert names(found.paths) == ["C.NPY", "a.ome.zarr", "b.tif"]
    (refusal,) = found.refused
    assert "notes.txt: a .txt file is not an image" in str(refusal.error)


def test_a_pattern(folder: Path) -> None:
    assert names(find_images(folder, pattern="*.tif").paths) == ["b.tif"]


def test_a_file_and_a_zarr_folder(folder: Path) -> None:
    assert find_images(folder / "b.tif").paths == (folder / "b.tif",)
    assert find_images(str(folder / "a.ome.zarr")).paths == (folder / "a.ome.zarr",)


def test_a_glob(folder: Path) -> None:
    assert names(find_images(f"{folder}/*.tif").paths) == ["b.tif"]
    assert names(find_images(f"{folder}/**/*").paths) == ["C.NPY", "a.ome.zarr", "b.tif", "d.tif"]


def test_a_relative_glob(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert find_images("sub/*.t?f").paths == (Path("sub/d.tif"),)
    assert find_images("*.tif").paths == (Path("b.tif"),)


def line_of_journal(outputs: list[dict[str, str]]) -> str:
    return json.dumps({"item": "b", "fingerprint": "", "outputs": outputs, "metrics": {}, "details": {}}) + "\n"


def test_results_of_earlier_runs_are_skipped(folder: Path) -> None:
    run = folder / "b_denoised"
    write_image(run / "b.tif", np.ones((4, 5), np.float32), "YX")
    write_image(folder / "b_clean.tif", np.ones((4, 5), np.float32), "YX")
    outputs = [{"path": str(path), "sha256": ""} for path in ("b.tif", folder / "b_clean.tif")]
    (run / JOURNAL).write_text(line_of_journal(outputs))
    assert names(find_images(folder, pattern="*.tif").paths) == ["b.tif"]
    assert names(find_images(f"{folder}/**/*.tif").paths) == ["b.tif", "d.tif"]


def test_a_run_that_owns_the_folder_of_its_inputs(folder: Path) -> None:
    write_image(folder / "out.tif", np.ones((4, 5), np.float32), "YX")
    (folder / JOURNAL).write_text(line_of_journal([{"path": "out.tif", "sha256": ""}]))
    assert names(find_images(folder, pattern="*.tif").paths) == ["b.tif"]


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere: does not exist\. Expected: an image"):
        find_images(tmp_path / "nowhere")


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(NothingToDoError, match=f"{tmp_path}: no file there.*Expected: an image"):
        find_images(tmp_path)


def test_a_glob_without_match_is_named(tmp_path: Path) -> None:
    with pytest.raises(NothingToDoError, match=r"\*\.tif: no file there"):
        find_images(f"{tmp_path}/*.tif")


def test_a_folder_of_other_files(tmp_path: Path) -> None:
    (tmp_path / "a.czi").write_bytes(b"ZISRAWFILE")
    with pytest.raises(NothingToDoError, match="no image among the 1 files"):
        find_images(tmp_path)
    with pytest.raises(InputError, match=r"a\.czi: a \.czi file .*convert it to OME-TIFF"):
        find_images(tmp_path / "a.czi")
