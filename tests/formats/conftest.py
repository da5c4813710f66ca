"""Images to read and write."""

from __future__ import annotations

import numpy as np
import pytest

from safelight.formats.microscopy import Channel, Metadata


@pytest.fixture
def volume() -> np.ndarray:
    """A (3, 20, 24) uint16 volume in which no two pixels are equal."""
    return np.arange(3 * 20 * 24, dtype=np.uint16).reshape(3, 20, 24)


@pytest.fixture
def metadata() -> Metadata:
    return Metadata(
        name="cells",
        description="63x, 488 nm, 50 µs",
        pixel_size={"Z": 0.5, "Y": 0.1, "X": 0.11},
        time_interval=2.5,
        channels=(Channel(name="DAPI", color="0000FF"), Channel(name="GFP é", color="00FF00")),
    )
