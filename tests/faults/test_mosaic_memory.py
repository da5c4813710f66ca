"""Hundreds of frames on a machine that cannot hold them; out of memory at any operation changes nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from safelight.core import runner
from safelight.core.execute import Executor
from safelight.core.files import digest
from safelight.core.memory import VirtualDevice
from sky import PLACES, Camera, Stars, mosaic, take

MIB = 1 << 20
KEPT = 64 * MIB
"""What resident memory may have beyond the limit and what the run says it needs besides: what libraries keep after
their first use, and freed memory between blocks in use."""

# What Python, torch and all other imports take is no part of a mosaic: the peak is counted from that of a mosaic of six
# tiny frames, 3 MiB in all, in the same process.
MEASURED = """
import json, sys
from safelight import cli

def own_peak():  # ru_maxrss would begin at the peak of the tests' own process
    (line,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])

peaks = []
for frames, out in ((sys.argv[1], sys.argv[2]), (sys.argv[3], sys.argv[4])):
    common = ["--solver", "none", "--quiet", "--results", sys.argv[5], "--memory-limit", sys.argv[6]]
    status = cli.run(["mosaic", "run", frames, "--out", out, *common])
    peaks.append(own_peak())
print(json.dumps({"status": status, "peak": peaks[1] - peaks[0]}))
"""


def run_in_own_process(folder: Path, out: Path, limit: int) -> dict[str, int]:
    """Make a mosaic; return the exit status, and the largest resident memory above that of imports, in bytes."""
    home = out.parent
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "SAFELIGHT_CACHE": str(home / "cache")}
    # glibc gives large blocks back at once: what is resident is in use. Smaller ones it may keep: to take a page fault
    # for every page of every block again would take most of the time.
    environment["MALLOC_MMAP_THRESHOLD_"] = str(4 * MIB)
    tiny = take(home / "tiny")
    arguments = (tiny, home / "tiny-out", folder, out, home / "results", limit)
    command = [sys.executable, "-c", MEASURED, *map(str, arguments)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def many_frames(folder: Path, camera: Camera, frames: int) -> Path:
    """Write a frame for each of the places, and give it as many names as there shall be frames."""
    folder.mkdir()
    for number, place in enumerate(PLACES):
        camera.write(folder.parent / f"{number}.fits", number, place)
    for number in range(frames):
        os.link(folder.parent / f"{number % len(PLACES)}.fits", folder / f"light_{number:03}.fits")
    return folder


SLOW = (pytest.mark.slow, pytest.mark.timeout(3600))


@pytest.mark.parametrize(
    ("frames", "side", "limit"),
    [
        pytest.param(60, 500, 56 * MIB, id="60 frames of 0.25 Mpx in 56 MiB"),
        pytest.param(400, 2000, 1024 * MIB, id="400 frames of 4 Mpx in 1 GiB", marks=SLOW),
    ],
)
def test_hundreds_of_frames_on_a_machine_that_cannot_hold_them(
    tmp_path: Path, frames: int, side: int, limit: int
) -> None:
    assert frames * side**2 * 4 > limit, "memory would hold all frames"
    camera = Camera(size=(side, side), stars=Stars.scattered(side**2 // 20_000 + 30, side, side))
    folder, out = many_frames(tmp_path / "in", camera, frames), tmp_path / "out"
    took = run_in_own_process(folder, out, limit)
    assert took["status"] == 0
    document = json.loads((out / "run.json").read_text())
    (group,) = (item for item in document["items"] if "frames" in item["details"])
    assert len(group["details"]["frames"]) == frames
    assert {entry["kernel"] for entry in document["memory"]} == {"resample_bicubic", "stack", "coadd"}
    for entry in document["memory"]:
        assert entry["predicted_bytes"] <= limit, entry
        assert entry["measured_bytes"] <= 1.05 * entry["predicted_bytes"], entry
    (besides,) = (event for event in document["events"] if event["key"] == "memory_besides")
    assert took["peak"] <= limit + besides["data"]["besides_bytes"] + KEPT
    assert not (out / "scratch").exists()


def test_running_out_of_memory_anywhere_gives_the_same_mosaic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFELIGHT_CACHE", str(tmp_path / "cache"))
    frames = take(tmp_path / "in", frames=5)
    expected = digest(mosaic(frames, tmp_path / "undisturbed").science)
    devices: list[VirtualDevice] = []

    def with_virtual_device(device: Any, options: Any, events: Any, *_: Any, **__: Any) -> Executor:
        return Executor(device, events, virtual=devices[-1])

    monkeypatch.setattr(runner.Executor, "from_options", with_virtual_device)
    devices.append(VirtualDevice())
    mosaic(frames, tmp_path / "counted")
    operations = devices[-1].operations
    drawn = torch.randint(0, operations, (4, 3), generator=torch.Generator().manual_seed(1)).tolist()
    for number, fail_at in enumerate(drawn):
        devices.append(VirtualDevice(fail_at=fail_at))
        made = mosaic(frames, tmp_path / f"disturbed-{number}")
        assert made.status == 0, made.said
        assert digest(made.science) == expected
        steps = [*made.events("chunk_shrunk"), *made.events("gpu_fallback_insufficient_memory")]
        reached = sum(operation < devices[-1].operations for operation in set(fail_at))
        assert len(steps) == reached > 0, "one event per change"
        kernels = {step["data"]["kernel"] for step in steps}
        assert kernels <= {"resample_bicubic", "stack", "coadd"}
