"""Plans: how large chunks are, what they are predicted to take, and what earlier runs have taught."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from safelight.core import plan as plan_module
from safelight.core.device import Device
from safelight.core.dry_run import Cost
from safelight.core.kernel import Kernel
from safelight.core.memory import Budget
from safelight.core.plan import Corrections, Plan, make_plan
from safelight.core.stream import TensorSource

CPU = Device(torch.device("cpu"))
MIXED = Device(torch.device("cpu"), amp=True)
COST = Cost(fixed=1000, per_row=10, constants=400, input_row=4, output_row=4, ahead_row=4)


def double(rows: Tensor) -> Tensor:
    return rows * 2


def planned(
    budget: int, extent: int = 640, halo: int = 0, alignment: int = 64, host: int | None = None, **options: Any
) -> Plan:
    kernel = Kernel("double", double, halo=halo, alignment=alignment)
    source = TensorSource(torch.empty(extent, 1))
    host_budget = None if host is None else Budget(host, "available")
    return make_plan(COST, kernel, source, CPU, Budget(budget, "free"), host=host_budget, **options)


def test_everything_at_once_where_it_fits() -> None:
    plan = planned(1000 + 14 * 640)
    assert (plan.rows, plan.fits, len(plan.chunks())) == (640, True, 1)
    assert planned(1000 + 14 * 640 - 1).rows == 576


@pytest.mark.parametrize(("most", "rows"), [(1, 64), (200, 192), (640, 640), (9999, 640)])
def test_no_more_rows_than_wanted_even_if_more_fit(most: int, rows: int) -> None:
    assert planned(1 << 30, most_rows=most).rows == rows
    assert planned(1000 + 14 * 100, most_rows=most).rows == 64, "nor more than fit"


def test_on_the_host_a_chunk_is_no_larger_than_what_is_kept_for_the_next_one() -> None:
    most = plan_module._CHUNK_ON_HOST // COST.per_row
    everything = {"budget": 1 << 60, "extent": 4 * most}
    assert most - 64 < planned(**everything).rows <= most
    assert planned(**everything, host=1 << 60).rows == 4 * most, "a GPU takes all that fits"
    assert planned(**everything, halo=most // 16).rows >= 2 * (most - 64), "or what is done twice would be much"


def test_chunks_are_aligned_and_within_the_budget_halo_included() -> None:
    plan = planned(5000, halo=7)
    assert plan.rows == 256
    assert plan.predicted_bytes == 1000 + 14 * (256 + 14) <= 5000 < 1000 + 14 * (320 + 14)


def test_chunks_cover_every_row_once_and_read_what_they_need() -> None:
    plan = planned(5000, extent=600, halo=7)
    chunks = plan.chunks()
    assert [(chunk.start, chunk.stop) for chunk in chunks] == [(0, 256), (256, 512), (512, 600)]
    assert [(chunk.read_start, chunk.read_stop) for chunk in chunks] == [(0, 263), (249, 519), (505, 600)]
    assert plan.chunks(256) == chunks[1:]


def test_the_host_holds_a_chunk_and_the_next_one() -> None:
    assert planned(1 << 30, host=2 * 4 * 200).rows == 192


def test_results_that_stay_on_the_device_count() -> None:
    plan = planned(5000 + 4 * 640, accumulates=True)
    assert plan.rows == planned(5000).rows
    assert plan.predicted_bytes == planned(5000).predicted_bytes + 4 * 640
    assert plan.cost.peak(100) == COST.peak(100), "what a chunk takes is measured without them"


def test_what_cannot_fit_says_what_would() -> None:
    plan = planned(1000)
    assert (plan.rows, plan.fits) == (64, False)
    assert plan.smallest_bytes == 1000 + 14 * 64
    assert planned(plan.smallest_bytes).fits


def test_halving_stays_aligned_and_ends() -> None:
    sizes = [planned(1 << 30).rows]
    plan = planned(1 << 30).halved()
    while plan is not None:
        sizes.append(plan.rows)
        plan = plan.halved()
    assert sizes == [640, 320, 128, 64]
    assert planned(1 << 30, extent=40).halved() is None


def test_a_measurement_corrects_rows_and_what_is_fixed_but_not_constants() -> None:
    assert planned(8000).rows > planned(8000, correction=2.0).rows
    assert COST.scaled(1.5).peak(100) - COST.constants == 1.5 * (COST.peak(100) - COST.constants)


def test_what_was_measured_is_known_to_the_next_process(tmp_path: Path) -> None:
    first = Corrections(tmp_path)
    assert first.get("blur", torch.float32, 4000, CPU) == 1.0
    first.put("blur", torch.float32, 4000, CPU, 1.2)
    later = Corrections(tmp_path)
    assert later.get("blur", torch.float32, 4000, CPU) == 1.2
    others = [
        ("sharpen", torch.float32, 4000, CPU),
        ("blur", torch.float16, 4000, CPU),
        ("blur", torch.float32, 4000, MIXED),
    ]
    assert [later.get(*other) for other in others] == [1.0, 1.0, 1.0]


def test_processes_that_write_at_once_keep_what_the_others_wrote(tmp_path: Path) -> None:
    one, other = Corrections(tmp_path), Corrections(tmp_path)
    one.put("blur", torch.float32, 4000, CPU, 1.2)
    other.put("sharpen", torch.float32, 4000, CPU, 1.3)
    one.put("sort", torch.float32, 4000, CPU, 1.4)
    known = Corrections(tmp_path)
    assert [known.get(name, torch.float32, 4000, CPU) for name in ("blur", "sharpen", "sort")] == [1.2, 1.3, 1.4]
    assert [path.name for path in tmp_path.iterdir()] == ["corrections.json"]


def test_only_what_changed_noticeably_is_written(tmp_path: Path) -> None:
    corrections, file = Corrections(tmp_path), tmp_path / "corrections.json"
    corrections.put("blur", torch.float32, 4000, CPU, 1.2)
    file.write_text("{}")
    corrections.put("blur", torch.float32, 4000, CPU, 1.205)
    assert file.read_text() == "{}"
    assert corrections.get("blur", torch.float32, 4000, CPU) == 1.205
    corrections.put("blur", torch.float32, 4000, CPU, 1.3)
    assert "1.3" in file.read_text()


def test_a_small_image_teaches_nothing_about_a_large_one(tmp_path: Path) -> None:
    corrections = Corrections(tmp_path)
    corrections.put("blur", torch.float32, 4000, CPU, 0.5)
    assert corrections.get("blur", torch.float32, 3000, CPU) == 0.5
    assert corrections.get("blur", torch.float32, 40_000, CPU) == 1.0


@pytest.mark.parametrize("damage", ["", "{", "[1]", "null", '{"a": "b"}', '{"a": null}', "\x00\xff"])
def test_a_damaged_cache_is_an_empty_one(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "corrections.json"
    file.write_bytes(damage.encode("latin-1"))
    corrections = Corrections(tmp_path)
    assert corrections.get("blur", torch.float32, 4000, CPU) == 1.0
    corrections.put("blur", torch.float32, 4000, CPU, 1.2)
    assert list(json.loads(file.read_text()).values()) == [1.2]


@pytest.mark.parametrize("nonsense", [0.0, 1e9, -1.0, float("inf")])
def test_no_correction_is_beyond_belief(tmp_path: Path, nonsense: float) -> None:
    corrections = Corrections(tmp_path)
    corrections.put("blur", torch.float32, 4000, CPU, nonsense)
    assert 0.1 <= corrections.get("blur", torch.float32, 4000, CPU) <= 10
    (file,) = tmp_path.iterdir()
    written = json.loads(file.read_text())
    file.write_text(json.dumps(dict.fromkeys(written, nonsense)))
    assert Corrections(tmp_path).get("blur", torch.float32, 4000, CPU) == 1.0


def test_a_cache_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    corrections = Corrections(tmp_path / "file")
    corrections.put("blur", torch.float32, 4000, CPU, 1.2)
    assert corrections.get("blur", torch.float32, 4000, CPU) == 1.2
