"""Exported models take raw pixels of any size and return what the model itself returns, without the network."""

from __future__ import annotations

import importlib.util
import shutil
import socket
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from safelight.core.errors import OutputError, UsageError
from safelight.pipelines.denoise import export
from safelight.pipelines.denoise.export import check_bmz, export_bmz, export_onnx
from safelight.pipelines.denoise.model import DenoiseModel, Normalisation
from safelight.pipelines.denoise.network import Architecture, UNet
from safelight.pipelines.denoise.prediction import Predictor

PLANES = Architecture(dims=2, depth=2, features=4)
CHANNELS = Architecture(dims=2, channels=2, depth=1, features=4, residual=True, top_skip=True, blur_pool=False)
VOLUMES = Architecture(dims=3, depth=1, features=4)
ARCHITECTURES = pytest.mark.parametrize("architecture", [PLANES, CHANNELS, VOLUMES], ids=["2d", "channels", "3d"])

# bioimageio.spec leaves files for the garbage collector to close.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


def model_of(architecture: Architecture) -> DenoiseModel:
    """A model with random weights, and statistics as of a 16-bit camera."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = UNet(architecture)
    channels = architecture.channels
    normalisation = Normalisation((1200.0, 40.0)[:channels], (310.0, 7.0)[:channels])
    return DenoiseModel(architecture, normalisation, network.state_dict(), facts={"steps": 700})


@pytest.fixture(autouse=True, scope="module")
def no_network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Any attempt to reach the network fails the test."""

    def refuse(*arguments: Any, **keywords: Any) -> None:
        raise AssertionError(f"the network was asked for {arguments}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        patch.setenv("BIOIMAGEIO_CACHE_PATH", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def package_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Architecture], Path]:
    """Returns the package of an architecture's model, exported once."""

    @cache
    def package(architecture: Architecture) -> Path:
        folder = tmp_path_factory.mktemp("bmz")
        return export_bmz(model_of(architecture), folder, authors=("A. Microscopist",), licence="CC0-1.0")

    return package


@pytest.fixture(scope="module")
def network_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Architecture], Path]:
    """Returns the ONNX network of an architecture's model, exported once."""

    @cache
    def network(architecture: Architecture) -> Path:
        return export_onnx(model_of(architecture), tmp_path_factory.mktemp("onnx"))

    return network


@ARCHITECTURES
def test_onnx_computes_what_the_model_computes(
    architecture: Architecture, network_of: Callable[[Architecture], Path]
) -> None:
    import onnxruntime

    model = model_of(architecture)
    session = onnxruntime.InferenceSession(str(network_of(architecture)))
    predictor = Predictor(model).eval()
    for batch, sizes in ((1, (8, 12, 20)), (3, (4, 32, 16))):
        generator = torch.Generator().manual_seed(batch)
        shape = (batch, architecture.channels, *sizes[-architecture.dims :])
        raw = 1000 * torch.rand(shape, generator=generator)
        with torch.no_grad():
            expected = predictor(raw)
        found = torch.from_numpy(session.run(None, {"noisy": raw.numpy()})[0])
        torch.testing.assert_close(found / predictor.std, expected / predictor.std, rtol=1e-5, atol=1e-5)


def test_onnx_that_computes_otherwise_is_not_kept(
    network_of: Callable[[Architecture], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(PLANES)
    brighter = replace(model, normalisation=Normalisation((1200.1,), (310.0,)))
    monkeypatch.setattr(export, "_write_onnx", lambda *arguments: shutil.copy(network_of(PLANES), arguments[-1]))
    export_onnx(model, tmp_path).unlink()
    with pytest.raises(OutputError, match="differs from PyTorch"):
        export_onnx(brighter, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("architecture", [PLANES, VOLUMES], ids=["2d", "3d"])
def test_bmz_passes_the_zoos_own_tests(architecture: Architecture, package_of: Callable[[Architecture], Path]) -> None:
    from bioimageio.core import test_model

    summary = test_model(package_of(architecture))
    assert summary.status == "passed"
    assert any("onnx" in detail.name for detail in summary.details)


def test_bmz_predicts_raw_pixels_as_the_model_does(package_of: Callable[[Architecture], Path]) -> None:
    from bioimageio.core import load_model_description, predict

    predictor = Predictor(model_of(CHANNELS)).eval()
    raw = 60 * torch.rand((1, 2, 64, 48), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = predictor(raw)
    result = predict(model=load_model_description(package_of(CHANNELS)), inputs={"noisy": raw.numpy()})
    found = torch.from_numpy(np.asarray(result.members["denoised"].data.data))
    inner = (..., slice(12, -12), slice(12, -12))  # bioimageio pads what the border influences
    deviations = ((found - expected) / predictor.std)[inner]
    torch.testing.assert_close(deviations, torch.zeros_like(deviations), rtol=0, atol=1e-4)


def test_bmz_holds_what_a_reader_needs(package_of: Callable[[Architecture], Path]) -> None:
    with zipfile.ZipFile(package_of(PLANES)) as package:
        files = {name: package.read(name) for name in package.namelist()}
    assert set(files) >= {"README.md", "cover.png", "model.onnx", "test_input.npy", "test_output.npy"}
    with Image.open(BytesIO(files["cover.png"])) as cover:
        assert cover.width == 2 * cover.height
    text = files["README.md"].decode()
    for words in ("mean\n(1200)", "(310)", "# Validation", "steps: 700"):
        assert words in text
    description = next(content for name, content in files.items() if name.endswith(".yaml")).decode()
    for words in ("CC0-1.0", "A. Microscopist", "10.1109/CVPR.2019.00223", "fixed_zero_mean_unit_variance"):
        assert words in description


def test_a_damaged_package_is_refused(package_of: Callable[[Architecture], Path], tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.zip"
    with zipfile.ZipFile(package_of(PLANES)) as whole, zipfile.ZipFile(damaged, "w") as part:
        for name in whole.namelist():
            content = whole.read(name)
            if name == "test_output.npy":
                content = content[:-400] + bytes(400)
            if name.endswith(".yaml"):
                content = b"\n".join(line for line in content.splitlines() if b"sha256" not in line)
            part.writestr(name, content)
    with pytest.raises(OutputError, match="does not work"):
        check_bmz(damaged)


def test_an_unknown_licence_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'free for all'"):
        export_bmz(model_of(PLANES), tmp_path, licence="free for all")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("write", "missing", "extra"),
    [(export_onnx, "onnxruntime", "onnx"), (partial(export_bmz, licence="MIT"), "bioimageio", "bmz")],
)
def test_a_missing_extra_is_named(
    write: Any, missing: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else find(name))
    with pytest.raises(UsageError, match=rf"pip install safelight\[{extra}\]"):
        write(model_of(PLANES), tmp_path)
