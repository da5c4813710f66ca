"""Align noisy RAW photographs onto clean ones, mask what differs, cut crops, and write a manifest."""

from __future__ import annotations

from safelight.core.pipeline import Command, Pipeline, deferred
from safelight.pipelines.pairs.options import RunOptions, VerifyOptions

_ROOM = "safelight.pipelines.pairs"

RUN = Command(
    name="run",
    help="""Align the noisy frames of every scene onto its clean ones (ground truth) and write training pairs.

    A scene is a folder of noisy RAW files with the clean ones in its subfolder gt; RawNIND's tree is one of such
    folders. Per pair: the shift (exact, whole, and on the colour filter array), gain, a mask that says why, crops, and
    a line of the manifest (JSON Lines, Parquet, YAML). Inputs are only read. A stopped run goes on where it was.

    Example: safelight pairs run RawNIND --out pairs
    """,
    Options=RunOptions,
    folder=RunOptions.run_folder,
    find_items=deferred(f"{_ROOM}.items:find_items"),
    process=deferred(f"{_ROOM}.process:pair_scene"),
    finish=deferred(f"{_ROOM}.process:write_manifest"),
    plan=deferred(f"{_ROOM}.planning:plan"),
    audit=deferred(f"{_ROOM}.process:missed_checks"),
    report=deferred(f"{_ROOM}.report:write_report"),
    without_result=frozenset({"input", "scene"}),
)

VERIFY = Command(
    name="verify",
    help="""Read everything again that 'pairs run' wrote, and hold it against the RAW files.

    Checks the digests of the frames, that shifts are on the colour filter array's lattice, that masks and crops are
    what the manifest says and what the frames have there, and that the three forms of the manifest agree.

    Example: safelight pairs verify pairs
    """,
    Options=VerifyOptions,
    folder=VerifyOptions.run_folder,
    find_items=deferred(f"{_ROOM}.verify:find_items"),
    process=deferred(f"{_ROOM}.verify:verify"),
)

PIPELINE = Pipeline(
    name="pairs",
    help="Align noisy RAW photographs onto clean ones, mask what differs, cut crops, and write a manifest.",
    commands=(RUN, VERIFY),
)
