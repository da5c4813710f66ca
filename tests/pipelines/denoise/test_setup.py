"""What is chosen for the user: the method's parameters as published, three dimensions where there are enough planes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from safelight.core.errors import InputError
from safelight.core.events import EventLog
from safelight.core.pipeline import Item
from safelight.pipelines.denoise.items import ImageItem
from safelight.pipelines.denoise.options import TrainingOptions
from safelight.pipelines.denoise.setup import Setup, choose_setup


def setup(events: EventLog | None = None, shapes: Sequence[tuple[int, ...]] = ((64, 64),), **options: Any) -> Setup:
    """The setup for images of these shapes."""
    items = [
        Item("image", (Path("image.tif"),), ImageItem(Path("image.tif"), shape, "CZYX"[-len(shape) :], np.dtype("u2")))
        for shape in shapes
    ]
    return choose_setup(items, [], TrainingOptions(**options), EventLog() if events is None else events)


def test_n2v2_is_the_default_and_n2v_is_all_off() -> None:
    n2v2, n2v = setup(), setup(method="n2v")
    assert (n2v2.architecture.residual, n2v2.architecture.top_skip, n2v2.architecture.blur_pool) == (False, False, True)
    assert (n2v.architecture.residual, n2v.architecture.top_skip, n2v.architecture.blur_pool) == (True, True, False)


@pytest.mark.parametrize(
    ("options", "replacement", "side"),
    [({}, "median", 5), ({"replacement": "mean"}, "mean", 5), ({"method": "n2v"}, "uniform", 11)],
)
def test_windows_are_as_large_as_published(options: dict[str, str], replacement: str, side: int) -> None:
    # An earlier port took windows of 3 × 3.
    masking = setup(**options).masking
    assert (masking.replacement, 2 * masking.radius + 1) == (replacement, side)


def test_each_switch_is_one_of_its_own() -> None:
    chosen = setup(top_skip=True, replacement="uniform")
    assert chosen.architecture == setup().architecture.model_copy(update={"top_skip": True})
    assert chosen.masking.replacement == "uniform"


@pytest.mark.parametrize(("planes", "dims"), [(15, 2), (16, 3), (40, 3)])
def test_volumes_are_denoised_in_three_dimensions_and_that_is_said(planes: int, dims: int) -> None:
    # In an earlier port "3-D" meant planes one by one.
    events = EventLog()
    assert setup(events, [(planes, 64, 64)]).architecture.dims == dims
    assert [event.data for event in events if event.key == "dimensions_chosen"] == [{"dims": dims, "planes": planes}]


def test_the_thinnest_volume_decides() -> None:
    assert setup(shapes=[(40, 64, 64), (4, 64, 64)]).architecture.dims == 2


def test_three_dimensions_need_planes() -> None:
    assert setup(shapes=[(4, 64, 64)], dimensions="3").architecture.dims == 3
    with pytest.raises(InputError, match="has no Z"):
        setup(dimensions="3")


def test_a_structural_mask_is_drawn_by_the_user() -> None:
    assert setup(structure="010/111/010").masking.structure == ((0, 1, 0), (1, 1, 1), (0, 1, 0))
    assert setup(structure="horizontal", structure_radius=2).masking.structure == ((1, 1, 1, 1, 1),)


def test_one_model_learns_from_all_channels_each_by_itself() -> None:
    chosen = setup(shapes=[(3, 20, 64, 64)])
    assert (chosen.architecture.channels, chosen.architecture.groups) == (3, 3)
    assert setup(shapes=[(3, 20, 64, 64)], joint_channels=True).architecture.groups == 1
