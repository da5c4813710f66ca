"""The guide to mosaic is true: its examples run, its options and files exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from astropy.io import fits

from safelight.pipelines.mosaic.options import RunOptions
from sky import DEC, RA, Camera, take

GUIDE = (Path(__file__).parents[2] / "docs" / "guide" / "mosaic.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder in which the example for Python has made a mosaic."""
    folder = tmp_path_factory.mktemp("guide")
    take(folder / "lights", Camera(pattern="GRBG"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (whole_run,) = (example for example in EXAMPLES if "safelight.run(" in example)
        names: dict[str, object] = {}
        exec(whole_run, names)
    assert names["outcome"].exit_status == 0
    assert {check["name"] for check in names["checks"]} >= {"noise_gain", "fwhm_growth"}
    return folder


def test_the_other_examples_run_too(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    for example in EXAMPLES:
        if "safelight.run(" not in example:
            exec(example, {})
    *middle, stacked = capsys.readouterr().out.splitlines()
    ra, dec = re.findall(r"\d+\.\d+", middle[-1])
    assert float(ra) == pytest.approx(RA, abs=0.05)
    assert float(dec) == pytest.approx(DEC, abs=0.05)
    assert re.fullmatch(r"tensor\((9|10)\d\d?\.\d+\) tensor\(1\.\)", stacked)


def test_every_extension_and_file_is_as_the_guide_says(folder):
    rows = re.findall(r"^\| (?:primary, )?`([A-Z]+)` \|", GUIDE, re.MULTILINE)
    with fits.open(folder / "m94" / "mosaic_science.fits") as science:
        assert [hdu.name for hdu in science] == rows
    with fits.open(folder / "m94" / "tiles" / "group-01.fits") as tile:
        assert {"LOW", "HIGH"} <= {hdu.name for hdu in tile}
    for name in ("mosaic_preview.png", "report.html", "run.json", "events.jsonl", "journal.jsonl", "frames"):
        assert f"`{name}" in GUIDE
        assert (folder / "m94" / name).exists()


def test_every_option_of_the_guide_exists():
    mentioned = {name.replace("-", "_") for name in re.findall(r"`--([a-z-]+)", GUIDE)}
    assert mentioned <= set(RunOptions.model_fields)


def test_every_choice_of_the_options_is_in_the_guide():
    for name in ("normalisation", "weighting", "rejection", "interpolation", "solver", "drizzle_kernel"):
        for choice in RunOptions.model_json_schema()["properties"][name]["enum"]:
            assert choice in GUIDE, f"--{name} {choice}"
