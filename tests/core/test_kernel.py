"""Kernels on the way to a device."""

from __future__ import annotations

import torch
from torch import nn

from safelight.core.kernel import ModuleKernel
from safelight.core.memory import Ledger


def a_network() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64)).eval()


def test_a_network_on_its_way_is_never_twice_on_the_host() -> None:
    kernel = ModuleKernel("network", a_network())
    with Ledger() as ledger:
        there = kernel.to(torch.device("cpu"))
        assert ledger.peak == 0, "it is there already"
        on_meta = kernel.to(torch.device("meta"))
    weights = sum(tensor.nbytes for tensor in kernel.module.state_dict().values())
    assert ledger.peak == weights, "the shapes, and no copy beside them"
    assert {tensor.device.type for tensor in on_meta.module.state_dict().values()} == {"meta"}
    rows = torch.rand(5, 64)
    assert torch.equal(there(rows), kernel(rows))


def test_weights_that_two_layers_share_stay_shared() -> None:
    layer = nn.Linear(4, 4)
    there = ModuleKernel("network", nn.Sequential(layer, nn.ReLU(), layer)).to(torch.device("meta"))
    assert there.module.get_submodule("0").weight is there.module.get_submodule("2").weight


def test_a_network_keeps_its_mode_and_what_is_trained() -> None:
    network = a_network()
    network[0].weight.requires_grad_(False)
    there = ModuleKernel("network", network).to(torch.device("meta")).module
    assert not there.training
    assert [p.requires_grad for p in there.parameters()] == [False, True, True, True]
