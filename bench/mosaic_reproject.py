"""Bring frames onto a common grid: Safelight beside reproject and SWarp, on the same frames, in one run.

``python bench/mosaic_reproject.py`` writes ``results/mosaic_reproject.md``. Every measurement is a process of its own,
one thread each, in turn, repeated; the median counts. Frames have the size and the SIP solution of a real one.
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
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS

from machine import describe

HERE = Path(__file__).resolve().parent
DATA = HERE.parent.parent / "shared" / "data" / "m94"
ROW_BLOCK = 256
THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
NAMES = {
    "ours": "Safelight, map from cells + bilinear",
    "ours-exact": "Safelight, exact map of every pixel + bilinear",
    "ours-lanczos3": "Safelight, map from cells + lanczos3",
    "reproject": "reproject_interp, order=bilinear",
    "swarp": "SWarp, RESAMPLING_TYPE BILINEAR",
}


def make_input(folder: Path, sidecar: Path, factor: float) -> None:
    """Write a frame of noise, stars and a sky, with a real solution brought to another pixel size, and its grid."""
    from safelight.pipelines.mosaic.canvas import Footprint, common_canvas
    from safelight.pipelines.mosaic.wcs import read_wcs_file

    wcs = finer(read_wcs_file(sidecar, 1080, 1920), factor)
    height, width = round(1920 * factor), round(1080 * factor)
    chance = np.random.default_rng(0)
    image = chance.normal(900, 20, (height, width)).astype(np.float32)
    y, x = np.mgrid[-8:9, -8:9]
    for sy, sx in zip(chance.integers(8, height - 8, 800), chance.integers(8, width - 8, 800), strict=True):
        star = chance.pareto(1.5) * 300 * np.exp(-(y**2 + x**2) / (2 * 1.5**2))
        image[sy - 8 : sy + 9, sx - 8 : sx + 9] += star.astype(np.float32)
    canvas = common_canvas([Footprint("frame", wcs, image.shape)], angle=20)
    fits.PrimaryHDU(image, wcs.to_header(relax=True)).writeto(folder / "frame.fits")
    grid = canvas.wcs.to_header()
    grid["NAXIS"], grid["NAXIS1"], grid["NAXIS2"] = 2, canvas.shape[1], canvas.shape[0]
    (folder / "grid.txt").write_text(grid.tostring(sep="\n"))


def finer(wcs: WCS, factor: float) -> WCS:
    """Return a WCS with more and smaller pixels: the same distortion in arc seconds."""
    from astropy.wcs import Sip

    wcs = wcs.deepcopy()
    wcs.wcs.crpix = (wcs.wcs.crpix - 0.5) * factor + 0.5
    wcs.wcs.cd = wcs.wcs.cd / factor
    powers = np.add.outer(np.arange(3), np.arange(3))
    a, b = (part * factor / factor**powers for part in (wcs.sip.a, wcs.sip.b))
    wcs.sip = Sip(a, b, None, None, wcs.wcs.crpix)
    wcs.wcs.set()
    return wcs


def read_input(folder: Path) -> tuple[np.ndarray, WCS, WCS, tuple[int, int]]:
    with fits.open(folder / "frame.fits") as hdus:
        image, wcs = hdus[0].data.astype(np.float32), WCS(hdus[0].header)
    header = fits.Header.fromstring((folder / "grid.txt").read_text(), sep="\n")
    return image, wcs, WCS(header), (header["NAXIS2"], header["NAXIS1"])


def run_ours(folder: Path, interpolation: str, exact: bool) -> dict[str, Any]:
    """Map and resample block by block of rows, as the Executor does."""
    import torch

    from safelight.kernels.resample import resample, with_border
    from safelight.pipelines.mosaic.mapping import coordinate_map, sky_transform

    torch.set_num_threads(1)
    image, wcs, grid, shape = read_input(folder)
    result = np.empty(shape, np.float32)
    before = peak_bytes()
    start, busy, mapping, error = time.perf_counter(), time.process_time(), 0.0, 0.0
    transform = sky_transform(grid, wcs, image.shape)
    bordered = with_border(torch.from_numpy(image)[None])
    for top in range(0, shape[0], ROW_BLOCK):
        rows = (top, min(top + ROW_BLOCK, shape[0]))
        began = time.perf_counter()
        if exact:
            places = transform(*np.mgrid[rows[0] : rows[1], 0 : shape[1]].astype(np.float64))
            coordinates = torch.from_numpy(np.stack(places, axis=1).astype(np.float32))
        else:
            found = coordinate_map(transform, rows, shape[1], image.shape)
            coordinates, error = found.coordinates, max(error, found.error)
        mapping += time.perf_counter() - began
        result[slice(*rows)] = resample(coordinates, bordered, interpolation)[:, 0].numpy()
    seconds, cpu = time.perf_counter() - start, time.process_time() - busy
    np.save(folder / "result.npy", result)
    return {"seconds": seconds, "cpu": cpu, "mapping": mapping, "extra": peak_bytes() - before, "told": error}


def run_reproject(folder: Path) -> dict[str, Any]:
    from reproject import reproject_interp

    image, wcs, grid, shape = read_input(folder)
    before = peak_bytes()
    start, busy = time.perf_counter(), time.process_time()
    result, _ = reproject_interp((image, wcs), grid, shape_out=shape, order="bilinear")
    seconds, cpu = time.perf_counter() - start, time.process_time() - busy
    np.save(folder / "result.npy", result.astype(np.float32))
    return {"seconds": seconds, "cpu": cpu, "extra": peak_bytes() - before}


def run_swarp(folder: Path) -> dict[str, Any]:
    """Run SWarp with its files: reading the frame, writing the result and its weights count."""
    (folder / "result.head").write_text((folder / "grid.txt").read_text() + "\nEND\n")
    options = {
        "IMAGEOUT_NAME": "result.fits",
        "WEIGHTOUT_NAME": "weight.fits",
        "RESAMPLING_TYPE": "BILINEAR",
        "SUBTRACT_BACK": "N",
        "FSCALASTRO_TYPE": "NONE",
        "COMBINE": "N",
        "NTHREADS": "1",
        "WRITE_XML": "N",
        "VERBOSE_TYPE": "QUIET",
        "RESAMPLE_DIR": ".",
    }
    # Without COMBINE, SWarp keeps the resampled frame itself; the grid is taken from the combined image's header.
    start, before = time.perf_counter(), os.times()
    command = [swarp_program(), "frame.fits", *(part for item in options.items() for part in (f"-{item[0]}", item[1]))]
    running = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peak = 0
    while running.poll() is None:
        peak = max(peak, peak_bytes(running.pid))
        time.sleep(0.01)
    seconds, after = time.perf_counter() - start, os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    if running.returncode:
        raise SystemExit(f"SWarp ended with {running.returncode}")
    np.save(folder / "result.npy", on_grid(folder))
    return {"seconds": seconds, "cpu": cpu, "extra": peak}


def on_grid(folder: Path) -> np.ndarray:
    """Return SWarp's resampled frame, which is cut to what it covers, at its place on the grid; NaN elsewhere."""
    _, _, grid, shape = read_input(folder)
    image, header = fits.getdata(folder / "frame.resamp.fits", header=True)
    weight = fits.getdata(folder / "frame.resamp.weight.fits")
    y, x = (round(grid.wcs.crpix[axis] - header[f"CRPIX{axis + 1}"]) for axis in (1, 0))
    result = np.full(shape, np.nan, np.float32)
    y0, x0 = max(y, 0), max(x, 0)
    part = np.where(weight > 0, image, np.nan)[y0 - y : y0 - y + shape[0] - y0, x0 - x : x0 - x + shape[1] - x0]
    result[y0 : y0 + part.shape[0], x0 : x0 + part.shape[1]] = part
    return result


def swarp_program() -> str | None:
    return shutil.which("SWarp") or shutil.which("swarp")


def peak_bytes(process: int | str = "self") -> int:
    """Return the most memory a process has held; ``ru_maxrss`` would begin with what its parent held."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def run(folder: Path, name: str) -> dict[str, Any]:
    if name == "reproject":
        return run_reproject(folder)
    if name == "swarp":
        return run_swarp(folder)
    return run_ours(folder, "lanczos3" if name == "ours-lanczos3" else "bilinear", exact=name == "ours-exact")


def mapping_error(folder: Path) -> tuple[float, float]:
    """Return the largest error of the map over all pixels of the frame, and what it says itself."""
    from safelight.pipelines.mosaic.mapping import coordinate_map, sky_transform

    image, wcs, grid, shape = read_input(folder)
    transform = sky_transform(grid, wcs, image.shape)
    found = coordinate_map(transform, (0, shape[0]), shape[1], image.shape)
    worst = 0.0
    for top in range(0, shape[0], ROW_BLOCK):
        rows = np.mgrid[top : min(top + ROW_BLOCK, shape[0]), 0 : shape[1]].astype(np.float64)
        y, x = transform(*rows)
        inside = (y > -0.5) & (y < image.shape[0] - 0.5) & (x > -0.5) & (x < image.shape[1] - 0.5)
        ours_y, ours_x = found.coordinates[top : top + ROW_BLOCK].numpy().swapaxes(0, 1)
        worst = max(worst, float(np.hypot(ours_y - y, ours_x - x)[inside].max(initial=0)))
    return worst, found.error


def without_sip(folder: Path) -> np.ndarray:
    """Return what Safelight makes of the frame if its distortion is left out, as SWarp does, which reads no SIP."""
    import torch

    from safelight.kernels.resample import resample, with_border
    from safelight.pipelines.mosaic.mapping import CoordinateSource, sky_transform

    image, wcs, grid, shape = read_input(folder)
    wcs.sip, wcs.wcs.ctype = None, ["RA---TAN", "DEC--TAN"]
    coordinates = CoordinateSource(sky_transform(grid, wcs, image.shape), shape, image.shape).read(0, shape[0])
    return np.asarray(resample(coordinates, with_border(torch.from_numpy(image)[None]))[:, 0])


def agreement(result: np.ndarray, reference: np.ndarray) -> str:
    difference = np.abs(result - reference)
    both = np.isfinite(difference)
    either = np.isfinite(result) | np.isfinite(reference)
    median, most = np.percentile(difference[both], [50, 99.9])
    return f"{median:.2g}, {most:.2g} | {both.sum() / either.sum():.4%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA, help="the folder with s1/*.wcs.txt")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--run", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        print(json.dumps(run(Path(arguments.run[1]), arguments.run[0])))
        return
    names = [name for name in NAMES if name != "swarp" or swarp_program()]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_input(folder, min(arguments.data.glob("s1/*.wcs.txt")), factor=1.46)
        measured, results = measure(folder, names, arguments.repeats)
        write_table(folder, names, measured, results, arguments.repeats)


def measure(
    folder: Path, names: list[str], repeats: int
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, np.ndarray]]:
    measured: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    results = {}
    for _ in range(repeats):
        for name in names:
            command = [sys.executable, "-W", "ignore", __file__, "--run", name, str(folder)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=os.environ | THREADS)
            measured[name].append(json.loads(done.stdout))
            results[name] = np.load(folder / "result.npy")
            print(name, measured[name][-1])
    return measured, results


def write_table(
    folder: Path,
    names: list[str],
    measured: dict[str, list[dict[str, Any]]],
    results: dict[str, np.ndarray],
    repeats: int,
) -> None:
    worst, told = mapping_error(folder)
    plain = without_sip(folder)
    height, width = fits.getheader(folder / "frame.fits")["NAXIS2"], fits.getheader(folder / "frame.fits")["NAXIS1"]
    shape = results["reproject"].shape
    seconds = {name: statistics.median(entry["seconds"] for entry in measured[name]) for name in names}
    lines = [
        "# Reprojection",
        "",
        *describe("bench/mosaic_reproject.py"),
        f"- astropy {version('astropy')}, reproject {version('reproject')}, "
        + (swarp_version() if swarp_program() else "SWarp is not installed here"),
        "",
        f"One frame of {width} × {height} ({width * height / 1e6:.1f} Mpx, float32, TAN-SIP) onto a turned TAN grid of "
        f"{shape[1]} × {shape[0]} ({shape[0] * shape[1] / 1e6:.1f} Mpx). One thread, median of {repeats} runs, each in "
        "a process of its own.",
        "",
        "| program | seconds | of which map | × reproject | extra peak MiB | difference to reproject: median, 99.9 % "
        "of pixels | pixels valid in both, of those in either |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in names:
        mapping = [entry["mapping"] for entry in measured[name] if "mapping" in entry]
        reference = plain if name == "swarp" else results["reproject"]
        extra = statistics.median(entry["extra"] for entry in measured[name]) / 2**20
        lines.append(
            f"| {NAMES[name]} | {seconds[name]:.2f} | {f'{statistics.median(mapping):.2f}' if mapping else ''} | "
            f"{seconds['reproject'] / seconds[name]:.1f} | {extra:.0f} | {agreement(results[name], reference)} |"
        )
    lines += [
        "",
        f"Largest error of the map over all pixels of the frame: {worst:.6f} px (bound 0.001); it says {told:.6f}.",
        "",
        "Differences are in the frame's units; its noise is 20. SWarp reads no SIP, so it is compared with Safelight's "
        "result for the frame without its distortion. Extra peak is the growth of the process while it works, with "
        "the frame and, for Safelight, the result already in memory; for SWarp it is the whole process, and its "
        "seconds hold reading and writing files.",
    ]
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "mosaic_reproject.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def swarp_version() -> str:
    return subprocess.run([swarp_program() or "", "-v"], capture_output=True, text=True, check=True).stdout.split(" (")[
        0
    ]


if __name__ == "__main__":
    main()
