"""Which frames are stacked together, and on which part of the canvas."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from safelight.pipelines.mosaic.canvas import common_canvas
from safelight.pipelines.mosaic.discovery import read_facts
from safelight.pipelines.mosaic.groups import Group, PlacedFrame, make_groups
from safelight.pipelines.mosaic.refinement import Alignment
from safelight.pipelines.mosaic.stars import measure_stars
from sky import Camera

SIZE = (120, 160)
PLACES = {"a": (0, 0, 0), "b": (3, 2, 0.5), "c": (130, 0, 0), "d": (133, -2, 0.4), "e": (1, -1, 90)}


def placed(folder: Path, name: str) -> PlacedFrame:
    camera = Camera(size=SIZE)
    path = camera.write(folder / f"{name}.fits", 0, PLACES[name])
    wcs = camera.solution(*PLACES[name])
    field = measure_stars(camera.shot(wcs, 0)[0])
    return PlacedFrame(name, read_facts(path, "auto"), field, Alignment(wcs, "solution"))


def groups_of(folder: Path, names: str) -> tuple[Group, ...]:
    frames = tuple(placed(folder, name) for name in names)
    return make_groups(frames, common_canvas([frame.footprint for frame in frames]))


def members(groups: tuple[Group, ...]) -> set[frozenset[str]]:
    return {frozenset(frame.name for frame in group.frames) for group in groups}


def test_frames_of_one_field_and_orientation_are_one_group_and_none_is_twice(tmp_path: Path) -> None:
    groups = groups_of(tmp_path, "abcde")
    assert members(groups) == {frozenset("ab"), frozenset("cd"), frozenset("e")}
    assert sum(len(group.frames) for group in groups) == 5


def test_a_window_holds_its_frames_and_lies_pixel_on_pixel_on_the_canvas(tmp_path: Path) -> None:
    for group in groups_of(tmp_path, "abcd"):
        height, width = group.canvas.shape
        y0, y1, x0, x1 = group.window
        assert 0 <= y0 < y1 <= height
        assert 0 <= x0 < x1 <= width
        assert group.shape == (y1 - y0, x1 - x0)
        corners = group.canvas.wcs.all_pix2world([[x0, y0], [x1 - 1, y1 - 1]], 0)
        np.testing.assert_allclose(group.wcs.all_world2pix(corners, 0), [[0, 0], [x1 - x0 - 1, y1 - y0 - 1]], atol=1e-6)
        for frame in group.frames:
            rows, columns = frame.facts.height, frame.facts.width
            outline = np.array([[0, 0], [columns - 1, 0], [0, rows - 1], [columns - 1, rows - 1]])
            x, y = group.wcs.all_world2pix(frame.wcs.all_pix2world(outline, 0), 0).T
            assert x.min() > -1
            assert y.min() > -1
            assert x.max() < group.shape[1]
            assert y.max() < group.shape[0]
