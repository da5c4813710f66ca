"""Checkpoints of other programs to a file of weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from safelight.core.errors import InputError
from safelight.core.pipeline import Context, Item, Record
from safelight.formats.mesh import SUFFIXES, read_mesh
from safelight.formats.weights import read_weights
from safelight.pipelines.mesh.model import COARSE, REFINE, Model, load_strictly, write_model
from safelight.pipelines.mesh.networks import CoarseNetwork, RefineNetwork
from safelight.pipelines.mesh.options import ConvertOptions
from safelight.pipelines.mesh.template import Template, ellipsoid, make_template

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
    else:
        raise InputError(
            f"it holds neither {_OF_COARSE} nor {_OF_REFINE}: not a stage of Pixel2Mesh++", path=options.input
        )
    write_model(options.out, model)
    context.events.info("weights_converted", stage=stage, tensors=len(tensors), path=str(options.out))
    return Record((options.out,), details={"stage": stage, "tensors": len(tensors)})


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
        with np.load(path) as arrays:
            return make_template(arrays["coord"], arrays["faces1"])
    except InputError as error:
        error.path = path
        raise
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"cannot be read as a template ({error})", path=path) from None


def _template(options: ConvertOptions, context: Context) -> Template:
    if options.template is not None:
        return read_template(options.template)
    context.events.warning("template_assumed")
    return ellipsoid()


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if path.suffix.lower() != ".npz":
        return read_weights(path).tensors
    try:
        with np.load(path) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"cannot be read as arrays ({error})", path=path) from None
