"""GLF-CR beside values of the original: the whole network, one layer, the filter, the metrics, data and masks."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from safelight.kernels.dynamic_filter import dynamic_filter
from safelight.pipelines.decloud.network import GLFCR, Architecture, shift_regions

TOLERANCE = 5e-6


@pytest.fixture(scope="module")
def pack(shared: Path) -> dict[str, np.ndarray]:
    with np.load(shared / "parity" / "decloud" / "golden.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def network(shared: Path) -> GLFCR:
    recipe = runpy.run_path(str(shared / "parity" / "decloud" / "recipe.py"))
    made = GLFCR(Architecture()).eval()
    made.load_state_dict(recipe["recipe_state_dict"](made.state_dict()))
    return made


def tensors(pack: dict[str, np.ndarray], *names: str) -> list[Tensor]:
    return [torch.from_numpy(pack[name]) for name in names]


def test_the_state_dict_is_that_of_published_checkpoints(shared: Path, network: GLFCR) -> None:
    listed = (shared / "parity" / "decloud" / "state_dict_keys.txt").read_text().splitlines()
    ours = [f"{name}\t{tuple(t.shape)}\t{t.dtype}" for name, t in network.state_dict().items()]
    assert ours == [line.rstrip() for line in listed]
    assert sum(parameter.numel() for parameter in network.parameters()) == 14_827_373


@torch.no_grad()
def test_the_network_gives_the_original_s_result(pack: dict[str, np.ndarray], network: GLFCR) -> None:
    cloudy, sar, expected = tensors(pack, "net64_cloudy", "net64_sar", "net64_out")
    assert (network(cloudy, sar) - expected).abs().max() <= TOLERANCE


@torch.no_grad()
def test_a_layer_gives_the_original_s_result_in_double_precision(pack: dict[str, np.ndarray], network: GLFCR) -> None:
    layer = network.RDBs[0].convs[1].double()
    x, x_sar, *expected = tensors(pack, "rdbconv_in", "rdbconv_in_sar", "rdbconv_out", "rdbconv_out_sar")
    found = layer(x, x_sar, shift_regions(16, 16, x.device))
    layer.float()
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [3, 5])
def test_the_filter_and_its_gradients(pack: dict[str, np.ndarray], size: int) -> None:
    x, k, g, y, dx, dk = tensors(pack, *(f"fac{size}_{part}" for part in ("x", "k", "g", "y", "dx", "dk")))
    x.requires_grad_()
    k.requires_grad_()
    ours = dynamic_filter(nn.functional.pad(x, (size // 2,) * 4, mode="replicate"), k)
    ours.backward(g)
    for found, expected in ((ours, y), (x.grad, dx), (k.grad, dk)):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
