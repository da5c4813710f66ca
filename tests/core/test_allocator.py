"""What glibc is told to keep, and that a user who has told it something else is obeyed."""

from __future__ import annotations

import pytest

from safelight.core import allocator
from safelight.core.allocator import MOST_KEPT, keep_freed_memory, release_freed_memory


class Libc:
    """Takes down what it is told."""

    def __init__(self) -> None:
        self.settings: dict[int, int] = {}
        self.largest = 1 << 40
        self.trimmed = 0

    def mallopt(self, name: int, value: int) -> int:
        if name == MMAP_THRESHOLD and value > self.largest:
            return 0
        self.settings[name] = value
        return 1

    def malloc_trim(self, pad: int) -> None:
        self.trimmed += 1


TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3


@pytest.fixture
def libc(monkeypatch: pytest.MonkeyPatch) -> Libc:
    fake = Libc()
    monkeypatch.setattr(allocator, "_glibc", lambda: fake)
    for name in ("GLIBC_TUNABLES", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"):
        monkeypatch.delenv(name, raising=False)
    return fake


@pytest.mark.parametrize(("most", "kept"), [(40 << 20, 40 << 20), (1 << 50, MOST_KEPT)])
def test_no_more_is_kept_than_is_allowed_and_blocks_are_a_part_of_it(libc: Libc, most: int, kept: int) -> None:
    keep_freed_memory(most)
    assert libc.settings == {TRIM_THRESHOLD: kept, MMAP_THRESHOLD: kept // 4}


def test_an_older_glibc_gets_what_it_takes(libc: Libc) -> None:
    """Else its threshold stays at 128 KiB for good, and every block costs page faults."""
    libc.largest = 32 << 20
    keep_freed_memory(1 << 50)
    assert libc.settings == {TRIM_THRESHOLD: MOST_KEPT, MMAP_THRESHOLD: 32 << 20}


def test_who_has_told_glibc_something_is_obeyed(libc: Libc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=0")
    keep_freed_memory(1 << 30)
    assert libc.settings == {}


def test_all_is_given_back(libc: Libc) -> None:
    release_freed_memory()
    assert libc.trimmed == 1


def test_without_glibc_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator, "_glibc", lambda: None)
    keep_freed_memory(1 << 30)
    release_freed_memory()
