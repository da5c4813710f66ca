"""Verification: everything that a run wrote is read again and held against the frames it was made from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safelight.core.errors import InputError, SafelightError
from safelight.core.files import inside
from safelight.core.pipeline import Context, Found, Item, Record
from safelight.core.run import RECORD
from safelight.formats.raw import RawFrame
from safelight.kernels.cfa import moved, phase_between, tile_of
from safelight.kernels.loss_mask import OUTSIDE
from safelight.pipelines.pairs.crops import COLOUR_SUFFIXES, linear_rgb, packed, read_crop
from safelight.pipelines.pairs.decoding import Decoded, decode_ahead
from safelight.pipelines.pairs.items import FrameFile, frame_file
from safelight.pipelines.pairs.loader import read_mask
from safelight.pipelines.pairs.manifest import (
    MANIFEST,
    PARQUET,
    YAML,
    Line,
    mask_facts,
    read_lines,
    read_parquet,
    read_yaml,
    upstream_entry,
)
from safelight.pipelines.pairs.options import VerifyOptions

TABLES = "manifest"
"""Name of the item that compares the three forms of the manifest."""
_SHOWN_PROBLEMS = 5


@dataclass(frozen=True)
class VerifiedScene:
    """What is to be verified of a scene: its lines, and where the frames are."""

    dataset: Path
    lines: tuple[Line, ...]


def find_items(options: VerifyOptions) -> Found:
    """Return one item per scene of a manifest, and one for the manifest's other forms.

    Raises
    ------
    InputError
        There is no manifest, or the dataset is not where it was.
    UnsafeInputError
        The manifest names a file outside its folder or the dataset.
    """
    folder = options.input
    lines = read_lines(folder / MANIFEST)
    dataset = options.dataset or _dataset_of(folder)
    if not dataset.is_dir():
        raise InputError("the dataset is not there", path=dataset, remedy="say where it is with --dataset")
    tables = tuple(folder / name for name in (MANIFEST, PARQUET, YAML))
    items = [Item(TABLES, tables)]
    for scene, own in groupby(sorted(lines, key=lambda line: str(line["scene"])), key=lambda line: str(line["scene"])):
        scene_lines = tuple(own)
        outputs = [inside(folder, path) for line in scene_lines for path in _outputs(line)]
        frames = {line[role]: inside(dataset, line[role]) for line in scene_lines for role in ("gt", "noisy")}
        inputs = (folder / MANIFEST, *frames.values(), *outputs)
        items.append(Item(scene, inputs, VerifiedScene(dataset, scene_lines)))
    return Found(tuple(items))


def verify(item: Item, options: VerifyOptions, context: Context, _: object) -> Record:
    """Verify a scene, or the forms of the manifest.

    Raises
    ------
    InputError
        Something is not as the manifest says; names all problems, the first in full.
    """
    problems = list(_table_problems(options.input) if item.payload is None else _scene_problems(options, item.payload))
    if problems:
        more = f"; and {len(problems) - _SHOWN_PROBLEMS} more" if len(problems) > _SHOWN_PROBLEMS else ""
        raise InputError("; ".join(problems[:_SHOWN_PROBLEMS]) + more, path=options.input)
    lines = () if item.payload is None else item.payload.lines
    context.events.info("pairs_verified", name=item.name, pairs=len(lines), files=len(item.inputs))
    return Record(metrics={"pairs": len(lines)})


def _dataset_of(folder: Path) -> Path:
    """Return where the run that wrote a folder found its frames."""
    try:
        return Path(json.loads((folder / RECORD).read_text(encoding="utf-8"))["options"]["input"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            "does not say where the dataset is", path=folder / RECORD, remedy="say where it is with --dataset"
        ) from error


def _outputs(line: Line) -> list[str]:
    crops = [crop[name] for crop in line["crops"] for name in ("gt", "noisy")]
    return [line["mask"], *crops] if line["mask"] else crops


def _table_problems(folder: Path) -> Iterator[str]:
    lines = read_lines(folder / MANIFEST)
    if read_parquet(folder / PARQUET) != lines:
        yield f"{PARQUET} does not say what {MANIFEST} says"
    if read_yaml(folder / YAML) != [upstream_entry(line) for line in lines if line["mask"]]:
        yield f"{YAML} does not say what {MANIFEST} says"


def _scene_problems(options: VerifyOptions, scene: VerifiedScene) -> Iterator[str]:
    for name, own in groupby(scene.lines, key=lambda line: str(line["gt"])):
        lines = list(own)
        files = [_frame_file(scene.dataset, name), *(_frame_file(scene.dataset, line["noisy"]) for line in lines)]
        frames = decode_ahead(files)
        gt = next(frames)
        for line, noisy in zip(lines, frames, strict=True):
            yield from (f"{line['noisy']}: {problem}" for problem in _pair_problems(options.input, line, gt, noisy))


def _frame_file(dataset: Path, name: str) -> FrameFile:
    return frame_file(inside(dataset, name), name)


def _pair_problems(folder: Path, line: Line, gt: Decoded, noisy: Decoded) -> Iterator[str]:
    for role, decoded in (("gt", gt), ("noisy", noisy)):
        if decoded.sha1 != line[f"{role}_sha1"]:
            yield f"the {role} frame has another sha1 than when it was paired"
    if gt.frame is None or noisy.frame is None:
        yield str(gt.error or noisy.error)
    elif line["mask"] is not None:
        try:
            yield from _output_problems(folder, line, gt.frame, noisy.frame)
        except SafelightError as error:
            yield str(error)


def _output_problems(folder: Path, line: Line, gt: RawFrame, noisy: RawFrame) -> Iterator[str]:
    shift = (line["shift_lattice"][0], line["shift_lattice"][1])
    if phase_between(tile_of(noisy.pattern), moved(tile_of(gt.pattern), shift)) != (0, 0):
        yield f"the shift {shift} is not on the lattice: it brings colours onto other colours"
    bits = read_mask(inside(folder, line["mask"]))
    if bits.shape != noisy.mosaic.shape:
        yield f"the mask is {bits.shape}, the noisy frame {noisy.mosaic.shape}"
        return
    if mask_facts(bits) != {name: line[name] for name in ("mask_mean", "mask_fractions")}:
        yield "the mask has other shares than the manifest says"
    if not _outside_is_marked(bits, shift, gt.mosaic.shape):
        yield "the mask has good pixels where the ground truth shows nothing"
    for crop in line["crops"]:
        yield from _crop_problems(folder, crop, shift, bits, gt, noisy)


def _outside_is_marked(bits: NDArray[np.uint8], shift: tuple[int, int], shape: tuple[int, ...]) -> bool:
    inside_gt = np.zeros(bits.shape, bool)
    rows, columns = (slice(max(0, -d), max(0, length - d)) for d, length in zip(shift, shape, strict=True))
    inside_gt[rows, columns] = True
    return bool((bits[~inside_gt] & OUTSIDE).all())


def _crop_problems(
    folder: Path, crop: dict[str, Any], shift: tuple[int, int], bits: NDArray[np.uint8], gt: RawFrame, noisy: RawFrame
) -> Iterator[str]:
    (x, y), (width, height) = crop["coordinates"], crop["size"]
    part = bits[y : y + height, x : x + width]
    if part.shape != (height, width) or (part & OUTSIDE).any():
        yield f"the crop at {[x, y]} is not inside the overlap"
        return
    if mask_facts(part)["mask_mean"] != crop["mask_mean"]:
        yield f"the mask of the crop at {[x, y]} is not what the manifest says"
    for name, frame, (top, left) in (("gt", gt, (y + shift[0], x + shift[1])), ("noisy", noisy, (y, x))):
        path = inside(folder, crop[name])
        mosaic = frame.mosaic[max(top, 0) : top + height, max(left, 0) : left + width]
        if mosaic.shape != (height, width):
            yield f"{crop[name]} is not inside its frame"
            continue
        tile = moved(tile_of(frame.pattern), (top, left))
        if path.suffix in COLOUR_SUFFIXES:
            expected = linear_rgb(mosaic, frame, tile).transpose(2, 0, 1)
        else:
            expected = packed(mosaic, frame, tile)
        if not np.array_equal(read_crop(path), expected):
            yield f"{crop[name]} is not what the frame has there"
