"""Photographs with known cameras to a mesh (Pixel2Mesh++)."""

from __future__ import annotations

from safelight.core.pipeline import Command, Pipeline, deferred
from safelight.pipelines.mesh.options import (
    ConvertOptions,
    PredictOptions,
    RefineOptions,
    RenderOptions,
    TestOptions,
    TrainOptions,
)

_ROOM = "safelight.pipelines.mesh"

PREDICT = Command(
    name="predict",
    help="""Turn photographs of one object with known cameras into a mesh.

    One to many views; objects on a transparent or white background. The report shows the outline of the mesh over
    every photograph.

    Example: safelight mesh predict --views 1.png 2.png --cameras cameras.txt --weights w.safetensors --out plane.glb
    """,
    Options=PredictOptions,
    folder=PredictOptions.run_folder,
    find_items=deferred(f"{_ROOM}.items:find_sample"),
    prepare=deferred(f"{_ROOM}.process:load_model"),
    process=deferred(f"{_ROOM}.process:predict"),
    plan=deferred(f"{_ROOM}.process:plan_predict"),
    report=deferred(f"{_ROOM}.report:write_report"),
    positional=(),
)

REFINE = Command(
    name="refine",
    help="""Move the vertices of any mesh to where the photographs agree, with the second stage alone.

    Example: safelight mesh refine a.obj --views 1.png 2.png --cameras cameras.txt --weights w.safetensors --out b.obj
    """,
    Options=RefineOptions,
    folder=RefineOptions.run_folder,
    find_items=deferred(f"{_ROOM}.items:find_sample"),
    prepare=deferred(f"{_ROOM}.process:load_model"),
    process=deferred(f"{_ROOM}.process:refine"),
    plan=deferred(f"{_ROOM}.process:plan_refine"),
    report=deferred(f"{_ROOM}.report:write_report"),
)

TEST = Command(
    name="test",
    help="""Make the meshes of a data set and hold them against the ground truth.

    Chamfer distance and F-score of the vertices, as published, and of points spread over the surface; means over
    objects and over categories; timings by stage, after objects that do not count (--warmup-iters).

    Example: safelight mesh test --data rendered --weights coarse.safetensors refine.safetensors --model-name baseline
    """,
    Options=TestOptions,
    folder=TestOptions.run_folder,
    find_items=deferred(f"{_ROOM}.dataset:find_objects"),
    prepare=deferred(f"{_ROOM}.testing:load_model"),
    process=deferred(f"{_ROOM}.testing:test"),
    plan=deferred(f"{_ROOM}.testing:plan"),
    finish=deferred(f"{_ROOM}.testing:summarise"),
    report=deferred(f"{_ROOM}.report:write_report"),
    positional=(),
)

TRAIN = Command(
    name="train",
    help="""Train one stage as published, or go on with a training that was stopped: coarse first, then refine.

    The folder then holds the weights that did best on the validation's objects, the last ones, and a report. 'mesh
    render' makes a data set from meshes.

    Example: safelight mesh train coarse --data rendered --out mesh_coarse --steps 2000
    """,
    Options=TrainOptions,
    folder=TrainOptions.run_folder,
    find_items=deferred(f"{_ROOM}.items:find_training_set"),
    process=deferred(f"{_ROOM}.train:train"),
    plan=deferred(f"{_ROOM}.train:plan"),
    report=deferred(f"{_ROOM}.report:write_report"),
    positional=("stage",),
)

CONVERT = Command(
    name="convert",
    help="""Turn a checkpoint of another program into a file of weights; nothing in it is ever executed.

    Example: safelight mesh convert coarse.npz coarse.safetensors --template iccv_p2mpp.npz
    """,
    Options=ConvertOptions,
    folder=ConvertOptions.run_folder,
    find_items=deferred(f"{_ROOM}.items:find_checkpoint"),
    process=deferred(f"{_ROOM}.convert:convert"),
    positional=("input", "out"),
)

RENDER = Command(
    name="render",
    help="""Make a data set from meshes: views from all around with their cameras, and points on the surface.

    Meshes are made as large as ShapeNet's; the views are grey, on a transparent background.

    Example: safelight mesh render model.obj --out views
    """,
    Options=RenderOptions,
    folder=RenderOptions.run_folder,
    find_items=deferred(f"{_ROOM}.render:find_meshes"),
    process=deferred(f"{_ROOM}.render:render"),
)

PIPELINE = Pipeline(
    name="mesh",
    help="Turn photographs with known cameras into a mesh (Pixel2Mesh++).",
    commands=(PREDICT, TEST, TRAIN, REFINE, CONVERT, RENDER),
)
