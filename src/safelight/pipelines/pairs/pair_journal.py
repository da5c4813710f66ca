"""Pairs that are finished, written one by one: a run that was stopped within a scene goes on at the next pair."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safelight.core.errors import InputError, OutputError, UnsafeInputError
from safelight.core.files import inside
from safelight.core.lines import append_line, read_lines
from safelight.pipelines.pairs.decoding import sha1_of
from safelight.pipelines.pairs.items import FrameFile, Scene
from safelight.pipelines.pairs.manifest import SCENES, Line

_SUFFIX = ".unfinished.jsonl"


@dataclass(frozen=True)
class FinishedPair:
    """A pair's line of the manifest, and the files that belong to it."""

    line: Line
    outputs: tuple[Path, ...]


class PairJournal:
    """The finished pairs of a scene that is not finished.

    Parameters
    ----------
    folder : Path
        The run's folder.
    scene : Scene
    settings : str
        Digest of the options on which the result depends.
    """

    def __init__(self, folder: Path, scene: Scene, settings: str) -> None:
        self._folder, self._scene, self._settings = folder, scene, settings
        self._path = folder / SCENES / f"{scene.name}{_SUFFIX}"

    def add(self, pair: FinishedPair) -> None:
        """Write a pair, whose files are there.

        Raises
        ------
        OutputError
            The disk refuses.
        """
        sizes = {path.relative_to(self._folder).as_posix(): path.stat().st_size for path in pair.outputs}
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            append_line(self._path, json.dumps({"line": pair.line, "outputs": sizes}, allow_nan=False))
        except OSError as error:
            raise OutputError(f"cannot be written: {error.strerror}", path=self._path) from error

    def finished(self) -> list[FinishedPair]:
        """Return the pairs that need not be done again: of the same settings and frames, their files still there."""
        entries = [entry for entry in read_lines(self._path) if self._is_usable(entry)]
        if not entries:
            return []
        files = {file.name: file for file in (*self._scene.gt, *self._scene.noisy)}
        named = {entry["line"][role] for entry in entries for role in ("gt", "noisy")}
        digests = dict(_digests(files[name] for name in sorted(named & files.keys())))
        return [
            FinishedPair(entry["line"], tuple(self._folder / name for name in entry["outputs"]))
            for entry in entries
            if all(digests.get(entry["line"][role]) == entry["line"][f"{role}_sha1"] for role in ("gt", "noisy"))
        ]

    def remove(self) -> None:
        """Forget the pairs: the scene is finished, or is to be done afresh."""
        self._path.unlink(missing_ok=True)

    def _is_usable(self, entry: dict[str, Any]) -> bool:
        line, outputs = entry.get("line"), entry.get("outputs")
        if not isinstance(line, dict) or not isinstance(outputs, dict) or line.get("settings") != self._settings:
            return False
        return all(self._is_whole(name, size) for name, size in outputs.items())

    def _is_whole(self, name: str, size: object) -> bool:
        try:
            path = inside(self._folder, name)
        except UnsafeInputError:
            return False
        return path.is_file() and path.stat().st_size == size


def _digests(files: Iterable[FrameFile]) -> Iterator[tuple[str, str]]:
    for file in files:
        try:
            yield file.name, sha1_of(file.path)
        except InputError:  # what cannot be read is told when it is to be decoded
            continue


def missing(pairs: Sequence[FinishedPair], scene: Scene) -> set[tuple[str, str]]:
    """Return the pairs of a scene, ground truth and noisy frame by name, that are still to be done."""
    done = {(pair.line["gt"], pair.line["noisy"]) for pair in pairs}
    return {(gt.name, noisy.name) for gt in scene.gt for noisy in scene.noisy} - done
