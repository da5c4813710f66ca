"""Budgets, and the ledger that counts what is alive."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from safelight.core import memory
from safelight.core.memory import Ledger, VirtualDevice, cgroup_free, host_budget

KIB = 1 << 10


class Groups:
    """A fake /sys/fs/cgroup and /proc/self/cgroup."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "fs"
        self.membership = folder / "self"
        self.membership.write_text("")

    def join(self, *lines: str) -> None:
        self.membership.write_text("".join(f"{line}\n" for line in lines))

    def add(self, path: str, **files: object) -> None:
        folder = self.root / path
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name.replace("__", ".")).write_text(f"{content}\n")

    @property
    def free(self) -> int | None:
        return cgroup_free(self.root, self.membership)


@pytest.fixture
def groups(tmp_path: Path) -> Groups:
    return Groups(tmp_path)


def test_a_limit_leaves_what_is_not_used(groups: Groups) -> None:
    groups.join("0::/job")
    groups.add("job", memory__max=1000, memory__current=300)
    assert groups.free == 700


def test_version_1_says_the_same_in_other_files(groups: Groups) -> None:
    groups.join("5:cpu,cpuacct:/job", "4:memory:/job", "0::/")
    groups.add("memory/job", memory__limit_in_bytes=1000, memory__usage_in_bytes=300)
    assert groups.free == 700


def test_the_tightest_ancestor_binds(groups: Groups) -> None:
    groups.join("0::/slice/session/job")
    groups.add("slice/session/job", memory__max="max", memory__current=100)
    groups.add("slice/session", memory__max=1000, memory__current=950)
    groups.add("slice", memory__max=5000, memory__current=2000)
    assert groups.free == 50


def test_a_container_sees_its_own_group_at_the_root(groups: Groups) -> None:
    groups.join("4:memory:/docker/1234")  # the host's path, which is not there inside
    groups.add("memory", memory__limit_in_bytes=1000, memory__usage_in_bytes=400)
    assert groups.free == 600


def test_the_idle_file_cache_is_free(groups: Groups) -> None:
    groups.join("0::/job")
    groups.add("job", memory__max=1000, memory__current=990, memory__stat="anon 90\ninactive_file 800\nactive_file 100")
    assert groups.free == 810


def test_a_group_that_is_over_its_limit_leaves_nothing(groups: Groups) -> None:
    groups.join("0::/job")
    groups.add("job", memory__max=1000, memory__current=1200)
    assert groups.free == 0


def test_no_limit_is_none(groups: Groups) -> None:
    assert groups.free is None
    groups.join("0::/job", "3:cpuset:/job")
    assert groups.free is None
    groups.add("job", memory__max="max", memory__current=300)
    assert groups.free is None
    groups.membership.unlink()
    assert groups.free is None


@pytest.mark.parametrize(
    ("available", "group", "expected"),
    [(1000, None, (800, "available")), (1000, 500, (400, "cgroup")), (1000, 2000, (800, "available"))],
)
def test_the_host_gives_what_system_and_group_leave(
    monkeypatch: pytest.MonkeyPatch, available: int, group: int | None, expected: tuple[int, str]
) -> None:
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=available))
    monkeypatch.setattr(memory, "cgroup_free", lambda: group)
    budget = host_budget()
    assert (budget.bytes, budget.reason) == expected
    assert host_budget(workers=4).bytes == expected[0] // 4
    assert (host_budget(100).bytes, host_budget(100).reason) == (100, "memory_limit")
    assert host_budget(10_000).bytes == expected[0], "a limit never adds memory"


def test_the_ledger_knows_what_is_alive_and_what_was() -> None:
    with Ledger() as ledger:
        a = torch.empty(KIB, dtype=torch.uint8)
        b = a + 1
        assert ledger.current == 2 * KIB
        del b
        assert ledger.current == KIB
        c = torch.empty(4 * KIB, dtype=torch.uint8)
        assert (ledger.current, ledger.peak) == (5 * KIB, 5 * KIB)
    del a, c
    assert (ledger.current, ledger.peak) == (0, 5 * KIB)


def test_views_and_work_in_place_cost_nothing() -> None:
    made_before = torch.zeros(KIB)
    with Ledger(current=100) as ledger:
        kept = [made_before[3:], made_before.view(2, -1), made_before.add_(1), torch.cat([made_before[:0]])]
        assert ledger.current == 100
        kept += torch.zeros(KIB).chunk(4)
        assert ledger.current == 100 + 4 * KIB
    assert len(kept) == 8


def test_a_virtual_device_runs_out_of_memory_and_recovers() -> None:
    with VirtualDevice(cap_bytes=10 * KIB) as virtual:
        kept = torch.empty(8 * KIB, dtype=torch.uint8)
        with pytest.raises(torch.OutOfMemoryError, match=rf"{4 * KIB} bytes more than the {8 * KIB} of {10 * KIB}"):
            torch.empty(4 * KIB, dtype=torch.uint8)
        del kept
        assert torch.empty(4 * KIB, dtype=torch.uint8).nbytes == 4 * KIB
    assert virtual.peak == 8 * KIB


def test_a_virtual_device_fails_at_the_operations_it_is_told() -> None:
    with VirtualDevice(fail_at=[1]) as virtual:
        a = torch.ones(3)
        with pytest.raises(torch.OutOfMemoryError, match="injected"):
            a + 1
        assert (a + 1).tolist() == [2, 2, 2]
    assert virtual.operations >= 3
