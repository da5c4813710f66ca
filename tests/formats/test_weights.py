"""Checkpoints as they are found in the wild: read without executing anything in them."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from safelight.core.errors import InputError, UnsafeInputError
from safelight.formats.weights import read_weights, write_weights

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(2)}


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        {"network": STATE},
        {
            "model_state_dict": STATE,
            "optimizer_state_dict": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 1e-4}]},
            "epoch": 3,
            "val_psnr": np.float64(28.5),
            "best_val_psnr": np.float32(28.5),
            "opts": argparse.Namespace(lr=1e-4, name="x", nested=argparse.Namespace(betas=(0.9, 0.999))),
        },
        {"network": {f"module.{name}": tensor for name, tensor in STATE.items()}},
    ],
    ids=["raw", "network", "training checkpoint", "distributed"],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_every_container_gives_the_same_weights(tmp_path: Path, content: object, zipped: bool) -> None:
    path = tmp_path / "net.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    found = read_weights(path)
    assert found.tensors.keys() == STATE.keys()
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in STATE.items())


def test_a_safetensors_file_keeps_its_metadata(tmp_path: Path) -> None:
    write_weights(tmp_path / "w.safetensors", STATE, {"format": "x"})
    found = read_weights(tmp_path / "w.safetensors")
    assert found.metadata == {"format": "x"}
    assert torch.equal(found.tensors["a.weight"], STATE["a.weight"])


class Attack:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.trace),))


def test_a_checkpoint_that_would_run_code_is_refused_and_nothing_runs(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    torch.save({"network": STATE, "opts": argparse.Namespace(x=Attack(trace))}, tmp_path / "net.pth")
    with pytest.raises(UnsafeInputError, match="not data"):
        read_weights(tmp_path / "net.pth")
    assert not trace.exists()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "cannot be read|damaged"),
        (b"PK\x03\x04 half a file", "cannot be read|damaged"),
        (b"\x08\x00\x00\x00\x00\x00\x00\x00{broken}", "safetensors file is damaged"),
    ],
)
def test_a_damaged_file_is_one_clear_error(tmp_path: Path, content: bytes, problem: str) -> None:
    (tmp_path / "net.pth").write_bytes(content)
    with pytest.raises(InputError, match=problem):
        read_weights(tmp_path / "net.pth")


@pytest.mark.parametrize("content", [{}, {"network": 3}, [1, 2], {"epoch": 3, "a": torch.ones(1)}])
def test_a_checkpoint_without_weights_says_so(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "net.pth")
    with pytest.raises(InputError, match="no weights"):
        read_weights(tmp_path / "net.pth")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.pth"):
        read_weights(tmp_path / "none.pth")


def test_the_same_weights_are_the_same_bytes(tmp_path: Path) -> None:
    metadata = {name: f"{name} é \\ \n \x7f" for name in "abcdefgh"}
    files = [tmp_path / f"{number}.safetensors" for number in range(4)]
    for file in files:
        write_weights(file, {"w": torch.arange(3.0)}, metadata)
    assert len({file.read_bytes() for file in files}) == 1
    assert read_weights(files[0]).metadata == metadata
    assert torch.equal(read_weights(files[0]).tensors["w"], torch.arange(3.0))


def test_weights_without_metadata_are_written(tmp_path: Path) -> None:
    write_weights(tmp_path / "w.safetensors", {"w": torch.arange(3.0)}, {})
    read = read_weights(tmp_path / "w.safetensors")
    assert (read.tensors["w"].tolist(), read.metadata) == ([0, 1, 2], {})
