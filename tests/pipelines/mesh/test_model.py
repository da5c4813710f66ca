"""Files of weights: what was written is read, and what does not belong together is an error that says so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial import ConvexHull

from safelight.core.errors import InputError
from safelight.formats.weights import read_weights, write_weights
from safelight.pipelines.mesh.hypotheses import icosahedron
from safelight.pipelines.mesh.model import Model, read_model, write_model
from safelight.pipelines.mesh.networks import CoarseNetwork, RefineNetwork
from safelight.pipelines.mesh.template import make_template
from safelight.pipelines.mesh.variant import Variant


@pytest.fixture(scope="module")
def model() -> Model:
    corners = icosahedron()
    template = make_template(corners, ConvexHull(corners).simplices)
    return Model(245.0, CoarseNetwork(template, Variant(own_views=True)), RefineNetwork(), template)


@pytest.fixture(scope="module")
def written(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "both.safetensors"
    write_model(path, model)
    return path


def test_a_model_comes_back(model: Model, written: Path) -> None:
    read = read_model([written], Variant(signed_scores=True))
    assert read.focal == model.focal
    assert model.template is not None
    assert read.template is not None
    assert read.template.digest == model.template.digest
    for was, came in ((model.coarse, read.coarse), (model.refine, read.refine)):
        assert was is not None
        assert came is not None
        for name, value in was.state_dict().items():
            torch.testing.assert_close(came.state_dict()[name], value, rtol=0, atol=0)
        assert came.variant == Variant(own_views=came is read.coarse, signed_scores=True), (
            "its own, and those asked for"
        )


def test_another_template_is_refused(written: Path, tmp_path: Path) -> None:
    weights = read_weights(written)
    weights.tensors["template.coordinates"][0, 0] += 0.01
    write_weights(tmp_path / "other.safetensors", weights.tensors, weights.metadata)
    with pytest.raises(InputError, match="template is not the one that its weights were trained with"):
        read_model([tmp_path / "other.safetensors"])


def test_a_stage_comes_once(written: Path) -> None:
    with pytest.raises(InputError, match="the coarse stage is in"):
        read_model([written, written])


def test_stages_of_other_cameras_do_not_belong_together(model: Model, tmp_path: Path) -> None:
    write_model(tmp_path / "coarse.safetensors", Model(248.0, coarse=model.coarse, template=model.template))
    write_model(tmp_path / "refine.safetensors", Model(245.0, refine=model.refine))
    with pytest.raises(InputError, match=r"coarse\.safetensors 248, refine\.safetensors 245"):
        read_model([tmp_path / "coarse.safetensors", tmp_path / "refine.safetensors"])


@pytest.mark.parametrize(
    ("metadata", "problem"),
    [
        ({}, "does not say which focal length"),
        ({"focal": "245.0", "refine.variant": '{"unknown": true}'}, "variant of the refine stage is unknown"),
    ],
)
def test_what_is_said_about_the_weights_is_checked(
    model: Model, tmp_path: Path, metadata: dict[str, str], problem: str
) -> None:
    assert model.refine is not None
    tensors = {f"refine.{name}": value for name, value in model.refine.state_dict().items()}
    write_weights(tmp_path / "w.safetensors", tensors, metadata)
    with pytest.raises(InputError, match=problem):
        read_model([tmp_path / "w.safetensors"])


def test_no_stage_at_all(tmp_path: Path) -> None:
    write_weights(tmp_path / "w.safetensors", {"a": torch.from_numpy(np.zeros(3, np.float32))}, {"focal": "1"})
    with pytest.raises(InputError, match="neither the coarse nor the refining stage"):
        read_model([tmp_path / "w.safetensors"])
