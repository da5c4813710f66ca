"""Damaged files of arrays are one clear error, wherever the damage is."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from safelight.core.errors import InputError
from safelight.formats.arrays import ONLY, read_arrays

POINTS = np.random.default_rng(0).random((500, 3))


def test_arrays_come_by_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", points=POINTS, normals=-POINTS)
    np.save(tmp_path / "a.npy", POINTS)
    read = read_arrays(tmp_path / "a.npz")
    assert list(read) == ["points", "normals"]
    np.testing.assert_array_equal(read["normals"], -POINTS)
    np.testing.assert_array_equal(read_arrays(tmp_path / "a.npy")[ONLY], POINTS)


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_every_kind_of_damage_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    if suffix == ".npy":
        np.save(path, POINTS)
    else:
        np.savez_compressed(path, points=POINTS)
    whole = path.read_bytes()
    damaged = [whole[:size] for size in (0, 5, 40, 100, len(whole) // 2)]
    damaged += [whole[:start] + bytes(60) + whole[start + 60 :] for start in (2, 8, 50)]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(InputError) as caught:
            read_arrays(path)
        assert caught.value.path == path


def test_a_header_that_claims_too_much_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "a.npy").open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, {"descr": "<f8", "fortran_order": False, "shape": (10**15, 3)})
    with pytest.raises(InputError, match=r"a\.npy: cannot be read as arrays"):
        read_arrays(tmp_path / "a.npy")


def test_objects_and_other_files_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    with zipfile.ZipFile(tmp_path / "text.npz", "w") as archive:
        archive.writestr("notes.txt", "no array")
    (tmp_path / "picture.npy").write_bytes(b"\x89PNG and more")
    for name, problem in (
        ("objects.npy", "cannot be read as arrays"),
        ("text.npz", "is no array"),
        ("missing.npz", "cannot be read as arrays"),
        ("picture.npy", "is no file of NumPy's"),
    ):
        with pytest.raises(InputError, match=problem):
            read_arrays(tmp_path / name)
