"""The sky stays where it is, and frames find their group whatever their order."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from astropy.wcs import WCS, Sip

from safelight.core.errors import InputError
from safelight.pipelines.mosaic.canvas import (
    Footprint,
    bounding_box,
    common_canvas,
    crop,
    group_frames,
    position_angle,
)
from safelight.pipelines.mosaic.wcs import pixel_to_sky, read_wcs_file, separation, sky_to_pixel

SHAPE = (300, 200)
PLACES = [(192.7, 41.3), (0.0, 0.0), (359.999, -70.0), (40.0, 89.9), (40.0, -90.0)]
each_place = pytest.mark.parametrize(("ra", "dec"), PLACES)


def tan(ra: float, dec: float, scale: float = 2.375, angle: float = 0.0, parity: int = -1) -> WCS:
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [ra, dec]
    wcs.wcs.crpix = [(SHAPE[1] + 1) / 2, (SHAPE[0] + 1) / 2]
    c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    wcs.wcs.cd = np.array([[parity * c, s], [-parity * s, c]]) * scale / 3600
    wcs.wcs.set()
    return wcs


def frame(name: str, ra: float, dec: float, angle: float = 0.0, parity: int = -1) -> Footprint:
    return Footprint(name, tan(ra, dec, angle=angle, parity=parity), SHAPE)


def real_frames(shared: Path) -> list[Footprint]:
    paths = sorted((shared / "data/m94").rglob("*.wcs.txt"))
    return [
        Footprint(f"{path.parent.name}/{path.name}", read_wcs_file(path, 1080, 1920), (1920, 1080)) for path in paths
    ]


@each_place
@pytest.mark.parametrize("sip", [False, True])
@pytest.mark.parametrize("window", [(70, 90, 150, 199), (-500, 40, -1000, 10), (0, 300, 0, 200), (5000, 5001, -7, -6)])
def test_a_crop_or_pad_keeps_the_sky(ra: float, dec: float, sip: bool, window: tuple[int, int, int, int]) -> None:
    wcs = tan(ra, dec, angle=30)
    if sip:
        a, b = np.zeros((3, 3)), np.zeros((3, 3))
        a[2, 0], b[1, 1] = 3e-6, -2e-6
        wcs.wcs.ctype = ["RA---TAN-SIP", "DEC--TAN-SIP"]
        wcs.sip = Sip(a, b, None, None, wcs.wcs.crpix)
        wcs.wcs.set()
    before = wcs.to_header_string(relax=True)
    y0, y1, x0, x1 = window
    part = crop(wcs, *window)
    x, y = np.array([0.0, 17.3, 150.0]), np.array([0.0, 33.3, 299.0])
    off = separation(*pixel_to_sky(wcs, x, y), *pixel_to_sky(part, x - x0, y - y0)) * 3600
    assert off.max() < 1e-6  # arc seconds
    assert part.pixel_shape == (x1 - x0, y1 - y0)
    assert wcs.to_header_string(relax=True) == before

    header = part.to_header(relax=True)  # as the file will have it, negative CRPIX and SIP included
    again = WCS(header)
    off = separation(*pixel_to_sky(wcs, x, y), *pixel_to_sky(again, x - x0, y - y0)) * 3600
    assert off.max() < 1e-3


def test_an_empty_crop_is_refused() -> None:
    with pytest.raises(ValueError, match="no pixel"):
        crop(tan(10, 20), 5, 5, 0, 3)


@each_place
@pytest.mark.parametrize("angle", [0, 33])
def test_the_canvas_holds_every_frame_and_not_much_more(ra: float, dec: float, angle: float) -> None:
    step = 0.08
    turn = step / np.cos(np.radians(min(abs(dec), 89.9)))
    frames = [
        frame("a", ra, dec, 20),
        frame("b", (ra + turn) % 360, dec, 110, parity=1),
        frame("c", ra, dec * 0.9995, 200),
    ]
    canvas = common_canvas(frames, angle=angle)
    height, width = canvas.shape
    edges = [sky_to_pixel(canvas.wcs, *part.outline()) for part in frames]
    x, y = np.concatenate(edges, axis=1)
    assert x.min() >= -0.5 - 1e-6
    assert x.max() <= width - 0.5 + 1e-5
    assert y.min() >= -0.5 - 1e-6
    assert y.max() <= height - 0.5 + 1e-5
    assert x.min() + 0.5 < 1e-6
    assert width - 0.5 - x.max() < 1
    assert position_angle(canvas.wcs) == pytest.approx(angle)
    assert np.linalg.det(canvas.wcs.pixel_scale_matrix) < 0


def test_the_canvas_does_not_depend_on_the_order_of_frames(shared: Path) -> None:
    frames = real_frames(shared)
    canvas = common_canvas(frames)
    random.Random(0).shuffle(frames)
    again = common_canvas(frames)
    assert canvas.wcs.to_header_string() == again.wcs.to_header_string()
    assert canvas.shape == again.shape
    assert 1920 < max(canvas.shape) < 2800


def test_opposite_ends_of_the_sky_are_refused() -> None:
    frames = [frame("m94.fits", 192.7, 41.3), frame("m94-2.fits", 192.8, 41.3), frame("lost.fits", 12.7, -41.3)]
    with pytest.raises(InputError, match=r"lost\.fits: the frame reaches 1\d\d.*RA 192"):
        common_canvas(frames)
    with pytest.raises(InputError, match="from the middle"):
        common_canvas(frames[1:])


def test_a_canvas_that_no_memory_holds_is_refused() -> None:
    frames = [frame("a", 10, 0), frame("b", 50, 0)]
    with pytest.raises(InputError, match=r"63\d\d\d × .*--pixel-scale"):
        common_canvas(frames, most_pixels=10**6)
    assert common_canvas(frames, scale=100, most_pixels=10**6).shape[1] > 1000


def test_frames_of_several_equinoxes_share_a_canvas() -> None:
    one, other = frame("a", 10, 20), frame("b", 10, 20)
    other.wcs.wcs.radesys, other.wcs.wcs.equinox = "FK5", 1975.0
    other.wcs.wcs.set()
    canvas = common_canvas([one, other])
    assert canvas.wcs.wcs.radesys == "ICRS"
    # A third of a degree of precession, not of the telescope, lies between the two frames.
    assert canvas.shape[1] > 200 + 0.25 * 3600 / 2.375
    y0, y1, x0, x1 = bounding_box(canvas, other)
    assert (y1 - y0, x1 - x0) == (pytest.approx(300, abs=3), pytest.approx(200, abs=3))


def test_a_bounding_box_holds_the_frame() -> None:
    frames = [frame("a", 359.98, 10), frame("b", 0.05, 10.05, 45)]
    canvas = common_canvas(frames)
    for part in frames:
        y0, y1, x0, x1 = bounding_box(canvas, part)
        x, y = sky_to_pixel(canvas.wcs, *part.outline())
        assert (y0 <= y.min() + 1) & (y.max() <= y1) & (x0 <= x.min() + 1) & (x.max() <= x1)
        assert (y1 - y0) * (x1 - x0) < canvas.shape[0] * canvas.shape[1]
    for elsewhere in (frame("c", 5, 10), frame("d", 180, -10)):
        y0, y1, x0, x1 = bounding_box(canvas, elsewhere)
        assert (y1 - y0) * (x1 - x0) == 0


def test_two_nights_are_two_groups(shared: Path) -> None:
    frames = real_frames(shared)
    groups = group_frames(frames)
    assert [{frames[index].name[:2] for index in group} for group in groups] == [{"s1"}, {"s3"}]
    assert [len(group) for group in groups] == [12, 6]


@each_place
def test_groups_do_not_depend_on_the_order_of_frames(ra: float, dec: float) -> None:
    chance = random.Random(1)
    width = 0.13 / np.cos(np.radians(min(abs(dec), 89.9)))
    frames = [
        frame(
            f"{number}",
            (ra + chance.uniform(0, 4) * width) % 360,
            max(dec - chance.uniform(0, 0.4), -90),
            chance.uniform(0, 60),
        )
        for number in range(60)
    ]
    groups = {frozenset(frames[index].name for index in group) for group in group_frames(frames)}
    assert sum(map(len, groups)) == 60
    assert 2 < len(groups) < 60
    chance.shuffle(frames)
    assert groups == {frozenset(frames[index].name for index in group) for group in group_frames(frames)}


def test_a_strip_of_overlapping_fields_does_not_chain() -> None:
    frames = [frame(f"{number:02}", 10 + 0.03 * number, 0) for number in range(40)]  # each covers 3/4 of the next
    groups = group_frames(frames)
    assert len(groups) > 5
    assert max(map(len, groups)) <= 5


def test_turned_upside_down_is_the_same_field_and_far_away_is_not() -> None:
    frames = [
        frame("a", 10, 20),
        frame("b", 10, 20, 181),
        frame("c", 10, 20, 35),
        frame("d", 190, -20),
        frame("e", 10.1, 20),
    ]
    assert group_frames(frames) == [(0, 1), (2,), (3,), (4,)]
    assert group_frames(frames, least_overlap=0.2) == [(0, 1, 4), (2,), (3,)]
    assert group_frames(frames, largest_turn=40) == [(0, 1, 2), (3,), (4,)]


def test_a_frame_between_two_leaders_joins_the_nearer_one() -> None:
    places = (-4, -3, -2, -1, 0, 5, 8.5, 9, 10)  # the frame at 0 leads first and reaches that at 5
    frames = [frame(name, 10 + 0.01 * place, 0) for name, place in zip("abcdefghi", places, strict=True)]
    assert group_frames(frames, least_overlap=0.6) == [(0, 1, 2, 3, 4), (5, 6, 7, 8)]
