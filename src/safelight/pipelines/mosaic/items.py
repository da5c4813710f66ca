"""What a mosaic is made of: the frames found, and the place where each is kept while the work goes on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from safelight.core.pipeline import Found, Item
from safelight.pipelines.mosaic.discovery import FrameFacts, find_frames
from safelight.pipelines.mosaic.options import RunOptions


def find_items(options: RunOptions) -> Found:
    """Read all headers; the frames together are one item, until registration knows the groups.

    Raises
    ------
    InputError
        The input does not exist.
    """
    frames, refused = find_frames(options.input, options.bayer_pattern, options.out)
    if not frames:
        return Found((), tuple(refused))
    name = options.input.resolve().name
    return Found((Item(name, tuple(frame.path for frame in frames), tuple(frames)),), tuple(refused))


def frame_names(frames: Sequence[FrameFacts], root: Path) -> list[str]:
    """Return one name per frame: its stem where that is unique, else its path under the input folder."""
    stems = [frame.path.name.split(".fit")[0] for frame in frames]
    return [
        stem if stems.count(stem) == 1 else frame.path.relative_to(root).as_posix().replace("/", "_")
        for stem, frame in zip(stems, frames, strict=True)
    ]
