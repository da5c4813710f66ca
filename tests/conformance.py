"""Every kernel against its float64 oracle, on every device there is, and on meta, where hidden waiting fails.

In a process of its own also on a device as strict as a GPU: ``tests/end_to_end/test_gpu.py`` starts that.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

import pretended_gpu
from safelight.core.device import devices
from safelight.core.kernel import KernelInfo
from safelight.kernels import all_kernels

KERNELS = all_kernels()
if pretended_gpu.is_wanted():
    pretended_gpu.register()
DEVICES = [pretended_gpu.NAME] if pretended_gpu.is_wanted() else [info.name for info in devices()]


def as_array(value: Tensor) -> np.ndarray:
    array: np.ndarray = value.cpu().numpy()
    return array.astype(np.float64) if array.dtype.kind == "f" else array


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("info", KERNELS, ids=lambda info: info.name)
def test_a_kernel_agrees_with_its_oracle(info: KernelInfo, device: str) -> None:
    checked = 0
    for dtype, (rtol, atol) in info.tolerances.items():
        for sample in info.samples(torch.device(device), dtype):
            result = info.function(*sample.arguments, **sample.keywords)
            assert result.device.type == torch.device(device).type
            arguments, keywords = tree_map_only(Tensor, as_array, (sample.arguments, dict(sample.keywords)))
            expected = info.oracle(*arguments, **keywords)
            np.testing.assert_allclose(as_array(result), expected, rtol=rtol, atol=atol)
            checked += 1
    assert checked, "the kernel declares no sample"


@pytest.mark.parametrize("info", KERNELS, ids=lambda info: info.name)
def test_a_kernel_waits_for_nothing(info: KernelInfo) -> None:
    def to_meta(value: Any) -> Any:
        return tree_map_only(Tensor, lambda tensor: tensor.to("meta"), value)

    for sample in info.samples(torch.device("cpu"), torch.float32):
        result = info.function(*to_meta(sample.arguments), **to_meta(dict(sample.keywords)))
        assert result.device.type == "meta"
        assert result.shape == info.function(*sample.arguments, **sample.keywords).shape


def test_every_kernel_has_a_name_of_its_own() -> None:
    names = [info.name for info in KERNELS]
    assert names
    assert len(set(names)) == len(names)
