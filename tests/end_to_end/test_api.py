"""The public API: its names, its page in the guide, and jobs from Python."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import safelight
from safelight.core.errors import UsageError
from sky import Camera, take

GUIDE = (Path(__file__).parents[2] / "docs" / "guide" / "api.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder with frames to stack."""
    folder = tmp_path_factory.mktemp("api")
    take(folder / "lights", Camera(pattern="GRBG"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAFELIGHT_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        yield folder


def example(marker: str) -> str:
    (found,) = (text for text in EXAMPLES if marker in text)
    return found


def test_the_public_names_are_these() -> None:
    assert safelight.__all__ == [
        "Device",
        "EventLog",
        "Executor",
        "InputError",
        "Kernel",
        "OutOfMemoryError",
        "Outcome",
        "SafelightError",
        "TensorSink",
        "TensorSource",
        "VirtualDevice",
        "devices",
        "plan",
        "run",
    ]
    assert set(safelight.__all__) <= set(dir(safelight))
    assert all(getattr(safelight, name).__doc__ for name in safelight.__all__)
    with pytest.raises(AttributeError, match="module 'safelight' has no attribute 'nothing'"):
        safelight.nothing  # noqa: B018


def test_the_guide_names_every_public_name_and_no_other() -> None:
    table = GUIDE.split("## Everything that is public")[1].split("\n\n")[1]
    named = {name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert named == set(safelight.__all__)
    used = {name for text in (*EXAMPLES, GUIDE) for name in re.findall(r"\bsafelight\.(\w+)", text)}
    assert used - {"kernels"} <= set(safelight.__all__)


def test_importing_it_imports_nothing_heavy() -> None:
    code = (
        "import sys, safelight\nfrom safelight import InputError, EventLog\n"
        "assert not {'torch', 'numpy', 'cyclopts', 'rich'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_type_checkers_know_it() -> None:
    assert (Path(safelight.__file__).parent / "py.typed").exists()


def test_the_mosaic_of_the_guide_is_made(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exec(example('"mosaic", "run", input="lights", out="m94", events'), {})
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "0"
    assert any(line.startswith("run_finished ") for line in lines)
    assert any(re.fullmatch(r"noise_gain .* passed", line) for line in lines)
    assert (folder / "m94" / "mosaic_science.fits").exists()


def test_the_plans_of_the_guide_are_listed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exec(example("safelight.plan("), {})
    lines = capsys.readouterr().out.splitlines()
    assert any(re.fullmatch(r"stack \d+ of \d+ rows at a time, \d+ bytes", line) for line in lines)


def test_the_errors_of_the_guide_are_caught(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exec(example("except safelight.InputError"), {})
    assert capsys.readouterr().out == "nowhere does not exist check the path\n"


def test_the_computations_of_the_guide_fit_in_memory(capsys: pytest.CaptureFixture[str]) -> None:
    exec(example('"smooth"'), {})
    plan, shape = capsys.readouterr().out.splitlines()
    assert "'budget_bytes': 67108864" in plan
    assert shape == "torch.Size([2000, 2998])"
    exec(example("VirtualDevice"), {})
    assert re.match(r"tensor\(8000000\.\) .*gpu_chunking_rows", capsys.readouterr().out)


def test_a_plan_writes_nothing_and_takes_settings_from_a_file(folder: Path) -> None:
    (folder / "my.toml").write_text('out = "planned"\nmemory_limit = "512MiB"\n[mosaic.run]\ninput = "lights"\n')
    events = safelight.EventLog()
    plans = safelight.plan("mosaic", "run", config="my.toml", memory_limit=256 << 20, events=events)
    assert plans
    assert all(plan["budget_bytes"] <= 256 << 20 for plan in plans)
    assert {"settings_from_file", "setting_overruled"} <= set(events.keys())
    assert not (folder / "planned").exists()
    assert len(safelight.plan("mosaic", "run", config="my.toml", events=events)) == len(plans), "only this one's"


@pytest.mark.parametrize(
    ("job", "options", "complaint"),
    [
        (("mosiac", "run"), {}, "there is no pipeline 'mosiac'. Expected: .*mosaic"),
        (("mosaic", "rum"), {}, "there is no job mosaic 'rum'. Expected: run"),
        (("mosaic", "run"), {"kapa_low": 2}, "kapa_low is no setting of mosaic run. Expected: kappa_low"),
        (("mosaic", "run"), {"input": "lights"}, "--out is missing"),
        (
            ("mosaic", "run"),
            {"input": "lights", "out": "x", "kappa_low": -1},
            "--kappa-low -1: input should be greater",
        ),
        (("mosaic", "run"), {"input": "lights", "out": "x", "config": 3}, "--config 3: input is not a valid path"),
    ],
)
def test_a_wrong_word_is_answered_in_a_sentence(job: tuple[str, str], options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        safelight.run(*job, **options)
