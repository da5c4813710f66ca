"""Frames come in order, a few ahead, and none that is bad stops the rest."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from dng import BAYER, with_sha1, write_dng
from safelight.formats.raw import RawSize
from safelight.pipelines.pairs import decoding
from safelight.pipelines.pairs.decoding import Decoded, decode_ahead, frames_ahead
from safelight.pipelines.pairs.items import FrameFile, frame_file


def frames(folder: Path, number: int) -> list[FrameFile]:
    paths = [
        with_sha1(write_dng(folder / f"{n}_ISO1.dng", np.full((48, 60), n, np.uint16), BAYER["RGGB"]))
        for n in range(number)
    ]
    return [frame_file(path, path.name) for path in paths]


def test_frames_come_in_their_order(tmp_path: Path) -> None:
    files = frames(tmp_path, 7)
    levels = [decoded.frame.mosaic[0, 0] for decoded in decode_ahead(files) if decoded.frame]
    assert levels == list(range(7))


def test_bad_frames_come_with_the_reason(tmp_path: Path) -> None:
    files = frames(tmp_path, 4)
    files[1].path.write_bytes(files[2].path.read_bytes())
    files[2].path.unlink()
    good, swapped, missing, last = decode_ahead(files)
    assert good.frame is not None
    assert last.frame is not None
    assert "another" in str(swapped.error)
    assert swapped.sha1 == files[2].sha1
    assert "cannot be read" in str(missing.error)
    assert all(decoded.error.path == decoded.file.path for decoded in (swapped, missing) if decoded.error)


def test_no_more_frames_are_held_than_are_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scene of 30 frames takes no more memory than one of 3."""
    held: set[str] = set()
    most = 0
    lock = threading.Lock()

    def decode(file: FrameFile) -> Decoded:
        nonlocal most
        with lock:
            held.add(file.name)
            most = max(most, len(held))
        return Decoded(file, "")

    monkeypatch.setattr(decoding, "decode", decode)
    files = [FrameFile(Path(str(n)), str(n), RawSize(4000, 6000, 4000, 6000)) for n in range(30)]
    for decoded in decode_ahead(files):
        time.sleep(0.002)
        with lock:
            held.remove(decoded.file.name)
    assert most <= 1 + frames_ahead(files[0]) == 3


def test_the_maths_leaves_cores_to_the_decoding(tmp_path: Path) -> None:
    """Threads that wait for each other spin: a scene took twice as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        assert {torch.get_num_threads() for _ in decode_ahead(frames(tmp_path, 3))} == {4 - decoding.THREADS}
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(threads)


def test_large_frames_are_read_one_ahead() -> None:
    large = FrameFile(Path("a"), "a", RawSize(6700, 9000, 6700, 9000))
    assert frames_ahead(large) == 1


def test_who_stops_early_waits_for_no_more_than_what_has_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = []
    real = decoding.decode
    monkeypatch.setattr(decoding, "decode", lambda file: (begun.append(file), real(file))[1])
    files = frames(tmp_path, 12)
    stream = decode_ahead(files)
    next(stream)
    stream.close()
    assert len(begun) <= 4
