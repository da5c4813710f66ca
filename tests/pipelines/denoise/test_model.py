"""A model file: everything needed to use it again, and a clear error for anything else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from safelight.core.errors import InputError
from safelight.pipelines.denoise.model import VERSION, DenoiseModel, Normalisation
from safelight.pipelines.denoise.network import Architecture, UNet
from safelight.pipelines.denoise.structure import line


def a_model() -> DenoiseModel:
    architecture = Architecture(channels=2, features=4, depth=1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = UNet(architecture).state_dict()
    return DenoiseModel(
        architecture, Normalisation((1.5, 2.5), (3.0, 4.0)), weights, "CYX", line(1, "horizontal"), {"steps": 7}
    )


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    a_model().save(path)
    return path


def rewrite(path: Path, change_weights: object = None, **metadata: str) -> None:
    """Write a model file again with something changed."""
    with safe_open(path, "pt") as file:
        kept = dict(file.metadata())
        weights = {name: file.get_tensor(name) for name in file.keys()}
    if callable(change_weights):
        change_weights(weights)
    save_file(weights, path, kept | metadata)


def test_a_saved_model_comes_back_whole(saved: Path) -> None:
    model, loaded = a_model(), DenoiseModel.load(saved)
    assert (loaded.architecture, loaded.normalisation) == (model.architecture, model.normalisation)
    assert (loaded.axes, loaded.structure, loaded.facts) == (model.axes, model.structure, model.facts)
    x = torch.randn(1, 2, 16, 16, generator=torch.Generator().manual_seed(1))
    assert torch.equal(loaded.network()(x), model.network()(x))


def test_normalisation_is_undone_exactly_per_channel() -> None:
    normalisation = Normalisation((10.0, 20.0), (2.0, 4.0))
    values = torch.tensor([[10.0, 12.0], [20.0, 28.0]])
    torch.testing.assert_close(normalisation.apply(values), torch.tensor([[0.0, 1.0], [0.0, 2.0]]))
    torch.testing.assert_close(normalisation.undo(normalisation.apply(values[None], 1), 1), values[None])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such model") as caught:
        DenoiseModel.load(tmp_path / "none.safetensors")
    assert caught.value.path == tmp_path / "none.safetensors"


@pytest.mark.parametrize("content", [b"", b"not a model at all", b"\xff" * 64])
def test_garbage_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match="not a safetensors file"):
        DenoiseModel.load(path)


def test_weights_of_something_else_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(InputError, match="weights of something else"):
        DenoiseModel.load(path)


def test_a_newer_version_says_so(saved: Path) -> None:
    rewrite(saved, version=str(VERSION + 1))
    with pytest.raises(InputError, match="newer Safelight"):
        DenoiseModel.load(saved)


def _remove(weights: dict[str, torch.Tensor]) -> None:
    del weights["last.weight"]


def _add(weights: dict[str, torch.Tensor]) -> None:
    weights["surplus"] = torch.zeros(1)


def _reshape(weights: dict[str, torch.Tensor]) -> None:
    weights["last.weight"] = torch.zeros(2, 5, 1, 1)


def _break(weights: dict[str, torch.Tensor]) -> None:
    weights["last.bias"][0] = torch.nan


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_remove, r"lacks weights: last\.weight"),
        (_add, "unknown weights: surplus"),
        (_reshape, r"last\.weight \(2, 5, 1, 1\) instead of \(2, 4, 1, 1\)"),
        (_break, r"not finite: last\.bias"),
    ],
)
def test_weights_that_do_not_fit_are_named(saved: Path, change: object, message: str) -> None:
    rewrite(saved, change)
    with pytest.raises(InputError, match=message):
        DenoiseModel.load(saved)


@pytest.mark.parametrize(
    "description",
    ["", "{", "[]", json.dumps({"architecture": {"dims": 9}}), json.dumps({"architecture": {"unknown": 1}})],
)
def test_a_damaged_description_is_refused(saved: Path, description: str) -> None:
    rewrite(saved, model=description)
    with pytest.raises(InputError, match="description is damaged"):
        DenoiseModel.load(saved)


def test_a_normalisation_of_another_number_of_channels_is_refused(saved: Path) -> None:
    with safe_open(saved, "pt") as file:
        description = json.loads(file.metadata()["model"])
    rewrite(saved, model=json.dumps(description | {"mean": [1.0]}))
    with pytest.raises(InputError, match=r"2 channel\(s\)"):
        DenoiseModel.load(saved)
