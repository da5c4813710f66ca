"""Checkpoints of other programs to a file of weights."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from safelight.core.errors import InputError
from safelight.core.pipeline import Context, Item, Record
from safelight.formats.arrays import read_arrays
from safelight.formats.legacy_pickle import read_pickle
from safelight.formats.mesh import SUFFIXES, read_mesh
from safelight.formats.tf_checkpoint import INDEX, read_checkpoint
from safelight.formats.weights import read_weights
from safelight.pipelines.mesh.model import COARSE, REFINE, Model, load_strictly, read_model, write_model
from safelight.pipelines.mesh.networks import CoarseNetwork, RefineNetwork
from safelight.pipelines.mesh.options import ConvertOptions
from safelight.pipelines.mesh.template import Template, ellipsoid, make_template

_CONVOLUTION = re.compile(r".*/cnn/conv2d_(\d+)/([Wb])(?::0)?")
_GRAPH = re.compile(r".*/graph_conv_blk(\d)_(\d+)_layer_\d+_vars/(weights_[01]|bias)(?::0)?")
_REASONING = re.compile(r".*/graph_drb_blk(\d)_layer_\d+/localgconv_(\d+)_vars/(weights_[01]|bias)(?::0)?")
"""Names in the published TensorFlow checkpoints."""
_NO_WEIGHTS = ("/Adam", "beta1_power", "beta2_power", "global_step")
_LAYERS_OF_REASONING = 6
"""Counted on in the second block: its first layer is the seventh."""

_OF_COARSE = "gcn1_layers.0.bias"
_OF_REFINE = "drb1.local_conv1.bias"


def convert(item: Item, options: ConvertOptions, context: Context, prepared: None) -> Record:
    """Read a checkpoint of one stage and write it as a file of weights."""
    tensors = _read_tensors(options.input)
    if _OF_COARSE in tensors:
        template = _template(options, context)
        coarse = CoarseNetwork(template)
        load_strictly(coarse, tensors, options.input)
        model, stage = Model(options.focal, coarse=coarse, template=template), COARSE
    elif _OF_REFINE in tensors:
        network = RefineNetwork()
        load_strictly(network, tensors, options.input)
        model, stage = Model(options.focal, refine=network), REFINE
        if options.template is not None:
            context.events.warning("template_unused", path=str(options.template))
    else:
        raise InputError(
            f"it holds neither {_OF_COARSE} nor {_OF_REFINE}: not a stage of Pixel2Mesh++", path=options.input
        )
    if options.join is not None:
        model = _joined(model, stage, options.join)
    write_model(options.out, model)
    context.events.info("weights_converted", stage=stage, tensors=len(tensors), path=str(options.out))
    return Record((options.out,), details={"stage": stage, "tensors": len(tensors)})


def _joined(model: Model, stage: str, path: Path) -> Model:
    """Return a model with the other stage that a file of weights holds."""
    other = read_model([path])
    if other.focal != model.focal:
        raise InputError(f"was trained with a focal length of {other.focal:g}, not {model.focal:g}", path=path)
    if (other.coarse if stage == COARSE else other.refine) is not None:
        raise InputError(f"holds the {stage} stage itself", path=path, expected="the other stage alone")
    return Model(
        model.focal, model.coarse or other.coarse, model.refine or other.refine, model.template or other.template
    )


def read_template(path: Path) -> Template:
    """Return the template that a file holds: any closed mesh, or the published arrays.

    Raises
    ------
    InputError
        It cannot be read, or is not closed.
    """
    try:
        if path.suffix.lower() in SUFFIXES:
            mesh = read_mesh(path)
            return make_template(mesh.vertices, mesh.faces)
        if path.suffix.lower() == ".dat":
            return _published_template(read_pickle(path))
        arrays = read_arrays(path)
        return make_template(arrays["coord"], arrays["faces1"])
    except InputError as error:
        error.path = path
        raise
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise InputError(f"cannot be read as a template ({error})", path=path) from None


def _published_template(content: object) -> Template:
    """Return the template of a published .dat: a dict with the coordinates, and the faces of each level."""
    content = content if isinstance(content, dict) else {}
    faces = content.get("faces_triangle")
    first = faces[0] if isinstance(faces, list) and faces else None
    return make_template(_triples(content.get("coord"), "coord", "f"), _triples(first, "faces_triangle", "iu"))


def _triples(values: object, name: str, kinds: str) -> NDArray[Any]:
    if not isinstance(values, np.ndarray) or values.dtype.kind not in kinds or values.shape[1:] != (3,):
        raise InputError(f"has no array {name} of triples", expected="a template of Pixel2Mesh++")
    return values


def _template(options: ConvertOptions, context: Context) -> Template:
    if options.template is not None:
        return read_template(options.template)
    context.events.warning("template_assumed")
    return ellipsoid()


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if path.suffix.lower() == INDEX:
        tensors = read_checkpoint(path)
        return {_name(path, name): _turned(name, values) for name, values in tensors.items() if _is_weight(name)}
    if path.suffix.lower() != ".npz":
        return read_weights(path).tensors
    try:
        return {name: torch.from_numpy(values) for name, values in read_arrays(path).items()}
    except TypeError as error:  # text, for instance
        raise InputError(f"cannot be read as weights ({error})", path=path) from None


def _is_weight(name: str) -> bool:
    """Return whether a tensor of a checkpoint is not one of the optimiser's."""
    return not any(part in name for part in _NO_WEIGHTS)


def _name(path: Path, name: str) -> str:
    """Return the name of a tensor in the networks here."""
    if match := _CONVOLUTION.fullmatch(name):
        return f"cnn.conv{match[1]}.{'weight' if match[2] == 'W' else 'bias'}"
    if match := _GRAPH.fullmatch(name):
        return f"gcn{match[1]}_layers.{int(match[2]) - 1}.{match[3].replace('_', '.')}"
    if match := _REASONING.fullmatch(name):
        layer = (int(match[2]) - 1) % _LAYERS_OF_REASONING + 1
        return f"drb{match[1]}.local_conv{layer}.{match[3].replace('_', '.')}"
    raise InputError(f"its tensor {name} belongs to no stage of Pixel2Mesh++", path=path)


def _turned(name: str, values: NDArray[np.generic]) -> Tensor:
    """Return a tensor with its axes as here: TensorFlow's convolutions are (height, width, given, wanted)."""
    return torch.from_numpy(
        values.transpose(3, 2, 0, 1).copy() if _CONVOLUTION.fullmatch(name) and values.ndim == 4 else values
    )
