"""Models on disk: strict about every weight, lenient about masks only."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from safelight.core.errors import InputError
from safelight.formats.weights import write_weights
from safelight.pipelines.decloud.model import CloudModel
from safelight.pipelines.decloud.network import GLFCR, Architecture

TINY = Architecture(features=8, growth=8, stages=1, layers=2)
MASK = "RDBs.0.convs.1.attn_mask"


def test_a_model_comes_back_as_it_was(tmp_path: Path) -> None:
    model = CloudModel(TINY, GLFCR(TINY).state_dict(), {"epochs": 3})
    model.save(tmp_path / "w.safetensors")
    again = CloudModel.load(tmp_path / "w.safetensors")
    assert (again.architecture, again.facts) == (TINY, {"epochs": 3})
    assert again.network().state_dict().keys() == model.weights.keys()
    assert all(torch.equal(again.weights[name], tensor) for name, tensor in model.weights.items())


@pytest.fixture(scope="module")
def published() -> dict[str, torch.Tensor]:
    return GLFCR(Architecture()).state_dict()


@pytest.mark.parametrize("masks", ["of 128", "of 256", "none"])
def test_a_checkpoint_is_read_whatever_size_it_was_trained_at(
    tmp_path: Path, published: dict[str, torch.Tensor], masks: str
) -> None:
    state = dict(published)
    for name in [name for name in state if name.endswith("attn_mask")]:
        del state[name]
        if masks != "none":
            state[name] = torch.zeros(64 if masks == "of 128" else 256, 64, 64)
    torch.save({"network": state}, tmp_path / "net.pth")
    model = CloudModel.load(tmp_path / "net.pth")
    assert torch.equal(model.weights[MASK], published[MASK])
    assert torch.equal(model.network().SFENet1.weight, published["SFENet1.weight"])


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda state: state.pop("GFF.0.bias"), "1 missing: GFF.0.bias"),
        (lambda state: state.update({"GFF.2.bias": torch.ones(1)}), "1 unknown: GFF.2.bias"),
        (lambda state: state.update({"GFF.0.bias": torch.ones(7)}), r"1 of another shape: GFF.0.bias \(7,\) instead"),
        (lambda state: state.update({"GFF.0.bias": torch.full((8,), torch.nan)}), "1 not finite: GFF.0.bias"),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path: Path, change: object, problem: str) -> None:
    state = GLFCR(TINY).state_dict()
    assert callable(change)
    change(state)
    CloudModel(TINY, state).save(tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=problem):
        CloudModel.load(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("metadata", "problem"),
    [
        ({"format": "safelight-decloud", "version": "2"}, "version '2'"),
        ({"format": "safelight-decloud", "version": "1", "model": "{"}, "description is damaged"),
        ({}, "of another network"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, metadata: dict[str, str], problem: str) -> None:
    write_weights(tmp_path / "w.safetensors", {"x": torch.ones(1)}, metadata)
    with pytest.raises(InputError, match=problem):
        CloudModel.load(tmp_path / "w.safetensors")
