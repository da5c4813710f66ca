"""Data sets of triplets: radar, cloud-free and cloudy image of one place; from a table or laid out as released.

Splits are by scene: neighbouring patches of one scene look so alike that testing on them would be testing on the
training data.
"""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from safelight.core.errors import InputError, SafelightError
from safelight.core.files import inside
from safelight.core.pipeline import Refusal

TABLE = "data.csv"
SPLITS = {"1": "train", "2": "val", "3": "test"}
OFFICIAL = {
    "test": {"spring": (106, 123, 140, 31, 44), "summer": (119, 73), "fall": (139,), "winter": (108, 63)},
    "val": {"winter": (22, 107, 130, 84), "summer": (19, 80, 127, 17), "fall": (65,), "spring": (17,)},
}
"""Scenes of SEN12MS-CR by season; all others are for training."""

_KINDS = {"s1": "sar", "s2": "clear", "s2_cloudy": "cloudy"}
_NAME = re.compile(
    r"(?P<roi>ROIs\d+)_(?P<season>[a-z]+)(?:_(?P<kind>s1|s2|s2_cloudy))?_(?P<scene>\d+)_p(?P<patch>\d+)", re.ASCII
)


@dataclass(frozen=True)
class Scene:
    """A scene of SEN12MS-CR."""

    season: str
    number: int

    def __str__(self) -> str:
        return f"{self.season} {self.number}"

    @property
    def official_split(self) -> str:
        """The split that the data set's authors put it in."""
        return next(
            (name for name, seasons in OFFICIAL.items() if self.number in seasons.get(self.season, ())), "train"
        )


@dataclass(frozen=True)
class Triplet:
    """Three images of one place.

    Parameters
    ----------
    name : str
    split : str
        train, val or test.
    scene : Scene, optional
        None where the name does not tell.
    sar, clear, cloudy : Path
    """

    name: str
    split: str
    scene: Scene | None
    sar: Path
    clear: Path
    cloudy: Path

    @property
    def paths(self) -> tuple[Path, Path, Path]:
        """All three files."""
        return self.sar, self.clear, self.cloudy


@dataclass(frozen=True)
class DataSet:
    """All triplets of a folder, and what is no whole triplet."""

    triplets: tuple[Triplet, ...]
    refused: tuple[Refusal, ...]

    def of(self, split: str) -> tuple[Triplet, ...]:
        """Return the triplets of one split, or of all."""
        return tuple(triplet for triplet in self.triplets if split in ("all", triplet.split))


def read_data_set(root: Path, table: Path | None) -> DataSet:
    """Find the triplets of a folder.

    Parameters
    ----------
    root : Path
    table : Path, optional
        CSV; ``data.csv`` of the folder, or else the released layout, by default.

    Raises
    ------
    InputError
        The folder or the table does not exist, or the table cannot be read.
    """
    if not root.is_dir():
        raise InputError("there is no such folder", path=root, expected="the folder of a data set")
    if table is None and (root / TABLE).is_file():
        table = root / TABLE
    found, refused = [], []
    for name, entry in _from_table(root, table) if table else _from_layout(root):
        try:
            if isinstance(entry, SafelightError):
                raise entry
            _check_whole(entry)
            found.append(entry)
        except SafelightError as error:
            refused.append(Refusal(name, error))
    return DataSet(tuple(found), tuple(refused))


def leaks(triplets: Iterable[Triplet]) -> dict[str, list[str]]:
    """Return the splits of every scene that is in more than one."""
    splits: dict[str, set[str]] = defaultdict(set)
    for triplet in triplets:
        if triplet.scene is not None:
            splits[str(triplet.scene)].add(triplet.split)
    return {scene: sorted(found) for scene, found in splits.items() if len(found) > 1}


def not_official(triplets: Iterable[Triplet]) -> list[str]:
    """Return the scenes that are trained on though the official split tests or validates on them."""
    scenes = {t.scene for t in triplets if t.split == "train" and t.scene and t.scene.official_split != "train"}
    return sorted(map(str, scenes))


def scene_of(name: str) -> Scene | None:
    """Return the scene that a file's name tells, if it is one of SEN12MS-CR."""
    match = _NAME.search(name)
    return Scene(match["season"], int(match["scene"])) if match else None


Entry = tuple[str, "Triplet | SafelightError"]


def _from_table(root: Path, table: Path) -> Iterator[Entry]:
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = [(number, row) for number, row in enumerate(csv.reader(file), start=1) if any(row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"the table cannot be read ({error})", path=table) from None
    for number, row in rows:
        try:
            yield _name_of(row), _triplet(root, [cell.strip() for cell in row])
        except SafelightError as error:
            error.path = error.path or table
            yield f"line {number}", error


def _name_of(row: Sequence[str]) -> str:
    return Path(row[4].strip()).stem if len(row) > 4 else ",".join(row)


def _triplet(root: Path, row: list[str]) -> Triplet:
    """Return the triplet of a line of 5 or 7 columns."""
    if len(row) not in (5, 7) or row[0] not in SPLITS:
        raise InputError(
            f"the line {','.join(row)!r} is not one of the table",
            expected="split (1, 2, 3), folders of radar, cloud-free and cloudy images, and one file name, or the three "
            "of the cloud-free, the radar and the cloudy image",
        )
    folders, names = row[1:4], row[4:]
    clear_name, sar_name, cloudy_name = names * 3 if len(names) == 1 else names
    sar, clear, cloudy = (
        inside(root, f"{folder}/{name}")
        for folder, name in zip(folders, (sar_name, clear_name, cloudy_name), strict=True)
    )
    return Triplet(Path(clear_name).stem, SPLITS[row[0]], scene_of(clear_name), sar, clear, cloudy)


def _from_layout(root: Path) -> Iterator[Entry]:
    """Yield the triplets of the released layout: the names of the files say what they are, wherever they lie."""
    found: dict[tuple[str, str, int, int], dict[str, Path]] = defaultdict(dict)
    for path in sorted(root.rglob("*.tif")):
        match = _NAME.fullmatch(path.stem)
        if match and match["kind"]:
            place = (match["roi"], match["season"], int(match["scene"]), int(match["patch"]))
            found[place][_KINDS[match["kind"]]] = inside(root, path.relative_to(root))
    for (roi, season, number, patch), files in sorted(found.items()):
        name, scene = f"{roi}_{season}_{number}_p{patch}", Scene(season, number)
        lacking = sorted(_KINDS.values() - files.keys())
        if lacking:
            yield name, InputError(f"there is no {' and no '.join(lacking)} image of it", path=root)
        else:
            yield name, Triplet(name, scene.official_split, scene, **files)


def _check_whole(triplet: Triplet) -> None:
    missing = next((path for path in triplet.paths if not path.is_file()), None)
    if missing is not None:
        raise InputError("there is no such file, which the triplet needs", path=missing)
