"""The job of one scene: each ground truth against each noisy frame, from RAW files to masks, crops and lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from safelight.core.errors import InputError, NothingToDoError, SafelightError
from safelight.core.events import Event, Severity, Value
from safelight.core.files import atomic_write
from safelight.core.pipeline import Context, Item, Record
from safelight.formats.raw import RawFrame
from safelight.pipelines.pairs import RUN
from safelight.pipelines.pairs.alignment import Anchor, PairAlignment, Reason, align, prepare
from safelight.pipelines.pairs.crops import first_tile, lay_out, write_crops
from safelight.pipelines.pairs.decoding import Decoded, anchor_groups, decode_ahead
from safelight.pipelines.pairs.items import CROPS, FrameFile, Scene
from safelight.pipelines.pairs.manifest import (
    MANIFEST,
    PARQUET,
    SCENES,
    YAML,
    Line,
    make_line,
    mask_facts,
    read_lines,
    settings_digest,
    unmet_limits,
    write_lines,
    write_parquet,
    write_yaml,
)
from safelight.pipelines.pairs.masks import mask
from safelight.pipelines.pairs.options import RunOptions
from safelight.pipelines.pairs.pair_journal import FinishedPair, PairJournal, missing
from safelight.pipelines.pairs.previews import write_preview

MASKS = "masks"
PREVIEWS = "previews"
_PNG_EFFORT = 3
_NOTICES: Mapping[Reason, str] = {
    "other_sensor": "pair_other_sensor",
    "other_phase": "pair_other_phase",
    "clipped": "pair_clipped",
    "no_signal": "pair_no_signal",
    "small_overlap": "pair_small_overlap",
    "wrong_scene": "pair_wrong_scene",
    "no_light": "pair_no_light",
    "uneven_shift": "pair_uneven_shift",
}


@dataclass
class _SceneWork:
    """What comes together while a scene is worked on."""

    scene: Scene
    options: RunOptions
    context: Context
    settings: str
    pairs: list[FinishedPair] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    known: dict[str, str] = field(default_factory=dict)

    def take(self, pairs: Sequence[FinishedPair]) -> None:
        """Take pairs that an earlier run finished; a later file with the content of one of theirs is a duplicate."""
        self.pairs += pairs
        for pair in pairs:
            self.known |= {pair.line[f"{role}_sha1"]: pair.line[role] for role in ("gt", "noisy")}

    def usable(self, files: Sequence[FrameFile]) -> Iterator[tuple[Decoded, RawFrame]]:
        """Decode frames; those that cannot be used are left out by name, once."""
        for decoded in decode_ahead([file for file in files if file.name not in self.left_out]):
            name, frame, error = decoded.file.name, decoded.frame, decoded.error or self._duplicate(decoded)
            if error is not None:
                self.left_out[name] = str(error)
                self.context.events.warning("frame_left_out", name=name, error=str(error))
            elif frame is not None and self.options.sensor not in ("all", frame.sensor):
                self.context.events.info("frame_of_other_sensor", name=name, sensor=frame.sensor)
            elif frame is not None:
                yield decoded, frame

    def _duplicate(self, decoded: Decoded) -> SafelightError | None:
        name = decoded.file.name
        other = self.known.setdefault(decoded.sha1, name)
        if other == name:
            return None
        return InputError(f"is a duplicate: {other} has the same content", path=decoded.file.path)


def pair_scene(item: Item, options: RunOptions, context: Context, _: object) -> Record:
    """Align, mask and crop all pairs of a scene.

    Ground truths are decoded once, noisy frames once for all ground truths that memory holds at a time. Finished pairs
    are kept one by one, in case that the run is stopped.
    """
    scene: Scene = item.payload
    work = _SceneWork(scene, options, context, settings_digest(RUN.options_of_result(options)))
    journal = PairJournal(context.folder, scene, work.settings)
    _take_finished(work, journal)
    left = missing(work.pairs, scene)
    for group in anchor_groups([file for file in scene.gt if any(file.name == gt for gt, _ in left)]):
        anchors = [(decoded, prepare(frame, context.executor)) for decoded, frame in work.usable(group)]
        names = {gt.file.name for gt, _ in anchors}
        wanted = [file for file in scene.noisy if any((gt, file.name) in left for gt in names)]
        for noisy, frame in work.usable(wanted):
            for gt, anchor in anchors:
                if (gt.file.name, noisy.file.name) in left:
                    total = len(scene.gt) * len(scene.noisy)
                    context.progress(len(work.pairs), total, "pairs_progress", scene=scene.name)
                    work.pairs.append(_pair(work, gt, anchor, noisy, frame))
                    journal.add(work.pairs[-1])
    path, lines = context.folder / SCENES / f"{scene.name}.jsonl", [pair.line for pair in work.pairs]
    write_lines(path, lines)
    journal.remove()
    outputs = [output for pair in work.pairs for output in pair.outputs]
    details: dict[str, Value] = {"scene": scene.name, "left_out": dict(work.left_out)}
    return Record((path, *outputs), _metrics(lines), details)


def _take_finished(work: _SceneWork, journal: PairJournal) -> None:
    if work.options.fresh:
        journal.remove()
    work.take(journal.finished())
    if work.pairs:
        work.context.events.info("pairs_kept", scene=work.scene.name, pairs=len(work.pairs))


def write_manifest(item: Item, options: RunOptions, context: Context, _: object) -> Record:
    """Put the lines of all scenes together, in the order of their names.

    Raises
    ------
    NothingToDoError
        There is no pair at all.
    """
    parts = [path for path in item.inputs if path.is_relative_to(context.folder / SCENES)]
    lines = [line for path in parts for line in read_lines(path)]
    if not lines:
        raise NothingToDoError("no pair came of any scene", path=options.input, expected="frames that can be read")
    paths = [context.folder / name for name in (MANIFEST, PARQUET, YAML)]
    write_lines(paths[0], lines)
    lines = read_lines(paths[0])
    write_parquet(paths[1], lines)
    write_yaml(paths[2], lines)
    counts = {status: sum(line["status"] == status for line in lines) for status in ("ok", "suspect", "failed")}
    accepted = sum(line["accepted"] for line in lines)
    left_out = sum(len(record.details.get("left_out", ())) for record in item.payload.values())
    context.events.info("manifest_written", pairs=len(lines), accepted=accepted, left_out=left_out, **counts)
    _say_not_accepted(lines, options, context)
    return Record(tuple(paths), details={"left_out": {}})


def _say_not_accepted(lines: Sequence[Line], options: RunOptions, context: Context) -> None:
    limits = {"max_alignment_loss": options.max_alignment_loss, "min_mask_mean": options.min_mask_mean}
    aligned = [line for line in lines if line["status"] == "ok" and not line["accepted"]]
    unmet = [
        limit for line in aligned for limit in unmet_limits(line["alignment_loss"], line["mask_mean"], *limits.values())
    ]
    if unmet:
        context.events.info("pairs_not_accepted", loss=unmet.count("loss"), mask=unmet.count("mask"), **limits)


def missed_checks(records: Sequence[Record]) -> list[Mapping[str, Value]]:
    """Return how many frames of each scene were left out while it was worked on, where any were."""
    details: list[Mapping[str, Any]] = [record.details for record in records]
    return [
        {
            "name": "frames_left_out",
            "where": one["scene"],
            "measured": len(one["left_out"]),
            "bound": "most",
            "threshold": 0,
        }
        for one in details
        if one["left_out"]
    ]


def _pair(work: _SceneWork, gt: Decoded, anchor: Anchor, noisy: Decoded, frame: RawFrame) -> FinishedPair:
    """Align one pair and write its mask, preview and crops."""
    options = work.options
    alignment = align(anchor, frame, work.context.executor, options.min_confidence, options.method)
    found = mask(anchor, frame, alignment, work.context.executor, options.mask)
    line = make_line(work.scene.name, gt, noisy, alignment, mask_facts(found.bits), options, work.settings)
    if alignment.reason is not None:
        notice = Event(_NOTICES[alignment.reason], Severity.WARNING, {"gt": gt.file.name, "noisy": noisy.file.name})
        work.context.events.emit(notice.key, notice.severity, **notice.data)
    if alignment.status == "failed":
        return FinishedPair(line, ())
    return FinishedPair(line, tuple(_write_outputs(work, line, anchor.frame, frame, alignment, found.bits)))


def _write_outputs(
    work: _SceneWork, line: Line, clean: RawFrame, noisy: RawFrame, alignment: PairAlignment, bits: NDArray[np.uint8]
) -> Iterator[Path]:
    """Write the files of a pair, yield where they are, and say so in its line."""
    folder, name = work.context.folder, pair_name(line)
    path = folder / MASKS / work.scene.name / f"{name}.png"
    with atomic_write(path) as temporary:
        Image.fromarray(bits).save(temporary, format="png", compress_level=_PNG_EFFORT)
    line["mask"] = path.relative_to(folder).as_posix()
    preview = folder / PREVIEWS / work.scene.name / f"{name}.png"
    write_preview(preview, clean, noisy, alignment, bits)
    yield from (path, preview)
    if work.options.format == "none" or alignment.overlap is None:
        return
    tile, _ = first_tile(alignment.overlap)
    for crop in lay_out(alignment.overlap, work.options.crop_size, work.options.overlap):
        paths = write_crops(
            folder / CROPS / work.scene.name / name, crop, {"gt": clean, "noisy": noisy}, tile, work.options.format
        )
        line["crops"].append(
            {
                "coordinates": crop.coordinates,
                "size": [crop.shape[1], crop.shape[0]],
                "mask_mean": mask_facts(crop.of(bits))["mask_mean"],
                **{name: path.relative_to(folder).as_posix() for name, path in paths.items()},
            }
        )
        yield from paths.values()


def pair_name(line: Line) -> str:
    """Return a name for a pair's files that no other pair has: the noisy frame's, and the begin of both digests."""
    stem = Path(line["noisy"]).stem.partition("_sha1=")[0]
    return f"{stem[:120]}__{line['noisy_sha1'][:10]}-{line['gt_sha1'][:10]}"


def _metrics(lines: Sequence[Line]) -> dict[str, float]:
    """Return the means over the pairs that are ok, and the share of those that are accepted."""
    good = [line for line in lines if line["status"] == "ok"]
    means = {
        name: float(np.mean([line[name] for line in good]))
        for name in ("confidence", "uncertainty", "alignment_loss", "mask_mean")
        if good
    }
    return {**means, "accepted": sum(line["accepted"] for line in lines) / len(lines)} if lines else means
