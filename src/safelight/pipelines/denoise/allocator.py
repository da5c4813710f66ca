"""What the C library does with freed memory: kept for the next step while training, given back after it."""

from __future__ import annotations

import ctypes
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory for the next step.

    By default it gives every large block back to the kernel and takes page faults to get it again: a fifth of the
    time of a step on the CPU.
    """
    libc = _glibc()
    if libc is not None:
        libc.mallopt(_MMAP_THRESHOLD, 32 * 2**20)
        libc.mallopt(_TRIM_THRESHOLD, 512 * 2**20)


def release_freed_memory() -> None:
    """Tell glibc to give freed memory back to the system: what follows the training has a plan of its own."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL("libc.so.6") if platform.libc_ver()[0] == "glibc" else None
