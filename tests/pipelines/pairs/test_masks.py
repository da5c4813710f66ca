"""What masks keep of the same content at every noise, what they find, and that each bit says why."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from exposures import BAYER, BLACK, LOW, MARGIN, WHITE, XTRANS, Floats, Pattern, expose, moved, pair, texture
from safelight.core.device import Device
from safelight.core.events import EventLog
from safelight.core.execute import Executor
from safelight.core.plan import Corrections
from safelight.formats.raw import RawFrame, read_raw
from safelight.kernels.loss_mask import CLIPPED_ANCHOR, CLIPPED_TARGET, MOVED, OUTSIDE
from safelight.pipelines.pairs.alignment import align, prepare
from safelight.pipelines.pairs.masks import MaskMethod, mask

SIZE = (400 + 2 * MARGIN, 600 + 2 * MARGIN)
SHIFT = (3.37, -7.81)
ISO = {"100": (LOW, 0.9), "6400": (500.0, 0.5), "65535": (50.0, 0.45)}
"""Electrons at white, and how much darker the noisy frame is."""
OTHER_BITS = CLIPPED_ANCHOR | CLIPPED_TARGET | OUTSIDE
OBJECT = (slice(120, 180), slice(200, 260))
PATTERNS = pytest.mark.parametrize("pattern", [BAYER["RGGB"], XTRANS], ids=["bayer", "x-trans"])


@pytest.fixture(scope="module")
def scene() -> Floats:
    return texture(*SIZE, 1)


@pytest.fixture
def executor(tmp_path: Path) -> Executor:
    return Executor(Device(torch.device("cpu")), EventLog(), corrections=Corrections(tmp_path))


def bits_of(clean: RawFrame, noisy: RawFrame, executor: Executor, method: MaskMethod = "noise") -> NDArray[np.uint8]:
    anchor = prepare(clean, executor)
    return mask(anchor, noisy, align(anchor, noisy, executor), executor, method).bits


def kept(bits: NDArray[np.uint8]) -> float:
    """Return which share of the pixels that are neither clipped nor outside is not called moved."""
    valid = (bits & OTHER_BITS) == 0
    return float((bits[valid] == 0).mean())


def iou(bits: NDArray[np.uint8], place: tuple[slice, slice]) -> float:
    """Return intersection over union of what moved and a rectangle, over valid pixels."""
    valid, found, truth = (bits & OTHER_BITS) == 0, (bits & MOVED) > 0, np.zeros(bits.shape, bool)
    truth[place] = True
    return float((truth & found & valid).sum() / ((truth | found) & valid).sum())


@PATTERNS
@pytest.mark.parametrize("iso", ISO)
def test_the_same_content_is_kept_at_any_noise(scene: Floats, pattern: Pattern, iso: str, executor: Executor) -> None:
    full_well, light = ISO[iso]
    clean, noisy = pair(scene, pattern, SHIFT, full_well=full_well, light=light)
    assert kept(bits_of(clean, noisy, executor)) >= 0.95


@PATTERNS
@pytest.mark.parametrize("iso", ISO)
def test_an_inserted_object_is_found(scene: Floats, pattern: Pattern, iso: str, executor: Executor) -> None:
    full_well, light = ISO[iso]
    inside = (slice(None), slice(MARGIN, -MARGIN), slice(MARGIN, -MARGIN))
    target = moved(scene, SHIFT)[inside]
    target[:, *OBJECT] = 0.5 + 0.5 * target[:, *OBJECT].mean() - target[:, *OBJECT]
    clean, noisy = (
        expose(scene[inside], pattern, seed=1),
        expose(target, pattern, light=light, full_well=full_well, seed=2),
    )
    assert iou(bits_of(clean, noisy, executor), OBJECT) >= 0.7


def test_the_reference_set_is_masked_as_promised(shared: Path, executor: Executor) -> None:
    folder = shared / "data" / "rawnind"
    for known in json.loads((folder / "truth.json").read_text()):
        clean, noisy = (read_raw(next(folder.rglob(known[name]))) for name in ("gt", "noisy"))
        bits = bits_of(clean, noisy, executor)
        if known["object_in_target"] is None:
            assert kept(bits) >= 0.95, known
        else:
            top, left, height, width = known["object_in_target"]
            assert iou(bits, (slice(top, top + height), slice(left, left + width))) >= 0.7, known


def test_the_mask_of_upstream_finds_noise_at_high_iso(scene: Floats, executor: Executor) -> None:
    pattern = BAYER["RGGB"]
    shares = []
    for full_well in (LOW, 20.0):
        clean, noisy = pair(scene, pattern, (2, -4), full_well=full_well, light=0.9)
        shares.append(kept(bits_of(clean, noisy, executor, "upstream")))
    assert shares[0] > 0.95
    assert shares[1] < 0.7


def test_every_bit_says_why(scene: Floats, executor: Executor) -> None:
    clean, noisy = pair(scene, BAYER["RGGB"], (6, -10), full_well=LOW, light=0.6)
    for frame, place in ((clean, (100, 301)), (noisy, (51, 60))):
        frame.mosaic[place] = int(WHITE)
    bits = bits_of(clean, noisy, executor)
    height = len(bits)
    outside = np.ones(bits.shape, bool)
    outside[: height - 6, 10:] = False
    np.testing.assert_array_equal(bits == OUTSIDE, outside)
    # anchor[y + 6, x − 10] is target[y, x].
    np.testing.assert_array_equal(np.argwhere(bits & CLIPPED_ANCHOR), [[94, 311]])
    np.testing.assert_array_equal(np.argwhere(bits & CLIPPED_TARGET), [[51, 60]])


def test_clipping_is_that_of_each_colour(scene: Floats, executor: Executor) -> None:
    clean, noisy = pair(scene, BAYER["RGGB"], (0, 0), full_well=LOW, light=0.6)
    limits = (WHITE, BLACK + 4000, WHITE, WHITE)
    bits = bits_of(replace(clean, clipping=limits), noisy, executor)
    expected = np.zeros(bits.shape, bool)
    expected[::2, 1::2] = clean.mosaic[::2, 1::2] >= BLACK + 4000
    np.testing.assert_array_equal((bits & CLIPPED_ANCHOR) > 0, expected)


def test_no_speck_within_what_moved_is_kept(scene: Floats, executor: Executor) -> None:
    clean, noisy = pair(scene, BAYER["RGGB"], (0, 0), full_well=LOW, light=0.6)
    speck = (slice(150, 152), slice(230, 232))
    unchanged = noisy.mosaic[speck].copy()
    noisy.mosaic[OBJECT] = noisy.mosaic[OBJECT] // 2 + 4000
    noisy.mosaic[speck] = unchanged
    assert (bits_of(clean, noisy, executor)[OBJECT] & MOVED).all()


@pytest.mark.parametrize("method", ["noise", "upstream"])
@PATTERNS
def test_rows_are_the_same_in_parts_of_any_size(
    pattern: Pattern, method: MaskMethod, executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean, noisy = pair(texture(800, 300, 1), pattern, SHIFT, full_well=200.0)
    generator = np.random.default_rng(0)
    for y, x in zip(*(generator.integers(0, size - 8, 150) for size in noisy.mosaic.shape), strict=True):
        noisy.mosaic[y : y + 8, x : x + 8] += 900
    found = []
    for rows in (1000, 64):
        monkeypatch.setattr("safelight.pipelines.pairs.masks.PART_ROWS", rows)
        found.append(bits_of(clean, noisy, executor, method))
    np.testing.assert_array_equal(found[0], found[1])
