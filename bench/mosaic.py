"""Side by side in one run: Safelight's mosaic of M 94 and its parts, Siril, ccdproc, astropy, reproject and SWarp.

    python bench/mosaic.py                    # everything, about ten minutes
    python bench/mosaic.py --only m94 siril   # again, only these parts; the others stay as they were measured

Every finished part is written at once to results/mosaic.json and results/mosaic.md. Programs follow one another, each
in a process of its own with one thread. Peers that are not installed are said. bench/README.md says what is compared.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

import mosaic_reproject
import mosaic_stack
from machine import describe
from mosaic_peers import STACKERS
from mosaic_quality import (
    Picture,
    compare,
    gaia_residuals,
    picture_of_frame,
    picture_of_mosaic,
    picture_of_siril,
)
from mosaic_table import table
from safelight.core.files import atomic_write

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
DATA = HERE.parent.parent / "shared" / "data" / "m94"
SESSIONS = ("s1", "s3")
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
SYNTHETIC = argparse.Namespace(frames=15, size=2000, threads=1, runs=3)

Measured = dict[str, Any]


def watched(command: list[str], folder: Path) -> Measured:
    """Run a program to its end; return its wall time, CPU time and peak of resident memory."""
    before, start, peak = os.times(), time.perf_counter(), 0
    with (folder / "log.txt").open("w") as log:
        running = subprocess.Popen(command, cwd=folder, env=os.environ | ONE_THREAD, stdout=log, stderr=log)
        while running.poll() is None:
            peak = max(peak, mosaic_reproject.peak_bytes(running.pid))
            time.sleep(0.02)
    wall, after = time.perf_counter() - start, os.times()
    if running.returncode:
        raise SystemExit(f"{' '.join(command)}\n{(folder / 'log.txt').read_text()[-2000:]}")
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {"wall": wall, "cpu": cpu, "peak": peak}


def run_safelight(lights: Path, folder: Path) -> Measured:
    """Run the whole pipeline; return what it took, its audit, and the memory it planned and used."""
    out = folder / "out"
    command = [sys.executable, "-m", "safelight", "mosaic", "run", str(lights), "--out", str(out), "--wcs-sidecar"]
    took = watched([*command, "--results", str(folder / "history")], folder)
    record = json.loads((out / "run.json").read_text())
    checks = [check for item in record["items"] for check in item["details"].get("checks", ())]
    unique = {(check["name"], check["where"]): check for check in checks}
    frames = {item["name"]: len(item["details"]["frames"]) for item in record["items"] if "frames" in item["details"]}
    return took | {"checks": list(unique.values()), "memory": record["memory"], "groups": frames}


def part_m94(data: Path) -> Measured:
    """Both sessions, one mosaic."""
    with tempfile.TemporaryDirectory() as name:
        measured = run_safelight(data, Path(name))
        stack = picture_of_mosaic(Path(name) / "out" / "mosaic_science.fits")
    return measured | {"gaia": gaia_residuals(stack), "fwhm": stack.stars.median_fwhm}


def part_siril(data: Path) -> Measured:
    """Each session alone: Safelight and Siril."""
    measured = {}
    for session in SESSIONS:
        paths = sorted((data / session).glob("*.fits.fz"))
        frames = [picture_of_frame(path) for path in paths]
        with tempfile.TemporaryDirectory() as name:
            took = run_safelight(data / session, Path(name))
            stack = picture_of_mosaic(Path(name) / "out" / "mosaic_science.fits")
        measured[session] = {"frames": len(paths), "safelight": took | compare(stack, frames)}
        if shutil.which("siril-cli"):
            measured[session]["siril"] = run_siril(paths, frames)
    return measured


def run_siril(paths: list[Path], frames: list[Picture]) -> Measured:
    """Convert, demosaic, register and stack with Siril, as its scripts for colour cameras do."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path in paths:
            (folder / path.name).symlink_to(path)
        steps = (
            *("requires 1.0.0", "setcpu 1", "set32bits", "setext fit", f"cd {folder}"),
            *("convert light -debayer -out=.", "register light", "stack r_light rej w 3 3 -norm=addscale -out=stacked"),
        )
        (folder / "steps.ssf").write_text("\n".join((*steps, "")))
        took = watched(["siril-cli", "-s", str(folder / "steps.ssf")], folder)
        return took | compare(picture_of_siril(folder / "stacked.fit", frames), frames)


def part_stack(data: Path) -> Measured:
    """The specification's synthetic frames: Safelight, Siril, astropy, ccdproc."""
    torch.set_num_threads(1)
    ours, theirs = mosaic_stack.measure(SYNTHETIC)
    measured: Measured = {"verdicts": mosaic_stack.verdicts(ours, theirs)}
    for program, runs in (("Safelight, Siril's guards", ours), ("siril-cli", theirs)):
        if runs:
            image = runs[0].image.astype(np.float64) * mosaic_stack.FULL_SCALE
            wall, cpu = min(run.wall for run in runs), min(run.cpu for run in runs)
            measured[program] = {"wall": wall, "cpu": cpu, "noise": image.std(), "mean": image.mean()}
    with tempfile.TemporaryDirectory() as name:
        frames = Path(name) / "frames.npy"
        np.save(
            frames, mosaic_stack.make_frames(SYNTHETIC.frames, SYNTHETIC.size) * np.float32(mosaic_stack.FULL_SCALE)
        )
        for program in STACKERS:
            if program == "ccdproc" and find_spec("ccdproc") is None:
                continue
            command = [sys.executable, "-W", "ignore", str(HERE / "mosaic_peers.py"), program, str(frames)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=os.environ | ONE_THREAD)
            measured[program] = json.loads(done.stdout)
    return measured


def part_reproject(data: Path) -> Measured:
    """One frame onto a turned grid: Safelight, reproject, SWarp."""
    names = ["ours", "reproject", *(["swarp"] if mosaic_reproject.swarp_program() else [])]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        mosaic_reproject.make_input(folder, min(data.glob("s1/*.wcs.txt")), factor=1.46)
        runs, _ = mosaic_reproject.measure(folder, names, repeats=3)
        error, _ = mosaic_reproject.mapping_error(folder)
    middle = {
        key: {part: _median(entries, part) for part in ("seconds", "cpu", "extra")} for key, entries in runs.items()
    }
    return middle | {"error": error}


PARTS: dict[str, Callable[[Path], Measured]] = {
    "m94": part_m94,
    "siril": part_siril,
    "stack": part_stack,
    "reproject": part_reproject,
}


def _median(entries: list[Measured], part: str) -> float:
    return statistics.median(entry[part] for entry in entries)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--data", type=Path, default=DATA, help="the folder with s1 and s3")
    arguments = parser.parse_args()
    path = RESULTS / "mosaic.json"
    before: dict[str, Measured] = json.loads(path.read_text()) if path.exists() else {}
    results = {name: part for name, part in before.items() if name not in arguments.only}
    for name in arguments.only:
        heading = describe("bench/mosaic.py")
        results[name] = {"heading": heading, "measured": PARTS[name](arguments.data.resolve())}
        for file, text in ((path, json.dumps(results, indent=1)), (RESULTS / "mosaic.md", table(results))):
            with atomic_write(file) as temporary:
                temporary.write_text(text + "\n", encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    main()
