"""The manifest: one line of JSON per pair; the same as Parquet, and as YAML with the fields of RawNIND's loader.

Paths of frames are relative to the dataset, paths of our outputs to the folder of the manifest. Numbers are rounded,
so that lines are the same wherever they were computed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from safelight import __version__
from safelight.core.errors import InputError, UsageError
from safelight.core.files import atomic_write
from safelight.formats.raw import RawFrame
from safelight.kernels.loss_mask import CLIPPED_ANCHOR, CLIPPED_TARGET, MOVED, OUTSIDE
from safelight.pipelines.pairs.alignment import PairAlignment
from safelight.pipelines.pairs.crops import COLOUR_SUFFIXES
from safelight.pipelines.pairs.decoding import Decoded
from safelight.pipelines.pairs.options import RunOptions

MANIFEST = "manifest.jsonl"
PARQUET = "manifest.parquet"
YAML = "manifest.yaml"
SCENES = "scenes"
"""Folder of the lines of each scene, from which the manifest is put together."""

Line = dict[str, Any]
Limit = Literal["loss", "mask"]
BITS = {"moved": MOVED, "clipped_gt": CLIPPED_ANCHOR, "clipped_noisy": CLIPPED_TARGET, "outside": OUTSIDE}
_DIGITS = 5
_COUNTED_ROWS = 256


def mask_facts(mask: NDArray[np.uint8]) -> dict[str, Any]:
    """Return which share of a mask is usable, of what both frames show, and which share has each bit, of the whole."""
    counts = np.zeros(256, np.int64)
    for start in range(0, len(mask), _COUNTED_ROWS):  # NumPy widens what it counts to 64 bits
        counts += np.bincount(mask[start : start + _COUNTED_ROWS].ravel(), minlength=256)
    values = np.arange(256)
    shares = {name: counts[(values & bit) > 0].sum() / mask.size for name, bit in BITS.items()}
    seen = max(mask.size - int(counts[(values & OUTSIDE) > 0].sum()), 1)
    return {
        "mask_mean": _rounded(counts[0] / seen),
        "mask_fractions": {name: _rounded(share) for name, share in shares.items()},
    }


def make_line(
    scene: str,
    gt: Decoded,
    noisy: Decoded,
    alignment: PairAlignment,
    facts: Mapping[str, Any],
    options: RunOptions,
    settings: str,
) -> Line:
    """Return a pair's line, without the paths of its outputs.

    Parameters
    ----------
    scene : str
    gt, noisy : Decoded
    alignment : PairAlignment
    facts : mapping
        As ``mask_facts`` returns them.
    options : RunOptions
    settings : str
        Digest of the options on which the result depends.
    """
    assert gt.frame is not None
    assert noisy.frame is not None
    found = alignment.overlap is not None
    loss = _number(alignment.alignment_loss)
    unmet = unmet_limits(loss, facts["mask_mean"], options.max_alignment_loss, options.min_mask_mean)
    return {
        "gt": gt.file.name,
        "noisy": noisy.file.name,
        "scene": scene,
        "sensor": gt.frame.sensor,
        "status": alignment.status,
        "reason": alignment.reason,
        "accepted": alignment.status == "ok" and not unmet,
        "shift": _numbers(alignment.shift) if found else None,
        "shift_integer": list(alignment.shift_integer) if found else None,
        "shift_lattice": list(alignment.shift_lattice) if found else None,
        "lattice_residual": _number(alignment.lattice_residual),
        "uncertainty": _number(alignment.uncertainty),
        "confidence": _number(alignment.confidence),
        "raw_gain": _number(alignment.raw_gain),
        "rgb_gain": _numbers(alignment.rgb_gain) if found else None,
        "alignment_loss": loss,
        "mask": None,
        "mask_method": options.mask,
        **facts,
        "overexposure_lb": overexposure_bound(gt.frame),
        "rgb_xyz_matrix": [_numbers(row) for row in gt.frame.rgb_xyz_matrix],
        **{f"gt_{name}": value for name, value in _frame_facts(gt).items()},
        **{f"noisy_{name}": value for name, value in _frame_facts(noisy).items()},
        "crops": [],
        "version": __version__,
        "settings": settings,
    }


def unmet_limits(loss: float | None, mask_mean: float, max_loss: float, min_mask_mean: float) -> list[Limit]:
    """Return which of the limits for accepted pairs a pair does not keep."""
    kept: dict[Limit, bool] = {"loss": loss is not None and loss <= max_loss, "mask": mask_mean >= min_mask_mean}
    return [limit for limit, is_kept in kept.items() if not is_kept]


def settings_digest(options: Mapping[str, Any]) -> str:
    """Return the digest of the options on which the result depends."""
    return hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()


def overexposure_bound(frame: RawFrame) -> float:
    """Return from which level on, 0 being black and 1 white, a colour of a frame is clipped."""
    pairs = list(zip(frame.clipping, frame.black, strict=True))[:3]
    return _rounded(min(1.0, *((clipping - black) / (frame.white - black) for clipping, black in pairs)))


def write_lines(path: Path, lines: Sequence[Line]) -> None:
    """Write lines of JSON, in the order of the names of their frames."""
    ordered = sorted(lines, key=lambda line: (line["gt"], line["noisy"]))
    text = "".join(f"{json.dumps(line, allow_nan=False)}\n" for line in ordered)
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_lines(path: Path) -> list[Line]:
    """Read a manifest.

    Raises
    ------
    InputError
        It is missing, or a line of it is no JSON object.
    """
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise InputError(
            f"cannot be read: {error.strerror}", path=path, expected="a manifest of 'pairs run'"
        ) from error
    except ValueError as error:
        raise InputError(f"is damaged: {error}", path=path, remedy="run 'pairs run' again") from error
    if not all(isinstance(line, dict) and {"gt", "noisy", "crops"} <= line.keys() for line in lines):
        raise InputError("is no manifest of pairs", path=path, expected="a line of JSON per pair")
    return lines


def write_parquet(path: Path, lines: Sequence[Line]) -> None:
    """Write the manifest as one table.

    Raises
    ------
    UsageError
        pyarrow is not installed.
    """
    pyarrow, parquet = _pyarrow()
    with atomic_write(path) as temporary:
        parquet.write_table(pyarrow.Table.from_pylist(list(lines)), temporary)


def read_parquet(path: Path) -> list[Line]:
    """Read the manifest from its table.

    Raises
    ------
    InputError
        It is missing or damaged.
    UsageError
        pyarrow is not installed.
    """
    pyarrow, parquet = _pyarrow()
    try:
        table = parquet.read_table(path, memory_map=False)
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"is no Parquet file: {error}", path=path, remedy="run 'pairs run' again") from error
    lines: list[Line] = table.to_pylist()
    return lines


def write_yaml(path: Path, lines: Sequence[Line]) -> None:
    """Write the pairs that have a shift with the fields of RawNIND's loader.

    Raises
    ------
    UsageError
        PyYAML is not installed.
    """
    yaml = _yaml()
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    entries = [upstream_entry(line) for line in lines if line["mask"] is not None]
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        yaml.dump(entries, file, Dumper=dumper, sort_keys=False, allow_unicode=True)


def read_yaml(path: Path) -> Any:
    """Read what RawNIND's loader reads.

    Raises
    ------
    InputError
        It is missing or damaged.
    UsageError
        PyYAML is not installed.
    """
    yaml = _yaml()
    try:
        text = path.read_text(encoding="utf-8")
        return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"is no YAML file: {error}", path=path, remedy="run 'pairs run' again") from error


def upstream_entry(line: Line) -> dict[str, Any]:
    """Return a pair as RawNIND's loader reads it."""
    return {
        "gt_fpath": line["gt"],
        "f_fpath": line["noisy"],
        "image_set": line["scene"].rpartition("/")[2],
        "best_alignment": line["shift_integer"],
        "best_alignment_loss": line["alignment_loss"],
        "mask_fpath": line["mask"],
        "mask_mean": line["mask_mean"],
        "is_bayer": line["sensor"] == "bayer",
        "rgb_xyz_matrix": line["rgb_xyz_matrix"],
        "overexposure_lb": line["overexposure_lb"],
        "raw_gain": line["raw_gain"],
        "rgb_gain": line["rgb_gain"],
        "crops": [
            {
                "coordinates": crop["coordinates"],
                "f_bayer_fpath": None if in_colour else crop["noisy"],
                "gt_bayer_fpath": None if in_colour else crop["gt"],
                "f_linrec2020_fpath": crop["noisy"] if in_colour else None,
                "gt_linrec2020_fpath": crop["gt"] if in_colour else None,
            }
            for crop in line["crops"]
            for in_colour in (crop["gt"].endswith(COLOUR_SUFFIXES),)
        ],
    }


def _pyarrow() -> Any:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UsageError("Parquet files need pyarrow", remedy="pip install 'safelight[raw]'") from error
    return pyarrow, parquet


def _yaml() -> Any:
    try:
        import yaml
    except ImportError as error:
        raise UsageError("YAML files need PyYAML", remedy="pip install 'safelight[raw]'") from error
    return yaml


def _frame_facts(decoded: Decoded) -> dict[str, Any]:
    assert decoded.frame is not None
    frame = decoded.frame
    return {
        "iso": frame.iso or decoded.file.iso,
        "exposure": _number(frame.exposure if frame.exposure is not None else math.nan),
        "camera": frame.camera,
        "size": [frame.mosaic.shape[1], frame.mosaic.shape[0]],
        "sha1": decoded.sha1,
    }


def _rounded(value: float) -> float:
    return round(float(value), _DIGITS)


def _number(value: float) -> float | None:
    return _rounded(value) if math.isfinite(value) else None


def _numbers(values: Sequence[float] | NDArray[np.floating]) -> list[float | None]:
    return [_number(value) for value in values]
