"""Frames decoded in threads beside the maths: a few ahead, so that a scene's size never grows the memory."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from safelight.core.device import threads_beside
from safelight.core.errors import InputError, SafelightError
from safelight.formats.raw import RawFrame, read_raw
from safelight.pipelines.pairs.items import FrameFile

THREADS = 2
"""LibRaw lets other threads run while it decodes; more of them than the maths can follow only take memory."""
AHEAD_BYTES = 200_000_000
"""Most bytes of frames that are decoded or being decoded ahead; one frame always is."""
ANCHORS_BYTES = 400_000_000
"""Most bytes of ground truths held at once; more of them take turns, and the noisy frames are decoded again."""
_ANCHOR_COPIES = 2
"""A prepared ground truth takes its mosaic, its grey image and its spectrum: about twice the mosaic."""


@dataclass(frozen=True)
class Decoded:
    """A frame as it was read, or why it could not be.

    Parameters
    ----------
    file : FrameFile
    sha1 : str
        Of the file's content; empty where it cannot be read.
    frame : RawFrame, optional
    error : SafelightError, optional
        Exactly one of the two is there.
    """

    file: FrameFile
    sha1: str
    frame: RawFrame | None = None
    error: SafelightError | None = None


def decode(file: FrameFile) -> Decoded:
    """Decode a frame whose content is what its name says."""
    sha1 = ""
    try:
        sha1 = sha1_of(file.path)
        if file.sha1 not in (None, sha1):
            raise InputError(
                f"its content has sha1 {sha1}, its name says another", path=file.path, remedy="copy the file again"
            )
        return Decoded(file, sha1, read_raw(file.path))
    except SafelightError as error:
        return Decoded(file, sha1, error=error)


def decode_ahead(files: Sequence[FrameFile]) -> Iterator[Decoded]:
    """Decode frames in their order, a few ahead of the one that is taken; the maths between has the other cores."""
    left, waiting = deque(files), deque[Future[Decoded]]()
    with threads_beside(THREADS), ThreadPoolExecutor(THREADS, thread_name_prefix="safelight-decode") as pool:

        def submit() -> None:
            while left and len(waiting) < frames_ahead(left[0]):
                waiting.append(pool.submit(decode, left.popleft()))

        try:
            submit()
            while waiting:
                decoded = waiting.popleft().result()
                submit()  # now, so that it is decoded while the one before is worked on
                yield decoded
        finally:
            for future in waiting:
                future.cancel()


def frames_ahead(file: FrameFile) -> int:
    """Return how many frames of a size are decoded ahead."""
    return min(max(AHEAD_BYTES // file.size.decoded_bytes, 1), THREADS)


def anchor_groups(files: Sequence[FrameFile]) -> Iterator[list[FrameFile]]:
    """Return ground truths in groups that memory holds, at least one each."""
    group: list[FrameFile] = []
    for file in files:
        if group and _ANCHOR_COPIES * sum(f.size.decoded_bytes for f in (*group, file)) > ANCHORS_BYTES:
            yield group
            group = []
        group.append(file)
    if group:
        yield group


def sha1_of(path: Path) -> str:
    """Return the digest of a file's content.

    Raises
    ------
    InputError
        It cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, lambda: hashlib.sha1(usedforsecurity=False)).hexdigest()
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", path=path) from error
