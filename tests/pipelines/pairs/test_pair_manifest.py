"""What the manifest says of a pair, in its three forms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from safelight.core.errors import InputError
from safelight.formats.raw import RawFrame, RawSize
from safelight.pipelines.pairs.alignment import PairAlignment
from safelight.pipelines.pairs.decoding import Decoded
from safelight.pipelines.pairs.items import FrameFile
from safelight.pipelines.pairs.manifest import (
    Line,
    make_line,
    mask_facts,
    overexposure_bound,
    read_lines,
    read_parquet,
    read_yaml,
    upstream_entry,
    write_lines,
    write_parquet,
    write_yaml,
)
from safelight.pipelines.pairs.options import RunOptions
from safelight.pipelines.pairs.overlap import Overlap

RGGB = ((0, 1), (3, 2))
UPSTREAM_FIELDS = [
    *("gt_fpath", "f_fpath", "image_set", "best_alignment", "best_alignment_loss", "mask_fpath", "mask_mean"),
    *("is_bayer", "rgb_xyz_matrix", "overexposure_lb", "raw_gain", "rgb_gain", "crops"),
]


def frame(clipping: float = 1000.0) -> RawFrame:
    mosaic, pattern = np.zeros((40, 60), np.uint16), np.array(RGGB, np.uint8)
    return RawFrame(mosaic, pattern, (100.0,) * 4, 1100.0, (clipping,) * 4, (1.0,) * 4, np.eye(4, 3))


def decoded(name: str, iso: int | None = None) -> Decoded:
    return Decoded(FrameFile(Path(name), name, RawSize(40, 60, 40, 60), iso), "0" * 40, frame())


def line(noisy: str = "src/Bayer/desk/b.dng", mask_mean: float = 0.9, **found: Any) -> Line:
    facts: dict[str, Any] = {
        "status": "ok",
        "reason": None,
        "shift": (2.0000001, -3.25),
        "shift_integer": (2, -3),
        "shift_lattice": (2, -4),
        "alignment_loss": 0.01,
        "raw_gain": 2.0,
        "rgb_gain": (2.0, 2.0, 2.0),
        "overlap": Overlap(RGGB, (2, 0), (0, 4), (38, 56), (0.0, 0.0)),
    }
    made = make_line(
        "Bayer/desk",
        decoded("src/Bayer/desk/gt/a.dng", 100),
        decoded(noisy, 800),
        PairAlignment(**(facts | found)),
        {"mask_mean": mask_mean, "mask_fractions": {"moved": 0.1}},
        RunOptions(input=Path("in"), out=Path("out")),
        "digest",
    )
    crop = {"coordinates": [4, 0], "size": [56, 38], "mask_mean": 0.9, "gt": "crops/g.npz", "noisy": "crops/n.npz"}
    return {**made, "mask": "masks/m.png", "crops": [crop]}


def test_a_line_says_what_was_found() -> None:
    made = line()
    assert made["shift"] == [2.0, -3.25]
    assert (made["shift_integer"], made["shift_lattice"]) == ([2, -3], [2, -4])
    assert (made["gt_iso"], made["noisy_iso"], made["noisy_size"]) == (100, 800, [60, 40])
    assert made["accepted"] is True
    assert made["confidence"] == 0.0
    assert made["uncertainty"] is None, "what is not known is null, never NaN"


@pytest.mark.parametrize(
    "changed",
    [{"status": "suspect", "reason": "uneven_shift"}, {"alignment_loss": 0.036}, {"mask_mean": 0.79}],
    ids=str,
)
def test_upstreams_limits_decide_what_is_accepted(changed: dict[str, Any]) -> None:
    assert line(**changed)["accepted"] is False


def test_a_pair_that_failed_has_no_shift() -> None:
    made = make_line(
        "s",
        decoded("a"),
        decoded("b"),
        PairAlignment("failed", "no_signal", confidence=3.0),
        {"mask_mean": 0.0, "mask_fractions": {}},
        RunOptions(input=Path("in"), out=Path("out")),
        "digest",
    )
    assert [made[name] for name in ("shift", "shift_integer", "shift_lattice", "raw_gain", "rgb_gain")] == [None] * 5
    assert (made["reason"], made["accepted"], made["confidence"]) == ("no_signal", False, 3.0)


def test_shares_of_a_mask() -> None:
    bits = np.zeros((10, 10), np.uint8)
    bits[:5] = 8
    bits[5, :5] = 1
    bits[5, 3:7] |= 2
    assert mask_facts(bits) == {
        "mask_mean": 0.86,
        "mask_fractions": {"moved": 0.05, "clipped_gt": 0.04, "clipped_noisy": 0.0, "outside": 0.5},
    }
    assert mask_facts(np.full((4, 4), 8, np.uint8))["mask_mean"] == 0.0


def test_from_where_on_the_ground_truth_is_clipped() -> None:
    assert overexposure_bound(frame(1035.5)) == 0.9355
    assert overexposure_bound(frame(5000)) == 1.0


def test_the_three_forms_say_the_same(tmp_path: Path) -> None:
    lines = [line("b"), line("c", reason="uneven_shift", status="suspect"), line("d", mask_mean=0.0)]
    write_lines(tmp_path / "m.jsonl", reversed(lines))
    assert read_lines(tmp_path / "m.jsonl") == lines, "in the order of their names"
    write_parquet(tmp_path / "m.parquet", lines)
    assert read_parquet(tmp_path / "m.parquet") == lines
    write_yaml(tmp_path / "m.yaml", [*lines, {**line("e"), "mask": None}])
    assert read_yaml(tmp_path / "m.yaml") == [upstream_entry(one) for one in lines], "without what has no mask"


def test_upstreams_fields_exactly() -> None:
    entry = upstream_entry(line())
    assert list(entry) == UPSTREAM_FIELDS
    assert entry["image_set"] == "desk"
    assert entry["best_alignment"] == [2, -3]
    assert entry["crops"] == [
        {
            "coordinates": [4, 0],
            "f_bayer_fpath": "crops/n.npz",
            "gt_bayer_fpath": "crops/g.npz",
            "f_linrec2020_fpath": None,
            "gt_linrec2020_fpath": None,
        }
    ]
    in_colour = line()
    in_colour["crops"][0] |= {"gt": "g.exr", "noisy": "n.exr"}
    crop = upstream_entry(in_colour)["crops"][0]
    assert (crop["f_bayer_fpath"], crop["gt_linrec2020_fpath"]) == (None, "g.exr")


@pytest.mark.parametrize("text", ["{", "[1]", '{"gt": 1}'])
def test_a_damaged_manifest_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "manifest.jsonl"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_lines(path)
    assert caught.value.path == path
