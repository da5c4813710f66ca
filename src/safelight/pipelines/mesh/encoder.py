"""The network that turns a view into maps of features: 18 convolutions, six scales."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional

CHANNELS = (16, 32, 64, 128, 256, 512)
"""Of the maps of 224, 112, 56, 28, 14 and 7 pixels."""
_KERNELS = (3, 3, 3, 3, 5, 5)
"""Of the first convolution of each scale, which halves the resolution (but the first)."""
_FIRST = (1, 3, 6, 9, 12, 15)
_LAST = (2, 5, 8, 11, 14, 18)
"""Numbers of the first and last convolution of each scale."""


class Encoder(nn.Module):
    """Convolutions ``conv1`` to ``conv18``, a ReLU after each.

    Parameters
    ----------
    scales : range
        Which of the six scales are wanted; coarser ones have weights, and are not computed.
    """

    def __init__(self, scales: range) -> None:
        super().__init__()
        self._scales = scales
        before = (3, *CHANNELS)
        for (given, wanted), kernel, first, last in zip(pairwise(before), _KERNELS, _FIRST, _LAST, strict=True):
            stride = 1 if first == 1 else 2
            self.add_module(f"conv{first}", nn.Conv2d(given, wanted, kernel, stride))
            for number in range(first + 1, last + 1):
                self.add_module(f"conv{number}", nn.Conv2d(wanted, wanted, 3))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return maps of features.

        Parameters
        ----------
        images : Tensor
            (views, 3, 224, 224), blue first, 0 to 1.

        Returns
        -------
        list of Tensor
            (views, channels, height, width) each.
        """
        maps, x = [], images
        for scale in range(self._scales.stop):
            for number in range(_FIRST[scale], _LAST[scale] + 1):
                x = functional.relu(self._convolve(number, x))
            if scale in self._scales:
                maps.append(x)
        return maps

    def _convolve(self, number: int, x: Tensor) -> Tensor:
        """Convolve, padded as TensorFlow's SAME: what is left over of the padding goes to the right and below."""
        layer = self.get_submodule(f"conv{number}")
        assert isinstance(layer, nn.Conv2d)
        total = layer.kernel_size[0] - layer.stride[0]
        before = total // 2
        after = total - before
        padded = functional.pad(x, (before, after, before, after))
        convolved: Tensor = layer(padded)
        return convolved
