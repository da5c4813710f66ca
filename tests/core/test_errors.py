"""Errors name file, value, expectation and remedy, also after a journey between processes."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest

from safelight.core import errors
from safelight.core.errors import CancelledError, InputError, OutOfMemoryError, SafelightError, UsageError
from safelight.core.pipeline import Found, Item


def tree(kind: type[SafelightError]) -> list[type[SafelightError]]:
    return [kind, *(below for child in kind.__subclasses__() for below in tree(child))]


OF_THE_CORE = [kind for kind in tree(SafelightError) if kind.__module__ == errors.__name__]
"""Whatever pipelines, which may have some of their own, other tests have imported."""


def test_an_error_says_file_value_expectation_and_remedy() -> None:
    error = InputError("has no axes", path="cells.tif", expected="axes such as ZYX.", remedy="give --axes")
    assert str(error) == "cells.tif: has no axes. Expected: axes such as ZYX. Try: give --axes."
    assert str(InputError("is empty")) == "is empty."
    assert error.path == Path("cells.tif")


def test_out_of_memory_says_what_would_have_worked() -> None:
    error = OutOfMemoryError("the kernel does not fit", needed=2000, allowed=1000, remedy="--memory-limit 2000")
    assert (error.needed, error.allowed) == (2000, 1000)
    assert "at least 2000 bytes, allowed were 1000" in str(error)
    rounded = OutOfMemoryError("the kernel does not fit", needed=46 * 2**20 + 1, allowed=46 * 2**20)
    assert "at least 47 MiB, allowed were 46" in str(rounded)
    tiny = OutOfMemoryError("the kernel does not fit", needed=46 * 2**20, allowed=10**6)
    assert "at least 46 MiB, allowed were 0.9" in str(tiny)


@pytest.mark.parametrize("kind", OF_THE_CORE, ids=lambda kind: kind.__name__)
def test_errors_travel_between_processes(kind: type[SafelightError]) -> None:
    error: SafelightError
    if kind is OutOfMemoryError:
        error = OutOfMemoryError("too large", needed=2, allowed=1)
    else:
        error = kind("wrong", path="a", expected="b", remedy="c")
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):  # noqa: S301 - our own bytes
        assert type(twin) is kind
        assert str(twin) == str(error)
        assert twin.args == error.args
        assert vars(twin) == vars(error)


@pytest.mark.parametrize("kind", OF_THE_CORE, ids=lambda kind: kind.__name__)
def test_the_tree_at_the_top_of_the_file_is_the_tree(kind: type[SafelightError]) -> None:
    assert errors.__doc__ is not None
    assert f" {kind.__name__} " in f" {errors.__doc__} ".replace("\n", " ")


def test_exit_statuses_tell_what_happened() -> None:
    assert (SafelightError.exit_status, UsageError.exit_status, CancelledError.exit_status) == (1, 2, 130)


@pytest.mark.parametrize("twin", ["cells", "CELLS"])
def test_two_items_of_one_name_are_refused_before_one_replaces_the_other(twin: str) -> None:
    items = (Item("cells", (Path("a/cells.tif"),)), Item(twin, (Path("b/cells.tif"),)))
    with pytest.raises(InputError, match=r"b.cells.tif: its results would replace those of a.cells.tif"):
        Found(items)
    assert Found(items[:1]).items == items[:1]
