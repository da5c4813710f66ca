"""GLF-CR: removes clouds from an optical image with the help of a radar image of the same place.

Xu et al. 2022, "GLF-CR: SAR-enhanced cloud removal with global-local fusion". Two chains of residual dense blocks, one
per modality. Inside each block, attention in windows takes over what the radar sees elsewhere (global fusion); between
blocks, filters that vary from pixel to pixel let radar detail through gates (local fusion). The names of the modules
are those of published checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor, nn

from safelight.core.device import full_precision
from safelight.core.options import Settings
from safelight.kernels.dynamic_filter import dynamic_filter

OPTICAL_BANDS = 13
SAR_BANDS = 2
WINDOW = 8
"""Side of an attention window, at half resolution."""
ALIGNMENT = 2 * WINDOW
"""Sides of images are multiples of this many pixels: whole windows at half resolution."""
HEADS = 8
FILTER_SIZE = 5
MASKED = -100.0
"""What is added to the logits of two pixels that are no neighbours. Not −∞: it would make NaN of the gate."""
PUBLISHED_SIDE = 128
"""Side of the images that the published weights were trained on."""
DROP_PATH = 0.2
"""How often the last layer is passed over in training; the first never is (Huang et al. 2016)."""

_SLOPE = 0.1
_EPSILON = 1e-5
_SHIFT = WINDOW // 2
_TOKENS = WINDOW**2
_BRANCHES = 4

_WINDOWS_AT_A_TIME = {"cpu": 8, "meta": 64}
_PIXELS_AT_A_TIME = {"cpu": 4096, "meta": 4096}
_OF_GPUS = 1 << 14
"""On the CPU, logits and filters are computed in parts that stay in its caches; a GPU wants large ones.

Dry runs take parts like the CPU's: with larger ones plans for it would be wrong by gigabytes.
"""


class Architecture(Settings):
    """How large the network is; by default, as published.

    Parameters
    ----------
    features, growth : int
        Feature maps of a block, and how many each of its layers adds per modality.
    stages, layers : int
        Blocks, and layers of a block.
    """

    features: int = Field(96, ge=8)
    growth: int = Field(48, ge=HEADS, multiple_of=HEADS)
    stages: int = Field(6, ge=1)
    layers: int = Field(5, ge=1)


class GLFCR(nn.Module):
    """The network.

    Parameters
    ----------
    architecture : Architecture
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        a = self.architecture = architecture
        width = a.features
        self.SFENet1 = nn.Conv2d(4 * OPTICAL_BANDS, width, 5, padding=2)
        self.SFENet2 = nn.Conv2d(width, width, 3, padding=1)
        self.SFENet1_SAR = nn.Conv2d(4 * SAR_BANDS, width, 5, padding=2)
        self.SFENet2_SAR = nn.Conv2d(width, width, 3, padding=1)
        self.RDBs = nn.ModuleList(DenseBlock(a) for _ in range(a.stages))
        self.DF = nn.ModuleList(FilterGenerator(width) for _ in range(a.stages))
        self.sar_fuse_1x1conv = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(a.stages))
        self.opt_distribute_1x1conv = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(a.stages))
        # The radar's features end with the last stage: these weights of the checkpoints are never used. Left among the
        # trained ones, they would make distributed training wait for their gradient.
        self.opt_distribute_1x1conv[-1].requires_grad_(False)
        self.GFF = nn.Sequential(nn.Conv2d(a.stages * width, width, 1), nn.Conv2d(width, width, 3, padding=1))
        self.UPNet = nn.Sequential(
            nn.Conv2d(width, 256, 3, padding=1), nn.PixelShuffle(2), nn.Conv2d(64, OPTICAL_BANDS, 3, padding=1)
        )

    def forward(self, cloudy: Tensor, sar: Tensor, kept: Tensor | None = None) -> Tensor:
        """Return the image without clouds.

        Parameters
        ----------
        cloudy : Tensor
            (B, 13, Y, X), normalised; Y and X multiples of 16.
        sar : Tensor
            (B, 2, Y, X), normalised.
        kept : Tensor, optional
            In training, which branches count in which sample, see ``draw_kept``.

        Returns
        -------
        Tensor
            (B, 13, Y, X), not clamped.

        Raises
        ------
        ValueError
            A side is not a multiple of 16.
        """
        if cloudy.shape[-2] % ALIGNMENT or cloudy.shape[-1] % ALIGNMENT:
            raise ValueError(f"the sides of {tuple(cloudy.shape)} are not multiples of {ALIGNMENT}")
        first = self.SFENet1(nn.functional.pixel_unshuffle(cloudy, 2))
        x = self.SFENet2(first)
        x_sar = self.SFENet2_SAR(self.SFENet1_SAR(nn.functional.pixel_unshuffle(sar, 2)))
        regions = shift_regions(x.shape[-2], x.shape[-1], x.device)
        found = []
        for stage, block in enumerate(self.RDBs):
            layers = slice(stage * self.architecture.layers, (stage + 1) * self.architecture.layers)
            x, x_sar = block(x, x_sar, regions, None if kept is None else kept[layers])
            x, x_sar = self._fuse(stage, x, x_sar)
            found.append(x)
        y: Tensor = self.UPNet(self.GFF(torch.cat(found, 1)) + first)
        return y + cloudy

    def draw_kept(self, batch: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw the branches that count in a training step (stochastic depth).

        Drawn before the step, and not inside it, so that the result does not depend on how the batch is split.

        Returns
        -------
        Tensor
            (layers, 4, B) on the CPU: 0 where a branch is passed over, else one over the chance to be kept.
        """
        rates = torch.linspace(0, DROP_PATH, self.architecture.stages * self.architecture.layers)[:, None, None]
        draws = torch.rand((len(rates), _BRANCHES, batch), generator=generator)
        return (draws >= rates).float() / (1 - rates)

    def _fuse(self, stage: int, x: Tensor, x_sar: Tensor) -> tuple[Tensor, Tensor]:
        """Exchange local detail between the modalities.

        In float32 also where the rest is in mixed precision: here the network is quadratic in its features.
        """
        filtered = self.DF[stage](x, x_sar)
        with full_precision(x.device):
            x, x_sar = x.float(), x_sar.float()
            x = x + (filtered - x) * torch.sigmoid(self.sar_fuse_1x1conv[stage](filtered - x))
            if stage == self.architecture.stages - 1:
                return x, x_sar
            gate = torch.sigmoid(self.opt_distribute_1x1conv[stage](x - filtered))
            return x, x_sar + (x - filtered) * gate


class DenseBlock(nn.Module):
    """A residual dense block of both modalities (Zhang et al. 2018, "Residual dense network")."""

    def __init__(self, a: Architecture) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            DenseLayer(a.features + c * a.growth, a.growth, shifted=c % 2 == 1) for c in range(a.layers)
        )
        grown = a.features + a.layers * a.growth
        self.LFF = nn.Conv2d(grown, a.features, 3, padding=1)
        self.LFF_SAR = nn.Conv2d(grown, a.features, 3, padding=1)

    def forward(
        self, x: Tensor, x_sar: Tensor, regions: Tensor | None, kept: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Map (B, features, Y, X) of both modalities to the same; ``kept`` is (layers of the block, 4, B)."""
        grown, grown_sar = x, x_sar
        for number, layer in enumerate(self.convs):
            grown, grown_sar = layer(grown, grown_sar, regions, None if kept is None else kept[number])
        return x + self.LFF(grown), x_sar + self.LFF_SAR(grown_sar)


class DenseLayer(nn.Module):
    """One layer of a block: convolution, joint attention in windows, perceptron; its result is appended.

    Parameters
    ----------
    channels, growth : int
        Feature maps of its input, and how many it adds.
    shifted : bool
        Whether its windows lie between those of the layer before.
    """

    def __init__(self, channels: int, growth: int, shifted: bool) -> None:
        super().__init__()
        self.shifted = shifted
        if shifted:  # in checkpoints; not used, since it depends on the size of the image
            side = PUBLISHED_SIDE // 2
            self.register_buffer("attn_mask", attention_mask(window_regions(side, side)))
        self.conv = nn.Sequential(nn.Conv2d(channels, growth, 3, padding=1), nn.ReLU())
        self.conv_SAR = nn.Sequential(nn.Conv2d(channels, growth, 3, padding=1), nn.ReLU())
        self.attn = JointWindowAttention(growth)
        self.norm2 = nn.LayerNorm(growth, _EPSILON)
        self.norm2_SAR = nn.LayerNorm(growth, _EPSILON)
        self.mlp = Perceptron(growth)
        self.mlp_SAR = Perceptron(growth)

    def forward(
        self, x: Tensor, x_sar: Tensor, regions: Tensor | None, kept: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Append ``growth`` maps to (B, channels, Y, X) of each modality; ``kept`` is (4, B)."""
        regions = regions if self.shifted else None
        shift = 0 if regions is None else _SHIFT
        size = x.shape[-2:]
        new, new_sar = to_windows(self.conv(x), shift), to_windows(self.conv_SAR(x_sar), shift)
        branches = [None] * _BRANCHES if kept is None else list(kept)
        attended, attended_sar = self.attn(new, new_sar, regions)
        new, new_sar = _add(new, attended, branches[0]), _add(new_sar, attended_sar, branches[1])
        new = _add(new, self.mlp(self.norm2(new)), branches[2])
        new_sar = _add(new_sar, self.mlp_SAR(self.norm2_SAR(new_sar)), branches[3])
        new, new_sar = from_windows(new, size, shift), from_windows(new_sar, size, shift)
        return torch.cat((x, new), 1), torch.cat((x_sar, new_sar), 1)


class JointWindowAttention(nn.Module):
    """Attention of both modalities in windows; radar logits correct the optical ones through a gate."""

    relative_position_index: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        offsets = (2 * WINDOW - 1) ** 2
        self.relative_position_bias_table = nn.Parameter(nn.init.trunc_normal_(torch.empty(offsets, HEADS), std=0.02))
        self.register_buffer("relative_position_index", relative_position_index())
        self.qkv = nn.Linear(channels, 3 * channels)
        self.qkv_SAR = nn.Linear(channels, 3 * channels)
        self.attn_fuse_1x1conv = nn.Conv2d(HEADS, HEADS, 1)
        self.proj = nn.Linear(channels, channels)
        self.proj_SAR = nn.Linear(channels, channels)

    def forward(self, x: Tensor, x_sar: Tensor, regions: Tensor | None) -> tuple[Tensor, Tensor]:
        """Map tokens (windows, 64, channels) of both modalities to the same; ``regions`` is (windows of a map, 64)."""
        qkv, qkv_sar = self.qkv(x), self.qkv_SAR(x_sar)
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        step = _WINDOWS_AT_A_TIME.get(x.device.type, _OF_GPUS // _TOKENS)
        parts = [
            self._attend(qkv[part], qkv_sar[part], bias, None if masked is None else attention_mask(masked))
            for part, masked in _parts(len(x), regions, step)
        ]
        attended, attended_sar = (torch.cat(both) for both in zip(*parts, strict=True))
        return self.proj(attended), self.proj_SAR(attended_sar)

    def _attend(self, qkv: Tensor, qkv_sar: Tensor, bias: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return what each token takes over, before the projection, for a few windows.

        Heads come first, (heads, windows, 64, 64), so that mixing them is one product of matrices; what needs no
        memory of its own is done in place. Autograd needs none of the values that are overwritten.
        """
        query, key, value = _split_heads(qkv)
        query_sar, key_sar, value_sar = _split_heads(qkv_sar)
        logits = _logits(query, key, bias)
        logits_sar = _logits(query_sar, key_sar, bias)
        difference = logits_sar - logits
        mix, offset = (parameter.view(HEADS, -1) for parameter in self.attn_fuse_1x1conv.parameters())
        gate = torch.addmm(offset, mix, difference.flatten(1)).sigmoid_().view_as(difference)
        logits.addcmul_(difference, gate)
        if mask is not None:  # equal in both modalities, so the difference and the gate do not see it
            logits, logits_sar = logits + mask, logits_sar + mask
        return _weigh(logits, value), _weigh(logits_sar, value_sar)


class FilterGenerator(nn.Module):
    """Filters the radar features by weights that it makes, pixel by pixel, from both modalities."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.fac_warp = nn.Sequential(
            nn.Sequential(nn.Conv2d(2 * features, features, 3, padding=1), nn.LeakyReLU(_SLOPE)),
            ResidualBlock(features),
            ResidualBlock(features),
            nn.Sequential(nn.Conv2d(features, features * FILTER_SIZE**2, 1), nn.LeakyReLU(_SLOPE, inplace=True)),
        )

    def forward(self, x: Tensor, x_sar: Tensor) -> Tensor:
        """Return the filtered radar features, float32.

        The weights take 25 times the memory of the features: they are made for a few rows at a time.
        """
        made = self.fac_warp[:3](torch.cat((x, x_sar), 1))
        border = FILTER_SIZE // 2
        padded = nn.functional.pad(x_sar.float(), (border,) * 4, mode="replicate")
        height, width = x.shape[-2:]
        rows = max(_PIXELS_AT_A_TIME.get(x.device.type, _OF_GPUS) // width, 1)
        parts = []
        for start in range(0, height, rows):
            stop = min(start + rows, height)
            weights = self.fac_warp[3](made[:, :, start:stop]).float()
            parts.append(dynamic_filter(padded[:, :, start : stop + 2 * border], weights))
        return torch.cat(parts, 2)


class ResidualBlock(nn.Module):
    """Two convolutions whose result is added to their input."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(features, features, 3, padding=1),
            nn.LeakyReLU(_SLOPE),
            nn.Conv2d(features, features, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, features, Y, X) to the same."""
        correction: Tensor = self.stem(x)
        return x + correction


class Perceptron(nn.Module):
    """Two layers on each token."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, 2 * channels)
        self.fc2 = nn.Linear(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, channels) to the same."""
        y: Tensor = self.fc2(nn.functional.gelu(self.fc1(x)))
        return y


def relative_position_index() -> Tensor:
    """Return, for each pair of tokens of a window, which bias is theirs: (64, 64), the query's token first."""
    y, x = (axis.flatten() for axis in torch.meshgrid(torch.arange(WINDOW), torch.arange(WINDOW), indexing="ij"))
    dy, dx = (axis[:, None] - axis for axis in (y, x))
    return (dy + WINDOW - 1) * (2 * WINDOW - 1) + dx + WINDOW - 1


def shift_regions(height: int, width: int, device: torch.device) -> Tensor | None:
    """Return ``window_regions`` of a map; None where it is not larger than a window, and nothing is shifted."""
    return None if min(height, width) <= WINDOW else window_regions(height, width, device)


def window_regions(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Return which region each token belongs to after the map was rolled, (windows, 64).

    Rolling brings pixels of opposite edges into one window; only tokens of one region are neighbours.
    """
    rows, columns = (_bands(torch.arange(side, device=device))[:, None] for side in (height, width))
    regions = 3 * rows + columns.T
    return to_windows(regions[None, None], 0).squeeze(-1)


def _bands(place: Tensor) -> Tensor:
    """Return 0, 1, 2 along an axis: before the last window, the half of it that was there, the half that came round."""
    return (place >= len(place) - WINDOW).long() + (place >= len(place) - _SHIFT).long()


def attention_mask(regions: Tensor) -> Tensor:
    """Return what is added to the logits of each pair of tokens, (windows, 64, 64): 0 in one region, else −100."""
    return (regions[:, :, None] != regions[:, None]).float() * MASKED


def to_windows(x: Tensor, shift: int) -> Tensor:
    """Cut (B, C, Y, X), rolled back by ``shift``, into windows of tokens, (B · windows, 64, C)."""
    if shift:
        x = x.roll((-shift, -shift), (2, 3))
    batch, channels, height, width = x.shape
    x = x.view(batch, channels, height // WINDOW, WINDOW, width // WINDOW, WINDOW)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(-1, _TOKENS, channels)


def from_windows(tokens: Tensor, size: torch.Size, shift: int) -> Tensor:
    """Undo ``to_windows`` for a map of (Y, X) pixels."""
    down, across = size[0] // WINDOW, size[1] // WINDOW
    x = tokens.view(-1, down, across, WINDOW, WINDOW, tokens.shape[-1])
    x = x.permute(0, 5, 1, 3, 2, 4).reshape(-1, tokens.shape[-1], *size)
    return x.roll((shift, shift), (2, 3)) if shift else x


def _parts(windows: int, regions: Tensor | None, step: int) -> Iterator[tuple[slice, Tensor | None]]:
    """Yield a few windows at a time with their regions, which repeat from sample to sample."""
    if regions is not None:
        regions = regions.repeat(windows // len(regions), 1)
    for start in range(0, windows, step):
        part = slice(start, start + step)
        yield part, None if regions is None else regions[part]


def _add(tokens: Tensor, branch: Tensor, kept: Tensor | None) -> Tensor:
    """Add a branch to tokens (windows, 64, C), as much as it counts in each sample, (B,)."""
    if kept is None:
        return tokens + branch
    return tokens + branch * kept.repeat_interleave(len(tokens) // len(kept))[:, None, None]


def _split_heads(qkv: Tensor) -> Tensor:
    """Return query, key and value, (3, heads, windows, 64, dimension of a head)."""
    windows, tokens, channels = qkv.shape
    return qkv.view(windows, tokens, 3, HEADS, channels // (3 * HEADS)).permute(2, 3, 0, 1, 4).contiguous()


def _logits(query: Tensor, key: Tensor, bias: Tensor) -> Tensor:
    """Return (heads, windows, 64, 64); bias, scale and product are one call."""
    heads, windows, tokens, dimension = query.shape
    biases = bias[:, None].expand(heads, windows, tokens, tokens).flatten(0, 1).to(query.dtype)
    product = torch.baddbmm(biases, query.flatten(0, 1), key.flatten(0, 1).mT, alpha=dimension**-0.5)
    return product.view(heads, windows, tokens, tokens)


def _weigh(logits: Tensor, value: Tensor) -> Tensor:
    """Return the values weighed by the softmax of the logits, as tokens (windows, 64, channels)."""
    weighed = logits.softmax(-1) @ value
    return weighed.permute(1, 2, 0, 3).flatten(2)
