"""The guide to pairs is true: its examples run, its fields, reasons and files exist."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import get_args

import pytest

from dng import make_dataset
from safelight.cli import run
from safelight.pipelines.pairs.alignment import Reason
from safelight.pipelines.pairs.options import CropFormat

GUIDE = (Path(__file__).parents[2] / "docs" / "guide" / "pairs.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the first run of the guide was done."""
    folder = tmp_path_factory.mktemp("guide")
    make_dataset(folder / "RawNIND")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("SAFELIGHT_CACHE", str(folder / "cache"))
        assert run(["pairs", "run", "RawNIND", "--out", "pairs", "--sensor", "bayer"]) == 0
        assert run(["pairs", "verify", "pairs"]) == 0
    return folder


def test_the_examples_run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(folder)
    for example in EXAMPLES:
        exec(example, {})
    assert capsys.readouterr().out == "torch.Size([2, 4, 64, 64]) True\n"


def test_every_field_and_file_is_as_the_guide_says(folder: Path) -> None:
    line = json.loads((folder / "pairs" / "manifest.jsonl").read_text().splitlines()[0])
    table = GUIDE.partition("### The manifest")[2].partition("| reason |")[0]
    named = {name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
    named |= {name.replace("gt_", "noisy_") for name in named if name.startswith("gt_")}
    assert named == set(line)
    for name in re.findall(r"^\| `([\w./]+)`", GUIDE.partition("## What comes out")[2], re.MULTILINE):
        if "." in name or name.endswith("/"):
            assert (folder / "pairs" / name.partition("SCENE")[0]).exists(), name


def test_every_reason_and_format_is_explained() -> None:
    assert set(get_args(Reason)) <= set(re.findall(r"`(\w+)`", GUIDE))
    assert set(get_args(CropFormat)) <= set(re.findall(r"`(\w+)`", GUIDE))
