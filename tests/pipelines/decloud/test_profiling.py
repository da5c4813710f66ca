"""What the network costs: counted, the parts adding up to the whole."""

from __future__ import annotations

import pytest
import torch

from safelight.core.device import Device
from safelight.pipelines.decloud.model import CloudModel
from safelight.pipelines.decloud.network import Architecture
from safelight.pipelines.decloud.prediction import kernel_of
from safelight.pipelines.decloud.profiling import measure_parts

CPU = Device(torch.device("cpu"))


def test_a_convolution_s_operations_are_counted_and_parts_add_up() -> None:
    kernel = kernel_of(CloudModel.untrained(Architecture(features=16, growth=8, stages=2, layers=2)))
    costs = {cost.part: cost for cost in measure_parts(kernel, 32, CPU)}
    assert costs["SFENet1"].operations == 2 * 16 * 16 * 16 * 52 * 25
    assert costs["SFENet2"].operations == 2 * 16 * 16 * 16 * 16 * 9
    whole = costs.pop("GLF-CR")
    assert 0.98 < sum(cost.operations for cost in costs.values()) / whole.operations <= 1
    assert all(cost.seconds > 0 for cost in costs.values())


@pytest.mark.slow
def test_the_published_network_takes_125_gflop_for_128_pixels() -> None:
    costs = {cost.part: cost for cost in measure_parts(kernel_of(CloudModel.untrained(Architecture())), 128, CPU)}
    assert costs["GLF-CR"].operations / 1e9 == pytest.approx(124.93, rel=0.005)
    assert costs["RDBs.3"].operations / 1e9 == pytest.approx(13.7, abs=0.1)
    assert costs["DF.3"].operations / 1e9 == pytest.approx(6.0, abs=0.1)
