"""The jobs: views to a mesh, a mesh to a better one, a checkpoint to a file of weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from safelight.core.errors import InputError
from safelight.core.events import Value
from safelight.core.files import atomic_write, digest
from safelight.core.pipeline import Context, Item, Prepared, Record
from safelight.core.plan import Plan
from safelight.formats.mesh import Mesh, read_mesh, write_mesh
from safelight.pipelines.mesh import inference
from safelight.pipelines.mesh.camera_files import read_cameras, world_scale
from safelight.pipelines.mesh.cameras import Cameras
from safelight.pipelines.mesh.colours import vertex_colours
from safelight.pipelines.mesh.items import Sample
from safelight.pipelines.mesh.model import Model, read_model
from safelight.pipelines.mesh.networks import CoarseNetwork, RefineNetwork
from safelight.pipelines.mesh.options import PictureOptions, TestOptions, ViewOptions
from safelight.pipelines.mesh.silhouettes import intersection_over_union, outlined, silhouette
from safelight.pipelines.mesh.template import Level
from safelight.pipelines.mesh.variant import Variant
from safelight.pipelines.mesh.views import View, as_images, read_view

_LITTLE = 0.3
"""Agreement of outlines (intersection over union) below which something is wrong; a good mesh reaches 0.7."""


def load_model(items: Sequence[Item], options: ViewOptions, context: Context) -> Prepared:
    """Read the weights that all objects share."""
    return Prepared(open_model(options, context), " ".join(digest(path) for path in options.weights))


def open_model(options: ViewOptions | TestOptions, context: Context) -> Model:
    """Read the weights, and say where and how precisely the networks will not compute as published."""
    variant = Variant.of(options)
    departures = variant.names() + [name for name in PictureOptions.model_fields if getattr(options, name)]
    if departures:
        context.events.info("mesh_departures", names=", ".join(departures))
    if context.device.amp:
        context.events.info("positions_in_full_precision")
    model = read_model(options.weights, variant)
    if options.focal is not None and options.focal != model.focal:
        context.events.warning("focal_differs", focal=options.focal, trained=model.focal)
    return model


def plan_predict(item: Item, options: ViewOptions, context: Context) -> list[Plan]:
    """Return the memory plans of one object."""
    return plan_stages(options, 1, len(options.views), context)


def plan_refine(item: Item, options: ViewOptions, context: Context) -> list[Plan]:
    """Return the memory plans of a mesh of one's own."""
    network, mesh = refining(read_model(options.weights), options), _read_surface(item.payload.mesh)
    return list(inference.plan_refine(network, len(mesh.vertices), len(options.views), context.executor))


def plan_stages(options: ViewOptions | TestOptions, samples: int, views: int, context: Context) -> list[Plan]:
    """Return the memory plans of both stages, of so many objects at once."""
    model = read_model(options.weights, Variant.of(options))
    coarse, level = deforming(model, options)
    plans = [inference.plan_deform(coarse, samples, views, context.executor)]
    if model.refine is not None:
        plans += inference.plan_refine(model.refine, level.vertices, views, context.executor)
    return plans


def predict(item: Item, options: ViewOptions, context: Context, model: Model) -> Record:
    """Make the mesh of one object from its views."""
    coarse, level = deforming(model, options)
    views, cameras, images = _read_sample(item.payload, options, context, model)
    points = inference.deform(coarse, images[None], cameras, context.executor)[0]
    if model.refine is None:
        context.events.warning("coarse_only", weights=str(options.weights[0]))
    else:
        maps = inference.encode_views(model.refine, images, context.executor)
        points = inference.refine(model.refine, points, maps, cameras, context.executor)
    return _finish(item, points, level.faces, views, cameras, options, context)


def refine(item: Item, options: ViewOptions, context: Context, model: Model) -> Record:
    """Move the vertices of a mesh of one's own."""
    network = refining(model, options)
    mesh = _read_surface(item.payload.mesh)
    views, cameras, images = _read_sample(item.payload, options, context, model)
    maps = inference.encode_views(network, images, context.executor)
    points = torch.from_numpy(mesh.vertices).float()
    points = inference.refine(network, points, maps, cameras, context.executor)
    return _finish(item, points, mesh.faces, views, cameras, options, context)


def deforming(model: Model, options: ViewOptions | TestOptions) -> tuple[CoarseNetwork, Level]:
    """Return the coarse stage, and what the meshes that it makes are like.

    Raises
    ------
    InputError
        The weights have no such stage.
    """
    if model.coarse is None or model.template is None:
        raise InputError("has no coarse stage", path=options.weights[0], remedy="give both stages with --weights")
    return model.coarse, model.template.levels[-1]


def refining(model: Model, options: ViewOptions) -> RefineNetwork:
    """Return the refining stage.

    Raises
    ------
    InputError
        The weights have no such stage.
    """
    if model.refine is None:
        raise InputError("has no refining stage", path=options.weights[0], remedy="give it with --weights")
    return model.refine


def _read_surface(path: Path) -> Mesh:
    mesh = read_mesh(path)
    if not len(mesh.faces):
        raise InputError(
            "has no faces", path=path, expected="a mesh, whose outline the photographs can be held against"
        )
    return mesh


def _read_sample(
    sample: Sample, options: ViewOptions, context: Context, model: Model
) -> tuple[list[View], Cameras, Tensor]:
    """Return the views, their cameras, and what the networks see of them, (views, 3, 224, 224)."""
    cameras = read_cameras(sample.cameras, sample.views, options.focal or model.focal)
    views = [read_view(path, options.blend_alpha) for path in sample.views]
    for path, view in zip(sample.views, views, strict=True):
        height, width = view.silhouette.shape
        if height != width:
            context.events.warning("view_stretched", name=path.name, width=width, height=height)
        if not view.transparent:
            context.events.info("background_guessed", name=path.name)
    return views, cameras, as_images(views)


def _finish(
    item: Item,
    points: Tensor,
    faces: NDArray[np.int64],
    views: Sequence[View],
    cameras: Cameras,
    options: ViewOptions,
    context: Context,
) -> Record:
    """Write the mesh, compare its outline with the photographs', and return the record."""
    if not points.isfinite().all():
        raise InputError("the networks give points that are not finite", path=options.weights[0])
    scale = world_scale(options.cameras)
    placed = cameras.to_world(points[None].double())[0] / scale if options.frame == "world" else points
    colours = _colours(points, faces, views, cameras, context) if options.colours else None
    write_mesh(options.out, Mesh(placed.double().numpy(), faces, colours))
    agreements = draw_silhouettes(points, faces, views, cameras, context.folder)
    agreement = sum(agreements.values()) / len(agreements)
    if agreement < _LITTLE:
        context.events.warning("outlines_disagree", iou=agreement)
    context.events.info("mesh_written", path=str(options.out), vertices=len(points), faces=len(faces), iou=agreement)
    return Record((options.out,), {"silhouette_iou": agreement}, {"views": shown_views(item.payload.views, agreements)})


def _colours(
    points: Tensor, faces: NDArray[np.int64], views: Sequence[View], cameras: Cameras, context: Context
) -> NDArray[np.uint8] | None:
    """Return the vertices' colours, None where no view sees any of them; say how many are seen."""
    colours, seen = vertex_colours(points, faces, views, cameras)
    if not seen.any():
        context.events.warning("vertices_not_coloured", vertices=len(seen))
        return None
    context.events.info("vertices_coloured", seen=int(seen.sum()), vertices=len(seen))
    return colours


def draw_silhouettes(
    points: Tensor, faces: NDArray[np.int64], views: Sequence[View], cameras: Cameras, folder: Path
) -> dict[str, float]:
    """Draw the mesh over each photograph; return how well their outlines agree by the name of the picture."""
    pixels = cameras.pixels(points[None].double())[0].numpy()
    agreements = {}
    for number, (view, seen) in enumerate(zip(views, pixels, strict=True), start=1):
        drawn = silhouette(seen, faces, view.silhouette.shape)
        picture = folder / f"view-{number:02}.png"
        with atomic_write(picture) as temporary:
            Image.fromarray(outlined(view, drawn)).save(temporary, format="PNG")
        agreements[picture.name] = intersection_over_union(drawn, view.silhouette)
    return agreements


def shown_views(paths: Sequence[Path], agreements: Mapping[str, float], folder: str = "") -> list[Value]:
    """Return what the report says about each view; pictures are in a folder of the run's."""
    return [
        {"name": path.name, "iou": iou, "picture": f"{folder}/{picture}" if folder else picture}
        for path, (picture, iou) in zip(paths, agreements.items(), strict=True)
    ]
