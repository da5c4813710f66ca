"""Old pickles of arrays are read; whatever else is in one is named, and nothing runs."""

from __future__ import annotations

import builtins
import os
import pickle
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from safelight.core.errors import InputError, UnsafeInputError
from safelight.core.files import Limits
from safelight.formats import legacy_pickle
from safelight.formats.legacy_pickle import read_pickle

CLAIM = 1 << 40


class Ours:
    """Leaves a trace when it is made again."""

    def __setstate__(self, state: object) -> None:
        raise AssertionError("code of a pickle has run")


class Calls:
    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, ...]]:
        return self.function, self.arguments


def written(folder: Path, content: bytes) -> Path:
    (folder / "a.dat").write_bytes(content)
    return folder / "a.dat"


@pytest.mark.parametrize("name", ["p2mpp_template_regenerated", "info_ellipsoid", "pami_p2mpp"])
def test_the_published_files(shared: Path, name: str) -> None:
    path = shared / "data" / "mesh" / f"{name}.dat"
    expected = pickle.loads(path.read_bytes(), encoding="latin1")  # noqa: S301  our own reference data
    assert_alike(read_pickle(path), expected)


def assert_alike(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert_alike(list(found.items()), list(expected.items()))
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_alike(one, other)
    else:
        np.testing.assert_array_equal(found, expected)
        assert getattr(found, "dtype", None) == getattr(expected, "dtype", None)


CONTENT = {
    "points": np.arange(36, dtype=np.float32).reshape(6, 6),
    "columns": np.asfortranarray(np.arange(6, dtype=np.int64).reshape(2, 3)),
    "swapped": np.arange(5, dtype=">f8"),
    "mask": np.array([True, False]),
    "bytes": np.arange(256, dtype=np.uint8),
    "number": np.float64(2.5),
    "plain": [1, -70000, 2**40, 2.5, None, True, False, "été", ("a", (1, 2, 3), (1, 2, 3, 4)), {}, []],
}


@pytest.mark.parametrize("protocol", range(6))
def test_what_python_pickles(tmp_path: Path, protocol: int) -> None:
    found = read_pickle(written(tmp_path, pickle.dumps(CONTENT, protocol)))
    found["swapped"] = found["swapped"].astype(">f8")
    assert_alike(found, CONTENT)


def test_text_of_python_2_keeps_its_bytes(tmp_path: Path) -> None:
    """As Python 2 wrote an array of two int16 with protocol 0."""
    content = (
        b"cnumpy.core.multiarray\n_reconstruct\np0\n(cnumpy\nndarray\np1\n(I0\ntp2\nS'b'\np3\ntp4\nRp5\n(I1\n(I2\ntp6\n"
        b"cnumpy\ndtype\np7\n(S'i2'\np8\nI0\nI1\ntp9\nRp10\n(I3\nS'<'\np11\nNNNI-1\nI-1\nI0\ntp12\nbI00\n"
        b"S'\\xff\\x00\\n\\x01'\np13\ntp14\nb."
    )
    np.testing.assert_array_equal(read_pickle(written(tmp_path, content)), np.array([255, 266], np.int16))


def test_one_array_in_two_places_is_one(tmp_path: Path) -> None:
    array = np.arange(3.0)
    first, second = read_pickle(written(tmp_path, pickle.dumps([array, array])))
    assert first is second


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    ("content", "named"),
    [
        (Calls(os.system, "touch ran"), "system"),
        (Calls(builtins.eval, "open('ran', 'w')"), r"(builtins|__builtin__)\.eval"),
        (Calls(subprocess.Popen, "ls"), "Popen"),
        (Ours(), "Ours|_reconstructor"),
        (Ours, "Ours"),
        (Calls(np.load, "a.npy"), "load"),
        (Calls(np.fromfile, "a"), "fromfile"),
        (Calls(np.memmap, "ran", "u1", "w+", 0, 9), "memmap"),
        (Calls(np.empty, CLAIM), "empty"),
        (Calls(np.ndarray, (CLAIM,)), r"numpy\.ndarray"),
        (Calls(getattr, "a", "b"), "getattr"),
        (np.array([Ours()], object), "'O8'"),
        (np.array(["text"]), "'U4'"),
        (np.zeros(2, [("a", "f4")]), "'V4'"),
        ({1, 2}, "set|no data"),
    ],
)
def test_all_else_is_named_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: object, named: str, protocol: int
) -> None:
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path, pickle.dumps(content, protocol))
    with pytest.raises(UnsafeInputError, match=named) as caught:
        read_pickle(path)
    assert caught.value.path == path
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"(S'ls'\nios\nsystem\n.", b"(cos\nsystem\nS'ls'\no."])
def test_objects_of_python_2_are_named(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(UnsafeInputError, match=r"os\.system"):
        read_pickle(written(tmp_path, content))


ARRAY = pickle.dumps(np.arange(4, dtype=np.uint8), 2)


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x04\x8e" + struct.pack("<Q", CLAIM) + b"few.",
        b"\x80\x05\x96" + struct.pack("<Q", CLAIM) + b"few.",
        b"\x80\x04\x8d" + struct.pack("<Q", CLAIM) + b"few.",
        b"T" + struct.pack("<i", -1) + b".",
        ARRAY.replace(b"K\x04\x85", b"J\xff\xff\xff\x7f\x85"),
        ARRAY.replace(b"K\x04\x85", b"\x8a\x08" + b"\xff" * 7 + b"\x7f\x85"),
        ARRAY.replace(b"K\x04\x85", b"J\xfc\xff\xff\xff\x85"),
    ],
    ids=["bytes", "bytearray", "text", "negative text", "array", "array of all memory", "negative array"],
)
def test_a_claim_of_more_than_there_is(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(UnsafeInputError, match="claims"):
        read_pickle(written(tmp_path, content))


def test_a_distant_place_in_the_memo_takes_no_memory(tmp_path: Path) -> None:
    path = written(tmp_path, b"K\x07r" + struct.pack("<I", 2**32 - 1) + b".")
    assert read_pickle(path) == 7


def test_the_same_bytes_again_and_again(tmp_path: Path) -> None:
    raw = b"B" + struct.pack("<I", 10_000) + bytes(10_000) + b"q\x010"
    kind = b"cnumpy\ndtype\n(U\x02u1tRq\x020"
    one = b"cnumpy._core.numeric\n_frombuffer\n(h\x01h\x02M\x10\x27\x85U\x01CtR"
    with pytest.raises(UnsafeInputError, match="its arrays take"):
        read_pickle(written(tmp_path, raw + kind + b"(" + one * 100 + b"t."))


def test_tuples_of_tuples_are_no_keys(tmp_path: Path) -> None:
    nested = b")" + b"2\x86" * 100
    with pytest.raises(UnsafeInputError, match="a key of a dict is a tuple"):
        read_pickle(written(tmp_path, b"}" + nested + b"Ns."))


def test_too_many_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(legacy_pickle, "MOST_STEPS", 50)
    with pytest.raises(UnsafeInputError, match="more than 50 parts"):
        read_pickle(written(tmp_path, b"]" * 100 + b"."))


def test_too_large_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, ARRAY)
    with pytest.raises(UnsafeInputError, match="more than the 9"):
        read_pickle(path, Limits(max_bytes=9))
    monkeypatch.setattr(legacy_pickle, "LARGEST", 10)
    with pytest.raises(UnsafeInputError, match="at most 10"):
        read_pickle(path)


def problem_of(path: Path) -> InputError | None:
    try:
        read_pickle(path)
    except InputError as error:
        return error
    return None


def test_damage_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    whole = pickle.dumps(CONTENT, 2)
    rng = np.random.default_rng(0)
    problems = []
    for _ in range(300):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), 3):
            damaged[place] = rng.integers(0, 256)
        path = written(tmp_path, bytes(damaged[: rng.integers(1, len(whole) + 1)]))
        problems.append(problem_of(path))
    found = [problem for problem in problems if problem is not None]
    assert len(found) > 200
    assert all(problem.path == path for problem in found)


@pytest.mark.parametrize("content", [np.dtype("f4"), np.ndarray], ids=["a type", "a class"])
def test_parts_of_arrays_are_no_content(tmp_path: Path, content: object) -> None:
    with pytest.raises(UnsafeInputError, match="a part of an array"):
        read_pickle(written(tmp_path, pickle.dumps([content], 2)))


def test_a_list_that_holds_itself(tmp_path: Path) -> None:
    content: list[object] = []
    content.append(content)
    found = read_pickle(written(tmp_path, pickle.dumps(content)))
    assert found[0] is found


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_pickle(tmp_path / "a.dat")
