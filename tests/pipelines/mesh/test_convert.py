"""The names in the published TensorFlow checkpoints are those of the networks here."""

from __future__ import annotations

import json
import pickle
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


def test_the_published_pickle_holds_the_same_template(shared: Path) -> None:
    folder = shared / "data" / "mesh"
    template = read_template(folder / "p2mpp_template_regenerated.dat")
    assert template.digest == read_template(folder / "p2mpp_template_regenerated.npz").digest


FAR = np.array([[0, 1, 2], [0, 3, 1], [1, 3, 2], [0, 2, 3]])
"""A tetrahedron: one more vertex than there are."""


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"sample_coord": np.zeros((42, 3))}, "has no array coord of triples"),
        ({"coord": np.zeros((4, 3)), "faces_triangle": []}, "has no array faces_triangle of triples"),
        ({"coord": np.zeros((4, 3)), "faces_triangle": [np.array([[0, 1, 9]])]}, "belongs to 1 face"),
        ({"coord": np.zeros((3, 3)), "faces_triangle": [FAR]}, "cannot be read as a template"),
        ({"coord": eval}, "eval"),
    ],
)
def test_another_pickle_is_no_template(tmp_path: Path, content: object, problem: str) -> None:
    (tmp_path / "a.dat").write_bytes(pickle.dumps(content))
    with pytest.raises(InputError, match=problem) as caught:
        read_template(tmp_path / "a.dat")
    assert caught.value.path == tmp_path / "a.dat"
