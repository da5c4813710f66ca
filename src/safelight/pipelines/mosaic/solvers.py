"""Ask a plate solver where a frame lies on the sky: astrometry.net's ``solve-field`` or ASTAP, as separate programs.

A program is started without a shell, on files of our own in a scratch folder, with a limit on its time; whatever it
started ends with it. What it answers is believed only if it agrees with what was known before.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS
from numpy.typing import NDArray

from safelight.core.errors import InputError
from safelight.pipelines.mosaic.stars import StarField
from safelight.pipelines.mosaic.wcs import (
    ARCSECONDS,
    pixel_scale,
    pixel_to_sky,
    read_wcs_file,
    separation,
    sky_to_pixel,
)

DEGREES_PER_HOUR = 15.0
SCALE_MARGIN = 0.02  # by which a solution's scale may leave the range that was asked for
LARGEST_RESIDUAL = 3.0  # pixels, rms over the stars that the solver identified
FEWEST_IDENTIFIED = 5
GRACE = 10.0  # seconds beyond the solver's own limit before it is stopped
ASTAP_STARS = 500

Failure = Literal["solver_missing", "solver_timeout", "solver_failed", "no_solution", "solution_rejected"]

_ASTAP_STATUS = {
    1: "no solution",
    2: "not enough stars",
    3: "not enough stars",
    16: "the image cannot be read",
    32: "no star database",
    33: "the star database cannot be read",
}


@dataclass(frozen=True)
class Hints:
    """What is known before solving.

    Parameters
    ----------
    scale_low, scale_high : float
        Arc seconds per pixel.
    ra, dec : float, optional
        Where the telescope was meant to point, in degrees; the whole sky is searched without.
    radius : float
        How far from there the frame's centre may be, in degrees.
    """

    scale_low: float
    scale_high: float
    ra: float | None = None
    dec: float | None = None
    radius: float = 2.0

    @property
    def position(self) -> tuple[float, float] | None:
        """Right ascension and declination, if both are known."""
        return None if self.ra is None or self.dec is None else (self.ra, self.dec)


@dataclass(frozen=True, eq=False)
class Solution:
    """A solver's answer: a WCS, or why there is none; ``detail`` says more, in the solver's words or values."""

    wcs: WCS | None
    failure: Failure | None = None
    detail: str = ""


class Solver(Protocol):
    """A program that finds where a frame lies on the sky."""

    name: str

    def solve(self, field: StarField, luminance: NDArray[np.generic], hints: Hints, scratch: Path) -> Solution:
        """Return the WCS of a frame with these stars and this picture; files go to the folder ``scratch``."""
        ...


@dataclass(frozen=True)
class AstrometryNet:
    """astrometry.net's ``solve-field``, given our star list: it needs no picture.

    Parameters
    ----------
    command : str
        A program on PATH, or the path of one.
    seconds : int
        Limit on the processor time.
    """

    command: str = "solve-field"
    seconds: int = 60
    name: str = "astrometry.net"

    def solve(self, field: StarField, luminance: NDArray[np.generic], hints: Hints, scratch: Path) -> Solution:
        """Return the WCS of a frame; the picture is not used."""
        with tempfile.TemporaryDirectory(dir=scratch) as name:
            folder = Path(name).resolve()
            _write_star_list(folder / "stars.xyls", field)
            ended = _run(self.command, self._arguments(field, hints, folder), folder, self.seconds)
            if isinstance(ended, Solution):
                return ended
            if not (folder / "stars.wcs").is_file():
                return Solution(None, "no_solution" if ended.status == 0 else "solver_failed", ended.last_line)
            return _checked(folder / "stars.wcs", folder / "stars.corr", field, hints)

    def _arguments(self, field: StarField, hints: Hints, folder: Path) -> list[str]:
        arguments = ["--no-plots", "--overwrite", "--no-remove-lines", "--crpix-center", "--new-fits", "none"]
        arguments += ["--width", str(field.width), "--height", str(field.height)]
        arguments += ["--x-column", "X", "--y-column", "Y", "--sort-column", "FLUX"]
        arguments += ["--scale-units", "arcsecperpix"]
        arguments += ["--scale-low", f"{hints.scale_low:.6f}", "--scale-high", f"{hints.scale_high:.6f}"]
        if (position := hints.position) is not None:
            arguments += [
                "--ra",
                f"{position[0]:.6f}",
                "--dec",
                f"{position[1]:.6f}",
                "--radius",
                f"{hints.radius:.4f}",
            ]
        arguments += ["--cpulimit", str(self.seconds), "--temp-dir", str(folder), "--dir", str(folder)]
        return [*arguments, str(folder / "stars.xyls")]


@dataclass(frozen=True)
class Astap:
    """ASTAP's command line, given the luminance as a FITS file.

    Parameters
    ----------
    command : str
        A program on PATH, or the path of one.
    seconds : int
        Limit on the time.
    """

    command: str = "astap"
    seconds: int = 60
    name: str = "ASTAP"

    def solve(self, field: StarField, luminance: NDArray[np.generic], hints: Hints, scratch: Path) -> Solution:
        """Return the WCS of a frame; invalid pixels of the picture get the level of the sky."""
        with tempfile.TemporaryDirectory(dir=scratch) as name:
            folder = Path(name).resolve()
            picture = np.where(np.isfinite(luminance), luminance, field.background).astype(np.float32)
            fits.PrimaryHDU(picture).writeto(folder / "frame.fits")
            ended = _run(self.command, self._arguments(field, hints, folder), folder, self.seconds)
            if isinstance(ended, Solution):
                return ended
            if ended.status != 0 or not (folder / "solved.wcs").is_file():
                failure: Failure = "no_solution" if ended.status in (0, 1) else "solver_failed"
                return Solution(None, failure, _ASTAP_STATUS.get(ended.status, ended.last_line))
            return _checked(folder / "solved.wcs", None, field, hints)

    def _arguments(self, field: StarField, hints: Hints, folder: Path) -> list[str]:
        height = field.height * (hints.scale_low + hints.scale_high) / 2 / ARCSECONDS
        arguments = ["-f", str(folder / "frame.fits"), "-o", str(folder / "solved"), "-wcs"]
        arguments += ["-z", "0", "-s", str(ASTAP_STARS), "-fov", f"{height:.4f}"]
        if (position := hints.position) is None:
            return [*arguments, "-r", "180"]
        ra, dec = position
        arguments += ["-ra", f"{ra / DEGREES_PER_HOUR:.6f}", "-spd", f"{dec + 90:.6f}"]
        return [*arguments, "-r", f"{hints.radius:.4f}"]


@dataclass(frozen=True)
class _Ended:
    """How a program ended, and the last line that it said."""

    status: int
    last_line: str


def _run(command: str, arguments: Sequence[str], folder: Path, seconds: float) -> _Ended | Solution:
    """Run a program to its end, at most ``seconds`` and a grace; a Solution says why there is no end to tell of."""
    program = shutil.which(command)
    if program is None:
        return Solution(None, "solver_missing", command)
    log = folder / "solver.log"
    with log.open("wb") as output:
        try:
            process = subprocess.Popen(
                [str(Path(program).resolve()), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=folder,
                start_new_session=True,  # a process group of its own, so that its children can be ended with it
            )
        except OSError as error:
            return Solution(None, "solver_failed", f"{program}: {error.strerror}")
        try:
            status = process.wait(timeout=seconds + GRACE)
        except subprocess.TimeoutExpired:
            return Solution(None, "solver_timeout", f"{seconds:g} s")
        finally:
            _end_group(process)
    return _Ended(status, _last_line(log))


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End a program and whatever it started; nothing happens if all have ended."""
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace")[-4096:].split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _write_star_list(path: Path, field: StarField) -> None:
    """Write the stars as solve-field takes them: pixels counted from 1, as FITS does."""
    columns = [("X", field.x + 1), ("Y", field.y + 1), ("FLUX", field.flux)]
    table = [fits.Column(name=name, format="D", array=values) for name, values in columns]
    fits.BinTableHDU.from_columns(table).writeto(path)


def _checked(path: Path, identified: Path | None, field: StarField, hints: Hints) -> Solution:
    """Return the WCS of a solver's file, or why it cannot be right."""
    try:
        wcs = read_wcs_file(path, field.width, field.height)
    except InputError as error:
        return Solution(None, "solution_rejected", error.problem)
    problem = _contradiction(wcs, field, hints)
    if problem is None and identified is not None and identified.is_file():
        problem = _misfit(wcs, identified)
    return Solution(wcs) if problem is None else Solution(None, "solution_rejected", problem)


def _contradiction(wcs: WCS, field: StarField, hints: Hints) -> str | None:
    scale = pixel_scale(wcs)
    if not hints.scale_low * (1 - SCALE_MARGIN) <= scale <= hints.scale_high * (1 + SCALE_MARGIN):
        return f"{scale:.4f} arcsec/px, not {hints.scale_low:.4f} to {hints.scale_high:.4f}"
    ra, dec = pixel_to_sky(wcs, np.array([(field.width - 1) / 2]), np.array([(field.height - 1) / 2]))
    if not np.isfinite(ra + dec).all():
        return "the frame's centre is not on the sky"
    if (position := hints.position) is None:
        return None
    off = float(separation(ra, dec, np.array(position[0]), np.array(position[1]))[0])
    reach = hints.radius + np.hypot(field.width, field.height) * scale / ARCSECONDS / 2
    return None if off <= reach else f"{off:.2f} degrees from where the telescope pointed"


def _misfit(wcs: WCS, identified: Path) -> str | None:
    """Return what is wrong between our stars and the catalogue's, which solve-field lists side by side."""
    with fits.open(identified) as file:
        table = file[1].data
        ra, dec = np.array(table["index_ra"], np.float64), np.array(table["index_dec"], np.float64)
        mine = np.stack([table["field_x"], table["field_y"]], axis=1).astype(np.float64) - 1
    if len(ra) < FEWEST_IDENTIFIED:
        return f"only {len(ra)} stars identified"
    off = np.stack(sky_to_pixel(wcs, ra, dec), axis=1) - mine
    residual = float(np.sqrt((off**2).sum(axis=1).mean()))
    return None if residual <= LARGEST_RESIDUAL else f"identified stars are {residual:.2f} px off"
