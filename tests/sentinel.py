"""Made-up Sentinel images: small triplets and scenes with everything that real ones say about themselves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from safelight.formats.geotiff import Grid, Header, write_geotiff

UTM = (
    'PROJCS["WGS 84 / UTM zone 31N",GEOGCS["WGS 84",DATUM["WGS_1984",SPHEROID["WGS 84",6378137,298.257223563]],'
    'PRIMEM["Greenwich",0],UNIT["degree",0.0174532925199433]],PROJECTION["Transverse_Mercator"],'
    'PARAMETER["latitude_of_origin",0],PARAMETER["central_meridian",3],PARAMETER["scale_factor",0.9996],'
    'PARAMETER["false_easting",500000],PARAMETER["false_northing",0],UNIT["metre",1],AUTHORITY["EPSG","32631"]]'
)


def header(bands: int, size: tuple[int, int], dtype: Any, **changes: Any) -> Header:
    grid = Grid(UTM, (10.0, 0.0, 704340.0, 0.0, -10.0, 5631400.0), *size)
    usual = Header(grid, bands, np.dtype(dtype), None, ("",) * bands, (0.0,) * bands, (1.0,) * bands, {})
    return replace(usual, **changes)


def ground(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Digital numbers of 13 bands, smooth with some noise; B10 is dark."""
    generator = np.random.default_rng(seed)
    y, x = np.indices(size)
    wave = 1 + 0.4 * np.sin(y / 9 + seed) * np.cos(x / 13)
    levels = np.array([1300, 1000, 900, 800, 1000, 1900, 2300, 2200, 2500, 800, 12, 1700, 1000])[:, None, None]
    return (levels * wave + generator.normal(0, 8, (13, *size))).clip(1, 65535).astype(np.uint16)


def clouded(clear: np.ndarray) -> np.ndarray:
    """The same with one bright cloud in the middle."""
    height, width = clear.shape[1:]
    cloudy = clear.copy()
    cloudy[:, height // 4 : height // 2, width // 4 : width // 2] = 6000
    return cloudy


def backscatter(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """VV and VH in dB."""
    generator = np.random.default_rng(seed)
    means = np.array([-10.0, -16.0])[:, None, None]
    return (means + generator.normal(0, 1.5, (2, *size))).astype(np.float32)


def write_optical(path: Path, numbers: np.ndarray, **changes: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_geotiff(path, numbers, header(len(numbers), numbers.shape[1:], numbers.dtype, **changes))
    return path


write_sar = write_optical


def write_triplet(root: Path, name: str, size: tuple[int, int] = (64, 64), seed: int = 0) -> None:
    """Write a triplet into the folders s1, s2 and s2_cloudy."""
    clear = ground(size, seed)
    write_sar(root / "s1" / name, backscatter(size, seed))
    write_optical(root / "s2" / name, clear)
    write_optical(root / "s2_cloudy" / name, clouded(clear))
