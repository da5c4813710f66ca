"""Writes DNG files that LibRaw reads, and scenes of them with known shifts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

XTRANS = (
    (1, 2, 1, 1, 0, 1),
    (0, 1, 0, 2, 1, 2),
    (1, 2, 1, 1, 0, 1),
    (1, 0, 1, 1, 2, 1),
    (2, 1, 2, 0, 1, 0),
    (1, 0, 1, 1, 2, 1),
)
BAYER = {
    "RGGB": ((0, 1), (1, 2)),
    "BGGR": ((2, 1), (1, 0)),
    "GRBG": ((1, 0), (2, 1)),
    "GBRG": ((1, 2), (0, 1)),
}
WHITE, BLACK = 16383, 512
WORLD, MARGIN = (294, 414), 24
"""Size of what there is to see, and how far into it a frame without a shift begins."""
MATRIX = (0.7374, -0.2389, -0.0551, -0.5435, 1.3162, 0.2519, -0.1006, 0.1795, 0.6552)

Pattern = Sequence[Sequence[int]]


def write_dng(
    path: Path,
    mosaic: NDArray[np.uint16],
    pattern: Pattern,
    *,
    black: Sequence[int] = (BLACK,),
    black_dim: tuple[int, int] = (1, 1),
    white: int = WHITE,
    active: tuple[int, int, int, int] | None = None,
    orientation: int = 1,
    iso: int | None = None,
    exposure: tuple[int, int] | None = None,
    model: str = "Test Camera",
    photometric: int = 32803,
    claimed: tuple[int, int] | None = None,
) -> Path:
    """Write a mosaic of red 0, green 1 and blue 2, its pattern counted from the first visible pixel.

    ``active`` is (top, left, bottom, right) of the visible part; ``claimed`` makes the header lie about height and
    width.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sites = np.asarray(pattern, np.uint8)
    tags = [
        (50706, "B", 4, bytes((1, 4, 0, 0))),
        (50707, "B", 4, bytes((1, 1, 0, 0))),
        (50708, "s", 0, model),
        (271, "s", 0, "Test"),
        (272, "s", 0, model),
        (50714, "H", len(black), tuple(black) if len(black) > 1 else black[0]),
        (50717, "I", 1, white),
        (50721, "2i", 9, _rationals(MATRIX)),
        (50728, "2I", 3, _rationals((0.5, 1.0, 0.6))),
        (50778, "H", 1, 21),
        (274, "H", 1, orientation),
    ]
    if photometric == 32803:
        tags += [
            (33421, "H", 2, sites.shape),
            (33422, "B", sites.size, sites.tobytes()),
            (50710, "B", 3, bytes((0, 1, 2))),
            (50711, "H", 1, 1),
            (50713, "H", 2, black_dim),
        ]
    if active:
        tags.append((50829, "I", 4, active))
    if iso:
        tags.append((34855, "H", 1, iso))
    if exposure:
        tags.append((33434, "2I", 1, exposure))
    with tifffile.TiffWriter(path) as writer:
        writer.write(
            mosaic.astype(np.uint16),
            photometric=photometric,
            planarconfig=None if mosaic.ndim == 2 else "contig",
            metadata=None,
            extratags=[(*tag, True) for tag in tags],
            subfiletype=0,
            rowsperstrip=len(mosaic),
        )
    if claimed:
        _lie(path, claimed)
    return path


def _rationals(values: Sequence[float]) -> list[int]:
    return [part for value in values for part in (round(value * 10000), 10000)]


def _lie(path: Path, claimed: tuple[int, int]) -> None:
    """Make the header claim another height and width."""
    with tifffile.TiffFile(path, mode="r+b") as file:
        for name, value in zip(("ImageLength", "ImageWidth"), claimed, strict=True):
            file.pages[0].tags[name].overwrite(value, dtype="I")


def texture(height: int, width: int, seed: int = 0) -> NDArray[np.float64]:
    """Return an image with detail of every size that is not finer than a few pixels, 0.05 to 0.95."""
    rng = np.random.default_rng(seed)
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    radius = np.hypot(fy, fx)
    envelope = np.exp(-((radius / 0.08) ** 2)) / np.maximum(radius, 1 / max(height, width))
    image = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((height, width))) * envelope, (height, width))
    low, high = np.percentile(image, (0.5, 99.5))
    return np.clip(0.05 + 0.9 * (image - low) / (high - low), 0.02, 0.98)


@dataclass(frozen=True)
class SceneMaker:
    """Photographs of one textured scene.

    Parameters
    ----------
    size : tuple of int
        Of the visible frames, up to the world without its margins.
    pattern : sequence
        From the first visible pixel of the ground truth on.
    seed : int
        Of the scene's texture.
    """

    size: tuple[int, int] = (240, 360)
    pattern: Pattern = BAYER["RGGB"]
    seed: int = 0

    def shot(
        self, shift: tuple[int, int] = (0, 0), *, exposure: float = 0.6, full_well: float = 20000, seed: int = 1
    ) -> NDArray[np.uint16]:
        """Return a mosaic with ``anchor[y + dy, x + dx] ≈ shot[y, x]``, an anchor being a shot with no shift."""
        height, width = self.size
        top, left = MARGIN + shift[0], MARGIN + shift[1]
        light = texture(*WORLD, self.seed)[top : top + height, left : left + width]
        colour = np.array((0.5, 1.0, 0.7))[_colours(self.pattern, self.size)]
        electrons = np.random.default_rng(seed).poisson(light * colour * exposure * full_well)
        raw = BLACK + (WHITE - BLACK) * electrons / full_well
        return np.clip(raw.round(), 0, WHITE).astype(np.uint16)

    def write(
        self,
        path: Path,
        shift: tuple[int, int] = (0, 0),
        *,
        exposure: float = 0.6,
        full_well: float = 20000,
        seed: int = 1,
    ) -> Path:
        """Write a shot."""
        return write_dng(path, self.shot(shift, exposure=exposure, full_well=full_well, seed=seed), self.pattern)


def _colours(pattern: Pattern, size: tuple[int, int]) -> NDArray[np.intp]:
    sites = np.asarray(pattern)
    repeats = [-(-length // period) for length, period in zip(size, sites.shape, strict=True)]
    return np.tile(sites, repeats)[: size[0], : size[1]]


def colour_coded(pattern: Pattern, height: int, width: int) -> NDArray[np.uint16]:
    """Return a mosaic in which every site says its colour: 1000, 2000 or 3000."""
    return (1000 * (_colours(pattern, (height, width)) + 1)).astype(np.uint16)


def with_sha1(path: Path) -> Path:
    """Give a file a name that tells its digest, as RawNIND does."""
    digest = hashlib.sha1(path.read_bytes(), usedforsecurity=False).hexdigest()
    return path.rename(path.with_name(f"{path.stem}_sha1={digest}{path.suffix}"))


def make_dataset(root: Path) -> dict[str, tuple[int, int]]:
    """Make a dataset of two scenes in RawNIND's layout and return the noisy frames' shifts by file name."""
    shifts = {}
    for name, maker in (
        ("Bayer_wall", SceneMaker()),
        ("X-Trans_tree", SceneMaker(size=(246, 366), pattern=XTRANS, seed=1)),
    ):
        sensor, scene = name.split("_")
        folder = root / "src" / sensor / scene
        with_sha1(maker.write(folder / "gt" / f"{name}_GT_ISO100.dng"))
        for number, (iso, shift) in enumerate(((800, (4, -6)), (6400, (-3, 5))), start=2):
            path = maker.write(folder / f"{name}_ISO{iso}.dng", shift, exposure=0.4, full_well=2000, seed=number)
            shifts[with_sha1(path).name] = shift
    return shifts
