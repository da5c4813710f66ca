"""Remove clouds from Sentinel-2 images with the help of Sentinel-1 (GLF-CR)."""

from __future__ import annotations

from safelight.core.pipeline import Command, Pipeline, deferred
from safelight.pipelines.decloud.options import ConvertOptions, PredictOptions, TestOptions, TrainOptions

_ROOM = "safelight.pipelines.decloud"

TEST = Command(
    name="test",
    help="""Score a network on images whose cloud-free counterpart is known, beside the cloudy images themselves.

    The folder then holds a report with pictures and tables by region, band and cloud cover, and the record. A bad image
    is named and left out; a stopped run goes on where it was.

    Example: safelight decloud test --data sen12mscr --weights w.safetensors --model-name baseline
    """,
    Options=TestOptions,
    folder=lambda options: options.out,
    find_items=deferred(f"{_ROOM}.items:find_triplets"),
    prepare=deferred(f"{_ROOM}.process:prepare_test"),
    process=deferred(f"{_ROOM}.process:test"),
    plan=deferred(f"{_ROOM}.process:plan_test"),
    summarise=deferred(f"{_ROOM}.process:summarise_test"),
    entry=deferred(f"{_ROOM}.tables:history_entry"),
    report=deferred(f"{_ROOM}.report:write_report"),
    positional=(),
    without_result=frozenset({"data", "table", "split", "weights", "profile"}),
)

TRAIN = Command(
    name="train",
    help="""Train the network as published, or go on with a training that was stopped.

    The folder then holds the best and the last weights and a report. Splits are by scene. With --workers, processes
    share the images of every step, each with a GPU of its own where there are several.

    Example: safelight decloud train --data sen12mscr --out model --epochs 30
    """,
    Options=TrainOptions,
    folder=lambda options: options.out,
    find_items=deferred(f"{_ROOM}.items:find_training_set"),
    process=deferred(f"{_ROOM}.process:train"),
    plan=deferred(f"{_ROOM}.process:plan_train"),
    report=deferred(f"{_ROOM}.report:write_report"),
    positional=(),
    without_result=frozenset({"data", "table"}),
)

PREDICT = Command(
    name="predict",
    help="""Remove the clouds of a whole scene.

    The result has the scene's grid, type, value of missing data and names of bands. Scenes of any size are read and
    written part by part.

    Example: safelight decloud predict --s2 scene_s2.tif --s1 scene_s1.tif --weights w.safetensors --out clear.tif
    """,
    Options=PredictOptions,
    folder=PredictOptions.run_folder,
    find_items=deferred(f"{_ROOM}.items:find_scene"),
    prepare=deferred(f"{_ROOM}.process:load_kernel"),
    process=deferred(f"{_ROOM}.process:predict_scene"),
    plan=deferred(f"{_ROOM}.process:plan_scene"),
    report=deferred(f"{_ROOM}.report:write_report"),
    positional=(),
    without_result=frozenset({"s2", "s1", "weights", "mask"}),
)

CONVERT = Command(
    name="convert",
    help="""Turn a published checkpoint into a safetensors file, from which nothing can be executed.

    Example: safelight decloud convert CR_net.pth w.safetensors
    """,
    Options=ConvertOptions,
    folder=ConvertOptions.run_folder,
    find_items=deferred(f"{_ROOM}.items:find_checkpoint"),
    process=deferred(f"{_ROOM}.process:convert"),
    positional=("input", "out"),
)

PIPELINE = Pipeline(
    name="decloud",
    help="Remove clouds from Sentinel-2 with the help of Sentinel-1 (GLF-CR): patches and whole scenes.",
    commands=(TEST, TRAIN, PREDICT, CONVERT),
)
