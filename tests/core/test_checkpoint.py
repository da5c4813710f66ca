"""A checkpoint holds what was saved, of the very training that saved it, and is written as often as costs little."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from safelight.core import checkpoint as module
from safelight.core.checkpoint import Checkpoint, digest_of, identity_of, repeatable, seeded
from safelight.core.device import Device
from safelight.core.errors import InputError, OutputError
from safelight.core.events import EventLog


def test_a_state_comes_back(tmp_path: Path) -> None:
    state = {"weights": {"a": torch.arange(3.0)}, "step": 7, "curve": [0.1, 0.2], "best": None}
    Checkpoint(tmp_path / "c", "me", EventLog()).save(state)
    found = Checkpoint(tmp_path / "c", "me", EventLog()).load()
    assert found is not None
    assert torch.equal(found["weights"]["a"], torch.arange(3.0))
    assert (found["step"], found["curve"], found["best"]) == (7, [0.1, 0.2], None)


def test_without_a_path_nothing_is_kept() -> None:
    kept = Checkpoint(None, "me", EventLog())
    kept.save({"step": 1})
    assert kept.load() is None


def test_the_state_of_another_training_is_passed_over_and_said(tmp_path: Path) -> None:
    events = EventLog()
    Checkpoint(tmp_path / "c", "me", events).save({"step": 1})
    assert Checkpoint(tmp_path / "c", "other", events).load() is None
    assert "checkpoint_replaced" in events.keys()


def saved(thing: object, **more: Any) -> bytes:
    target = io.BytesIO()
    torch.save(thing, target, **more)
    return target.getvalue()


OLD = saved({"w": torch.ones(2)}, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("content", [b"", b"PK broken", saved([1]), OLD.rpartition(b"q\x00X")[0] + b"q\x00X\x0e\x00"])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "c").write_bytes(content)
    with pytest.raises(InputError, match="checkpoint is damaged") as caught:
        Checkpoint(tmp_path / "c", "me", EventLog()).load()
    assert caught.value.path == tmp_path / "c"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit for a process's files")
def test_a_disk_that_takes_no_more_is_told_though_torch_hides_it(tmp_path: Path) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        with pytest.raises(OutputError, match="larger than the system allows"):
            Checkpoint(tmp_path / "c", "me", EventLog()).save({"weights": torch.zeros(1 << 20)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_a_save_is_due_when_it_would_take_a_twentieth_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    kept = Checkpoint(tmp_path / "c", "me", EventLog())
    assert kept.is_due(), "nothing is known of how long a save takes"
    monkeypatch.setattr(module.torch, "save", lambda *_: now.__setitem__(0, now[0] + 2.0))
    kept.save({})
    now[0] += 39
    assert not kept.is_due()
    now[0] += 1
    assert kept.is_due()


def test_what_tells_trainings_apart() -> None:
    assert identity_of("a", {"rate": 1.0, "seed": 0}) == identity_of("a", {"seed": 0, "rate": 1.0})
    assert identity_of("a", 1) != identity_of("a", 2)
    weights = {"a": torch.zeros(2), "b": torch.ones(2)}
    assert digest_of(weights) == digest_of({name: values.clone() for name, values in weights.items()})
    assert digest_of(weights) != digest_of({"a": torch.zeros(2), "c": torch.ones(2)})
    assert digest_of(weights) != digest_of({"a": torch.zeros(2), "b": torch.full((2,), 2.0)})


def test_draws_depend_on_the_numbers_only() -> None:
    torch.manual_seed(3)
    first = torch.rand(4, generator=seeded(0, 1, -1))
    torch.manual_seed(4)
    assert torch.equal(first, torch.rand(4, generator=seeded(0, 1, -1)))
    assert not torch.equal(first, torch.rand(4, generator=seeded(0, 11, -1)))


def test_repeatable_leaves_the_setting_as_it_was() -> None:
    with repeatable(Device(torch.device("cpu"))):
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()
