"""What happened is told in order, to everyone, as strict JSON."""

from __future__ import annotations

import json
import math
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest

from safelight.core.events import Event, EventLog, Severity, as_value


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()]


def test_events_are_kept_in_order_with_their_severity() -> None:
    events = EventLog()
    events.debug("item_started", name="a")
    events.info("item_finished", name="a", seconds=1.0)
    events.warning("gpu_fallback_unavailable", wanted="cuda", device="cpu")
    events.error("item_failed", name="b", error="no")
    assert events.keys() == ["item_started", "item_finished", "gpu_fallback_unavailable", "item_failed"]
    assert [event.severity for event in events] == list(Severity)
    assert len(events) == 4


def test_a_subscriber_hears_what_comes_and_may_speak_and_leave() -> None:
    events = EventLog()
    events.info("run_started")
    heard: list[str] = []

    def answer(event: Event) -> None:
        heard.append(event.key)
        if event.key == "plan":
            events.info("chunk_shrunk")

    events.subscribe(answer)
    events.info("plan")
    assert heard == ["plan", "chunk_shrunk"]


def test_threads_lose_no_event(tmp_path: Path) -> None:
    events = EventLog()
    with events.recorded(tmp_path / "events.jsonl"):
        threads = [
            threading.Thread(target=lambda: [events.info("plan", rows=row) for row in range(200)]) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(events) == len(lines(tmp_path / "events.jsonl")) == 800


def test_a_recorded_log_has_every_event_until_the_block_ends(tmp_path: Path) -> None:
    path, events = tmp_path / "events.jsonl", EventLog()
    events.info("run_started", items=1)
    with events.recorded(path):
        events.info("plan", rows=np.int64(3), peak=math.nan, path=tmp_path)
        assert len(lines(path)) == 2  # at once, for someone who looks on
    events.info("run_finished")
    first, second = lines(path)
    assert (first["key"], first["severity"], first["data"]) == ("run_started", "info", {"items": 1})
    assert second["data"] == {"rows": 3, "peak": None, "path": str(tmp_path)}


def test_a_log_torn_by_a_crash_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"key": "run_started"}\n{"key": "item_sta')
    events = EventLog()
    with events.recorded(path):
        events.info("run_finished")
    assert [line["key"] for line in lines(path)] == ["run_started", "run_finished"]


def test_a_log_that_cannot_be_written_is_said_once_and_stops_nothing(tmp_path: Path) -> None:
    events = EventLog()
    with events.recorded(tmp_path):  # a folder has the name
        events.info("run_started")
        events.info("run_finished")
    assert events.keys() == ["run_started", "events_not_recorded", "run_finished"]


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (math.inf, None),
        (np.float32("nan"), None),
        (np.float32(1.5), 1.5),
        (np.float64(1.5), 1.5),
        (np.int64(7), 7),
        (np.bool_(True), True),
        (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        ((1, (2.0, None)), [1, [2.0, None]]),
        ({1: Path("a"), "b": {"c": -math.inf}}, {"1": "a", "b": {"c": None}}),
        (Severity.INFO, "info"),
        (True, True),
    ],
)
def test_values_are_written_as_json_has_them(value: object, written: object) -> None:
    assert json.loads(json.dumps(as_value(value), allow_nan=False)) == written


def test_a_value_that_json_cannot_have_is_refused_by_type() -> None:
    with pytest.raises(TypeError, match="of type object cannot be recorded"):
        as_value({"list": [object()]})


def test_events_travel_between_processes() -> None:
    event = Event("plan", Severity.DEBUG, {"rows": 3})
    assert pickle.loads(pickle.dumps(event)) == event  # noqa: S301 - our own bytes
