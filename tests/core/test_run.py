"""A run does nothing twice, and nothing with another run's folder."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from safelight.core.errors import InputError, JournalError, OutputError
from safelight.core.files import digest
from safelight.core.pipeline import Item, Record
from safelight.core.run import EVENTS, JOURNAL, RECORD, Run, versions

OPTIONS = {"sigma": 2.0, "tiles": [64, 64]}


@pytest.fixture
def item(tmp_path: Path) -> Item:
    source = tmp_path / "cells.tif"
    source.write_text("noisy")
    return Item("cells", (source,))


def do(folder: Path, item: Item, options: Mapping[str, Any] = OPTIONS, **more: Any) -> bool:
    """Do one item as the runner does, and say whether there was anything to do."""
    fresh = more.pop("fresh", False)
    with Run(folder, more.pop("job", "denoise run"), options, **more).open(fresh) as run:
        if run.finished(item) is not None:
            return False
        output = folder / "cells_denoised.tif"
        output.write_text("clean")
        run.finish(item, Record((output,), {"psnr": 30.0}))
    return True


def test_a_finished_item_comes_back_as_it_was(tmp_path: Path, item: Item) -> None:
    folder = tmp_path / "out"
    outputs = (folder / "image.tif", tmp_path / "elsewhere.tif")
    metrics = {"psnr": np.float32(1.5), "ssim": math.nan, "gain": math.inf}
    with Run(folder, "denoise run").open() as run:
        for output in outputs:
            output.write_text("clean")
        run.finish(item, Record(outputs, metrics, {"tile": (64, 64), "model": Path("m"), "loss": math.nan}))
    with Run(folder, "denoise run").open() as run:
        record = run.finished(item)
    assert record is not None
    assert [path.resolve() for path in record.outputs] == [path.resolve() for path in outputs]
    assert record.metrics["psnr"] == 1.5
    assert math.isnan(record.metrics["ssim"])
    assert record.metrics["gain"] == math.inf
    assert record.details == {"tile": [64, 64], "model": "m", "loss": None}


def test_nothing_is_done_twice(tmp_path: Path, item: Item) -> None:
    assert do(tmp_path / "out", item)
    assert not do(tmp_path / "out", item)


def test_a_run_that_was_moved_is_still_finished(tmp_path: Path, item: Item) -> None:
    do(tmp_path / "out", item)
    (tmp_path / "out").rename(tmp_path / "moved")
    assert not do(tmp_path / "moved", item)


def test_what_decides_the_result_is_done_again_when_it_changes(tmp_path: Path, item: Item) -> None:
    folder = tmp_path / "out"
    do(folder, item)
    assert do(folder, item, {**OPTIONS, "sigma": 3.0})
    assert do(folder, item)
    assert do(folder, item, shared="another model")
    assert do(folder, item)
    item.inputs[0].write_text("noisier")
    assert do(folder, item)
    (folder / "cells_denoised.tif").write_text("damaged")
    assert do(folder, item)
    (folder / "cells_denoised.tif").unlink()
    assert do(folder, item)
    assert do(folder, item, fresh=True)
    assert not do(folder, item)


def test_the_order_in_which_options_are_named_does_not_matter(tmp_path: Path, item: Item) -> None:
    do(tmp_path / "out", item)
    assert not do(tmp_path / "out", item, dict(reversed(OPTIONS.items())))


def test_an_input_that_changes_during_the_work_is_done_again(tmp_path: Path, item: Item) -> None:
    with Run(tmp_path / "out", "denoise run").open() as run:
        assert run.finished(item) is None
        item.inputs[0].write_text("changed while it was being read")
        run.finish(item, Record())
    with Run(tmp_path / "out", "denoise run").open() as run:
        assert run.finished(item) is None


def test_inputs_are_left_as_they_are(tmp_path: Path, item: Item) -> None:
    source = item.inputs[0]
    before = digest(source), source.stat()
    do(tmp_path / "out", item)
    do(tmp_path / "out", item, fresh=True)
    after = source.stat()
    assert digest(source) == before[0]
    assert (after.st_mtime_ns, after.st_mode) == (before[1].st_mtime_ns, before[1].st_mode)


def test_an_input_that_vanished_is_named(tmp_path: Path, item: Item) -> None:
    item.inputs[0].unlink()
    with Run(tmp_path / "out", "denoise run").open() as run, pytest.raises(InputError, match=r"cells.tif"):
        run.finished(item)


def test_the_folder_of_another_job_is_refused_unless_fresh(tmp_path: Path, item: Item) -> None:
    do(tmp_path / "out", item)
    with pytest.raises(JournalError, match=r"belongs to 'safelight denoise run'.*--out"):
        do(tmp_path / "out", item, job="mosaic run")
    assert do(tmp_path / "out", item, job="mosaic run", fresh=True)
    with pytest.raises(JournalError, match="belongs to 'safelight mosaic run'"):
        do(tmp_path / "out", item)


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    with (
        Run(tmp_path, "denoise run").open(),
        pytest.raises(OutputError, match="another run is using this folder"),
        Run(tmp_path, "denoise run").open(),
    ):
        pass
    with Run(tmp_path, "denoise run").open():  # the first has ended
        pass


def test_what_goes_wrong_inside_a_run_is_not_blamed_on_its_folder(tmp_path: Path) -> None:
    with pytest.raises(ConnectionError), Run(tmp_path, "denoise run").open():
        raise ConnectionError


@pytest.mark.parametrize("torn", [b'{"item": "other", "finge', b'{"jo', b"\0\0\0\0"])
def test_a_journal_torn_by_a_crash_goes_on(tmp_path: Path, item: Item, torn: bytes) -> None:
    do(tmp_path, item)
    with (tmp_path / JOURNAL).open("ab") as journal:
        journal.write(torn)
    other = Item("other", item.inputs)
    assert not do(tmp_path, item)
    assert do(tmp_path, other)
    assert not do(tmp_path, other)
    for line in (tmp_path / JOURNAL).read_text().splitlines():
        json.loads(line)  # no reader trips over what was torn


def test_a_journal_that_lacks_only_its_last_end_of_line_loses_nothing(tmp_path: Path, item: Item) -> None:
    do(tmp_path, item)
    (tmp_path / JOURNAL).write_bytes((tmp_path / JOURNAL).read_bytes().rstrip())
    assert do(tmp_path, Item("other", item.inputs))
    assert not do(tmp_path, item)


def test_a_record_without_a_place_in_json_is_refused_where_it_is_made(tmp_path: Path, item: Item) -> None:
    with Run(tmp_path, "denoise run").open() as run, pytest.raises(TypeError, match="set"):
        run.finish(item, Record(details={"tiles": {1, 2}}))


def test_the_record_is_strict_json(tmp_path: Path) -> None:
    with Run(tmp_path, "denoise run").open() as run:
        run.write_record({"loss": math.nan, "peak": np.int64(3), "curve": np.array([1.0, math.inf]), "out": tmp_path})
    text = (tmp_path / RECORD).read_text()
    document = json.loads(text, parse_constant=pytest.fail)
    assert document == {"loss": None, "peak": 3, "curve": [1.0, None], "out": str(tmp_path)}


@pytest.mark.parametrize("name", [JOURNAL, ".run.lock"])
def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with (
        pytest.raises((OutputError, InputError), match=tmp_path.name),
        Run(tmp_path, "denoise run").open(),
    ):
        pass


def test_a_folder_below_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(OutputError, match="is a file, not a folder"),
        Run(tmp_path / "file" / "out", "denoise run").open(),
    ):
        pass


def test_versions_of_what_computes_are_known() -> None:
    assert {"python", "platform", "safelight", "torch", "numpy"} <= versions().keys()


def test_the_names_of_a_run_folder_are_as_documented() -> None:
    assert (JOURNAL, EVENTS, RECORD) == ("journal.jsonl", "events.jsonl", "run.json")


@pytest.mark.parametrize(
    "line",
    [
        '{"item": ["cells"], "fingerprint": "", "outputs": [], "metrics": {}, "details": {}}',
        '{"item": "cells", "fingerprint": "", "outputs": 1, "metrics": {}, "details": {}}',
        '{"item": "cells", "fingerprint": "", "outputs": [{"path": 1}], "metrics": {}, "details": {}}',
    ],
)
def test_a_line_of_the_journal_that_is_no_item_is_passed_over(tmp_path: Path, item: Item, line: str) -> None:
    assert do(tmp_path / "out", item)
    with (tmp_path / "out" / JOURNAL).open("a") as journal:
        journal.write(line + "\n")
    assert not do(tmp_path / "out", item)
