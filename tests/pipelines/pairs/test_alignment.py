"""Shift, gain and verdict of pairs whose shift is known, and of frames that are no pair."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import rotate

from exposures import (
    BAYER,
    BLACK,
    FULL,
    HIGH,
    LOW,
    MARGIN,
    MID,
    XTRANS,
    Floats,
    Pattern,
    Shift,
    expose,
    frame_of,
    photograph,
    texture,
)
from exposures import pair as make_pair
from safelight.core.device import Device
from safelight.core.events import EventLog
from safelight.core.execute import Executor
from safelight.core.memory import VirtualDevice
from safelight.core.plan import Corrections
from safelight.formats.raw import RawFrame
from safelight.pipelines.pairs.alignment import PairAlignment, align, prepare
from safelight.pipelines.pairs.masks import mask
from safelight.pipelines.pairs.options import MIN_CONFIDENCE, Method

SIZE = (400 + 2 * MARGIN, 804 + 2 * MARGIN)
WHOLE: tuple[Shift, ...] = ((2, -4), (-6, 8), (3, -5), (-7, 11), (-1, 0))
FRACTIONAL: tuple[Shift, ...] = ((3.37, -7.81), (-0.5, 2.25), (5.63, 0.4), (-12.2, -9.9))
PHOTOGRAPHS = ("DSC_1339_rose_RGGB_wrapped.dng", "openisp_test_RGGB_wrapped.dng")


@pytest.fixture(scope="module")
def scenes() -> list[Floats]:
    return [texture(*SIZE, seed) for seed in (1, 2)]


@pytest.fixture(scope="module")
def photographs(shared: Path) -> list[Floats]:
    return [photograph(shared / "data" / "raw" / name, *SIZE) for name in PHOTOGRAPHS]


def executor(virtual: VirtualDevice | None = None, folder: Path | None = None) -> Executor:
    return Executor(Device(torch.device("cpu")), EventLog(), virtual=virtual, corrections=Corrections(folder))


def align_frames(clean: RawFrame, noisy: RawFrame, method: Method = "phase") -> PairAlignment:
    run = executor()
    return align(prepare(clean, run), noisy, run, method=method)


def error_of(found: PairAlignment, shift: Shift) -> float:
    return float(np.hypot(found.shift[0] - shift[0], found.shift[1] - shift[1]))


def errors(scenes: list[Floats], pattern: Pattern, full_well: float) -> list[float]:
    """Return the errors of all shifts, scenes in turn."""
    result = []
    for number, shift in enumerate((*WHOLE, *FRACTIONAL)):
        clean, noisy = make_pair(scenes[number % len(scenes)], pattern, shift, full_well=full_well, seed=number)
        found = align_frames(clean, noisy)
        assert found.status == "ok", (shift, found)
        if shift in WHOLE and full_well > HIGH:
            assert found.shift_integer == shift
        result.append(error_of(found, shift))
    return result


@pytest.mark.parametrize("full_well", [LOW, MID, HIGH])
@pytest.mark.parametrize(("sensor", "median", "worst"), [("bayer", 0.05, 0.12), ("x-trans", 0.1, 0.2)])
def test_shifts_are_as_exact_as_promised(
    scenes: list[Floats], sensor: str, median: float, worst: float, full_well: float
) -> None:
    found = errors(scenes, BAYER["RGGB"] if sensor == "bayer" else XTRANS, full_well)
    assert np.median(found) <= median
    assert max(found) <= worst


@pytest.mark.parametrize(("sensor", "median", "worst"), [("bayer", 0.05, 0.12), ("x-trans", 0.1, 0.2)])
def test_shifts_of_photographs_are_as_exact(
    photographs: list[Floats], sensor: str, median: float, worst: float
) -> None:
    found = errors(photographs, BAYER["RGGB"] if sensor == "bayer" else XTRANS, HIGH)
    assert np.median(found) <= median
    assert max(found) <= worst


@pytest.mark.parametrize("pattern", [BAYER["RGGB"], XTRANS], ids=["bayer", "x-trans"])
def test_the_greatest_correlation_is_as_exact(scenes: list[Floats], pattern: Pattern) -> None:
    shift = (5.63, -3.4)
    clean, noisy = make_pair(scenes[0], pattern, shift, full_well=HIGH)
    found = [align_frames(clean, noisy, method) for method in ("phase", "ecc")]
    assert found[0].shift != found[1].shift
    assert max(error_of(one, shift) for one in found) < 0.12


@pytest.mark.parametrize("shift", [(31, -25), (12, 14)], ids=str)
def test_frames_so_large_that_the_search_is_binned(
    scenes: list[Floats], shift: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The search goes by steps of several pixels; what follows must not be drawn to where it ended."""
    monkeypatch.setattr("safelight.pipelines.pairs.shifts.COARSE_PIXELS", 6_000)
    clean, noisy = make_pair(scenes[0], BAYER["RGGB"], shift, full_well=LOW)
    assert error_of(align_frames(clean, noisy), shift) < 0.01


def test_a_colour_without_light_has_the_gain_of_all(scenes: list[Floats]) -> None:
    scene = scenes[0] * np.array([0.0, 1.0, 1.0])[:, None, None]
    clean, noisy = (
        replace(frame, mosaic=_without_red(frame.mosaic)) for frame in make_pair(scene, BAYER["RGGB"], (4, -2))
    )
    found = align_frames(clean, noisy)
    assert found.status == "ok"
    assert found.rgb_gain == pytest.approx((1 / 0.45,) * 3, rel=0.03)
    assert found.rgb_gain[0] == found.raw_gain
    run = executor()
    assert mask(prepare(clean, run), noisy, found, run).usable > 0.95


def _without_red(mosaic: NDArray[np.uint16]) -> NDArray[np.uint16]:
    dark = mosaic.copy()
    dark[::2, ::2] = BLACK
    return dark


@pytest.mark.parametrize("name", BAYER)
def test_every_bayer_phase(scenes: list[Floats], name: str) -> None:
    clean, noisy = make_pair(scenes[0], BAYER[name], (-3, 7))
    found = align_frames(clean, noisy)
    assert found.shift_integer == (-3, 7)
    assert error_of(found, (-3, 7)) < 0.05


@pytest.mark.parametrize("phase", [(1, 0), (0, 2), (4, 5)])
def test_x_trans_that_begins_anywhere(scenes: list[Floats], phase: tuple[int, int]) -> None:
    clean, noisy = make_pair(scenes[0], XTRANS, (4, -5), phases=(phase, phase))
    assert error_of(align_frames(clean, noisy), (4, -5)) < 0.1


@pytest.mark.parametrize(
    ("pattern", "phases"), [(BAYER["RGGB"], ((0, 0), (1, 0))), (XTRANS, ((2, 1), (0, 3))), (XTRANS, ((0, 0), (3, 0)))]
)
def test_frames_of_different_phases_meet_colour_on_colour(
    scenes: list[Floats], pattern: Pattern, phases: tuple[tuple[int, int], tuple[int, int]]
) -> None:
    clean, noisy = make_pair(scenes[0], pattern, (4, -5), phases=phases)
    found = align_frames(clean, noisy)
    assert error_of(found, (4, -5)) < 0.1
    # The lattice shift lays every colour onto itself.
    dy, dx = found.shift_lattice
    period = len(pattern)
    at = np.add.outer(np.arange(period) + dy, [0] * period), np.add.outer([0] * period, np.arange(period) + dx)
    np.testing.assert_array_equal(clean.pattern[at[0] % period, at[1] % period], noisy.pattern)
    assert found.lattice_residual == pytest.approx(float(np.hypot(dy - found.shift[0], dx - found.shift[1])))


def test_frames_of_different_sizes(scenes: list[Floats]) -> None:
    clean, noisy = make_pair(scenes[0], BAYER["RGGB"], (4, -5))
    smaller = replace(noisy, mosaic=noisy.mosaic[20:-30, 10:-50])
    assert error_of(align_frames(clean, smaller), (24, 5)) < 0.05
    smaller = replace(clean, mosaic=clean.mosaic[20:-30, 10:-50])
    assert error_of(align_frames(smaller, noisy), (-16, -15)) < 0.05


def test_another_array_is_refused(scenes: list[Floats]) -> None:
    clean = make_pair(scenes[0], XTRANS, (0, 0))[0]
    bayer = make_pair(scenes[0], BAYER["RGGB"], (0, 0))[1]
    assert align_frames(clean, bayer).reason == "other_sensor"
    striped = replace(bayer, pattern=np.array(((0, 1), (2, 3)), np.uint8))
    assert align_frames(bayer, striped).reason == "other_phase"


@pytest.mark.parametrize("pattern", [BAYER["RGGB"], XTRANS], ids=["bayer", "x-trans"])
@pytest.mark.parametrize(("contrast", "full_well"), [(1.0, HIGH), (0.3, MID)])
def test_hot_pixels_of_both_frames_do_not_hold_the_shift_at_zero(
    scenes: list[Floats], pattern: Pattern, contrast: float, full_well: float
) -> None:
    shift = (-3.37, 7.81)
    clean, noisy = make_pair(0.3 + contrast * (scenes[0] - 0.3), pattern, shift, full_well=full_well)
    generator = np.random.default_rng(0)
    hot = tuple(generator.integers(0, size, 400) for size in clean.mosaic.shape)
    for frame in (clean, noisy):
        frame.mosaic[hot] = FULL
    found = align_frames(clean, noisy)
    assert found.status == "ok"
    assert error_of(found, shift) < (0.12 if len(pattern) == 2 else 0.2)


@pytest.mark.parametrize("light", [1 / 8, 1.0, 10.0])
def test_gain_does_not_move_the_shift_and_is_found(scenes: list[Floats], light: float) -> None:
    scene = scenes[0] * (0.09 if light > 1 else 1.0)
    clean, noisy = make_pair(scene, BAYER["RGGB"], (3.37, -7.81), full_well=LOW, light=light)
    found = align_frames(clean, noisy)
    assert error_of(found, (3.37, -7.81)) < 0.05
    assert found.raw_gain == pytest.approx(1 / light, rel=0.01)
    assert found.rgb_gain == pytest.approx((1 / light,) * 3, rel=0.02)


def test_clipped_light_moves_neither_shift_nor_gain(scenes: list[Floats]) -> None:
    clean, noisy = make_pair(scenes[0], BAYER["RGGB"], (4, 2), full_well=LOW, light=3.0)
    found = align_frames(clean, noisy)
    assert found.status == "ok"
    assert error_of(found, (4, 2)) < 0.003, "edges that one frame clips would draw it to 0.005"
    assert found.raw_gain == pytest.approx(1 / 3, rel=0.02)


def no_pair(name: str, scene: Floats) -> RawFrame:
    generator = np.random.default_rng(5)
    shape = (SIZE[0] - 2 * MARGIN, SIZE[1] - 2 * MARGIN)
    if name == "dark":
        raw = generator.normal(BLACK, 20, shape)
        raw[tuple(generator.integers(0, size, 300) for size in shape)] = FULL
        return frame_of(raw, BAYER["RGGB"])
    if name == "black":
        return frame_of(np.full(shape, BLACK), BAYER["RGGB"])
    if name == "flat":
        return frame_of(generator.normal(5000, 80, shape), BAYER["RGGB"])
    if name == "unrelated":
        return expose(texture(*shape, 77), BAYER["RGGB"], full_well=MID)
    if name == "clipped":
        return expose(scene[:, MARGIN:-MARGIN, MARGIN:-MARGIN], BAYER["RGGB"], light=12)
    angle = {"turned a little": 0.3, "turned more": 1, "turned": 25, "upside down": 180}[name]
    turned = rotate(scene, angle, axes=(1, 2), reshape=False, order=1, mode="reflect")
    return expose(turned[:, MARGIN:-MARGIN, MARGIN:-MARGIN], BAYER["RGGB"], full_well=MID)


@pytest.mark.parametrize(
    ("name", "status", "reasons"),
    [
        ("dark", "failed", {"no_signal", "wrong_scene"}),
        ("black", "failed", {"no_signal"}),
        ("flat", "failed", {"no_signal"}),
        ("unrelated", "failed", {"no_signal", "wrong_scene"}),
        ("clipped", "failed", {"clipped", "no_signal"}),
        ("turned a little", "suspect", {"uneven_shift"}),
        ("turned more", "failed", {"uneven_shift"}),
        ("turned", "failed", {"no_signal", "wrong_scene"}),
        ("upside down", "failed", {"no_signal", "wrong_scene"}),
    ],
)
def test_what_is_no_pair_is_flagged_and_masked(scenes: list[Floats], name: str, status: str, reasons: set[str]) -> None:
    run = executor()
    anchor = prepare(make_pair(scenes[0], BAYER["RGGB"], (0, 0))[0], run)
    frame = no_pair(name, scenes[0])
    found = align(anchor, frame, run)
    assert found.status == status
    assert found.reason in reasons
    for method in ("noise", "upstream"):
        bits = mask(anchor, frame, found, run, method).bits
        assert status != "failed" or not (bits == 0).any()


def test_frames_that_hardly_overlap_have_failed() -> None:
    scene = texture(400, 1400, 3)
    clean, noisy = (expose(part, BAYER["RGGB"]) for part in (scene[:, :, :800], scene[:, :, 380:1180]))
    assert align_frames(clean, noisy).shift_integer == (0, 380)
    run = executor()
    tall = replace(clean, mosaic=clean.mosaic[:40])
    assert align(prepare(clean, run), tall, run).status == "failed"


def test_the_least_confidence_is_the_users(scenes: list[Floats]) -> None:
    run = executor()
    clean, noisy = make_pair(scenes[0], BAYER["RGGB"], (2, 2))
    anchor = prepare(clean, run)
    confidence = align(anchor, noisy, run).confidence
    assert confidence > 3 * MIN_CONFIDENCE
    assert align(anchor, noisy, run, min_confidence=confidence + 1).reason == "no_signal"


@pytest.mark.parametrize("pattern", [BAYER["RGGB"], XTRANS], ids=["bayer", "x-trans"])
def test_a_device_short_of_memory_gives_the_same(scenes: list[Floats], pattern: Pattern, tmp_path: Path) -> None:
    clean, noisy = make_pair(scenes[0], pattern, (3.37, -7.81))
    run = executor(folder=tmp_path / "roomy")
    anchor = prepare(clean, run)
    expected = align(anchor, noisy, run)
    bits = mask(anchor, noisy, expected, run).bits
    short = VirtualDevice(cap_bytes=6 << 20)
    run = executor(short, tmp_path / "short")
    anchor = prepare(clean, run)
    found = align(anchor, noisy, run)
    assert short.peak > 1 << 20
    assert found.shift == pytest.approx(expected.shift, abs=0.01)
    assert found.confidence == pytest.approx(expected.confidence, rel=1e-3)
    assert (mask(anchor, noisy, found, run).bits != bits).mean() < 1e-4
