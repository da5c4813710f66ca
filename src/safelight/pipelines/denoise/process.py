"""The job: train on noisy images, denoise them, compare, and draw what a microscopist wants to see."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
import torch

from safelight.core.errors import InputError
from safelight.core.events import EventLog
from safelight.core.files import digest
from safelight.core.pipeline import Context, Item, Prepared, Record
from safelight.core.plan import Plan
from safelight.formats.microscopy import Conversion, ImageFile, create_image, open_image, to_dtype
from safelight.pipelines.denoise.comparison import compare_with_clean, find_clean
from safelight.pipelines.denoise.footprint import data_limit
from safelight.pipelines.denoise.frames import Frames, Slices
from safelight.pipelines.denoise.inspection import look_closer
from safelight.pipelines.denoise.items import MODEL, ImageItem, Target, choose_target, model_path
from safelight.pipelines.denoise.model import DenoiseModel
from safelight.pipelines.denoise.options import (
    ExportOptions,
    ImageOptions,
    PredictionOptions,
    PredictOptions,
    RunOptions,
    TrainOptions,
)
from safelight.pipelines.denoise.prediction import choose_layout, predict
from safelight.pipelines.denoise.preview import Preview
from safelight.pipelines.denoise.report import LOSSES, PREVIEW
from safelight.pipelines.denoise.sampling import pool_bytes
from safelight.pipelines.denoise.setup import Setup, choose_setup
from safelight.pipelines.denoise.training import Epoch, Trained, Training, patch_shape

BEST_MODEL = "model_best.safetensors"
CHECKPOINT = "training.checkpoint"


def train_model(items: Sequence[Item], options: RunOptions | TrainOptions, context: Context) -> Prepared:
    """Train one model on all images, or go on with its training; keep the last and the best weights."""
    folder, checkpoint = context.folder, context.folder / CHECKPOINT
    if options.fresh:
        checkpoint.unlink(missing_ok=True)
    with _opened(items, options) as images:
        setup = choose_setup(items, images, options, context.events)
        training = _start_training(items, images, setup, context)
        context.events.debug("plan", **training.plan.describe())
        preview = Preview(folder / PREVIEW, training.first_image, training.patch, context.device)
        context.events.info("preview", file=str(preview.path))
        trained = training.run(checkpoint, lambda epoch: _tell(epoch, preview, context))
    if training.peak_bytes is not None:
        context.executor.learn(training.plan, training.at_once, torch.float32, training.peak_bytes)
    _say_training(trained, training, context)
    trained.last.save(folder / "model_last.safetensors")
    trained.best.save(folder / BEST_MODEL)
    chosen = trained.last if options.weights == "last" else trained.best
    chosen.save(folder / MODEL)
    return Prepared(chosen, _digest_of(chosen))


def load_model(items: Sequence[Item], options: PredictOptions, context: Context) -> Prepared:
    """Read the trained model."""
    model = DenoiseModel.load(model_path(options.model))
    return Prepared(model, _digest_of(model))


def train(item: Item, options: TrainOptions, context: Context, prepared: None) -> Record:
    """Train on all images of the item."""
    model = train_model(item.payload, options, context).value
    outputs = tuple(context.folder / name for name in (MODEL, "model_last.safetensors", BEST_MODEL))
    losses = {name: model.facts[f"final_{name}_loss"] for name in ("training", "validation")}
    return Record(outputs, {f"{name}_loss": float(loss) for name, loss in losses.items()}, {"model": dict(model.facts)})


def denoise(item: Item, options: RunOptions | PredictOptions, context: Context, model: DenoiseModel) -> Record:
    """Denoise one image with a model, beside it what was measured and drawn."""
    source: ImageItem = item.payload
    target = choose_target(item, options, context.folder)
    if options.dtype == "float32" and target.dtype != np.float32:
        context.events.info("png_keeps_type", name=item.name)
    clean = find_clean(source.path, options.clean) if options.clean else None
    with open_image(source.path, options.axes) as image:
        for notice in image.notices:
            context.events.emit(notice.key, notice.severity, **notice.data)
        dims = model.architecture.dims
        frames = Frames(image, dims)
        layout = _write_denoised(image, frames, model, target, options, context, item.name)
        with open_image(target.path, image.axes) as denoised:
            metrics = (
                compare_with_clean(item.name, image, denoised, clean, dims, options.data_range, context.events)
                if clean
                else {}
            )
            details = look_closer(item.name, image, denoised, options, model, context)
    return Record((target.path,), metrics, {"tiles": list(layout), **details})


def export(item: Item, options: ExportOptions, context: Context, prepared: None) -> Record:
    """Write a model in the formats of other programs, and check that they give the same result."""
    from safelight.pipelines.denoise.export import export_bmz, export_onnx

    model = DenoiseModel.load(item.payload)
    outputs = []
    if "bmz" in options.formats:
        authors = ", ".join(options.authors) or "–"
        context.events.info("bmz_credits", licence=options.licence, authors=authors)
        outputs.append(export_bmz(model, context.folder, authors=options.authors, licence=options.licence))
    if "onnx" in options.formats:
        outputs.append(export_onnx(model, context.folder))
    return Record(tuple(outputs))


def plan(item: Item, options: RunOptions | PredictOptions, context: Context) -> list[Plan]:
    """Return the plan of denoising one image."""
    with open_image(item.payload.path, options.axes) as image:
        if isinstance(options, PredictOptions):
            model = DenoiseModel.load(model_path(options.model))
        else:
            setup = choose_setup([item], [image], options, EventLog())  # plan_model has said what was chosen
            model = DenoiseModel.untrained(setup.architecture)
        frames = Frames(image, model.architecture.dims)
        return [choose_layout(model, frames, context.executor, options.tile_size, options.augmented_prediction)[1]]


def plan_model(items: Sequence[Item], options: RunOptions | TrainOptions, context: Context) -> list[Plan]:
    """Return the plan of a step of training on all images."""
    with _opened(items, options) as images:
        setup = choose_setup(items, images, options, context.events)
        frames = [Frames(image, setup.architecture.dims) for image in images]
        patch = patch_shape(frames, setup.architecture, setup.training.patch_size)
        return [setup.plan(patch, context.executor, pool_bytes(frames, data_limit(context.executor)))]


def plan_training(item: Item, options: TrainOptions, context: Context) -> list[Plan]:
    """Return the plan of a training step."""
    return plan_model(item.payload, options, context)


@contextmanager
def _opened(items: Sequence[Item], options: ImageOptions) -> Iterator[list[ImageFile]]:
    with ExitStack() as stack:
        yield [stack.enter_context(open_image(item.payload.path, options.axes)) for item in items]


def _start_training(items: Sequence[Item], images: Sequence[ImageFile], setup: Setup, context: Context) -> Training:
    """Return the training on all images but damaged ones, which the denoising that follows will report."""
    training = None
    while training is None:
        frames = [Frames(image, setup.architecture.dims) for image in images]
        identity = hashlib.sha256("".join(digest(path) for item in items for path in item.inputs).encode()).hexdigest()
        try:
            training = Training(
                frames, setup.architecture, setup.masking, setup.training, context.device, context.executor, identity
            )
        except InputError as error:
            sound = [number for number, item in enumerate(items) if error.path not in item.inputs]
            if len(items) == 1 and error.path is None:
                error.path = items[0].inputs[0]
            if not sound or len(sound) == len(items):
                raise
            context.events.error("left_out_of_training", error=str(error))
            items, images = [items[number] for number in sound], [images[number] for number in sound]
    context.events.info(
        "training_started",
        images=len(images),
        patch="×".join(map(str, training.patch)),
        batch=setup.training.batch_size,
        dims=setup.architecture.dims,
    )
    if training.steps:
        context.events.info("training_steps", steps=training.steps)
    if setup.training.time_budget:
        context.events.info("training_time", seconds=setup.training.time_budget)
    _say_odd_channels(training, context)
    return training


def _say_odd_channels(training: Training, context: Context) -> None:
    constant = training.pool.moments.constant()
    if constant:
        context.events.warning("constant_channels", channels=[number + 1 for number in constant])
    statistics = list(zip(training.normalisation.mean, training.normalisation.std, strict=True))
    varying = [pair for number, pair in enumerate(statistics) if number not in constant]
    if len(set(varying)) < len(varying):
        context.events.warning("equal_channels")


def _tell(epoch: Epoch, preview: Preview, context: Context) -> None:
    """Show how far training is, in numbers and in a picture."""
    preview(epoch)
    losses = epoch.losses
    context.progress(
        epoch.share, 1.0, "training_progress", step=epoch.step, loss=losses.training[-1], held_out=losses.validation[-1]
    )


def _say_training(trained: Trained, training: Training, context: Context) -> None:
    losses = trained.losses
    (context.folder / LOSSES).write_text(json.dumps(vars(losses)), encoding="utf-8")
    if trained.has_gaps:
        context.events.warning("not_finite_in_training")
    context.events.info(
        "training_finished",
        steps=training.step_number,
        seconds=training.seconds,
        loss=losses.training[-1],
        held_out=losses.validation[-1],
    )


def _write_denoised(
    image: ImageFile,
    frames: Frames,
    model: DenoiseModel,
    target: Target,
    options: PredictionOptions,
    context: Context,
    name: str,
) -> tuple[int, ...]:
    """Write the denoised image and return the size of the tiles; pixels that are not finite stay as they are."""
    dtype = target.dtype
    may_have_gaps = image.dtype.kind == "f"
    altered, gaps = Conversion(dtype.name), 0
    with create_image(target.path, image.shape, image.axes, dtype, image.metadata) as writer:

        def write(region: Slices, pixels: np.ndarray) -> None:
            nonlocal altered, gaps
            if may_have_gaps:
                noisy = image.read(region)
                missing = ~np.isfinite(noisy)
                pixels = np.where(missing, noisy, pixels)
                gaps += int(missing.sum())
            converted, conversion = to_dtype(pixels, dtype)
            altered += conversion
            writer.write(region, converted)

        layout = predict(
            model,
            frames,
            write,
            context.executor,
            tile=options.tile_size,
            augmented=options.augmented_prediction,
            progress=lambda done, total: context.progress(done, total, "denoising_progress", name=name),
        )
        notices = (*writer.notices, *altered.notices(name))
    if gaps:
        context.events.warning("not_finite_kept", name=name, pixels=gaps)
    for notice in notices:
        context.events.emit(notice.key, notice.severity, **notice.data)
    return layout.tile


def _digest_of(model: DenoiseModel) -> str:
    """Return the digest of what decides a model's results; not of how long its training took."""
    total = hashlib.sha256(repr((model.architecture, model.normalisation)).encode())
    for name in sorted(model.weights):
        total.update(name.encode())
        total.update(model.weights[name].contiguous().numpy().tobytes())
    return total.hexdigest()
