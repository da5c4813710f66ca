"""Maps are as precise as they say, wherever the sky is."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from astropy.coordinates import FK5, SkyCoord
from astropy.wcs import WCS, Sip

from safelight.pipelines.mosaic.mapping import (
    CELL,
    MAP_ERROR,
    CoordinateSource,
    Transform,
    coordinate_map,
    sky_transform,
)
from safelight.pipelines.mosaic.wcs import read_wcs_file

FRAME = (1920, 1080)


def tan(ra: float, dec: float, shape: tuple[int, int], scale: float = 2.375, angle: float = 0.0) -> WCS:
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [ra, dec]
    wcs.wcs.crpix = [(shape[1] + 1) / 2, (shape[0] + 1) / 2]
    c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    wcs.wcs.cd = np.array([[-c, s], [s, c]]) * scale / 3600
    wcs.wcs.set()
    return wcs


def distorted(wcs: WCS, strength: float) -> WCS:
    wcs = wcs.deepcopy()
    a, b = np.zeros((4, 4)), np.zeros((4, 4))
    a[2, 0], b[1, 1], a[0, 3] = strength * 1e-6, strength * 1e-6, strength * 1e-9
    wcs.wcs.ctype = ["RA---TAN-SIP", "DEC--TAN-SIP"]
    wcs.sip = Sip(a, b, None, None, wcs.wcs.crpix)
    wcs.wcs.set()
    return wcs


def errors(transform: Transform, shape: tuple[int, int], frame: tuple[int, int]) -> tuple[np.ndarray, float]:
    """Return how far the map is off at every pixel that falls on the frame, and what it says itself."""
    found = coordinate_map(transform, (0, shape[0]), shape[1], frame)
    exact = np.stack(transform(*np.mgrid[0.0 : shape[0], 0.0 : shape[1]]), axis=1)
    inside = ((exact > -0.5) & (exact < np.array(frame)[:, None] - 0.5)).all(axis=1)
    assert inside.any()
    return np.hypot(*(found.coordinates.numpy() - exact).swapaxes(0, 1))[inside], found.error


@pytest.mark.parametrize(("ra", "dec"), [(192.7, 41.3), (0.01, 0), (359.99, -70), (40, 89.9)])
def test_the_error_stays_within_the_bound_and_is_told(ra: float, dec: float) -> None:
    grid, frame = tan(ra, dec, (700, 600)), distorted(tan(ra + 0.05, dec - 0.05, (500, 400), 2.2, 70), 3)
    off, told = errors(sky_transform(grid, frame, (500, 400)), (700, 600), (500, 400))
    assert off.max() <= told <= MAP_ERROR


def test_a_real_solution_is_mapped_exactly(shared: Path) -> None:
    sidecar = min((shared / "data/m94/s1").glob("*.wcs.txt"))
    frame = read_wcs_file(sidecar, *FRAME[::-1])
    grid = tan(*frame.wcs.crval, (600, 600))
    off, told = errors(sky_transform(grid, frame, FRAME), (600, 600), FRAME)
    assert off.max() <= told <= MAP_ERROR
    plain = frame.deepcopy()
    plain.sip = None
    plain.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    ours, without = (np.stack(sky_transform(grid, w, FRAME)(np.zeros(1), np.zeros(1))) for w in (frame, plain))
    assert np.hypot(*(ours - without)) > 0.1  # the frame's SIP counts


def test_strong_distortion_is_refined() -> None:
    def wavy(y: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return y + 0.5 * np.sin(x / 20), x + 3 * np.exp(-((y - 100) ** 2 + (x - 90) ** 2) / 50)

    off, told = errors(wavy, (200, 210), (200, 200))
    assert off.max() <= MAP_ERROR
    assert told <= MAP_ERROR
    coarse = coordinate_map(wavy, (0, 200), 210, (200, 200), bound=1.0)
    assert 0.01 < coarse.error <= 1


def test_refinement_reaches_the_edge_of_the_sky() -> None:
    def horizon(y: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        seen = x + 0.3 * y < 77.7
        return np.where(seen, y, np.nan), np.where(seen, x, np.nan)

    found = coordinate_map(horizon, (0, 100), 130, (100, 100)).coordinates.numpy()
    np.testing.assert_array_equal(found, np.stack(horizon(*np.mgrid[0.0:100, 0.0:130]), axis=1).astype(np.float32))


def test_the_far_side_of_the_sky_paints_nothing() -> None:
    frame = distorted(tan(12.7, -41.3, FRAME), 3)
    for ra, dec in ((192.7, 41.3), (192.7, -41.3), (60, 0)):
        found = coordinate_map(sky_transform(tan(ra, dec, (64, 64)), frame, FRAME), (0, 64), 64, FRAME)
        assert found.coordinates.isnan().all()


def test_a_small_frame_on_a_coarse_grid_is_not_missed() -> None:
    frame = tan(10.02, 20.02, (300, 200), scale=1)
    transform = sky_transform(tan(10, 20, (64, 64), scale=60), frame, (300, 200))
    off, told = errors(transform, (64, 64), (300, 200))
    assert off.max() <= told <= MAP_ERROR


def test_blocks_of_any_size_give_the_same_bits() -> None:
    frame = distorted(tan(10.02, 20.02, (200, 150), angle=30), 30)
    transform = sky_transform(tan(10, 20, (190, 170)), frame, (200, 150))
    whole = coordinate_map(transform, (0, 190), 170, (200, 150))
    edges = [0, 1, 30, 64, 100, 190]
    parts = [coordinate_map(transform, rows, 170, (200, 150)).coordinates for rows in pairwise(edges)]
    assert np.array_equal(torch.cat(parts).numpy(), whole.coordinates.numpy(), equal_nan=True)


def test_threads_share_a_transform() -> None:
    frame = distorted(tan(10.02, 20.02, (200, 150), angle=30), 3)
    source = CoordinateSource(sky_transform(tan(10, 20, (320, 170)), frame, (200, 150)), (320, 170), (200, 150))
    whole = source.read(0, 320)
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda row: source.read(row, row + CELL), range(0, 320, CELL)))
    assert np.array_equal(torch.cat(parts).numpy(), whole.numpy(), equal_nan=True)
    assert 0 < source.error <= MAP_ERROR


def test_equinox_counts() -> None:
    grid = tan(192.7, 41.3, (64, 64))
    same = SkyCoord(192.7, 41.3, unit="deg").transform_to(FK5(equinox="J1975"))
    frame = tan(same.ra.deg, same.dec.deg, (64, 64))
    frame.wcs.radesys, frame.wcs.equinox = "FK5", 1975.0
    frame.wcs.set()
    y, x = sky_transform(grid, frame, (64, 64))(np.array([31.5]), np.array([31.5]))
    assert np.hypot(y - 31.5, x - 31.5) < 1e-6


def test_coordinates_count_from_the_part_that_is_read() -> None:
    def shift(y: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return y + 40000.5, x + 30000.25

    with pytest.raises(ValueError, match="float32"):
        coordinate_map(shift, (0, 8), 8, (50000, 50000))
    found = coordinate_map(shift, (0, 8), 8, (100, 100), origin=(40000, 30000))
    assert found.coordinates[2, :, 3].tolist() == [2.5, 3.25]
