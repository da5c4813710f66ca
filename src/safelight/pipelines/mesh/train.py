"""The job of ``mesh train``: one stage learns from a data set, and shows what it makes of an object."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict

import torch

from safelight.core.errors import InputError
from safelight.core.events import Value
from safelight.core.pipeline import Context, Item, Record
from safelight.core.plan import Plan
from safelight.pipelines.mesh.convert import read_template
from safelight.pipelines.mesh.dataset import Rendered, read_views
from safelight.pipelines.mesh.examples import read_example
from safelight.pipelines.mesh.footprint import plan_step
from safelight.pipelines.mesh.items import TrainingSet
from safelight.pipelines.mesh.losses import Target
from safelight.pipelines.mesh.model import COARSE, read_model, write_model
from safelight.pipelines.mesh.options import TrainOptions
from safelight.pipelines.mesh.pictures import draw_beside
from safelight.pipelines.mesh.process import draw_silhouettes, shown_views
from safelight.pipelines.mesh.stages import CoarseStage, RefineStage, Stage, start_coarse, start_refine
from safelight.pipelines.mesh.template import ellipsoid
from safelight.pipelines.mesh.training import PUBLISHED_EPOCHS, Curve, Training, TrainingSettings
from safelight.pipelines.mesh.variant import Variant

MODEL = "model.safetensors"
"""The best weights by validation."""
LAST_MODEL = "model_last.safetensors"
CHECKPOINT = "training.checkpoint"

_WATCHING = 16
"""Of the objects that are trained on, so many tell which weights are best where no others were named."""


def train(item: Item, options: TrainOptions, context: Context, prepared: None) -> Record:
    """Train a stage, or go on with its training; keep the last and the best weights."""
    checkpoint = context.folder / CHECKPOINT
    if options.fresh:
        checkpoint.unlink(missing_ok=True)
    data: TrainingSet = item.payload
    stage, focal = _start(options)
    watching = _watching(data, context)
    training = Training(stage, focal, data.objects, watching, _settings(options), context.device, context.executor)
    context.events.info(
        "mesh_training_started",
        stage=stage.name,
        objects=len(data.objects),
        watching=len(watching),
        views=len(data.objects[0].views),
    )
    context.events.debug("plan", **training.plan.describe())
    if training.plan.rows < options.batch_size:
        context.events.info(
            "gpu_chunking_rows", kernel=training.plan.kernel, rows=training.plan.rows, extent=options.batch_size
        )
    trained = training.run(
        checkpoint,
        lambda curve: _say(curve, context),
        lambda: context.progress(training.share, 1.0, "mesh_training_progress", step=training.step),
    )
    outputs = (context.folder / MODEL, context.folder / LAST_MODEL)
    for path, result in zip(outputs, (trained.best, trained.last), strict=True):
        write_model(path, result.model(focal))
    curve = trained.curve
    best = {"validation_chamfer": curve.chamfer[curve.best], "validation_f1": curve.f1[curve.best]}
    details: dict[str, Value] = {"curve": asdict(curve), **_show(watching, trained.best, focal, context)}
    return Record(outputs, {"training_loss": curve.loss[-1], **best}, details)


def plan(item: Item, options: TrainOptions, context: Context) -> list[Plan]:
    """Return the memory plan of a training step."""
    return [plan_step(_start(options)[0], options.batch_size, len(options.use_views), context.executor)]


def _settings(options: TrainOptions) -> TrainingSettings:
    given = {name: getattr(options, name) for name in TrainingSettings.model_fields}
    if options.epochs is None and options.steps is None and options.time_budget is None:
        given["epochs"] = PUBLISHED_EPOCHS[options.stage]
    return TrainingSettings(**given)


def _start(options: TrainOptions) -> tuple[Stage, float]:
    """Return the stage with the weights to begin with, and the focal length of its cameras.

    Raises
    ------
    InputError
        A file lacks a stage that is needed, or cannot be read.
    """
    given = read_model([options.weights]) if options.weights else None
    if options.stage == COARSE:
        if given is None:
            template = read_template(options.template) if options.template else ellipsoid()
            network = start_coarse(template, Variant(own_views=options.own_views), options.seed)
            return CoarseStage(network, template), options.focal
        if given.coarse is None or given.template is None:
            raise InputError("has no coarse stage", path=options.weights)
        return CoarseStage(given.coarse, given.template), given.focal
    assert options.coarse is not None
    before = read_model([options.coarse])
    if before.coarse is None or before.template is None:
        raise InputError(
            "has no coarse stage", path=options.coarse, remedy="train it with 'safelight mesh train coarse'"
        )
    if given is None:
        return RefineStage(start_refine(before.coarse, options.seed), before.coarse, before.template), before.focal
    if given.refine is None:
        raise InputError("has no refining stage", path=options.weights)
    if given.focal != before.focal:
        raise InputError(
            f"was trained with a focal length of {given.focal:g}, the coarse stage with {before.focal:g}",
            path=options.weights,
            remedy="take stages that belong together",
        )
    return RefineStage(given.refine, before.coarse, before.template), before.focal


def _watching(data: TrainingSet, context: Context) -> tuple[Rendered, ...]:
    """Return the objects that tell which weights are best, and say where they are trained on too."""
    if not data.watching:
        chosen = data.objects[:: -(-len(data.objects) // _WATCHING)]
        context.events.warning("validated_on_training", objects=len(chosen))
        return chosen
    trained = {rendered.cameras.resolve() for rendered in data.objects}
    if both := [rendered for rendered in data.watching if rendered.cameras.resolve() in trained]:
        context.events.warning("trained_and_validated", objects=len(both))
    return data.watching


def _say(curve: Curve, context: Context) -> None:
    context.events.info(
        "mesh_validated",
        step=curve.steps[-1],
        loss=curve.loss[-1],
        chamfer=1000 * curve.chamfer[-1],
        f1=curve.f1[-1],
        best=1000 * curve.chamfer[curve.best],
    )


@torch.no_grad()
def _show(watching: Sequence[Rendered], stage: Stage, focal: float, context: Context) -> dict[str, Value]:
    """Draw the first readable object as the stage makes it, over its views and beside the truth, for the report."""
    rendered, target = next(_readable(watching, focal))
    views, cameras, images = read_views(rendered, focal)
    points = stage(images[None], cameras)[-1][1][0]
    faces = stage.template.levels[-1].faces
    shown = shown_views(rendered.views, draw_silhouettes(points, faces, views, cameras, context.folder))
    beside = draw_beside(points, faces, target, cameras, context.folder)
    return {
        "object": rendered.cameras.parent.parent.name,
        "beside": [{"view": view, **pictures} for view, pictures in zip(shown, beside, strict=True)],
    }


def _readable(objects: Sequence[Rendered], focal: float) -> Iterator[tuple[Rendered, Target]]:
    for rendered in objects:
        try:
            target = read_example(rendered, focal).targets[0]
        except InputError:  # the training has said so
            continue
        yield rendered, target
