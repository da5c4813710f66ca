"""Side by side on the same images: Safelight, CAREamics and the best Gaussian, at equal training time.

    python bench/denoise.py                                # everything: 10 minutes for each run, 2.7 hours in all
    python bench/denoise.py --alike-time-budget 90s        # steps/s of like networks from shorter runs: 1.6 hours
    python bench/denoise.py --time-budget 60s --only mice  # a quick look
    python bench/denoise.py --resume                       # go on after an interruption

Runs follow one another, ours and theirs in turn, each in a process of its own. bench/README.md says what is compared
and how CAREamics' environment is made.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
import psutil
import tifffile
import torch

from machine import ROOT, command, commit, hardware
from safelight.core.events import as_value
from safelight.core.files import atomic_write
from safelight.core.options import parse_seconds
from safelight.kernels.gaussian import gaussian_filter
from safelight.kernels.metrics import high_pass_ratio, psnr, range_of, scale_invariant_psnr, ssim

BENCH = Path(__file__).resolve().parent
PEERS = BENCH / "peers"
PEER_ENVIRONMENT = ROOT / ".venv-careamics"
CAREAMICS = "careamics==0.3.5"
OURS, THEIRS = BENCH / "denoise_ours.py", PEERS / "careamics_n2v.py"
GAUSSIAN = "best Gaussian"
SIGMAS = np.arange(0.5, 4.0, 0.05).round(2).tolist()
BUSY = 0.5
"""Load average from which a machine is not quiet."""

Run = dict[str, Any]


@dataclass(frozen=True)
class Contender:
    """Who trains, and with which options of its own."""

    name: str
    script: Path
    options: Mapping[str, Any] = field(default_factory=dict)


# Network, batch, patches and share of hidden pixels are CAREamics' defaults.
ALIKE = {"depth": 2, "features": 32, "batch_size": 16, "patch_size": 64, "mask_percentage": 0.2}
# An epoch of one frame is 4 steps; of 25 copies, 100: starting loaders, validation and checkpoints then cost CAREamics
# little, and its learning rate, cut tenfold after 10 epochs without progress, lives longer.
COPIES = 25

SHIPPED = Contender("Safelight, as shipped", OURS)
# For steps/s: CAREamics and ours with its network, batch and patches. Their own time budget may be shorter.
ALIKE_PAIRS = (
    (
        Contender("CAREamics N2V2", THEIRS, {"method": "n2v2", "copies": COPIES}),
        Contender("Safelight N2V2, alike", OURS, {"method": "n2v2", **ALIKE}),
    ),
    (
        Contender("CAREamics N2V", THEIRS, {"method": "n2v", "copies": COPIES}),
        Contender("Safelight N2V, alike", OURS, {"method": "n2v", "residual": False, **ALIKE}),
    ),
)
CONTENDERS = (
    SHIPPED,
    *(contender for pair in ALIKE_PAIRS for contender in pair),
    Contender("CAREamics N2V2, as shipped", THEIRS, {"method": "n2v2", "copies": 1}),
    Contender("CAREamics N2V, as shipped", THEIRS, {"method": "n2v", "copies": 1}),
)


@dataclass(frozen=True)
class Scene:
    """Noisy images, trained on together, with their clean references.

    ``data_range`` None means max − min of each reference. ``metric`` is the one that means something here: PSNR where
    both were recorded alike, its scale-invariant form where they were stretched to 8 bits independently.
    """

    name: str
    noisy: list[np.ndarray]
    clean: list[np.ndarray]
    data_range: float | None
    metric: str
    contenders: tuple[Contender, ...] = CONTENDERS


def main() -> None:
    """Run what is asked for and write the table."""
    options = _arguments()
    settings = {
        "time_budget": options.time_budget,
        "alike_time_budget": options.alike_time_budget or options.time_budget,
        "threads": options.threads,
        "w2s_steps": options.w2s_steps,
    }
    results = _kept(options, settings)
    for name in options.scenes:
        scene = _scene(name, options)
        runs = results["scenes"].setdefault(name, {})
        if GAUSSIAN not in runs:
            runs[GAUSSIAN] = _best_gaussian(scene)
        for contender in scene.contenders:
            label = f"{name}: {contender.name}"
            done = options.resume and contender.name in runs
            if done or not any(part in label for part in options.only):
                continue
            print(f"{label} ({datetime.now():%H:%M})", flush=True)
            runs[contender.name] = _run(contender, scene, options.threads, _time_budget(contender, settings))
            _write(options.out, results)
            print(f"    {_row(runs[contender.name])}", flush=True)
    _write(options.out, results)
    print(options.out.read_text(encoding="utf-8"))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "micro")
    parser.add_argument("--time-budget", type=parse_seconds, default=600.0, help="training time of a run: 60s, 10min")
    parser.add_argument("--alike-time-budget", type=parse_seconds, help="the same of those that are alike")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--scenes", nargs="+", default=["mice", "BPAE_B", "w2s"], help="frames of the FMD set, or w2s")
    parser.add_argument("--w2s-steps", type=int, default=2400, help="steps, not time, decide there")
    parser.add_argument("--only", nargs="+", default=[""], help="only runs whose name contains one of these")
    parser.add_argument("--resume", action="store_true", help="keep the finished runs")
    parser.add_argument("--out", type=Path, default=BENCH / "results" / "denoise.md")
    return parser.parse_args()


def _kept(options: argparse.Namespace, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the earlier results where they are to be completed, else empty ones."""
    path = options.out.with_suffix(".json")
    partial = options.resume or options.only != [""]
    if partial and path.exists():
        results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if results["settings"] != settings:
            raise SystemExit(f"{path} holds runs of other settings, {results['settings']}: name another --out")
        return results
    return {"settings": dict(settings), "environment": _environment(), "scenes": {}}


def _environment() -> dict[str, str]:
    return {
        "machine": hardware(),
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
    }


def _scene(name: str, options: argparse.Namespace) -> Scene:
    if name == "w2s":
        noisy = sorted((options.data / "w2s").glob("input_avg1_*.png"))
        clean = [path.with_name(path.name.replace("input_avg1", "target_avg400")) for path in noisy]
        images, references = ([imageio.imread(path) for path in paths] for paths in (noisy, clean))
        contender = Contender(f"Safelight, {options.w2s_steps} steps", OURS, {"steps": options.w2s_steps})
        return Scene(name, images, references, None, "scale_invariant_psnr", (contender,))
    frames = [tifffile.imread(options.data / "fmd" / f"{name}_{kind}.tif") for kind in ("raw", "avg50")]
    return Scene(name, frames[:1], frames[1:], 255.0, "psnr")


def _quality(images: list[np.ndarray], scene: Scene) -> dict[str, float]:
    """Return the mean of each measure over the scene's images."""
    measured = []
    for image, reference in zip(images, scene.clean, strict=True):
        pair = torch.from_numpy(image.astype(np.float64)), torch.from_numpy(reference.astype(np.float64))
        span = scene.data_range or range_of(pair[1])
        values = psnr(*pair, span), scale_invariant_psnr(*pair, span), ssim(*pair, span), high_pass_ratio(*pair)
        measured.append(values)
    means = torch.tensor(measured, dtype=torch.float64).mean(0).tolist()
    return dict(zip(("psnr", "scale_invariant_psnr", "ssim", "high_pass_ratio"), means, strict=True))


def _best_gaussian(scene: Scene) -> Run:
    """Return the Gaussian of the σ, one for all images of the scene, that is best by the scene's measure."""

    def measure(sigma: float) -> Run:
        smoothed = [gaussian_filter(torch.from_numpy(image.astype(np.float64)), sigma).numpy() for image in scene.noisy]
        return {"sigma": sigma, **_quality(smoothed, scene)}

    return max(map(measure, SIGMAS), key=lambda run: run[scene.metric])


def _time_budget(contender: Contender, settings: Mapping[str, Any]) -> float | None:
    """Return for how many seconds a contender trains; None where its steps decide."""
    if "steps" in contender.options:
        return None
    alike = any(contender in pair for pair in ALIKE_PAIRS)
    return float(settings["alike_time_budget" if alike else "time_budget"])


def _run(contender: Contender, scene: Scene, threads: int, seconds: float | None) -> Run:
    """Train and denoise in a process of its own."""
    python = sys.executable if contender.script == OURS else _peer_python()
    load = psutil.getloadavg()[0]
    if load > BUSY:
        print(f"    the machine is not quiet: load average {load:.1f}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "denoised").mkdir()
        (folder / "noisy").mkdir()
        for number, image in enumerate(scene.noisy):
            np.save(folder / "noisy" / f"{number:02}.npy", image)
        task = {"options": dict(contender.options), "seconds": seconds, "threads": threads}
        (folder / "task.json").write_text(json.dumps(task))
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "CUDA_VISIBLE_DEVICES": "",
            "SAFELIGHT_CACHE": str(folder / "cache"),  # plans are those of a first run
        }
        with (folder / "errors.txt").open("w+") as errors:
            child = subprocess.run([python, contender.script, folder], env=environment, stderr=errors, check=False)
            errors.seek(0)
            if child.returncode:
                raise SystemExit(f"{contender.name} failed with status {child.returncode}:\n{errors.read()[-4000:]}")
        result: Run = json.loads((folder / "result.json").read_text())
        denoised = [np.load(path) for path in sorted((folder / "denoised").iterdir())]
    facts = {
        "command": command("bench/denoise.py"),
        "commit": commit(),
        "finished": f"{datetime.now():%Y-%m-%d %H:%M}",
        "load_before": load,
    }
    return {**result, **_quality(denoised, scene), **facts}


def _peer_python() -> Path:
    """Return the Python of CAREamics' environment, made at first use."""
    python, ready = PEER_ENVIRONMENT / "bin" / "python", PEER_ENVIRONMENT / "ready"
    if ready.exists():
        return python
    started = time.monotonic()
    print(f"    making {PEER_ENVIRONMENT.name}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", PEER_ENVIRONMENT], check=True)
    subprocess.run([python, ROOT / "tools" / "install_torch.py"], check=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--constraint", str(PEERS / "no-cuda-constraints.txt")]
    subprocess.run([*pip, "--requirement", str(PEERS / "careamics-requirements.txt")], check=True)
    subprocess.run([*pip, "--no-deps", CAREAMICS], check=True)
    ready.touch()
    print(f"    made in {time.monotonic() - started:.0f} s", flush=True)
    return python


Show = Callable[[Run], str]
COLUMNS: tuple[tuple[str, Show], ...] = (
    ("PSNR", lambda run: f"{run['psnr']:.2f}"),
    ("scale-invariant PSNR", lambda run: f"{run['scale_invariant_psnr']:.2f}"),
    ("SSIM", lambda run: f"{run['ssim']:.3f}"),
    ("high-pass ratio", lambda run: f"{run['high_pass_ratio']:.2f}"),
    ("trained", lambda run: f"{run['seconds']:.0f} s"),
    ("steps", lambda run: str(run["steps"])),
    ("steps/s", lambda run: f"{run['steps'] / run['seconds']:.2f}"),
    ("CPU s/step", lambda run: f"{run['cpu_seconds'] / run['steps']:.3f}"),
    ("sampling + masking", lambda run: f"{100 * run['sampling_share']:.1f} %"),
    ("peak memory", lambda run: f"{run['peak_bytes'] / 2**30:.2f} GiB"),
    ("predicted in", lambda run: f"{run['predict_seconds']:.1f} s"),
)


def _row(run: Run) -> str:
    """Return the cells of a run; those that it does not have stay empty."""

    def cell(show: Show) -> str:
        try:
            return show(run)
        except KeyError:
            return ""

    return " | ".join(cell(show) for _, show in COLUMNS)


def _write(path: Path, results: dict[str, Any]) -> None:
    """Write the results as JSON and as Markdown, each whole."""
    lines = [*_heading(results), *_verdicts(results)]
    for name, runs in results["scenes"].items():
        sigma = runs[GAUSSIAN]["sigma"]
        lines += ["", f"## {name}", "", f"| run | {' | '.join(title for title, _ in COLUMNS)} |"]
        lines += ["|---" * (len(COLUMNS) + 1) + "|"]
        titles = {GAUSSIAN: f"{GAUSSIAN}, σ = {sigma:.2f}"}
        lines += [f"| {titles.get(title, title)} | {_row(run)} |" for title, run in runs.items()]
    with atomic_write(path.with_suffix(".json")) as temporary:
        text = json.dumps(as_value(results), indent=1, ensure_ascii=False)
        temporary.write_text(text + "\n", encoding="utf-8")
    with atomic_write(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _heading(results: dict[str, Any]) -> list[str]:
    settings, environment = results["settings"], results["environment"]
    trained = [run for runs in results["scenes"].values() for run in runs.values() if "finished" in run]
    versions = {f"{name} {number}" for run in trained for name, number in run["versions"].items()}
    commits = dict.fromkeys(run["commit"] for run in trained)
    commands = dict.fromkeys(run["command"] for run in trained)
    days = sorted({run["finished"][:10] for run in trained})
    load = max((run["load_before"] for run in trained), default=0.0)
    return [
        "# Denoise: Safelight, CAREamics, the best Gaussian",
        "",
        f"- {'; '.join(commands)}",
        f"- {environment['machine']}; {environment['system']}; {', '.join(sorted(versions))}",
        f"- {settings['time_budget']:g} s of training, {settings['alike_time_budget']:g} s of those alike and their "
        f"peers; threads: {settings['threads']}",
        f"- {', '.join(days)}; commit {', '.join(commits)}; load average before a run up to {load:.1f}",
        "",
        "What is compared, and what the columns mean: [bench/README.md](../README.md).",
    ]


def _verdicts(results: dict[str, Any]) -> list[str]:
    """Say for each target whether it is met, as far as its runs are done."""
    found: list[tuple[str, bool]] = []
    for name, runs in results["scenes"].items():
        ours = [run for run in runs.values() if "sampling_share" in run]
        found += [_share(name, ours), _memory(name, ours)] if ours else []
        if name == "w2s":
            smoothed = runs[GAUSSIAN]["scale_invariant_psnr"]
            for reached in (run["scale_invariant_psnr"] for run in ours):
                found.append((f"{name}: scale-invariant PSNR {reached:.2f}, at least 30.5", reached >= 30.5))
                found.append(
                    (f"{name}: scale-invariant PSNR {reached:.2f}, Gaussian {smoothed:.2f}", reached > smoothed)
                )
            continue
        if SHIPPED.name in runs:
            found += [_better(name, runs, title) for title in runs if _is_fair(runs, title)]
        found += [
            _faster(name, runs, theirs.name, alike.name)
            for theirs, alike in ALIKE_PAIRS
            if {theirs.name, alike.name} <= runs.keys()
        ]
    return ["", "## Targets", "", *(f"- {'met' if met else '**missed**'}: {text}" for text, met in found)]


def _share(name: str, ours: list[Run]) -> tuple[str, bool]:
    most = max(run["sampling_share"] for run in ours)
    return f"{name}: sampling and masking take at most {100 * most:.1f} % of our steps, allowed are 5 %", most <= 0.05


def _memory(name: str, ours: list[Run]) -> tuple[str, bool]:
    worst = min(ours, key=lambda run: run["planned_bytes"] / run["grown_bytes"])
    planned, grown = (worst[key] / 2**20 for key in ("planned_bytes", "grown_bytes"))
    text = f"{name}: memory of training, planned {planned:.0f} MiB, measured {grown:.0f} MiB: {planned / grown:.2f}"
    return f"{text}, allowed are 0.65 to 1.05", 0.65 <= planned / grown <= 1.05


def _is_fair(runs: dict[str, Run], other: str) -> bool:
    """Return whether another had as much time as ours, as shipped; a Gaussian takes none."""
    if other == GAUSSIAN:
        return True
    return "CAREamics" in other and runs[other]["seconds"] > 0.95 * runs[SHIPPED.name]["seconds"]


def _better(name: str, runs: dict[str, Run], other: str) -> tuple[str, bool]:
    own, theirs = runs[SHIPPED.name]["psnr"], runs[other]["psnr"]
    return f"{name}: PSNR {own:.2f} as shipped, {other} {theirs:.2f}", own > theirs


def _faster(name: str, runs: dict[str, Run], theirs: str, ours: str) -> tuple[str, bool]:
    own, other = (runs[title]["steps"] / runs[title]["seconds"] for title in (ours, theirs))
    return f"{name}: {ours} {own:.2f} steps/s, {theirs} {other:.2f}", own >= other


if __name__ == "__main__":
    main()
