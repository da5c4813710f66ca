"""What the C library does with freed memory: kept for the next chunk, step or frame, given back after the last one."""

from __future__ import annotations

import ctypes
import os
import platform
from functools import cache

MOST_KEPT = 512 << 20
"""Bytes that are kept at most."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h
_BLOCKS = 4
"""A block that is kept is at most one part in so many of all, so that gaps between blocks stay few."""
_LARGEST_BEFORE_2_35 = 32 << 20
"""Older versions of glibc refuse more, and would then be left with the smallest threshold there is."""
_SETTINGS_OF_USERS = ("GLIBC_TUNABLES", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")


def keep_freed_memory(most: int) -> None:
    """Tell glibc to keep freed memory.

    By default it gives every large block back to the kernel and takes page faults to get it again: more than half of
    the time that a network takes on the CPU. Where the user's environment tells glibc what to do, it is left alone.

    Parameters
    ----------
    most : int
        Bytes; never more than ``MOST_KEPT``.
    """
    libc = _glibc()
    if libc is not None and not any(name in os.environ for name in _SETTINGS_OF_USERS):
        kept = min(most, MOST_KEPT)
        block = kept // _BLOCKS
        _ = libc.mallopt(_MMAP_THRESHOLD, block) or libc.mallopt(_MMAP_THRESHOLD, min(block, _LARGEST_BEFORE_2_35))
        libc.mallopt(_TRIM_THRESHOLD, kept)


def release_freed_memory() -> None:
    """Tell glibc to give freed memory back to the system: what follows has a plan of its own."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


@cache
def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL("libc.so.6") if platform.libc_ver()[0] == "glibc" else None
