"""Tiles joined: every pixel once, weights adding up to one, a step becoming a ramp."""

from __future__ import annotations

import pytest
import torch

from safelight.kernels.tiles import Layout
from safelight.pipelines.decloud.blending import FEATHER, Blender


@pytest.mark.parametrize(("tile", "margin"), [(160, 64), (256, 64), (64, 16), (176, 64), (2048, 64)])
def test_equal_tiles_give_the_image_and_every_pixel_once(tile: int, margin: int) -> None:
    image = torch.rand((2, 300, 410), generator=torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(image, (0, 16, 0, 16))
    layout = Layout.of((300, 410), (tile, tile), margin, 16)
    blender, result, times = Blender(layout, 2), torch.zeros_like(image), torch.zeros(300, 410)
    for number in range(len(layout)):
        rows, columns = (span.read for span in layout[number])
        row, column, part = blender.add(number, padded[:, rows, columns])
        where = slice(row, row + part.shape[1]), slice(column, column + part.shape[2])
        result[(slice(None), *where)] = part
        times[where] += 1
    assert torch.equal(times, torch.ones_like(times))
    torch.testing.assert_close(result, image, rtol=0, atol=1e-6)


def test_a_step_between_tiles_becomes_a_ramp_around_the_seam() -> None:
    layout = Layout.of((64, 256), (64, 160), 64, 16)
    blender, result = Blender(layout, 1), torch.zeros(64, 256)
    seam = layout[0][1].core_stop
    for number in range(len(layout)):
        row, column, part = blender.add(number, torch.full((1, 64, 160), float(number)))
        result[row : row + part.shape[1], column : column + part.shape[2]] = part[0]
    assert result[:, : seam - FEATHER // 2].eq(0).all()
    assert result[0, seam - FEATHER // 2 : seam].diff().gt(0).all()
    assert result[0, seam] == pytest.approx(0.5, abs=1 / FEATHER)
