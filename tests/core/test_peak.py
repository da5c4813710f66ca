"""The peak memory of the process, where the system tells it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from safelight.core.allocator import release_freed_memory
from safelight.core.device import Device
from safelight.core.peak import PeakMemory

CPU = Device(torch.device("cpu"))
MIB = 2**20


def test_the_peak_is_that_since_the_start_and_survives_the_memory_being_freed() -> None:
    earlier = np.ones(200 * MIB, np.uint8)
    del earlier
    release_freed_memory()  # what earlier tests have left would be taken again without growth
    peak = PeakMemory(CPU)
    if peak.bytes() is None:
        pytest.skip("this system does not tell a process's peak memory")
    block = np.ones(64 * MIB, np.uint8)
    del block
    measured = peak.bytes()
    assert measured is not None
    assert 60 * MIB < measured < 90 * MIB
