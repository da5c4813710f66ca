"""The jobs: score a network, train it, convert it, clear a scene."""

from __future__ import annotations

from safelight.core.pipeline import Context, Item, Record
from safelight.pipelines.decloud.model import CloudModel
from safelight.pipelines.decloud.options import ConvertOptions


def convert(item: Item, options: ConvertOptions, context: Context, _: None) -> Record:
    """Write a checkpoint as a model of ours."""
    CloudModel.load(item.payload).save(options.out)
    return Record((options.out,))
