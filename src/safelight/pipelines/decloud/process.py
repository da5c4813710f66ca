"""The jobs: score a network, train it, convert it, clear a scene."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from safelight.core.device import Device
from safelight.core.events import EventLog
from safelight.core.execute import Executor
from safelight.core.files import digest
from safelight.core.kernel import ModuleKernel
from safelight.core.pipeline import Context, Item, Prepared, Record, mean_of_metrics
from safelight.core.plan import Plan
from safelight.core.stream import TensorSource
from safelight.formats.geotiff import Raster, create_cog
from safelight.pipelines.decloud.clearing import (
    TILES,
    Counts,
    SceneSink,
    choose_layout,
    clouds_of,
    open_scene,
    seam_error,
    tiles_at_once,
)
from safelight.pipelines.decloud.clouds import CLOUD, ShadowLevels, cloud_mask
from safelight.pipelines.decloud.footprint import plan_step
from safelight.pipelines.decloud.items import find_training_set
from safelight.pipelines.decloud.model import CloudModel
from safelight.pipelines.decloud.network import Architecture
from safelight.pipelines.decloud.options import ConvertOptions, PredictOptions, TestOptions, TrainOptions
from safelight.pipelines.decloud.patches import middle, read_patch
from safelight.pipelines.decloud.pictures import SHOWN_PIXELS, draw_pictures
from safelight.pipelines.decloud.prediction import empty_batch, kernel_of, predict
from safelight.pipelines.decloud.profiling import profile
from safelight.pipelines.decloud.scene import Place, SceneSource, Survey, layout_of, locate, survey
from safelight.pipelines.decloud.scores import score, score_bands
from safelight.pipelines.decloud.tables import IDENTITY
from safelight.pipelines.decloud.team import Team, gathered
from safelight.pipelines.decloud.training import Curve, Trained, Training, TrainingSettings, start_model
from safelight.pipelines.decloud.triplets import DataSet, Triplet, leaks, not_official

MODEL = "model.safetensors"
"""The best weights by validation."""
LAST_MODEL = "model_last.safetensors"
CHECKPOINT = "training.checkpoint"


@dataclass(frozen=True)
class Ready:
    """What all images of a test share.

    Parameters
    ----------
    kernel : ModuleKernel
    names : tuple of str
        Of the images, in order.
    """

    kernel: ModuleKernel
    names: tuple[str, ...]


def prepare_test(items: Sequence[Item], options: TestOptions, context: Context) -> Prepared:
    """Read the network, and say what is unusual about the images."""
    triplets: list[Triplet] = [item.payload for item in items]
    if options.split not in ("all", triplets[0].split):
        context.events.warning("split_missing", split=options.split, images=len(items))
    for scene, splits in leaks(triplets).items():
        context.events.warning("scene_in_two_splits", scene=scene, splits=" + ".join(splits))
    kernel = kernel_of(CloudModel.load(options.weights))
    if options.profile:
        profile(kernel, options.crop_size, context)
    return Prepared(Ready(kernel, tuple(item.name for item in items)), digest(options.weights))


def test(item: Item, options: TestOptions, context: Context, ready: Ready) -> Record:
    """Clear one image and compare it with its cloud-free counterpart; the cloudy image itself is the baseline."""
    patch = read_patch(item.payload, options.crop_size)
    for name in patch.harmonised:
        context.events.info("harmonised", name=name)
    for name in patch.already:
        context.events.info("harmonised_already", name=name)
    mask = middle(cloud_mask(patch.reflectance, options.cloud_threshold), options.crop_size)
    cloudy, clear, sar = (middle(image, options.crop_size) for image in (patch.cloudy, patch.clear, patch.sar))
    result = predict(ready.kernel, cloudy[None], sar[None], context.executor)[0]
    metrics = score(result, clear, mask)
    metrics |= {IDENTITY + name: value for name, value in score(cloudy, clear, mask).items()}
    context.progress(ready.names.index(item.name) + 1, len(ready.names), "testing_progress", name=item.name)
    context.events.info(
        "image_tested",
        name=item.name,
        psnr=metrics["psnr"],
        ssim=metrics["ssim"],
        identity_psnr=metrics["identity_psnr"],
        identity_ssim=metrics["identity_ssim"],
    )
    pictures = draw_pictures(
        context.folder, item.name, {"cloudy": cloudy, "result": result, "clear": clear}, reference="clear"
    )
    details: dict[str, Any] = {
        "cloud_cover": (mask == CLOUD).double().mean().item(),
        "bands": score_bands(result, clear),
        "identity_bands": score_bands(cloudy, clear),
        "pictures": pictures,
        "harmonised": list(patch.harmonised),
    }
    return Record(tuple(context.folder / path for path in pictures.values()), metrics, details)


def plan_test(item: Item, options: TestOptions, context: Context) -> list[Plan]:
    """Return the memory plan of one image."""
    kernel = kernel_of(CloudModel.load(options.weights))
    return [context.executor.plan(kernel, TensorSource(empty_batch(options.crop_size)))]


def summarise_test(records: Sequence[Record]) -> dict[str, float]:
    """Return the mean of each measure over the images that have it, as ``avg_psnr`` and so on."""
    return {f"avg_{name}": value for name, value in mean_of_metrics(records).items()}


def train(item: Item, options: TrainOptions, context: Context, _: None) -> Record:
    """Train a network on a data set, or go on with its training; keep the last and the best weights."""
    data: DataSet = item.payload
    if options.fresh:
        (context.folder / CHECKPOINT).unlink(missing_ok=True)
    _say_data(data, context)
    with gathered(context.device, options, _train_along) as team:
        trained = _train(data, options, context, team)
    trained.last.save(context.folder / LAST_MODEL)
    trained.best.save(context.folder / MODEL)
    curve = trained.curve
    metrics = {"training_loss": curve.training_loss[-1]}
    if curve.validation_psnr:
        metrics["validation_psnr"] = max(curve.validation_psnr)
    return Record((context.folder / MODEL, context.folder / LAST_MODEL), metrics, {"curve": asdict(curve)})


def _train(data: DataSet, options: TrainOptions, context: Context, team: Team) -> Trained:
    """Train as the first process of a team, which says how it goes and keeps the checkpoint."""
    executor = context.executor
    device = str(context.device.torch_device)
    if team.size < options.workers:
        context.events.warning("workers_limited", workers=team.size, wanted=options.workers, device=device)
    if team.size > 1:
        context.events.info("training_shared", processes=team.size, device=device)
        executor = Executor.from_options(context.device, options, context.events, team.size)
    settings = _settings(options)
    training = Training(_start(options), data.of("train"), data.of("val"), settings, context.device, executor, team)
    steps = training.steps_per_epoch * settings.epochs
    context.events.info(
        "decloud_training_started",
        images=len(data.of("train")),
        held_out=len(data.of("val")),
        epochs=settings.epochs,
        batch=settings.batch_size,
    )
    plan = training.plan
    context.events.debug("plan", **plan.describe())
    if plan.rows < plan.extent:
        context.events.info("gpu_chunking_rows", kernel=plan.kernel, rows=plan.rows, extent=plan.extent)
    return training.run(
        context.folder / CHECKPOINT,
        lambda epoch, curve: _say_epoch(epoch, curve, settings.epochs, context),
        lambda step: context.progress(step, steps, "decloud_training_progress", step=step),
    )


def _train_along(options: TrainOptions, device: Device, team: Team) -> None:
    """Train as another process of a team."""
    data: DataSet = find_training_set(options).items[0].payload
    executor = Executor.from_options(device, options, EventLog(), team.size)
    training = Training(_start(options), data.of("train"), data.of("val"), _settings(options), device, executor, team)
    training.run(options.out / CHECKPOINT)


def plan_train(item: Item, options: TrainOptions, context: Context) -> list[Plan]:
    """Return the memory plan of a training step."""
    share = -(-options.batch_size // options.workers)
    return [plan_step(_start(options).architecture, share, options.crop_size, context.executor)]


def _settings(options: TrainOptions) -> TrainingSettings:
    return TrainingSettings(**{name: getattr(options, name) for name in TrainingSettings.model_fields})


def _start(options: TrainOptions) -> CloudModel:
    if options.weights is not None:
        return CloudModel.load(options.weights)
    architecture = Architecture(**{name: getattr(options, name) for name in Architecture.model_fields})
    return start_model(architecture, options.seed)


def _say_data(data: DataSet, context: Context) -> None:
    for scene, splits in leaks(data.triplets).items():
        context.events.warning("scene_in_two_splits", scene=scene, splits=" + ".join(splits))
    others = not_official(data.triplets)
    if others:
        context.events.warning("split_not_official", scenes=", ".join(others))
    if not data.of("val"):
        context.events.warning("no_validation")


def _say_epoch(epoch: int, curve: Curve, epochs: int, context: Context) -> None:
    context.events.info("epoch_finished", epoch=epoch, epochs=epochs, loss=curve.training_loss[-1])
    if curve.validation_psnr:
        context.events.info("epoch_validated", psnr=curve.validation_psnr[-1], best=max(curve.validation_psnr))


def predict_scene(item: Item, options: PredictOptions, context: Context, kernel: ModuleKernel) -> Record:
    """Clear a scene, reading and writing it part by part."""
    place = _locate(options, context)
    with (
        open_scene(options.s2, options.s1, place) as (scene, sar),
        open_scene(options.s2, options.s1, place) as (scene_again, _),
    ):
        found = survey(scene, options.s1, sar)
        _say_survey(found, scene, context)
        source = SceneSource(scene, sar, found, layout_of(scene.header.grid, TILES[0], options.margin))
        layout, _ = choose_layout(kernel, source, options, context.executor)
        if len(layout) > 1:
            context.events.info(
                "scene_tiled",
                name=item.name,
                tiles=len(layout),
                side=layout.tile[0],
                margin=options.margin,
                error=seam_error(options.margin),
            )
        with (
            clouds_of(options, scene_again, found) as clouds,
            create_cog(options.out, scene.header) as writer,
        ):
            sink = SceneSink(
                scene_again,
                found,
                layout,
                writer,
                clouds,
                lambda done, total: context.progress(done, total, "clearing_progress", name=item.name),
            )
            tiles = replace(source, layout=layout)
            context.executor.map(kernel, tiles, sink, most_rows=tiles_at_once(context.executor))
    _say_counts(sink.counts, item.name, context)
    return _scene_record(options, context, item.name, sink.counts, len(layout), layout.tile)


def plan_scene(item: Item, options: PredictOptions, context: Context) -> list[Plan]:
    """Return the memory plan of a scene's tiles."""
    place = _locate(options, context)
    kernel = kernel_of(CloudModel.load(options.weights))
    with open_scene(options.s2, options.s1, place) as (scene, sar):
        unknown = Survey(0, 0.0, 0.0, ShadowLevels(0.0, 0.0))
        source = SceneSource(scene, sar, unknown, layout_of(scene.header.grid, TILES[0], options.margin))
        return [choose_layout(kernel, source, options, context.executor)[1]]


def load_kernel(items: Sequence[Item], options: PredictOptions, context: Context) -> Prepared:
    """Read the network."""
    return Prepared(kernel_of(CloudModel.load(options.weights)), digest(options.weights))


def _locate(options: PredictOptions, context: Context) -> Place:
    with Raster(options.s2) as scene, Raster(options.s1) as radar:
        place = locate(options.s2, scene.header, options.s1, radar.header, options.align_sar)
        if not scene.header.grid.is_georeferenced:
            context.events.warning("not_georeferenced", s2=options.s2.name, s1=options.s1.name)
    if place.onto is not None:
        context.events.info("sar_aligned", name=options.s1.name)
    return place


def _say_survey(found: Survey, scene: Raster, context: Context) -> None:
    if found.offset:
        context.events.info("harmonised", name=scene.path.name)
    if found.already:
        context.events.info("harmonised_already", name=scene.path.name)
    if found.missing:
        context.events.warning("sar_missing", percent=100 * found.missing)


def _say_counts(counts: Counts, name: str, context: Context) -> None:
    if counts.kept:
        context.events.info("clear_kept", name=name, percent=100 * counts.kept / counts.written)
    if counts.clipped:
        context.events.info("numbers_clipped", name=name, numbers=counts.clipped)


def _scene_record(
    options: PredictOptions, context: Context, name: str, counts: Counts, tiles: int, tile: tuple[int, ...]
) -> Record:
    overviews = {}
    for key, path in (("cloudy", options.s2), ("result", options.out)):
        with Raster(path) as raster:
            overviews[key] = torch.from_numpy(raster.overview(SHOWN_PIXELS).astype(np.float32))
    pictures = draw_pictures(context.folder, name, overviews, reference="result")
    outputs = (options.out, *(context.folder / path for path in pictures.values()))
    details: dict[str, Any] = {"tiles": tiles, "tile": list(tile), "pictures": pictures, **vars(counts)}
    return Record(outputs, {}, details)


def convert(item: Item, options: ConvertOptions, context: Context, _: None) -> Record:
    """Write a checkpoint as a model of ours."""
    CloudModel.load(item.payload).save(options.out)
    return Record((options.out,))
