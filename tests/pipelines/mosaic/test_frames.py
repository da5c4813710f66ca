"""Reading one frame and its stars, once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from safelight.core.errors import InputError
from safelight.pipelines.mosaic import frames
from safelight.pipelines.mosaic.calibration import Calibration
from safelight.pipelines.mosaic.discovery import read_facts
from safelight.pipelines.mosaic.frames import luminance, read_frame, stars_of
from sky import COLOURS, Camera, Floats

NONE = Calibration()


def test_a_bayer_frame_becomes_colours(tmp_path: Path) -> None:
    camera = Camera(pattern="GRBG", noise=0.5)
    facts = read_facts(camera.write(tmp_path / "a.fits", 0), "auto")
    image = read_frame(facts, NONE)
    assert image.shape == (3, *camera.size)
    light = camera.light(camera.solution())
    for channel, colour in zip(image.numpy(), COLOURS, strict=True):
        assert (channel - 1000).sum() == pytest.approx(colour * light.sum(), rel=0.05)
    assert (luminance(image) == image[1].numpy()).all()


def test_stars_are_where_they_are_and_one_that_the_edge_cuts_is_none(tmp_path: Path) -> None:
    camera, place = Camera(), (-4.2, 1.7, -0.7)
    wcs = camera.solution(*place)
    field = stars_of(read_facts(camera.write(tmp_path / "a.fits", 0, place), "auto"), NONE, tmp_path)
    x, y = wcs.all_world2pix(camera.stars.ra, camera.stars.dec, 0)
    off = np.hypot(field.x[:, None] - x, field.y[:, None] - y).min(axis=1)
    assert len(field) >= 10
    assert off.max() < 0.15
    height, width = camera.size
    edge = np.minimum.reduce([x, y, width - 1 - x, height - 1 - y])
    assert (np.abs(edge) < 2).any(), "there is a star that the edge cuts"


def test_stars_are_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = read_facts(Camera().write(tmp_path / "a.fits", 0), "auto")
    first = stars_of(facts, NONE, tmp_path)

    def again(*_: object, **__: object) -> None:
        raise AssertionError("measured again")

    with monkeypatch.context() as patched:
        patched.setattr(frames, "measure_stars", again)
        second = stars_of(facts, NONE, tmp_path)
    assert vars(first).keys() == vars(second).keys()
    assert all(np.array_equal(value, getattr(second, name)) for name, value in vars(first).items())


@pytest.mark.parametrize("damage", [b"", b"PK\3\4 half an archive", None])
def test_a_damaged_cache_is_measured_again(tmp_path: Path, damage: bytes | None) -> None:
    facts = read_facts(Camera().write(tmp_path / "a.fits", 0), "auto")
    first = stars_of(facts, NONE, tmp_path)
    (cached,) = tmp_path.glob("*.npz")
    cached.write_bytes(cached.read_bytes()[:-300] if damage is None else damage)
    second = stars_of(facts, NONE, tmp_path)
    assert np.array_equal(first.positions, second.positions)


def test_another_pattern_is_measured_again(tmp_path: Path) -> None:
    path = Camera(pattern="RGGB").write(tmp_path / "a.fits", 0)
    first, second = (stars_of(read_facts(path, pattern), NONE, tmp_path) for pattern in ("auto", "none"))
    assert len(list(tmp_path.glob("*.npz"))) == 2
    assert first.noise != second.noise


def test_a_frame_without_stars_says_so(tmp_path: Path) -> None:
    camera = Camera()
    sky: Floats = np.random.default_rng(0).normal(1000, 20, (1, *camera.size))
    facts = read_facts(camera.write(tmp_path / "a.fits", 0, pixels=sky), "auto")
    with pytest.raises(InputError, match="no stars"):
        stars_of(facts, NONE, tmp_path)
