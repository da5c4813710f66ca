"""The networks of one or both stages, as files of weights hold them: with the template that they belong to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from safelight.core.errors import InputError
from safelight.formats.weights import Weights, read_weights, write_weights
from safelight.pipelines.mesh.networks import CoarseNetwork, RefineNetwork
from safelight.pipelines.mesh.template import Template, make_template
from safelight.pipelines.mesh.variant import Variant

COARSE, REFINE = "coarse", "refine"
STAGES = (COARSE, REFINE)
_COORDINATES, _FACES = "template.coordinates", "template.faces"
_NAMED = 5
"""Names of tensors that an error lists; the others are counted."""


@dataclass(frozen=True, eq=False)
class Model:
    """What turns views into a mesh.

    Parameters
    ----------
    focal : float
        In pixels of a picture of 224 × 224: what the networks were trained with.
    coarse : CoarseNetwork, optional
    refine : RefineNetwork, optional
    template : Template, optional
        That of the coarse stage.
    """

    focal: float
    coarse: CoarseNetwork | None = None
    refine: RefineNetwork | None = None
    template: Template | None = None


def read_model(paths: Sequence[Path], variant: Variant | None = None) -> Model:
    """Read the stages that files of weights hold.

    Parameters
    ----------
    paths : sequence of Path
        Safetensors files as ``write_model`` writes them: one with both stages, or one for each.
    variant : Variant, optional
        Departures from the published graph besides those that the networks were trained with.

    Raises
    ------
    InputError
        A file is no such file, a tensor is missing, unknown or of another shape, a stage comes twice, or the files
        were trained with different focal lengths.
    """
    found = [(path, read_weights(path)) for path in paths]
    focal = _same_focal(found)
    stages: dict[str, tuple[Path, Weights]] = {}
    for path, weights in found:
        for stage in STAGES:
            if not any(name.startswith(f"{stage}.") for name in weights.tensors):
                continue
            if stage in stages:
                raise InputError(f"the {stage} stage is in {stages[stage][0]} already", path=path)
            stages[stage] = path, weights
    if not stages:
        raise InputError(
            "it holds neither the coarse nor the refining stage",
            path=paths[0],
            remedy="make a file of weights from it with 'safelight mesh convert'",
        )
    besides = variant or Variant()
    coarse, template = _coarse(*stages[COARSE], besides) if COARSE in stages else (None, None)
    refine = _refine(*stages[REFINE], besides) if REFINE in stages else None
    return Model(focal, coarse, refine, template)


def write_model(path: Path, model: Model) -> None:
    """Write the stages of a model into one safetensors file.

    Raises
    ------
    OutputError
        It cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    metadata = {"format": "safelight mesh", "focal": repr(model.focal)}
    for stage, network in ((COARSE, model.coarse), (REFINE, model.refine)):
        if network is not None:
            tensors |= {f"{stage}.{name}": value for name, value in network.state_dict().items()}
            metadata[f"{stage}.variant"] = network.variant.model_dump_json(exclude_defaults=True)
    if model.template is not None:
        tensors[_COORDINATES] = torch.from_numpy(model.template.coordinates)
        tensors[_FACES] = torch.from_numpy(model.template.walked)
        metadata["template"] = model.template.digest
    write_weights(path, tensors, metadata)


def load_strictly(network: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Put weights into a network.

    Raises
    ------
    InputError
        A tensor is missing, is not the network's, or has another shape.
    """
    wanted = network.state_dict()
    problems = {
        "missing": [name for name in wanted if name not in tensors],
        "unknown": [name for name in tensors if name not in wanted],
        "of another shape": [
            f"{name} {tuple(tensors[name].shape)}, not {tuple(value.shape)}"
            for name, value in wanted.items()
            if name in tensors and tensors[name].shape != value.shape
        ],
    }
    said = [f"{problem}: {_listed(names)}" for problem, names in problems.items() if names]
    if said:
        raise InputError(f"its tensors are not those of the network; {'; '.join(said)}", path=path)
    network.load_state_dict({name: value.to(wanted[name].dtype) for name, value in tensors.items()})


def _coarse(path: Path, weights: Weights, besides: Variant) -> tuple[CoarseNetwork, Template]:
    if not {_COORDINATES, _FACES} <= weights.tensors.keys():
        raise InputError("it has no template", path=path, remedy="convert it again, with --template")
    template = make_template(weights.tensors[_COORDINATES].numpy(), weights.tensors[_FACES].numpy())
    if template.digest != weights.metadata.get("template"):
        raise InputError("its template is not the one that its weights were trained with", path=path)
    network = CoarseNetwork(template, _variant(path, weights, COARSE).also(besides))
    load_strictly(network, _part(weights, COARSE), path)
    return network.eval(), template


def _refine(path: Path, weights: Weights, besides: Variant) -> RefineNetwork:
    network = RefineNetwork(_variant(path, weights, REFINE).also(besides))
    load_strictly(network, _part(weights, REFINE), path)
    return network.eval()


def _variant(path: Path, weights: Weights, stage: str) -> Variant:
    try:
        return Variant.model_validate_json(weights.metadata.get(f"{stage}.variant", "{}"))
    except ValueError as error:
        raise InputError(
            f"what it says about the variant of the {stage} stage is unknown ({error})", path=path
        ) from None


def _part(weights: Weights, stage: str) -> dict[str, Tensor]:
    prefix = f"{stage}."
    return {name.removeprefix(prefix): value for name, value in weights.tensors.items() if name.startswith(prefix)}


def _same_focal(found: Sequence[tuple[Path, Weights]]) -> float:
    said = {path: _focal(path, weights) for path, weights in found}
    if len(set(said.values())) > 1:
        raise InputError(
            "the stages were trained with different focal lengths: "
            + ", ".join(f"{path.name} {focal:g}" for path, focal in said.items()),
            remedy="take stages that belong together",
        )
    return next(iter(said.values()))


def _focal(path: Path, weights: Weights) -> float:
    try:
        return float(weights.metadata["focal"])
    except (KeyError, ValueError):
        raise InputError(
            "it does not say which focal length its networks were trained with",
            path=path,
            remedy="make a file of weights from it with 'safelight mesh convert'",
        ) from None


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
