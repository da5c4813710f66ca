"""Side by side in one run: shifts by Safelight, scikit-image, OpenCV, per-channel FFT and greedy L1; time and memory.

    python bench/pairs.py                         # everything, about ten minutes
    python bench/pairs.py --only accuracy         # again, only these parts; the others stay as they were measured

Every finished part is written at once to results/pairs.json and results/pairs.md. bench/README.md says what is
compared.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from machine import ROOT, describe
from pairs_peers import PEERS
from safelight.core.device import Device
from safelight.core.events import EventLog
from safelight.core.execute import Executor
from safelight.core.files import atomic_write
from safelight.core.plan import Corrections
from safelight.formats.raw import RawFrame, read_raw
from safelight.pipelines.pairs.alignment import align, prepare
from safelight.pipelines.pairs.decoding import decode_ahead
from safelight.pipelines.pairs.items import frame_file
from safelight.pipelines.pairs.masks import mask

sys.path.append(str(ROOT / "tests"))
from exposures import BAYER, BLACK, HIGH, LOW, MARGIN, WHITE, XTRANS, frame_of, pair, photograph, texture

RESULTS = Path(__file__).resolve().parent / "results"
DATA = ROOT.parent / "shared" / "data" / "raw"
PHOTOGRAPHS = ("DSC_1339_rose_RGGB_wrapped.dng", "openisp_test_RGGB_wrapped.dng")
SIZE = (400 + 2 * MARGIN, 800 + 2 * MARGIN)
SHIFTS = {
    "even": ((2.0, -4.0), (-6.0, 8.0)),
    "odd": ((3.0, -5.0), (-7.0, 11.0)),
    "sub-pixel": ((3.37, -7.81), (-0.5, 2.25)),
}
CASES = (("even", LOW), ("odd", LOW), ("sub-pixel", LOW), ("odd", HIGH), ("sub-pixel", HIGH))
SIDES = {24: (4000, 6000), 60: (6336, 9504)}
FRAMES, ROUNDS = 9, 7
ALIGN_SECONDS, SCENE_RATIO, MEMORY = 0.3, 1.3, 1.2e9

Measured = dict[str, Any]


def executor(folder: Path) -> Executor:
    """Return an executor that remembers nothing of other runs."""
    return Executor(Device(torch.device("cpu")), EventLog(), corrections=Corrections(folder))


def by_safelight(clean: RawFrame, noisy: RawFrame) -> tuple[float, float]:
    """Return the shift as Safelight finds it."""
    with tempfile.TemporaryDirectory() as folder:
        run = executor(Path(folder))
        return align(prepare(clean, run), noisy, run).shift


METHODS: dict[str, Callable[[RawFrame, RawFrame], tuple[float, float]]] = {"Safelight": by_safelight, **PEERS}


def part_accuracy() -> Measured:
    """Errors in pixels and seconds a pair of every method, every kind of shift, and of Safelight on X-Trans."""
    scenes = [texture(*SIZE, seed) for seed in (1, 2)]
    scenes += [photograph(DATA / name, *SIZE) for name in PHOTOGRAPHS if (DATA / name).exists()]
    methods = {name: (method, BAYER["RGGB"]) for name, method in METHODS.items()}
    methods["Safelight, X-Trans"] = (by_safelight, XTRANS)
    measured: Measured = {"scenes": len(scenes)}
    for name, (method, pattern) in methods.items():
        rows, seconds = {}, []
        for kind, full_well in CASES:
            errors = []
            for number, shift in enumerate(SHIFTS[kind]):
                for scene in scenes:
                    frames = pair(scene, pattern, shift, full_well=full_well, seed=number)
                    began = time.process_time()
                    found = method(*frames)
                    seconds.append(time.process_time() - began)
                    errors.append(float(np.hypot(found[0] - shift[0], found[1] - shift[1])))
            rows[f"{kind}, {'low' if full_well == LOW else 'high'}"] = [statistics.median(errors), max(errors)]
        measured[name] = {"errors": rows, "seconds": statistics.median(seconds)}
    return measured


def large_frame(megapixels: int, shift: tuple[int, int], light: float, seed: int) -> NDArray[np.uint16]:
    """Return a mosaic of enlarged texture with Gaussian noise, made by rows."""
    height, width = SIDES[megapixels]
    coarse = texture(600, 900, 1)[1]
    rows = (np.arange(height) + 32 + shift[0]) * 599 // (height + 63)
    columns = (np.arange(width) + 32 + shift[1]) * 899 // (width + 63)
    generator, mosaic = np.random.default_rng(seed), np.empty((height, width), np.uint16)
    for row in range(0, height, 256):
        part = light * coarse[np.ix_(rows[row : row + 256], columns)]
        part += generator.normal(scale=0.02, size=part.shape)
        mosaic[row : row + 256] = np.clip(BLACK + (WHITE - BLACK) * part, 0, WHITE)
    return mosaic


def framed(mosaic: NDArray[np.uint16]) -> RawFrame:
    """Return a mosaic as a frame."""
    facts = frame_of(np.zeros((2, 2)), BAYER["RGGB"])
    return RawFrame(**(vars(facts) | {"mosaic": mosaic}))


def part_pair() -> Measured:
    """A pair of 24 megapixels without decoding: shift and gain, then the mask."""
    clean = framed(large_frame(24, (0, 0), 1.0, 0))
    noisy = framed(large_frame(24, (4, -6), 0.45, 1))
    with tempfile.TemporaryDirectory() as folder:
        run = executor(Path(folder))
        anchor, spent = prepare(clean, run), []
        for _ in range(5):
            wall, processor = time.perf_counter(), time.process_time()
            found = align(anchor, noisy, run)
            aligned, middle = time.perf_counter() - wall, time.process_time()
            mask(anchor, noisy, found, run)
            spent.append((aligned, middle - processor, time.process_time() - middle))
    columns = [statistics.median(column) for column in zip(*spent, strict=True)]
    return dict(zip(("wall", "processor", "mask_processor"), columns, strict=True)) | {"shift": found.shift}


def part_scene() -> Measured:
    """A scene of nine frames of 24 megapixels, in turn: decoded by two threads, and with all shifts and gains."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = [_write_compressed(folder / f"{number}.dng", number) for number in range(FRAMES)]
        with ProcessPoolExecutor(1, get_context("spawn")) as alone:  # a process of which nothing was tuned
            rounds = [
                (alone.submit(_decode_all, paths).result(), _align_all(paths, folder)) for _ in range(ROUNDS + 1)
            ][1:]
    decoded, aligned = (np.median([one[part] for one in rounds], axis=0).tolist() for part in (0, 1))
    ratios = [scene[0] / decode[0] for decode, scene in rounds]
    return {"decode": decoded, "scene": aligned, "ratio": statistics.median(ratios), "ratios": sorted(ratios)}


def _write_compressed(path: Path, number: int) -> Path:
    """Write a DNG with lossless JPEG, as cameras do."""
    import tifffile

    mosaic = large_frame(24, (2 * number, -3 * number), 1.0 if number == 0 else 0.5, number)
    tags = [
        (50706, "B", 4, bytes((1, 4, 0, 0)), True),
        (50708, "s", 0, "Bench Camera", True),
        (33421, "H", 2, (2, 2), True),
        (33422, "B", 4, bytes((0, 1, 1, 2)), True),
        (50710, "B", 3, bytes((0, 1, 2)), True),
        (50711, "H", 1, 1, True),
        (50714, "H", 1, int(BLACK), True),
        (50717, "I", 1, int(WHITE), True),
        (50721, "2i", 9, [v for x in (1, 0, 0, 0, 1, 0, 0, 0, 1) for v in (x, 1)], True),
    ]
    with tifffile.TiffWriter(path) as writer:
        writer.write(
            mosaic, photometric=32803, planarconfig=None, metadata=None, extratags=tags, subfiletype=0, compression=7,
            tile=(256, 256), compressionargs={"lossless": True, "bitspersample": 16},
        )  # fmt: skip
    return path


def _spent(function: Callable[[], None]) -> tuple[float, float]:
    wall, processor = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - wall, time.process_time() - processor


def _decode_all(paths: list[Path]) -> tuple[float, float]:
    def decode() -> None:
        with ThreadPoolExecutor(2) as pool:
            for frame in pool.map(read_raw, paths):
                assert frame.mosaic.size

    return _spent(decode)


def _align_all(paths: list[Path], folder: Path) -> tuple[float, float]:
    def run_scene() -> None:
        run = executor(folder)
        frames = (decoded.frame for decoded in decode_ahead([frame_file(path, path.name) for path in paths]))
        anchor = prepare(_decoded(next(frames)), run)
        for frame in frames:
            assert align(anchor, _decoded(frame), run).status == "ok"

    return _spent(run_scene)


def _decoded(frame: RawFrame | None) -> RawFrame:
    assert frame is not None
    return frame


def part_memory() -> Measured:
    """Peak of resident memory of a process that aligns and masks a pair of 60 megapixels, in a process of its own."""
    child = subprocess.run(
        [sys.executable, __file__, "--child"], check=True, capture_output=True, text=True, env=os.environ
    )
    measured: Measured = json.loads(child.stdout)
    return measured


def measure_memory() -> Measured:
    """Align and mask; return the peak since both frames were there. Linux only."""
    clean, noisy = (framed(large_frame(60, shift, light, 1)) for shift, light in (((0, 0), 1.0), ((4, -6), 0.45)))
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    with tempfile.TemporaryDirectory() as folder:
        run = executor(Path(folder))
        anchor = prepare(clean, run)
        prepared = _status("VmHWM")
        found = align(anchor, noisy, run)
        aligned = _status("VmHWM")
        mask(anchor, noisy, found, run)
    return {"frames": before, "prepared": prepared, "aligned": aligned, "masked": _status("VmHWM")}


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


PARTS: dict[str, Callable[[], Measured]] = {
    "accuracy": part_accuracy,
    "pair": part_pair,
    "scene": part_scene,
    "memory": part_memory,
}


def verdict(met: bool) -> str:
    """Return how a target ended."""
    return "met" if met else "**missed**"


def table(measured: Measured) -> str:
    """Return the report."""
    lines = ["# Pairs: shifts on the mosaic, beside the peers", ""]
    for part, show in (("accuracy", _show_accuracy), ("pair", _show_pair), ("scene", _show_scene)):
        if part in measured:
            lines += show(measured[part])
    if "memory" in measured:
        lines += _show_memory(measured["memory"])
    return "\n".join(lines) + "\n"


def _heading(title: str, found: Measured) -> list[str]:
    return [f"## {title}", "", *found["machine"], ""]


def _show_accuracy(found: Measured) -> list[str]:
    cases = [f"{kind}, {'low' if full_well == LOW else 'high'}" for kind, full_well in CASES]
    lines = _heading(f"Error in pixels, median / worst, {found['scenes']} scenes of 800 × 400", found)
    lines += ["| method | " + " | ".join(cases) + " | CPU s a pair |", "|---" * (len(cases) + 2) + "|"]
    for name in (*METHODS, "Safelight, X-Trans"):
        row = found[name]
        errors = [f"{median:.2f} / {worst:.2f}" for median, worst in (row["errors"][case] for case in cases)]
        lines.append(f"| {name} | " + " | ".join(errors) + f" | {row['seconds']:.2f} |")
    lines.append("")
    for name, median, worst in (("Safelight", 0.05, 0.12), ("Safelight, X-Trans", 0.1, 0.2)):
        errors = found[name]["errors"]
        low = max(errors[case][0] for case in cases if "low" in case)
        high = max(errors[case][1] for case in cases if "high" in case)
        lines.append(f"- {name}: median ≤ {median} px at low noise: {low:.3f}, {verdict(low <= median)}")
        lines.append(f"- {name}: worst ≤ {worst} px at high noise: {high:.3f}, {verdict(high <= worst)}")
    return [*lines, ""]


def _show_pair(found: Measured) -> list[str]:
    wall, processor, masked = (found[name] for name in ("wall", "processor", "mask_processor"))
    return [
        *_heading("A pair of 24 megapixels, decoding apart", found),
        f"- shift, gain and verdict in ≤ {ALIGN_SECONDS} s: {wall:.2f} s by the clock, {processor:.2f} s of the "
        f"processor, {verdict(wall <= ALIGN_SECONDS)}",
        f"- mask: {masked:.2f} s of the processor",
        "",
    ]


def _show_scene(found: Measured) -> list[str]:
    (decode, _), (scene, _) = found["decode"], found["scene"]
    return [
        *_heading(f"A scene of {FRAMES} frames of 24 megapixels, two threads decode", found),
        f"- decoding alone {decode:.2f} s, with all shifts and gains {scene:.2f} s by the clock; {ROUNDS} rounds",
        f"- processor: {found['decode'][1]:.2f} s and {found['scene'][1]:.2f} s",
        f"- ≤ {SCENE_RATIO} × decoding: {found['ratio']:.2f} ({found['ratios'][0]:.2f} … {found['ratios'][-1]:.2f}), "
        f"{verdict(found['ratio'] <= SCENE_RATIO)}",
        "",
    ]


def _show_memory(found: Measured) -> list[str]:
    steps = ", ".join(f"{name} {found[name] / 1e6:.0f} MB" for name in ("frames", "prepared", "aligned", "masked"))
    return [
        *_heading("Resident memory at 60 megapixels, Python and torch included", found),
        f"- {steps}",
        f"- ≤ {MEMORY / 1e9} GB: {found['masked'] / 1e9:.2f}, {verdict(found['masked'] <= MEMORY)}",
        "",
    ]


def main() -> None:
    """Measure what was asked for and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.child:
        sys.stdout.write(json.dumps(measure_memory()))
        return
    path = RESULTS / "pairs.json"
    measured = json.loads(path.read_text()) if path.exists() else {}
    for part in arguments.only:
        machine = describe("bench/pairs.py")
        measured[part] = PARTS[part]() | {"machine": machine}
        texts = ((path, json.dumps(measured, indent=1) + "\n"), (RESULTS / "pairs.md", table(measured)))
        for file, text in texts:
            with atomic_write(file) as temporary:
                temporary.write_text(text, encoding="utf-8")
    sys.stdout.write(table(measured))


if __name__ == "__main__":
    main()
