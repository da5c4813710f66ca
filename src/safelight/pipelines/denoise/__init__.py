"""Denoise microscopy images with N2V2, trained on the noisy images themselves."""

from __future__ import annotations

from safelight.core.pipeline import Command, Pipeline, deferred
from safelight.pipelines.denoise.options import ExportOptions, PredictOptions, RunOptions, TrainOptions

_ROOM = "safelight.pipelines.denoise"

RUN = Command(
    name="run",
    help="""Train on noisy images and denoise them: the whole job.

    No clean images are needed. The result has the input's shape, axes and pixel size; the folder also holds the
    trained model, a report with pictures, and what is needed to go on after an interruption.

    Example: safelight denoise run cells.tif --time-budget 10min
    """,
    Options=RunOptions,
    folder=RunOptions.run_folder,
    find_items=deferred(f"{_ROOM}.items:find_items"),
    prepare=deferred(f"{_ROOM}.process:train_model"),
    process=deferred(f"{_ROOM}.process:denoise"),
    plan=deferred(f"{_ROOM}.process:plan"),
    plan_prepare=deferred(f"{_ROOM}.process:plan_model"),
    report=deferred(f"{_ROOM}.report:write_report"),
    without_result=frozenset({"input"}),
)

TRAIN = Command(
    name="train",
    help="""Train on noisy images and keep the model.

    Example: safelight denoise train 'data/*.tif' --steps 5000 --out model
    """,
    Options=TrainOptions,
    folder=TrainOptions.run_folder,
    find_items=deferred(f"{_ROOM}.items:find_training_set"),
    process=deferred(f"{_ROOM}.process:train"),
    plan=deferred(f"{_ROOM}.process:plan_training"),
    report=deferred(f"{_ROOM}.report:write_report"),
    without_result=frozenset({"input"}),
)

PREDICT = Command(
    name="predict",
    help="""Denoise images with a trained model.

    Example: safelight denoise predict new.tif --model cells_denoised
    """,
    Options=PredictOptions,
    folder=PredictOptions.run_folder,
    find_items=deferred(f"{_ROOM}.items:find_items"),
    prepare=deferred(f"{_ROOM}.process:load_model"),
    process=deferred(f"{_ROOM}.process:denoise"),
    plan=deferred(f"{_ROOM}.process:plan"),
    report=deferred(f"{_ROOM}.report:write_report"),
    without_result=frozenset({"input"}),
)

EXPORT = Command(
    name="export",
    help="""Export a trained model to the BioImage Model Zoo and ONNX.

    Example: safelight denoise export cells_denoised --out exported
    """,
    Options=ExportOptions,
    folder=lambda options: options.out,
    find_items=deferred(f"{_ROOM}.items:find_model"),
    process=deferred(f"{_ROOM}.process:export"),
)

PIPELINE = Pipeline(
    name="denoise",
    help="Denoise microscopy images, stacks and volumes with N2V2, trained on the noisy data itself.",
    commands=(RUN, TRAIN, PREDICT, EXPORT),
    demo=deferred(f"{_ROOM}.demo:arguments"),
)
