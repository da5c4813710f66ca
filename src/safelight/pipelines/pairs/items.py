"""What a scene is on disk: clean frames (ground truth, GT) and noisy frames of one view, found by folder.

``SCENE/gt/*`` are ground truth and ``SCENE/*`` are noisy, in RawNIND's tree ``src/{Bayer|X-Trans}/SCENE`` as in plain
folders. Names as RawNIND's, ``…_GT_ISO100_sha1=….dng``, also tell ground truth, ISO and digest.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from safelight.core.errors import InputError, SafelightError
from safelight.core.events import Severity
from safelight.core.pipeline import Found, Item, Refusal
from safelight.formats.raw import RawSize, Sensor, is_raw_name, read_raw_size
from safelight.pipelines.pairs.options import RunOptions

CROPS = "crops"
"""Folder in the run's folder that may hold RAW files of our own."""

_GT_FOLDER = "gt"
_HEADERLESS = (".raw", ".bin")
_SENSORS: Mapping[str, Sensor] = {"bayer": "bayer", "x-trans": "x-trans"}
_NAME = re.compile(r"(?P<scene>.+?)_(?P<gt>GT_)?ISO(?P<iso>[^_]+)_sha1=(?P<sha1>[0-9a-f]{40})", re.IGNORECASE)


@dataclass(frozen=True)
class FrameFile:
    """One RAW file of a scene.

    Parameters
    ----------
    path : Path
    name : str
        Its path under the dataset, with slashes.
    size : RawSize
        As its header claims it.
    iso : int, optional
        As its name says it; None for names such as ``ISOUnknown`` or ``ISOHi 3200``.
    sha1 : str, optional
        As its name says it.
    """

    path: Path
    name: str
    size: RawSize
    iso: int | None = None
    sha1: str | None = None


@dataclass(frozen=True)
class Scene:
    """Frames of one view: each of the first is paired with each of the second.

    Parameters
    ----------
    name : str
        Its folder under the dataset, without ``src``.
    gt, noisy : tuple of FrameFile
        In the order of their names.
    """

    name: str
    gt: tuple[FrameFile, ...]
    noisy: tuple[FrameFile, ...]


def find_items(options: RunOptions) -> Found:
    """Find the scenes of a dataset; every file and every scene that cannot be used is refused by name.

    Raises
    ------
    InputError
        The dataset does not exist, or has no scene of the names asked for.
    """
    root = options.input
    if not root.is_dir():
        problem = "is not a folder" if root.exists() else "does not exist"
        raise InputError(problem, path=root, expected="a folder of scenes", remedy="check the path")
    folders = _by_scene(root, options)
    names = {folder: _scene_name(root, folder) for folder in folders}
    wanted = [folder for folder in folders if _is_wanted(names[folder], options.scene)]
    if folders and not wanted:
        raise InputError(
            f"has no scene {' or '.join(options.scene)}",
            path=root,
            expected=f"one of {', '.join(sorted(names.values()))}",
        )
    items: list[Item] = []
    refused: list[Refusal] = []
    seen: dict[str, str] = {}
    for folder in wanted:
        frames = _usable(root, folders[folder], seen, refused)
        scene = Scene(names[folder], *_split(frames))
        if scene.gt and scene.noisy:
            items.append(Item(scene.name, tuple(frame.path for frame in (*scene.gt, *scene.noisy)), scene))
            continue
        lacking = "no noisy frames" if scene.gt else "no ground truth" if scene.noisy else "no frames that can be read"
        refused.append(_refusal(scene.name, InputError(f"the scene has {lacking}", path=folder)))
    return Found(tuple(items), tuple(refused))


def _by_scene(root: Path, options: RunOptions) -> dict[Path, list[Path]]:
    """Return the files of every scene that look like RAW, by the scene's folder, all in order."""
    own = (options.out / CROPS).resolve()
    paths = sorted(path for path in root.rglob("*") if _is_candidate(path, root) and own not in path.resolve().parents)
    scenes: dict[Path, list[Path]] = {}
    for path in paths:
        folder = path.parent.parent if _is_gt_folder(path.parent, root) else path.parent
        if options.sensor in ("all", _sensor_of(folder.relative_to(root)) or options.sensor):
            scenes.setdefault(folder, []).append(path)
    return dict(sorted(scenes.items()))


def _is_candidate(path: Path, root: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
    looks_raw = is_raw_name(path) or path.suffix.lower() in _HEADERLESS
    return looks_raw and not hidden and path.is_file()


def _is_gt_folder(folder: Path, root: Path) -> bool:
    return folder != root and folder.name.lower() == _GT_FOLDER


def _sensor_of(folder: Path) -> Sensor | None:
    """Return the sensor that RawNIND's tree names; the frames themselves decide where nothing does."""
    return next((_SENSORS[part.lower()] for part in folder.parts if part.lower() in _SENSORS), None)


def _scene_name(root: Path, folder: Path) -> str:
    parts = folder.relative_to(root).parts
    return "/".join(parts[1:] if parts[:1] == ("src",) else parts) or root.resolve().name


def _is_wanted(name: str, patterns: Sequence[str]) -> bool:
    last = name.rpartition("/")[2]
    return not patterns or any(fnmatchcase(name, pattern) or fnmatchcase(last, pattern) for pattern in patterns)


def _usable(root: Path, paths: Sequence[Path], seen: dict[str, str], refused: list[Refusal]) -> list[FrameFile]:
    """Return the frames whose headers can be read; of two that name one digest the first, GT first."""
    frames = []
    for path in sorted(paths, key=lambda path: (not _is_gt(path), path)):
        name = path.relative_to(root).as_posix()
        try:
            frame = frame_file(path, name)
            other = seen.setdefault(frame.sha1 or name, name)
            if other != name:
                raise InputError(f"is a duplicate: {other} has the same sha1", path=path)
            frames.append(frame)
        except SafelightError as error:
            refused.append(_refusal(name, error))
    return frames


def frame_file(path: Path, name: str) -> FrameFile:
    """Return what name and header tell of a frame.

    Raises
    ------
    InputError
        The header cannot be read, or is not to be trusted.
    """
    if path.suffix.lower() in _HEADERLESS:
        raise InputError(
            "has no header that says what it is", path=path, expected="a camera's own format or DNG", remedy="rename it"
        )
    size = read_raw_size(path)
    told = _NAME.fullmatch(path.stem)
    if told is None:
        return FrameFile(path, name, size)
    return FrameFile(path, name, size, int(told["iso"]) if told["iso"].isdecimal() else None, told["sha1"].lower())


def _is_gt(path: Path) -> bool:
    told = _NAME.fullmatch(path.stem)
    return path.parent.name.lower() == _GT_FOLDER or (told is not None and told["gt"] is not None)


def _split(frames: Iterable[FrameFile]) -> tuple[tuple[FrameFile, ...], tuple[FrameFile, ...]]:
    ordered = sorted(frames, key=lambda frame: frame.name)
    return tuple(f for f in ordered if _is_gt(f.path)), tuple(f for f in ordered if not _is_gt(f.path))


def _refusal(name: str, error: SafelightError) -> Refusal:
    """Return a refusal that does not stop the rest: a dataset of thousands of files always has a few."""
    return Refusal(name, error, Severity.WARNING)
