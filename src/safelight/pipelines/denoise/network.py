"""The U-Net of Noise2Void and Noise2Void2, in two or three dimensions.

N2V2 (Höck et al. 2022, "N2V2 – Fixing Noise2Void Checkerboard Artifacts with Modified Sampling Strategies and a
Tweaked Network Architecture") takes three things from the network of N2V: the residual connection, the skip
connection of the top level, and plain max pooling. Each is a switch of its own here.
"""

from __future__ import annotations

from typing import Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from safelight.core.options import Settings


class Architecture(Settings):
    """What the network looks like. Equal architectures have interchangeable weights."""

    dims: Literal[2, 3] = Field(2, description="Spatial dimensions: 2 for images, 3 for volumes.")
    channels: int = Field(1, ge=1, description="Channels of the image.")
    joint: bool = Field(False, description="One network that sees all channels; otherwise one network per channel.")
    depth: int = Field(2, ge=1, le=5, description="How many times the network halves the resolution.")
    features: int = Field(32, ge=1, description="Features of the top level, per channel; doubled per level.")
    residual: bool = Field(False, description="Predict the difference to the input (N2V).")
    top_skip: bool = Field(False, description="Skip connection at full resolution (N2V).")
    blur_pool: bool = Field(True, description="Blur before subsampling (N2V2) rather than plain max pooling.")

    @property
    def groups(self) -> int:
        """How many independent networks run side by side."""
        return 1 if self.joint else self.channels

    @property
    def alignment(self) -> int:
        """Sizes and tile starts must be multiples of this many pixels."""
        return int(2**self.depth)

    @property
    def receptive_radius(self) -> int:
        """How many pixels away, along one axis, an input can still change an output."""
        return max(max(x - self._first_input(x), self._last_input(x) - x) for x in range(self.alignment))

    def _first_input(self, x: int) -> int:
        for _ in range(self.depth):
            x = (x - 2) // 2
        x -= 2
        for _ in range(self.depth):
            x = 2 * x - (1 if self.blur_pool else 0) - 2
        return x

    def _last_input(self, x: int) -> int:
        for _ in range(self.depth):
            x = (x + 2) // 2
        x += 2
        for _ in range(self.depth):
            x = 2 * x + 1 + (1 if self.blur_pool else 0) + 2
        return x


class MaxBlurPool(nn.Module):
    """Halve the resolution without aliasing: 2ⁿ max pool with stride 1, then a fixed [1, 2, 1]ⁿ blur with stride 2.

    Zhang 2019, "Making Convolutional Networks Shift-Invariant Again". The blur is a buffer: it is not learnt.
    The blur sees replicated borders, so a constant stays constant.

    Parameters
    ----------
    dims : int
        Spatial dimensions n.
    channels : int
        Feature channels.
    """

    blur: Tensor

    def __init__(self, dims: int, channels: int) -> None:
        super().__init__()
        line = torch.tensor([0.25, 0.5, 0.25])
        kernel = line
        for _ in range(dims - 1):
            kernel = kernel[..., None] * line
        self.dims = dims
        self.channels = channels
        self.register_buffer("blur", kernel.expand(channels, 1, *kernel.shape).clone(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, …, 2h, 2w) to (B, C, …, h, w)."""
        pool, conv = (
            (functional.max_pool2d, functional.conv2d) if self.dims == 2 else (functional.max_pool3d, functional.conv3d)
        )
        peaks = _replicated(pool(x, 2, stride=1), self.dims)
        return conv(peaks, self.blur.to(peaks.dtype), stride=2, groups=self.channels)


def _replicated(x: Tensor, dims: int) -> Tensor:
    """Return a tensor with its borders replicated by one pixel on each side."""
    if not torch.compiler.is_compiling():
        return functional.pad(x, (1, 1) * dims, mode="replicate")
    for axis in range(2, 2 + dims):  # slower, but the compiler fails on the backward of pad in channels_last (2.13)
        x = torch.cat((x.narrow(axis, 0, 1), x, x.narrow(axis, x.shape[axis] - 1, 1)), axis)
    return x


class ConvBlock(nn.Sequential):
    """Two times convolution, batch normalisation, ReLU.

    Parameters
    ----------
    dims, groups : int
    inside, middle, outside : int
        Channels before, between and after the convolutions.
    """

    def __init__(self, dims: int, groups: int, inside: int, middle: int, outside: int) -> None:
        conv = nn.Conv2d if dims == 2 else nn.Conv3d
        norm = nn.BatchNorm2d if dims == 2 else nn.BatchNorm3d
        super().__init__(
            conv(inside, middle, 3, padding=1, groups=groups, bias=False),
            norm(middle),
            nn.ReLU(inplace=True),
            conv(middle, outside, 3, padding=1, groups=groups, bias=False),
            norm(outside),
            nn.ReLU(inplace=True),
        )


class UNet(nn.Module):
    """The U-Net of N2V and N2V2, with the layout of csbdeep's, by which both papers were trained.

    Widths are ``features · 2^level``; each way up ends with the width of the next level; nearest upsampling,
    since transposed convolutions make checkerboards themselves. Independent channels are groups of every
    convolution: as many networks side by side, none sees another's channel.

    Parameters
    ----------
    architecture : Architecture

    Notes
    -----
    ``forward`` maps normalised (B, C, [Z,] Y, X) to the same shape; sizes must be multiples of
    ``architecture.alignment``.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        a = architecture
        groups = a.groups
        widths = [a.features * groups * 2**level for level in range(a.depth + 1)]
        inputs = [a.channels, *widths]
        upward = [widths[max(0, level - 1)] for level in range(a.depth + 1)]

        self.down = nn.ModuleList(
            ConvBlock(a.dims, groups, inputs[level], widths[level], widths[level]) for level in range(a.depth)
        )
        self.pool = nn.ModuleList(self._pool(widths[level]) for level in range(a.depth))
        self.bottom = ConvBlock(a.dims, groups, widths[a.depth - 1], widths[a.depth], upward[a.depth])
        self.up = nn.ModuleList(
            ConvBlock(
                a.dims,
                groups,
                upward[level + 1] + (widths[level] if self._has_skip(level) else 0),
                widths[level],
                upward[level],
            )
            for level in range(a.depth)
        )
        last = nn.Conv2d if a.dims == 2 else nn.Conv3d
        self.last = last(widths[0], a.channels, 1, groups=groups)

    def _pool(self, channels: int) -> nn.Module:
        dims = self.architecture.dims
        if self.architecture.blur_pool:
            return MaxBlurPool(dims, channels)
        return nn.MaxPool2d(2) if dims == 2 else nn.MaxPool3d(2)

    def _has_skip(self, level: int) -> bool:
        return level > 0 or self.architecture.top_skip

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised (B, C, [Z,] Y, X) to its denoised equal."""
        skips: list[Tensor] = []
        y = x
        for block, pool in zip(self.down, self.pool, strict=True):
            y = block(y)
            skips.append(y)
            y = pool(y)
        y = self.bottom(y)
        for level in reversed(range(self.architecture.depth)):
            y = functional.interpolate(y, scale_factor=2.0, mode="nearest")
            if self._has_skip(level):
                y = _concatenate(y, skips[level], self.architecture.groups)
            y = self.up[level](y)
        y = cast(Tensor, self.last(y))
        return x + y if self.architecture.residual else y


def _concatenate(first: Tensor, second: Tensor, groups: int) -> Tensor:
    """Concatenate features so that each group keeps its own together."""
    if groups == 1:
        return torch.cat((first, second), 1)
    parts = [part for pair in zip(first.chunk(groups, 1), second.chunk(groups, 1), strict=True) for part in pair]
    return torch.cat(parts, 1)
