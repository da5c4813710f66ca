"""Remove clouds from Sentinel-2 images with the help of Sentinel-1 (GLF-CR)."""

from __future__ import annotations

from safelight.core.pipeline import Command, Pipeline, deferred
from safelight.pipelines.decloud.options import ConvertOptions

_ROOM = "safelight.pipelines.decloud"

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
    commands=(CONVERT,),
)
