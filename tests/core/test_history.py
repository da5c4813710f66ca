"""The history keeps every run, and its tables follow from it."""

from __future__ import annotations

import csv
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from safelight.core.errors import InputError, OutputError
from safelight.core.history import ALL_RUNS, LOCK, SUMMARY, TRUTH, append, compare, metrics_of, read
from safelight.core.run import Run

NOON = "2026-11-21T12:00:00+01:00"


def entry(name: str = "cells", timestamp: str = NOON, **more: Any) -> dict[str, Any]:
    return {"timestamp": timestamp, "model_name": name, "averages": {"psnr": 30.5}, "num_items": 2, "notes": "", **more}


def table(results: Path) -> list[dict[str, str]]:
    with (results / SUMMARY).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_run_is_in_every_file(tmp_path: Path) -> None:
    results = tmp_path / "new" / "results"
    own = append(results, entry(notes="first, with a comma\nand a line"))
    assert own.name == "result_cells_20261121_120000.json"
    (line,) = read(results)
    assert line == {**entry(notes="first, with a comma\nand a line"), "result_file": own.name}
    assert json.loads(own.read_text()) == line
    assert json.loads((results / ALL_RUNS).read_text()) == [line]
    assert table(results) == [
        {
            "timestamp": NOON,
            "model_name": "cells",
            "psnr": "30.5",
            "num_items": "2",
            "notes": "first, with a comma\nand a line",
        }
    ]


def test_the_summary_has_the_columns_of_all_runs(tmp_path: Path) -> None:
    append(tmp_path, entry("a"))
    append(tmp_path, entry("b", averages={"ssim": 0.9, "notes": 1.0}, num_failed=1, notes="kept"))
    assert (tmp_path / SUMMARY).read_text().splitlines() == [
        "timestamp,model_name,psnr,ssim,notes,num_items,num_failed,notes",
        f"{NOON},a,30.5,,,2,,",
        f"{NOON},b,,0.9,1.0,2,1,kept",
    ]


def test_runs_of_one_second_have_files_of_their_own(tmp_path: Path) -> None:
    files = [append(tmp_path, entry(notes=str(number))) for number in range(3)]
    assert [file.name for file in files] == [
        "result_cells_20261121_120000.json",
        "result_cells_20261121_120000_2.json",
        "result_cells_20261121_120000_3.json",
    ]
    assert [json.loads(file.read_text())["notes"] for file in files] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("../../etc/passwd", "result_.._.._etc_passwd_20261121_120000.json"),
        ("/absolute", "result__absolute_20261121_120000.json"),
        ("C:\\windows", "result_C_windows_20261121_120000.json"),
        ("débruité 細胞", "result_débruité_細胞_20261121_120000.json"),
        ("nul\0byte\n", "result_nul_byte__20261121_120000.json"),
        ("", "result_run_20261121_120000.json"),
    ],
)
def test_a_name_never_leads_out_of_the_folder(tmp_path: Path, name: str, file: str) -> None:
    assert append(tmp_path / "results", entry(name)) == tmp_path / "results" / file
    assert [path.name for path in tmp_path.iterdir()] == ["results"]
    assert read(tmp_path / "results")[0]["model_name"] == name


@pytest.mark.parametrize("name", ["x" * 1000, "細" * 1000])
def test_a_long_name_is_cut(tmp_path: Path, name: str) -> None:
    assert append(tmp_path, entry(name)).exists()


def test_numbers_that_json_has_not_are_empty(tmp_path: Path) -> None:
    append(tmp_path, entry(averages={"psnr": math.inf, "ssim": math.nan}))
    assert json.loads((tmp_path / ALL_RUNS).read_text(), parse_constant=pytest.fail)[0]["averages"] == {
        "psnr": None,
        "ssim": None,
    }
    assert table(tmp_path)[0]["psnr"] == ""


def test_text_that_is_not_unicode_is_kept(tmp_path: Path) -> None:
    append(tmp_path, entry(notes="\udcff"))
    assert read(tmp_path)[0]["notes"] == "\udcff"
    assert table(tmp_path)[0]["notes"] == "\\udcff"


def test_what_a_killed_writer_did_not_derive_the_next_one_does(tmp_path: Path) -> None:
    own = append(tmp_path, entry("first"))
    for lost in (own, tmp_path / ALL_RUNS, tmp_path / SUMMARY):
        lost.unlink()
    append(tmp_path, entry("second"))
    assert json.loads(own.read_text())["model_name"] == "first"
    assert [row["model_name"] for row in table(tmp_path)] == ["first", "second"]


@pytest.mark.parametrize("name", [ALL_RUNS, SUMMARY, "result_first_20261121_120000.json"])
def test_what_a_killed_writer_left_is_removed(tmp_path: Path, name: str) -> None:
    append(tmp_path, entry("first"))
    (tmp_path / name).unlink()
    leftover = tmp_path / f".{name}.{os.getpid()}-0123abcd.part"
    leftover.touch()
    os.utime(leftover, (1e9, 1e9))  # before this process began
    append(tmp_path, entry("second"))
    assert not leftover.exists()


def test_a_line_torn_by_a_crash_is_passed_over_and_costs_no_other(tmp_path: Path) -> None:
    append(tmp_path, entry("first"))
    with (tmp_path / TRUTH).open("ab") as truth:
        truth.write(b'{"timestamp": "2026')
    assert [run["model_name"] for run in read(tmp_path)] == ["first"]
    append(tmp_path, entry("second"))
    assert [run["model_name"] for run in read(tmp_path)] == ["first", "second"]
    assert len((tmp_path / TRUTH).read_text().splitlines()) == 2


def test_the_folder_of_the_history_may_be_a_run_s_own(tmp_path: Path) -> None:
    with Run(tmp_path, "denoise run").open():
        append(tmp_path, entry())
    assert len(read(tmp_path)) == 1


def test_no_history_is_an_empty_one(tmp_path: Path) -> None:
    assert read(tmp_path / "missing") == []


def test_a_history_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"file.results: cannot be written"):
        append(tmp_path / "file" / "results", entry())
    (tmp_path / "results" / TRUTH).mkdir(parents=True)
    with pytest.raises(InputError, match=rf"{TRUTH}: cannot be read"):
        read(tmp_path / "results")
    assert LOCK.startswith(".")  # hidden from the user's listing


def test_compare_takes_the_newest_run_of_each_name() -> None:
    runs = [entry("a", notes="old"), entry("b"), entry("a", notes="new")]
    assert compare(runs, ["b", "a", "unknown"]) == [runs[1], runs[2]]


def test_metrics_are_listed_in_the_order_they_came() -> None:
    runs = [entry(averages={"psnr": 1, "ssim": 1}), entry(averages={"loss": 1, "psnr": 1}), {"model_name": "none"}]
    assert metrics_of(runs) == ["psnr", "ssim", "loss"]


@pytest.mark.parametrize(
    "line",
    [
        "{}",
        '{"model_name": "a", "averages": null}',
        '{"model_name": 1, "averages": {}}',
        '{"model_name": "a", "averages": {"psnr": "high"}}',
        '{"model_name": "a", "averages": {}, "timestamp": 3}',
        '{"model_name": "a", "averages": {}, "seconds": "long"}',
        "[" * 100_000,
    ],
)
def test_a_line_that_is_no_run_stops_nobody(tmp_path: Path, line: str) -> None:
    (tmp_path / TRUTH).write_text(line + "\n")
    assert read(tmp_path) == []
    append(tmp_path, entry())
    assert [run["model_name"] for run in read(tmp_path)] == ["cells"]
    assert line in (tmp_path / TRUTH).read_text(), "the truth is only added to"
    assert len(table(tmp_path)) == 1
