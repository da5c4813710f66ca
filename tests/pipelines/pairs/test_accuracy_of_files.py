"""Shifts between files that were written and read again: every array, with margins and without, at every noise."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from dng import BAYER, XTRANS, write_dng
from exposures import BLACK, HIGH, LOW, MID, WHITE, Floats, Shift, texture
from exposures import pair as make_pair
from safelight.core.device import Device
from safelight.core.events import EventLog
from safelight.core.execute import Executor
from safelight.core.plan import Corrections
from safelight.formats.raw import RawFrame, read_raw
from safelight.pipelines.pairs.alignment import PairAlignment, align, prepare

ARRAYS = [*((name, BAYER[name], (0, 0)) for name in BAYER), ("RGGB", BAYER["RGGB"], (6, 4))]
ARRAYS += [("X-Trans", XTRANS, margin) for margin in ((0, 0), (8, 10), (7, 6))]
SHIFTS: tuple[Shift, ...] = ((-6, 8), (3, -5), (2.37, -7.81))
MOST = {("bayer", LOW): 0.05, ("bayer", MID): 0.05, ("x-trans", LOW): 0.1, ("x-trans", MID): 0.1}
MOST |= {("bayer", HIGH): 0.12, ("x-trans", HIGH): 0.2}
"""Pixels."""
LARGEST_MARGIN = 12


@pytest.fixture(scope="module")
def scene() -> Floats:
    return texture(464, 864, 5)


def written(path: Path, frame: RawFrame, pattern: tuple[tuple[int, ...], ...], margin: tuple[int, int]) -> RawFrame:
    """Return a frame as it is read from a DNG whose visible part begins after a margin."""
    height, width = (length - LARGEST_MARGIN for length in frame.mosaic.shape)
    top, left = margin
    whole = np.full((height + top, width + left), int(BLACK), np.uint16)
    whole[top:, left:] = frame.mosaic[:height, :width]
    active = (top, left, height + top, width + left) if any(margin) else None
    return read_raw(write_dng(path, whole, pattern, black=(int(BLACK),), white=int(WHITE), active=active))


def aligned(clean: RawFrame, noisy: RawFrame, device: str = "cpu") -> PairAlignment:
    run = Executor(Device(torch.device(device)), EventLog(), corrections=Corrections())
    return align(prepare(clean, run), noisy, run)


@pytest.mark.parametrize(
    ("number", "array", "full_well"),
    [(number, array, noise) for number, (array, noise) in enumerate(product(ARRAYS, (LOW, MID, HIGH)))],
    ids=lambda value: f"{value[0]}{value[2]}" if isinstance(value, tuple) else str(value),
)
def test_files_are_aligned_as_exactly_as_promised(
    scene: Floats,
    number: int,
    array: tuple[str, tuple[tuple[int, ...], ...], tuple[int, int]],
    full_well: float,
    tmp_path: Path,
) -> None:
    _, pattern, margin = array
    shift = SHIFTS[(number + number // 3) % 3]
    sites = np.where(np.array(pattern) == 3, 1, pattern)
    frames = make_pair(scene, sites, shift, full_well=full_well, seed=number)
    clean, noisy = (
        written(tmp_path / f"{name}.dng", frame, pattern, margin)
        for name, frame in zip(("gt", "noisy"), frames, strict=True)
    )
    found = aligned(clean, noisy)
    assert found.status == "ok"
    error = float(np.hypot(found.shift[0] - shift[0], found.shift[1] - shift[1]))
    assert error <= MOST[clean.sensor, full_well]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("pattern", [BAYER["RGGB"], XTRANS], ids=["bayer", "x-trans"])
def test_cuda_finds_the_same(scene: Floats, pattern: tuple[tuple[int, ...], ...]) -> None:
    clean, noisy = make_pair(scene, pattern, (3.37, -7.81))
    assert aligned(clean, noisy, "cuda").shift == pytest.approx(aligned(clean, noisy).shift, abs=0.01)
