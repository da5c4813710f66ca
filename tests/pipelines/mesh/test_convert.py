"""The names in the published TensorFlow checkpoints are those of the networks here."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from safelight.core.errors import InputError
from safelight.pipelines.mesh.convert import _name, _turned, read_template


def published(shared: Path) -> dict[str, tuple[str, list[int]]]:
    """The stage and shape of every tensor of both published checkpoints by TensorFlow's name."""
    tensors, stage = {}, ""
    for line in (shared / "parity" / "mesh" / "ckpt_tensors.txt").read_text().splitlines():
        if match := re.match(r"(\S+)\.ckpt-\d+\.index ", line):
            stage = "stage1" if match[1] == "meshnetmvp2m" else "stage2"
        elif match := re.match(r"\s+(\S+) (\[[\d, ]*\]) ", line):
            tensors[match[1]] = stage, json.loads(match[2])
    return tensors


def test_every_published_tensor_has_its_place(shared: Path) -> None:
    names = json.loads((shared / "parity" / "mesh" / "names.json").read_text())
    found: dict[str, dict[str, list[int]]] = {"stage1": {}, "stage2": {}}
    for name, (stage, shape) in published(shared).items():
        found[stage][_name(Path("a.index"), name)] = list(_turned(name, np.zeros(shape, np.float32)).shape)
    assert found == names


def test_a_tensor_of_another_network_is_named() -> None:
    with pytest.raises(InputError, match="resnet/conv1/W belongs to no stage"):
        _name(Path("a.index"), "resnet/conv1/W")


def test_the_published_template(shared: Path) -> None:
    template = read_template(shared / "data" / "mesh" / "p2mpp_template_regenerated.npz")
    assert [level.vertices for level in template.levels] == [156, 618, 2466]
