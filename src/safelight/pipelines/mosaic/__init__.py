"""Stack hundreds of FITS frames into one audited mosaic."""

from __future__ import annotations

from safelight.core.pipeline import Command, ForeignSettings, Pipeline, deferred
from safelight.pipelines.mosaic.options import RunOptions

_ROOM = "safelight.pipelines.mosaic"

RUN = Command(
    name="run",
    help="""Calibrate, register, stack with rejection and assemble FITS frames into one mosaic.

    The folder then holds the science file (WCS; coverage, weight, variance and effective number of frames as
    extensions), a preview, and a report with the audit: noise gain, flux, sharpness, seams, astrometry.
    Inputs are only read. A stopped run goes on where it was.

    Example: safelight mosaic run lights --out m94 --dark darks --flat flats
    """,
    Options=RunOptions,
    folder=RunOptions.run_folder,
    find_items=deferred(f"{_ROOM}.items:find_items"),
    prepare=deferred(f"{_ROOM}.process:register"),
    process=deferred(f"{_ROOM}.process:stack"),
    finish=deferred(f"{_ROOM}.process:assemble"),
    plan=deferred(f"{_ROOM}.planning:plan"),
    audit=deferred(f"{_ROOM}.audit:missed_checks"),
    report=deferred(f"{_ROOM}.report:write_report"),
    without_result=frozenset({"input"}),
    foreign=ForeignSettings(
        suffix=".json",
        load=deferred(f"{_ROOM}.legacy:load"),
        variables=deferred(f"{_ROOM}.legacy:variables"),
        save=deferred(f"{_ROOM}.legacy:save"),
    ),
)

PIPELINE = Pipeline(
    name="mosaic",
    help="Calibrate, register, stack with rejection and assemble FITS frames into one mosaic.",
    commands=(RUN,),
)
