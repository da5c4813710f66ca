"""Pictures of a pair: as much colour as there is of what the colour stands for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from exposures import BAYER, XTRANS, Pattern, pair, texture
from safelight.kernels.cfa import tile_of
from safelight.kernels.loss_mask import CLIPPED_ANCHOR, MOVED
from safelight.pipelines.pairs.alignment import PairAlignment
from safelight.pipelines.pairs.overlap import Overlap
from safelight.pipelines.pairs.previews import write_preview

GAP = 6


@pytest.mark.parametrize("pattern", [BAYER["RGGB"], XTRANS], ids=["bayer", "x-trans"])
def test_a_mask_is_coloured_as_far_as_it_is_set(tmp_path: Path, pattern: Pattern) -> None:
    clean, noisy = pair(texture(184, 304, 0), pattern, (0, 0))
    period = len(pattern)
    overlap = Overlap(tile_of(pattern), (0, 0), (0, 0), (120, 240), (0.0, 0.0))
    bits = np.zeros((120, 240), np.uint8)
    bits[:, :60] = MOVED
    bits[::period, 120:180:period] = CLIPPED_ANCHOR
    write_preview(
        tmp_path / "a.png", clean, noisy, PairAlignment("ok", None, rgb_gain=(2.2,) * 3, overlap=overlap), bits
    )
    with Image.open(tmp_path / "a.png") as picture:
        strip = np.asarray(picture.convert("RGB")).astype(int)
    width = 240 // period
    mask = strip[:, 2 * (width + GAP) : 2 * (width + GAP) + width]
    quarter = width // 4
    saturation = [np.ptp(mask[:, i * quarter : (i + 1) * quarter], axis=2).mean() for i in range(4)]
    assert saturation[0] == 220 - 38, "red"
    assert saturation[1] == saturation[3] == 0, "grey"
    assert 0 < saturation[2] <= 250 / period**2, "one site of a tile"
