"""The network as the Executor runs it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from safelight.core.execute import Executor
from safelight.core.kernel import ModuleKernel
from safelight.core.stream import TensorSink, TensorSource
from safelight.pipelines.decloud.model import CloudModel
from safelight.pipelines.decloud.network import GLFCR, OPTICAL_BANDS, SAR_BANDS


class Predictor(nn.Module):
    """The network with both modalities in one tensor."""

    def __init__(self, network: GLFCR) -> None:
        super().__init__()
        self.network = network

    def forward(self, both: Tensor) -> Tensor:
        """Map (B, 15, Y, X), optical bands first, normalised, to (B, 13, Y, X), float32."""
        clear: Tensor = self.network(both[:, :OPTICAL_BANDS], both[:, OPTICAL_BANDS:])
        return clear.float()


def kernel_of(model: CloudModel) -> ModuleKernel:
    """Return a model as the Executor runs it."""
    a = model.architecture
    name = f"glf-cr {a.stages}×{a.layers}, features {a.features}+{a.growth}"
    return ModuleKernel(name, Predictor(model.network()).eval())


def predict(kernel: ModuleKernel, cloudy: Tensor, sar: Tensor, executor: Executor) -> Tensor:
    """Return images without clouds.

    Parameters
    ----------
    kernel : ModuleKernel
        From ``kernel_of``.
    cloudy, sar : Tensor
        (B, 13, Y, X) and (B, 2, Y, X), normalised.
    executor : Executor
        Cuts the batch where memory is short.
    """
    source = TensorSource(torch.cat((cloudy, sar), 1))
    sink = TensorSink(source.extent)
    executor.map(kernel, source, sink)
    return sink.result


def empty_batch(side: int) -> Tensor:
    """Return one image of which only the size matters."""
    return torch.zeros((1, OPTICAL_BANDS + SAR_BANDS, side, side))
