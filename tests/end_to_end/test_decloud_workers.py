"""Training shared among processes: two of them, as on two GPUs, learn what one learns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from prompt import Answer, prompt
from safelight.core.device import Device
from safelight.core.errors import WorkerError
from safelight.pipelines.decloud import process
from safelight.pipelines.decloud.model import CloudModel
from safelight.pipelines.decloud.options import TrainOptions
from safelight.pipelines.decloud.team import gathered
from sentinel import write_triplet

SMALL = ("--features", "8", "--growth", "8", "--stages", "1", "--layers", "2", "--crop-size", "16")


def train(folder: Path, out: str, *arguments: str) -> Answer:
    common = ("--data", "data", "--out", out, "--batch-size", "2", "--learning-rate", "1e-3")
    return prompt(folder, "decloud", "train", *common, *SMALL, *arguments)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three images to train on, one of which only the second process is to read and cannot, and two to validate on."""
    names = "abcde"
    for seed, name in enumerate(names):
        write_triplet(tmp_path / "data", f"{name}.tif", (32, 32), seed)
    (tmp_path / "data" / "s1" / "b.tif").write_bytes(b"II*\0")
    lines = [f"{split},s1,s2,s2_cloudy,{name}.tif" for split, name in zip("11122", names, strict=True)]
    (tmp_path / "data" / "data.csv").write_text("\n".join(lines))
    return tmp_path


def test_two_processes_learn_what_one_learns(data: Path) -> None:
    """The second epoch goes on from the checkpoint of a single process, which says nothing of how many there are."""
    alone = train(data, "alone", "--epochs", "2")
    assert train(data, "shared", "--epochs", "1").status == alone.status
    shared = train(data, "shared", "--epochs", "2", "--workers", "2")
    assert shared.status == alone.status, shared.said
    assert "2 processes train together" in shared.said
    assert shared.said.count("b.tif: it cannot be read") == alone.said.count("b.tif: it cannot be read") == 1
    curves = [
        json.loads((data / out / "run.json").read_text())["items"][0]["details"]["curve"] for out in ("alone", "shared")
    ]
    for name, values in curves[0].items():
        assert curves[1][name] == pytest.approx(values, rel=1e-5), name
    one, other = (CloudModel.load(data / out / process.LAST_MODEL).weights for out in ("alone", "shared"))
    for name, weight in one.items():
        torch.testing.assert_close(other[name], weight, rtol=0, atol=1e-5)


def test_another_process_that_ends_says_why_and_nothing_hangs(data: Path) -> None:
    options = TrainOptions(data=data / "data", workers=2, batch_size=2)
    gone = options.model_copy(update={"data": data / "gone"})
    with (
        pytest.raises(WorkerError, match=r"trains along cannot go on: .*gone: there is no such folder"),
        gathered(Device(torch.device("cpu")), gone, process._train_along) as team,
    ):
        team.gather(0)


def test_there_is_an_image_for_every_process(data: Path) -> None:
    done = train(data, "out", "--workers", "3")
    assert done.status == 2
    assert "batch_size must be at least as many" in done.said
