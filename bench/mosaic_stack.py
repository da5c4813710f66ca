"""Side by side on the same frames: Safelight's winsorised stack and Siril's, agreement and time in one run.

    python bench/mosaic_stack.py                 # 15 frames of 2000 × 2000, both with every core
    python bench/mosaic_stack.py --threads 1     # both with one

Frames are what the specification's table was made with: sky 1000, noise 20, 0.2 % of the samples hit. Times are of the
stack alone: Siril's by its own log, ours of one call over frames in memory, the best of some runs in turn. Without
siril-cli (Debian: siril) only ours is measured, and the result says so.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import psutil
import torch
from astropy.io import fits

from safelight.core.files import atomic_write
from safelight.kernels.combine import combine
from safelight.kernels.rejection import Rejection

RESULT = Path(__file__).resolve().parent / "results" / "mosaic_stack.md"
SKY, NOISE, HITS, FULL_SCALE = 1000.0, 20.0, 0.002, 65535.0
AGREEMENT, WANTED = 1e-6, 0.999
GUARDED = Rejection("winsorized_sigma_clip", siril_guards=True)


def make_frames(count: int, size: int) -> np.ndarray:
    """Return (count, size, size) float32 frames in Siril's unit, full scale 1."""
    random = np.random.default_rng(0)
    frames = np.empty((count, size, size), np.float32)
    for frame in frames:
        counts = SKY + NOISE * random.standard_normal((size, size))
        hit = random.random((size, size)) < HITS
        counts[hit] += random.uniform(200, 5000, int(hit.sum()))
        frame[:] = counts / FULL_SCALE
    return frames


def write_frames(frames: np.ndarray, folder: Path) -> None:
    for number, frame in enumerate(frames, start=1):
        fits.writeto(folder / f"frame_{number:05d}.fit", frame)


@dataclass(frozen=True)
class Stack:
    """One run: the image, its wall time and the CPU time (Siril's with reading the frames and writing the stack)."""

    image: np.ndarray
    wall: float
    cpu: float


def stack_with_siril(folder: Path, threads: int) -> Stack:
    script = folder / "stack.ssf"
    commands = ("requires 1.0.0", f"setcpu {threads}", "set32bits", "setext fit", f"cd {folder}")
    script.write_text("\n".join((*commands, "stack frame_ rej w 3 3 -nonorm -out=stacked", "")))
    before = os.times()
    done = subprocess.run(["siril-cli", "-s", str(script)], capture_output=True, text=True, check=True)
    after = os.times()
    took = re.search(r"Stacked sequence successfully.*?Execution time: ([^\n]*)", done.stdout, re.DOTALL)
    if took is None:
        raise RuntimeError(f"siril-cli did not stack:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    image = fits.getdata(folder / "stacked.fit")
    (folder / "stacked.fit").unlink()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return Stack(image, seconds(took[1]), cpu)


def seconds(text: str) -> float:
    """Return the seconds of Siril's "1 min 02 s", "3.50 s." or "20.1 ms."."""
    units = {"min": 60.0, "s": 1.0, "ms": 1e-3}
    return sum(float(value) * units[unit] for value, unit in re.findall(r"([\d.]+) (min|ms|s)\b", text))


def stack_with_safelight(frames: np.ndarray) -> Stack:
    samples = torch.from_numpy(frames).movedim(0, -1)
    wall, cpu = time.perf_counter(), time.process_time()
    image = combine(samples, rejection=GUARDED).image
    return Stack(image.numpy(), time.perf_counter() - wall, time.process_time() - cpu)


def row(program: str, runs: list[Stack]) -> str:
    counts = runs[0].image.astype(np.float64) * FULL_SCALE
    walls = [run.wall for run in runs]
    times = f"{min(walls):.2f} | {max(walls):.2f} | {min(run.cpu for run in runs):.2f}"
    return f"| {program} | {times} | {counts.std():.3f} | {counts.mean() - SKY:+.3f} |"


def verdicts(ours: list[Stack], theirs: list[Stack]) -> list[str]:
    if not theirs:
        return ["siril-cli is not installed: nothing to compare with"]
    agree = float((np.abs(ours[0].image - theirs[0].image) <= AGREEMENT * np.abs(theirs[0].image)).mean())
    ratio = min(run.wall for run in ours) / min(run.wall for run in theirs)
    by_processor = min(run.cpu for run in ours) / min(run.cpu for run in theirs)
    return [
        f"{'met' if agree >= WANTED else '**missed**'}: {100 * agree:.4f} % of the pixels within 1e-6 of Siril's, "
        f"wanted are {100 * WANTED:.1f} %",
        f"{'met' if ratio <= 1 else '**missed**'}: {ratio:.2f} of Siril's time, allowed is 1; "
        f"{by_processor:.2f} of its processor time, which is with reading the frames",
    ]


def measure(arguments: argparse.Namespace) -> tuple[list[Stack], list[Stack]]:
    """Return our runs and Siril's, made in turn."""
    frames = make_frames(arguments.frames, arguments.size)
    ours, theirs = [], []
    with tempfile.TemporaryDirectory() as name:
        siril = shutil.which("siril-cli")
        if siril:
            write_frames(frames, Path(name))
        for _ in range(arguments.runs):
            ours.append(stack_with_safelight(frames))
            if siril:
                theirs.append(stack_with_siril(Path(name), arguments.threads))
    return ours, theirs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=15)
    parser.add_argument("--size", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=psutil.cpu_count(logical=False))
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    load = psutil.getloadavg()[0]
    ours, theirs = measure(arguments)
    count, size = arguments.frames, arguments.size
    text = [
        "# Winsorised stack: Safelight and Siril",
        "",
        f"- {count} frames of {size} × {size} float32, σ {NOISE:g}, {100 * HITS:g} % hits; κ 3, Siril's guards; "
        f"ideal noise {NOISE / count**0.5:.3f}",
        f"- {arguments.threads} thread(s) each, {arguments.runs} runs in turn; load average before {load:.1f}",
        f"- {platform.system()}, Python {platform.python_version()}, torch {torch.__version__}; {date.today()}",
        "",
        *(f"- {verdict}" for verdict in verdicts(ours, theirs)),
        "",
        "| program | best s | worst s | CPU s | noise | mean error |",
        "|---|---|---|---|---|---|",
        row("Safelight", ours),
        *([row("Siril", theirs)] if theirs else []),
        "",
        "Seconds are of the stack alone, the frames in memory or in the disk's cache; CPU time of Siril with reading.",
    ]
    with atomic_write(RESULT) as path:
        path.write_text("\n".join(text) + "\n", encoding="utf-8")
    print("\n".join(text))


if __name__ == "__main__":
    main()
