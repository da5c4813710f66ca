"""Options are checked before anything runs; what is wrong is said with what would be right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import Field, ValidationError

from safelight.core.options import CommonOptions, Seconds, Settings, parse_bytes, parse_seconds


class Timed(Settings):
    """Options with a duration."""

    budget: Seconds | None = Field(None, gt=0, description="Time.")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2GiB", 2 << 30),
        ("2 gib", 2 << 30),
        ("1.5MiB", 3 << 19),
        ("500MB", 500_000_000),
        ("2G", 2_000_000_000),
        ("1000000", 1_000_000),
        ("100B", 100),
        (".5k", 500),
        ("0.1GiB", 107_374_182),
        ("9007199254740993", 9_007_199_254_740_993),  # not a float
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes(text) == size
    assert CommonOptions(memory_limit=text).memory_limit == size


@pytest.mark.parametrize(
    "text", ["1.2.3GiB", "-1GiB", "", "GiB", ".", "1e9", "2XB", "2iB", "nan", "inf", "1,5GiB", "2GiBs"]
)
def test_what_is_not_a_size_says_what_is(text: str) -> None:
    with pytest.raises(ValidationError, match="is not a size; write for instance 2GiB"):
        CommonOptions(memory_limit=text)


def test_no_memory_at_all_is_refused() -> None:
    for size in ("0", 0, -5):
        with pytest.raises(ValidationError, match="greater than 0"):
            CommonOptions(memory_limit=size)


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("10min", 600), ("10 m", 600), ("1.5h", 5400)])
def test_durations(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["1.2.3h", "-1h", "", "h", "10 weeks", "nan", "inf", "1h30"])
def test_what_is_not_a_duration_says_what_is(text: str) -> None:
    with pytest.raises(ValidationError, match="is not a duration; write for instance 90s"):
        Timed(budget=text)


@pytest.mark.parametrize("seconds", [float("inf"), float("nan"), "9" * 400 + "h"])
def test_no_job_may_last_for_ever(seconds: Any) -> None:
    with pytest.raises(ValidationError):
        Timed(budget=seconds)


@pytest.mark.parametrize(
    "wrong",
    [
        {"safety_fraction": 0.95},
        {"safety_fraction": 0.05},
        {"warmup_iters": -1},
        {"compile_mode": "fastest"},
        {"lang": "de"},
        {"unknown": 1},
        {"quiet": True, "verbose": True},
    ],
)
def test_what_is_out_of_bounds_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        CommonOptions(**wrong)


def test_options_do_not_change_once_made() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        CommonOptions().device = "cpu"


def test_every_option_is_described() -> None:
    undescribed = [name for name, field in CommonOptions.model_fields.items() if not field.description]
    assert undescribed == []


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"notes": "a\0b"}, "--notes holds a null character"),
        ({"results": Path("a\0b")}, "--results holds a null character"),
        ({"memory_limit": "9" * 5000}, "--memory-limit is a number of 16610 bits"),
        ({"warmup_iters": 1 << 63}, "--warmup-iters is a number of 64 bits"),
    ],
)
def test_what_the_system_cannot_take_is_refused_by_name(wrong: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        CommonOptions(**wrong)
