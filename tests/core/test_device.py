"""Choosing a device: what is asked for, what is there instead, and what is said about it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from safelight.core import device as device_module
from safelight.core.device import RESERVE, Device, devices, memory_of, select
from safelight.core.errors import DeviceError, UsageError
from safelight.core.events import EventLog
from safelight.core.memory import UNLIMITED, device_budget
from safelight.core.options import CommonOptions

GIB = 1 << 30

needs_no_gpu = pytest.mark.skipif(len(devices()) > 1, reason="this machine has an accelerator")


@pytest.fixture(autouse=True)
def precision() -> Iterator[None]:
    """Leave the process with the precision that it had."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


class Gpu:
    """Two NVIDIA GPUs, as far as torch can be asked about them."""

    capability = (8, 0)
    free, total, reserved, allocated = 6 * GIB, 16 * GIB, 3 * GIB, 1 * GIB
    answers = True

    def __init__(self) -> None:
        self.plan_caches: dict[Any, SimpleNamespace] = defaultdict(SimpleNamespace)
        self.fraction: float | None = None

    def mem_get_info(self, _: object) -> tuple[int, int]:
        if not self.answers:
            raise RuntimeError("CUDA error: operation not supported")
        return self.free, self.total

    def set_fraction(self, fraction: float, _: object) -> None:
        self.fraction = fraction


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    gpu = Gpu()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"Fake {device.index}")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: gpu.capability)
    monkeypatch.setattr(torch.cuda, "mem_get_info", gpu.mem_get_info)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: gpu.reserved)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: gpu.allocated)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", gpu.set_fraction)
    monkeypatch.setattr(torch.backends.cuda, "cufft_plan_cache", gpu.plan_caches)
    monkeypatch.setattr(device_module.sys, "platform", "linux")
    return gpu


def chosen(**options: Any) -> tuple[Device, EventLog]:
    events = EventLog()
    return select(CommonOptions(**options), events), events


@needs_no_gpu
def test_auto_is_the_cpu_where_there_is_nothing_else() -> None:
    device, events = chosen(device="auto")
    assert device.is_cpu
    assert events.keys() == ["gpu_info_summary"]


@pytest.mark.parametrize(
    ("wanted", "given"), [("auto", "cuda:0"), ("cuda", "cuda:0"), ("CUDA:1", "cuda:1"), ("cpu", "cpu")]
)
def test_a_device_that_is_there_is_taken(gpu: Gpu, wanted: str, given: str) -> None:
    device, events = chosen(device=wanted)
    assert str(device.torch_device) == given
    (event,) = events
    assert event.data["device"] == given


@pytest.mark.parametrize("wanted", ["cuda:2", "mps", "xpu"])
def test_the_cpu_takes_the_place_of_a_missing_device_and_it_is_said(gpu: Gpu, wanted: str) -> None:
    device, events = chosen(device=wanted)
    assert device.is_cpu
    said = next(event for event in events if event.key == "gpu_fallback_unavailable")
    assert said.data == {"wanted": wanted, "device": "cpu"}


def test_a_missing_device_is_an_error_where_the_cpu_may_not_take_its_place(gpu: Gpu) -> None:
    with pytest.raises(DeviceError, match=r"cuda:7 is not there.*cuda:0, cuda:1, cpu"):
        chosen(device="cuda:7", cpu_fallback=False)


@pytest.mark.parametrize("wanted", ["tpu", "gpu", "", "cudafoo"])
def test_what_is_no_device_is_an_error_even_if_the_cpu_may_take_over(wanted: str) -> None:
    with pytest.raises(UsageError, match="no such kind of device"):
        chosen(device=wanted)


def test_memory_that_the_allocator_holds_for_later_is_free(gpu: Gpu) -> None:
    assert memory_of(torch.device("cuda:0")) == (8 * GIB, 16 * GIB)


@pytest.mark.parametrize(("fraction", "used"), [(0.75, 0.75), (0.0, 0.1), (1.0, 0.9)])
def test_the_budget_leaves_a_reserve_and_a_share(gpu: Gpu, fraction: float, used: float) -> None:
    budget = device_budget(Device(torch.device("cuda:0")), fraction)
    assert (budget.bytes, budget.reason) == (int((8 * GIB - RESERVE) * used), "free")
    assert device_budget(Device(torch.device("cuda:0")), fraction, memory_limit=GIB // 2).reason == "memory_limit"


def test_a_driver_that_does_not_answer_limits_nothing_and_it_is_said(gpu: Gpu) -> None:
    gpu.answers = False
    device, events = chosen(device="cuda")
    assert events.keys() == ["free_memory_unknown"]
    budget = device_budget(device)
    assert (budget.bytes, budget.reason) == (UNLIMITED, "unknown")
    assert device_budget(device, memory_limit=GIB).bytes == GIB


@pytest.mark.parametrize("setting", ["amp", "tf32"])
@pytest.mark.parametrize(("capability", "available"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_precision_that_the_hardware_lacks_is_not_used_and_it_is_said(
    gpu: Gpu, setting: str, capability: tuple[int, int], available: bool
) -> None:
    gpu.capability = capability
    device, events = chosen(device="cuda", **{setting: True})
    assert getattr(device, setting) == available
    unavailable = [event.data["setting"] for event in events if event.key == "precision_unavailable"]
    assert unavailable == ([] if available else [setting])


def test_tf32_is_as_the_last_choice_says_for_matrices_and_convolutions_alike(gpu: Gpu) -> None:
    for tf32 in (True, False):
        device, _ = chosen(device="cuda", tf32=tf32)
        assert device.active()["tf32"] is tf32
        assert torch.backends.cudnn.allow_tf32 is tf32


def test_mixed_precision_is_bfloat16_and_only_where_asked_for() -> None:
    a = torch.ones(2, 2)
    for amp, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        device, _ = chosen(device="cpu", amp=amp)
        with device.autocast():
            assert (a @ a).dtype == dtype
        assert device.active()["amp"] == ("bfloat16" if amp else "off")


def test_what_is_said_of_compilation_was_captured() -> None:
    device, _ = chosen(device="cpu", compile=True)
    before = device_module.compiled_graphs()
    assert device.active()["compile"] == ("off" if before == 0 else f"default ({before} graphs)")


def test_plans_of_fourier_transforms_do_not_pile_up(gpu: Gpu) -> None:
    device, _ = chosen(device="cuda:1")
    assert {key: cache.max_size for key, cache in gpu.plan_caches.items()} == {device.torch_device: 8}


def test_windows_may_not_spill_into_the_hosts_memory(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen(device="cuda")
    assert gpu.fraction is None
    monkeypatch.setattr(device_module.sys, "platform", "win32")
    chosen(device="cuda")
    assert gpu.fraction == pytest.approx((8 * GIB - RESERVE) / (16 * GIB))
