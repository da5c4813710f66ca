"""The WCS of every frame that has one: its own, that of a file beside it, or a plate solver's."""

from __future__ import annotations

import shutil
from collections.abc import Mapping

from astropy.wcs import WCS

from safelight.core.errors import UsageError
from safelight.core.pipeline import Context
from safelight.formats.fits import open_fits
from safelight.pipelines.mosaic.calibration import Calibration
from safelight.pipelines.mosaic.discovery import FrameFacts
from safelight.pipelines.mosaic.frames import luminance, read_frame
from safelight.pipelines.mosaic.options import RunOptions
from safelight.pipelines.mosaic.registered import scratch_folder
from safelight.pipelines.mosaic.solvers import Astap, AstrometryNet, Hints
from safelight.pipelines.mosaic.stars import StarField
from safelight.pipelines.mosaic.wcs import celestial_wcs, read_wcs_file, sidecar_of

SOLVERS: tuple[AstrometryNet | Astap, ...] = (AstrometryNet(), Astap())

SCALE_RANGE = 1.1
"""Factor by which the scale may differ from what focal length and pixel size say."""

ANY_SCALE = (0.1, 100.0)
"""Arc seconds per pixel where the header does not tell: from long telescopes to short lenses."""

HINT_RADIUS = 2.0
"""Degrees by which a telescope's own idea of where it points may be off."""


def find_solutions(
    facts: Mapping[str, FrameFacts],
    fields: Mapping[str, StarField],
    calibration: Calibration,
    options: RunOptions,
    context: Context,
) -> dict[str, WCS]:
    """Return the WCS of the frames that have one or get one from a solver; the others are left to their stars.

    Raises
    ------
    UsageError
        The solver that the options name is not installed.
    """
    solutions = {name: wcs for name, frame in facts.items() if (wcs := _given(frame, options)) is not None}
    if options.wcs_sidecar and len(solutions) < len(facts):
        context.events.warning("sidecars_missing", missing=len(facts) - len(solutions), frames=len(facts))
    solver = None if options.wcs_sidecar else _solver(options)
    unsolved = [name for name in facts if name not in solutions]
    if solver is None or not unsolved:
        return solutions
    context.events.info("solver_used", solver=solver.name, frames=len(unsolved))
    with scratch_folder(context.folder / "scratch" / "solver") as scratch:
        for number, name in enumerate(unsolved):
            context.progress(number, len(unsolved), "solving_progress")
            picture = luminance(read_frame(facts[name], calibration))
            answer = solver.solve(fields[name], picture, _hints(facts[name]), scratch)
            if answer.wcs is not None:
                solutions[name] = answer.wcs
            else:
                context.events.info("not_solved", name=name, reason=answer.detail or str(answer.failure))
    return solutions


def _given(facts: FrameFacts, options: RunOptions) -> WCS | None:
    sidecar = sidecar_of(facts.path)
    if options.wcs_sidecar and sidecar.is_file():
        return read_wcs_file(sidecar, facts.width, facts.height)
    with open_fits(facts.path) as image:
        return celestial_wcs(image.header, facts.path)


def _solver(options: RunOptions) -> AstrometryNet | Astap | None:
    """Return the solver that is asked for; for auto the first that is installed, if any."""
    if options.solver == "none":
        return None
    for solver in SOLVERS:
        wanted = options.solver in ("auto", solver.name.lower())
        if wanted and shutil.which(solver.command):
            return solver
    if options.solver == "auto":
        return None
    raise UsageError(
        f"the solver {options.solver} is not installed",
        expected="its program on the PATH",
        remedy="install it, or --solver none to align by matching stars",
    )


def _hints(facts: FrameFacts) -> Hints:
    low, high = (facts.scale / SCALE_RANGE, facts.scale * SCALE_RANGE) if facts.scale else ANY_SCALE
    return Hints(low, high, facts.ra, facts.dec, HINT_RADIUS)
