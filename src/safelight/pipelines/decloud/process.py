"""The jobs: score a network, train it, convert it, clear a scene."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from safelight.core.files import digest
from safelight.core.kernel import ModuleKernel
from safelight.core.pipeline import Context, Item, Prepared, Record, mean_of_metrics
from safelight.core.plan import Plan
from safelight.core.stream import TensorSource
from safelight.pipelines.decloud.clouds import CLOUD, cloud_mask
from safelight.pipelines.decloud.model import CloudModel
from safelight.pipelines.decloud.options import ConvertOptions, TestOptions
from safelight.pipelines.decloud.patches import middle, read_patch
from safelight.pipelines.decloud.pictures import draw_pictures
from safelight.pipelines.decloud.prediction import empty_batch, kernel_of, predict
from safelight.pipelines.decloud.profiling import profile
from safelight.pipelines.decloud.scores import score, score_bands
from safelight.pipelines.decloud.tables import IDENTITY
from safelight.pipelines.decloud.triplets import Triplet, leaks


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


def convert(item: Item, options: ConvertOptions, context: Context, _: None) -> Record:
    """Write a checkpoint as a model of ours."""
    CloudModel.load(item.payload).save(options.out)
    return Record((options.out,))
