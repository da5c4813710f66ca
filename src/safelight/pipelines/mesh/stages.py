"""The two stages as they are trained: what each sees, which meshes it is compared by, and where it starts."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from safelight.pipelines.mesh.cameras import Cameras
from safelight.pipelines.mesh.encoder import Encoder
from safelight.pipelines.mesh.losses import COARSE_WEIGHTS, REFINE_WEIGHTS, LossWeights
from safelight.pipelines.mesh.model import COARSE, REFINE, Model
from safelight.pipelines.mesh.networks import CoarseNetwork, Reasoning, RefineNetwork, unpool
from safelight.pipelines.mesh.template import Template
from safelight.pipelines.mesh.variant import Variant

GRAPH_DECAY = 5e-6
CONVOLUTION_DECAY = 0.3 * 1e-5
"""Of half the squared weights of graph convolutions, and of the kernels of the encoder, in the published loss."""


Blocks = list[tuple[Tensor, Tensor]]
"""Where each block of a network found the vertices, and where it moved them, (samples, vertices, 3) each."""

_POSITIVE = 10.0
"""Added to the scores of the refining network at its start; they are from −3 to 8 on average."""


class Stage(nn.Module, ABC):
    """A network being trained: gives ``Blocks`` for (samples, views, 3, 224, 224) images and their cameras.

    Parameters
    ----------
    network : CoarseNetwork or RefineNetwork
    template : Template
        Whose vertices the meshes have.

    Attributes
    ----------
    name : str
    weights : LossWeights
    levels : tuple of int
        Of the template, that the blocks give.
    """

    name: ClassVar[str]
    weights: ClassVar[LossWeights]
    levels: ClassVar[tuple[int, ...]]
    network: CoarseNetwork | RefineNetwork

    def __init__(self, network: CoarseNetwork | RefineNetwork, template: Template) -> None:
        super().__init__()
        self.network, self.template = network, template

    @property
    def networks(self) -> tuple[CoarseNetwork | RefineNetwork, ...]:
        """All that take part."""
        return (self.network,)

    @property
    def compiled_parts(self) -> tuple[nn.Module, ...]:
        """What ``--compile`` compiles of the network: the encoder and the blocks that score places.

        Not the whole: one graph of it, forwards and backwards, is hundreds of kernels, which take the C++ compiler
        several minutes, and no step is faster for it.
        """
        return tuple(part for part in self.network.modules() if isinstance(part, (Encoder, Reasoning)))

    @abstractmethod
    def model(self, focal: float) -> Model:
        """Return what a file of weights holds of it."""

    def with_weights(self, weights: Mapping[str, Tensor]) -> Self:
        """Return a copy on the CPU whose network has other weights."""
        other = copy.deepcopy(self).cpu()
        other.network.load_state_dict(dict(weights))
        return other


class CoarseStage(Stage):
    """The coarse network: three blocks, from the template on."""

    name, weights, levels = COARSE, COARSE_WEIGHTS, (0, 1, 2)
    network: CoarseNetwork
    edges1: Tensor
    edges2: Tensor

    def __init__(self, network: CoarseNetwork, template: Template) -> None:
        super().__init__(network, template)
        for number, level in enumerate(template.levels[:-1], start=1):
            self.register_buffer(f"edges{number}", torch.from_numpy(level.edges), persistent=False)

    def forward(self, images: Tensor, cameras: Cameras) -> Blocks:
        """Deform the template; a block finds the vertices of the last one, and the middles of their edges."""
        one, two, three = (points.float() for points in self.network(images, cameras))
        first = self.network.coordinates.expand(len(images), -1, -1)
        return [(first, one), (unpool(one, self.edges1), two), (unpool(two, self.edges2), three)]

    def model(self, focal: float) -> Model:
        """Return what a file of weights holds of it."""
        return Model(focal, coarse=self.network, template=self.template)


class RefineStage(Stage):
    """The refining network: two blocks, from the coarse mesh on.

    Parameters
    ----------
    network : RefineNetwork
    coarse : CoarseNetwork
        Makes the meshes to refine, and is not trained.
    template : Template
        The coarse network's.
    """

    name, weights, levels = REFINE, REFINE_WEIGHTS, (2, 2)
    network: RefineNetwork

    def __init__(self, network: RefineNetwork, coarse: CoarseNetwork, template: Template) -> None:
        super().__init__(network, template)
        self.coarse = coarse

    @property
    def networks(self) -> tuple[CoarseNetwork | RefineNetwork, ...]:
        """Both."""
        return self.network, self.coarse

    def forward(self, images: Tensor, cameras: Cameras) -> Blocks:
        """Refine the coarse meshes."""
        with torch.no_grad():
            points = self.coarse(images, cameras)[-1].float()
        first, second = (moved.float() for moved in self.network(points, self.network.maps(images), cameras))
        return [(points, first), (first, second)]

    def model(self, focal: float) -> Model:
        """Return what a file of weights holds of it."""
        return Model(focal, refine=self.network)


def start_coarse(template: Template, variant: Variant, seed: int) -> CoarseNetwork:
    """Return a network whose vertices begin about the template's middle; it depends on the seed only."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = CoarseNetwork(template, variant)
        _start_encoder(network.cnn)
    middle = network.coordinates.mean(dim=0)
    with torch.no_grad():
        for layers in (network.gcn1_layers, network.gcn2_layers, network.gcn3_layers):
            # Vertices are absolute, and 0 is where the camera is.
            layers.get_submodule(str(len(layers) - 1)).get_parameter("bias").copy_(middle)
    return network


def start_refine(coarse: CoarseNetwork, seed: int) -> RefineNetwork:
    """Return a network whose encoder is the coarse one's, as published; the rest depends on the seed only.

    Scores begin positive. All of a block's have one sign at random, and where it is negative, the ReLU before the
    softmax takes them all: the block would never learn. The softmax itself does not see what all scores share.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = RefineNetwork()
    network.cnn.load_state_dict(coarse.cnn.state_dict())
    for block in (network.drb1, network.drb2):
        nn.init.constant_(block.get_submodule("local_conv6").get_parameter("bias"), _POSITIVE)
    return network


def decayed(network: nn.Module) -> list[dict[str, Any]]:
    """Return the parameters with the weight decay of each kind: of the encoder only kernels shrink."""
    kinds: dict[float, list[nn.Parameter]] = {GRAPH_DECAY: [], CONVOLUTION_DECAY: [], 0.0: []}
    for name, parameter in network.named_parameters():
        encoder, kernel = name.startswith("cnn."), parameter.dim() > 1
        kinds[GRAPH_DECAY if not encoder else CONVOLUTION_DECAY if kernel else 0.0].append(parameter)
    return [{"params": parameters, "weight_decay": decay} for decay, parameters in kinds.items()]


def _start_encoder(encoder: nn.Module) -> None:
    """Draw kernels as large as ReLUs need (He et al. 2015): eighteen layers of smaller ones would leave nothing."""
    for layer in encoder.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
