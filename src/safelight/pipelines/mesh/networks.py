"""The two networks of Pixel2Mesh++ (Wen et al. 2019, "Pixel2Mesh++: Multi-View 3D Mesh Generation via Deformation").

The coarse one (MVP2M) deforms a template by graph convolutions on what the views show where its vertices are. The
refining one (MeshNet) scores 43 places around every vertex and moves it to their mean, twice.

All that decides where a vertex is looked up or placed keeps full precision. Mixed are the matrix products of the
refining network's blocks alone: nine tenths of the arithmetic, whose result moves a vertex by 0.02 at most. The coarse
network gives coordinates themselves; eight bits of them are half a pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from safelight.core.device import full_precision
from safelight.pipelines.mesh.cameras import Cameras
from safelight.pipelines.mesh.encoder import CHANNELS, Encoder
from safelight.pipelines.mesh.graph import Chebyshev, GraphConvolution, Support
from safelight.pipelines.mesh.hypotheses import hypotheses
from safelight.pipelines.mesh.sampling import Bilinear, bilinear, nearest, over_views
from safelight.pipelines.mesh.template import Template
from safelight.pipelines.mesh.variant import Variant

WIDTH = 192
"""Features of hidden layers."""
COARSE_SCALES = range(2, 6)
REFINE_SCALES = range(3)
_LAYERS = (14, 14, 15)
"""Graph convolutions of the coarse network's blocks."""
_LAST_RESIDUAL = 12
_NEAREST_DEPTH = -0.1


class CoarseNetwork(nn.Module):
    """From a template to a mesh of its third level.

    Parameters
    ----------
    template : Template
    variant : Variant
    """

    coordinates: Tensor

    def __init__(self, template: Template, variant: Variant | None = None) -> None:
        super().__init__()
        self.variant = variant or Variant()
        self.cnn = Encoder(COARSE_SCALES)
        seen = 3 + 3 * sum(CHANNELS[scale] for scale in COARSE_SCALES)
        self.gcn1_layers, self.gcn2_layers, self.gcn3_layers = (
            _block(given, count) for given, count in zip((seen, seen + WIDTH, seen + WIDTH), _LAYERS, strict=True)
        )
        self.supports = nn.ModuleList(Support.of(level) for level in template.levels)
        self.register_buffer("coordinates", torch.from_numpy(template.coordinates).float(), persistent=False)
        for number, level in enumerate(template.levels[:-1], start=1):
            self.register_buffer(f"edges{number}", torch.from_numpy(level.edges), persistent=False)

    def forward(self, images: Tensor, cameras: Cameras) -> tuple[Tensor, Tensor, Tensor]:
        """Deform the template.

        Parameters
        ----------
        images : Tensor
            (samples, views, 3, 224, 224), blue first, 0 to 1.
        cameras : Cameras
            Of the same samples and views.

        Returns
        -------
        tuple of Tensor
            The vertices (samples, n, 3) after each block, in the first camera's frame; each level has more of them.
        """
        with full_precision(images.device):
            return self._deformed(images, cameras)

    def _deformed(self, images: Tensor, cameras: Cameras) -> tuple[Tensor, Tensor, Tensor]:
        maps = self._maps(images)
        points = self.coordinates.expand(len(images), -1, -1)
        hidden: Tensor | None = None
        deformed = []
        for number, layers in enumerate((self.gcn1_layers, self.gcn2_layers, self.gcn3_layers)):
            x, points = self._given(maps, cameras, points, hidden, number)
            points, hidden = _deform(x, layers, self.supports[number])
            deformed.append(points)
        return deformed[0], deformed[1], deformed[2]

    def _maps(self, images: Tensor) -> list[Tensor]:
        """Return the maps that vertices are looked up in, of the first view only where no other is needed."""
        return encode(self.cnn, images if self.variant.own_views else images[:, :1])

    def _given(
        self, maps: Sequence[Tensor], cameras: Cameras, points: Tensor, hidden: Tensor | None, block: int
    ) -> tuple[Tensor, Tensor]:
        """Return the features that a block begins with, and its vertices before it moves them."""
        edges = self.get_buffer(f"edges{block}") if block else None
        if edges is not None and hidden is not None and self.variant.unpool_first:
            points, hidden, edges = unpool(points, edges), unpool(hidden, edges), None
        seen = self._seen(maps, cameras, points)
        x = seen if hidden is None else torch.cat([seen, hidden], dim=-1)
        return (x, points) if edges is None else (unpool(x, edges), unpool(points, edges))

    def _seen(self, maps: Sequence[Tensor], cameras: Cameras, points: Tensor) -> Tensor:
        views = torch.arange(cameras.views, device=points.device)
        pixels = cameras.pixels(points)
        return over_views(points, nearest(maps, pixels, views if self.variant.own_views else views * 0))


class RefineNetwork(nn.Module):
    """Moves vertices of any mesh to where the views agree.

    Parameters
    ----------
    variant : Variant
    """

    offsets: Tensor
    support: Tensor

    def __init__(self, variant: Variant | None = None) -> None:
        super().__init__()
        self.variant = variant or Variant()
        self.cnn = Encoder(REFINE_SCALES)
        seen = 3 + 3 * sum(CHANNELS[scale] for scale in REFINE_SCALES)
        self.drb1, self.drb2 = Reasoning(seen, self.variant), Reasoning(seen, self.variant)
        for name, values in zip(("offsets", "support"), hypotheses(), strict=True):
            self.register_buffer(name, torch.from_numpy(values).float(), persistent=False)

    def maps(self, images: Tensor) -> list[Tensor]:
        """Return the maps that points are looked up in, (samples, views, height, width, channels) each."""
        return encode(self.cnn, images)

    def forward(self, points: Tensor, maps: Sequence[Tensor], cameras: Cameras) -> tuple[Tensor, Tensor]:
        """Move vertices twice; each by itself, so any part of them can be done alone.

        Parameters
        ----------
        points : Tensor
            (samples, n, 3), in the first camera's frame.
        maps : sequence of Tensor
            Of ``maps``.
        cameras : Cameras

        Returns
        -------
        tuple of Tensor
            The vertices (samples, n, 3) after the first and after the second block.
        """
        first = self._moved(self.drb1, points, maps, cameras)
        return first, self._moved(self.drb2, first, maps, cameras)

    def seen(self, points: Tensor, maps: Sequence[Tensor], cameras: Cameras) -> Tensor:
        """Return what the views show at the places around every vertex, (43, samples, n, features)."""
        samples, n, _ = points.shape
        # In float64 as far as the pixels: with the last bit a place is at a whole pixel, where it sees nothing, or not.
        places = (points[:, None].double() + self.offsets[:, None].double()).reshape(samples, -1, 3)
        pixels = _unit_origin_pixels(cameras, places) if self.variant.unit_origin else cameras.pixels(places)
        rule: Bilinear = "border" if self.variant.border_sampling else "tf"
        features = over_views(places.to(points.dtype), bilinear(maps, pixels.to(points.dtype), rule))
        return features.view(samples, len(self.offsets), n, -1).transpose(0, 1)

    def _moved(self, block: Reasoning, points: Tensor, maps: Sequence[Tensor], cameras: Cameras) -> Tensor:
        seen = self.seen(points, maps, cameras)
        places, samples, n, features = seen.shape
        shares: Tensor = block(seen.reshape(places, samples * n, features), self.support)
        with full_precision(points.device):
            return points + (shares.T @ self.offsets).view(samples, n, 3)


class Reasoning(nn.Module):
    """The deformation reasoning block: which of the places around each vertex is best.

    Parameters
    ----------
    seen : int
        Features of each place.
    variant : Variant
    """

    def __init__(self, seen: int, variant: Variant) -> None:
        super().__init__()
        self.variant = variant
        widths = (seen, WIDTH, WIDTH, WIDTH, WIDTH, WIDTH, 1)
        for number in range(1, len(widths)):
            self.add_module(f"local_conv{number}", LocalConvolution(widths[number - 1], widths[number]))

    def forward(self, x: Tensor, support: Tensor) -> Tensor:
        """Return the share of every place, (places, n), which add up to one over the places.

        Parameters
        ----------
        x : Tensor
            (places, n, features): places first, so that both products of a layer are single matrix products.
        support : Tensor
            (places, places): T₁ of the graph of places.
        """
        one = self._layer(1, x, support).relu_()
        two = self._layer(2, one, support).relu_()
        three = self._layer(3, two, support).relu_() + one
        four = self._layer(4, three, support).relu_()
        five = self._layer(5, four, support).relu_() + three
        with full_precision(x.device):
            scores = self._layer(6, five.float(), support)[..., 0]
            return (scores if self.variant.signed_scores else scores.relu()).softmax(dim=0)

    def _layer(self, number: int, x: Tensor, support: Tensor) -> Tensor:
        result: Tensor = self.get_submodule(f"local_conv{number}")(x, support)
        return result


class LocalConvolution(Chebyshev):
    """The graph convolution over places, which all vertices have alike: two matrix products."""

    def forward(self, x: Tensor, support: Tensor) -> Tensor:
        """Return (places, n, wanted) of (places, n, given)."""
        places, n, _ = x.shape
        own = _product(x, self.weights[0], self.bias).view(places, -1)
        beside = _product(x, self.weights[1]).view(places, -1)
        return own.addmm_(support.to(own.dtype), beside).view(places, n, -1)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x·W + b, (places, n, wanted) of (places, n, given)."""
    if x.device.type != "cpu":
        return functional.linear(x, weight.T, bias)
    # As a convolution of one pixel, which oneDNN computes: MKL uses half the width of an AMD processor's vectors.
    picture = x[:, :, None].permute(0, 3, 1, 2)
    return functional.conv2d(picture, weight.T[..., None, None], bias).permute(0, 2, 3, 1)[:, :, 0]


def encode(encoder: nn.Module, images: Tensor) -> list[Tensor]:
    """Return maps of all views, (samples, views, height, width, channels) each: points are looked up in them."""
    samples, views = images.shape[:2]
    with full_precision(images.device):
        maps = encoder(images.flatten(0, 1))
    return [values.permute(0, 2, 3, 1).contiguous().unflatten(0, (samples, views)) for values in maps]


def unpool(x: Tensor, edges: Tensor) -> Tensor:
    """Return (samples, n + edges, features): x, and the means of both ends of each edge."""
    return torch.cat([x, (x[:, edges[:, 0]] + x[:, edges[:, 1]]) / 2], dim=1)


def _block(given: int, count: int) -> nn.ModuleList:
    hidden = [GraphConvolution(WIDTH, WIDTH) for _ in range(count - 2)]
    return nn.ModuleList([GraphConvolution(given, WIDTH), *hidden, GraphConvolution(WIDTH, 3)])


def _deform(x: Tensor, layers: nn.ModuleList, support: nn.Module) -> tuple[Tensor, Tensor]:
    """Return new vertices, absolute, and the features of the last residual layer."""
    before, hidden = x, x
    for number, layer in enumerate(layers[:-1]):
        h = functional.relu(layer(x, support))
        if 2 <= number <= _LAST_RESIDUAL and number % 2 == 0:
            h = (h + before) / 2
            hidden = h
        before, x = x, h
    return layers[-1](x, support), hidden


def _unit_origin_pixels(cameras: Cameras, points: Tensor) -> Tensor:
    """Return where Design B's refining network takes points to be in each view, (samples, views, n, 2)."""
    nearer = replace(cameras, origin=functional.normalize(cameras.origin, dim=-1))
    seen = nearer.in_view(points)
    seen[..., 2].clamp_(max=_NEAREST_DEPTH)
    return nearer.project(seen)
