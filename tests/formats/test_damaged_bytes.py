"""Files with a few bytes changed: whatever a library raises at them is one clear error."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from astropy.io import fits

from safelight.core.errors import InputError
from safelight.core.run import JOURNAL
from safelight.formats.fits import open_fits
from safelight.formats.mesh import Mesh, read_mesh, write_mesh
from safelight.formats.microscopy import find_images, open_image
from safelight.formats.weights import read_weights


def read_image(path: Path) -> None:
    with open_image(path) as image:
        image.read()


def read_fits(path: Path) -> None:
    with open_fits(path) as image:
        image.read()


def old_checkpoint() -> bytes:
    """Return a checkpoint as PyTorch wrote them before version 1.6."""
    target = io.BytesIO()
    torch.save({"a.weight": torch.ones(3, 4)}, target, _use_new_zipfile_serialization=False)
    return target.getvalue()


def triangle() -> bytes:
    """Return a binary glTF file."""
    path = Path("whole.glb")
    write_mesh(path, Mesh(np.eye(3), np.array([[0, 1, 2]])))
    return path.read_bytes()


def frame() -> bytes:
    target = io.BytesIO()
    fits.PrimaryHDU(np.ones((2, 3), np.int16), fits.Header({"OBJECT": "one"})).writeto(target)
    return target.getvalue()


def changed(content: bytes, old: bytes, new: bytes) -> bytes:
    """Return a content of which one part is another."""
    assert content.count(old) == 1
    return content.replace(old, new)


@pytest.mark.parametrize(
    ("name", "make", "read"),
    [
        ("bracket.npy", lambda: b"\x93NUMPY\x01\x00\x0a\x00{'descr': (", read_image),
        ("word.fits", lambda: changed(frame(), b"OBJECT  ", b"BSCALE  "), read_fits),
        ("cut.pth", lambda: old_checkpoint().rpartition(b"q\x00X")[0] + b"q\x00X\x0e\x00", read_weights),
        ("storage.pth", lambda: changed(old_checkpoint(), b"Ntq\x07Q", b"q\x07Q"), read_weights),
        ("length.safetensors", lambda: b"\xff" * 99, read_weights),
        ("version.glb", lambda: changed(triangle(), b"glTF\x02", b"glTF\x03"), read_mesh),
        ("views.glb", lambda: changed(triangle(), b'"bufferViews"', b'"bufferViewz"'), read_mesh),
        ("empty.xyz", lambda: b"", read_mesh),
    ],
)
def test_damage_is_one_clear_error(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    make: Callable[[], bytes],
    read: Callable[[Path], object],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(make())
    with pytest.raises(InputError, match=name):
        read(tmp_path / name)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no named pipes among files")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.tif")
    (tmp_path / "image.npy").touch()
    with pytest.raises(InputError, match="is not a file"):
        find_images(tmp_path / "pipe.tif")
    assert find_images(tmp_path).paths == (tmp_path / "image.npy",)


@pytest.mark.parametrize("outputs", [3, ["a"], [{"path": 3}], [{}]])
def test_a_journal_of_another_program_hides_no_image(tmp_path: Path, outputs: object) -> None:
    (tmp_path / JOURNAL).write_text(json.dumps({"item": "a", "outputs": outputs}))
    (tmp_path / "image.npy").touch()
    assert find_images(tmp_path).paths == (tmp_path / "image.npy",)
