"""A small sky and a camera for the tests of the mosaic: stars at known places, sky, noise, and FITS frames of them."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stderr
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS
from numpy.typing import NDArray

from safelight import cli

RA, DEC = 192.7, 41.1
SCALE = 2.4
"""Arc seconds per pixel."""
STAR_SIGMA = 1.3
"""Pixels; a FWHM of 3.1."""
COLOURS = (0.8, 1.0, 0.6)
"""Red, green and blue light of every star, over its green light."""
SITES = {"R": 0, "G": 1, "B": 2}

Floats = NDArray[np.float64]


def canvas_wcs(x: float, y: float, turn: float = 0.0) -> WCS:
    """Return a solution whose pixel (x, y) is at (RA, DEC), turned by so many degrees."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [RA, DEC]
    wcs.wcs.crpix = [x + 1, y + 1]
    cosine, sine = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    wcs.wcs.cd = np.array([[-cosine, sine], [sine, cosine]]) * SCALE / 3600
    wcs.wcs.set()
    return wcs


@dataclass(frozen=True)
class Stars:
    """Stars around (RA, DEC)."""

    ra: Floats
    dec: Floats
    flux: Floats

    @classmethod
    def scattered(cls, number: int = 90, width: float = 520, height: float = 400, seed: int = 0) -> Stars:
        """Return stars all over so many pixels around the middle, none near another."""
        generator = np.random.default_rng(seed)
        places: list[Floats] = []
        while len(places) < number:
            place = generator.uniform((-width / 2, -height / 2), (width / 2, height / 2))
            if all(np.hypot(*(place - other)) > 14 for other in places):
                places.append(place)
        x, y = np.reshape(places, (-1, 2)).T
        ra, dec = canvas_wcs(0, 0).all_pix2world(x, y, 0)
        return cls(ra, dec, generator.uniform(3_000, 30_000, number))


@dataclass(frozen=True)
class Camera:
    """What takes the frames.

    Parameters
    ----------
    size : tuple of int
        Height and width.
    pattern : str
        Bayer pattern; without one monochrome.
    channels : int
        3 for a camera that stores colours.
    background, noise : float
        Of the sky.
    """

    size: tuple[int, int] = (180, 220)
    pattern: str = ""
    channels: int = 1
    background: float = 1000.0
    noise: float = 20.0
    stars: Stars = field(default_factory=Stars.scattered)

    def solution(self, dx: float = 0, dy: float = 0, turn: float = 0) -> WCS:
        """Return the WCS of a frame whose middle lies (dx, dy) pixels from that of the sky."""
        height, width = self.size
        return canvas_wcs((width - 1) / 2 - dx, (height - 1) / 2 - dy, turn)

    def light(self, wcs: WCS) -> Floats:
        """Return the light of the stars, (height, width), in green."""
        image = np.zeros(self.size)
        y, x = np.indices(self.size)
        for x0, y0, flux in zip(*wcs.all_world2pix(self.stars.ra, self.stars.dec, 0), self.stars.flux, strict=True):
            if not (-10 < x0 < self.size[1] + 10 and -10 < y0 < self.size[0] + 10):
                continue
            rows, columns = (slice(max(int(at) - 9, 0), max(int(at) + 10, 0)) for at in (y0, x0))
            distance = (x[rows, columns] - x0) ** 2 + (y[rows, columns] - y0) ** 2
            image[rows, columns] += flux / (2 * np.pi * STAR_SIGMA**2) * np.exp(-distance / (2 * STAR_SIGMA**2))
        return image

    def shot(self, wcs: WCS, seed: int) -> Floats:
        """Return what the camera takes, (channels, height, width)."""
        generator = np.random.default_rng(seed)
        light = self.light(wcs)
        if self.pattern:
            sites = np.array([SITES[site] for site in self.pattern]).reshape(2, 2)
            colours = np.tile(np.array(COLOURS)[sites], (self.size[0] // 2 + 1, self.size[1] // 2 + 1))
            planes = (light * colours[: self.size[0], : self.size[1]])[None]
        else:
            planes = np.stack([light * colour for colour in (COLOURS if self.channels == 3 else (1.0,))])
        return planes + self.background + generator.normal(0, self.noise, planes.shape)

    def write(
        self,
        path: Path,
        seed: int,
        place: tuple[float, float, float] = (0, 0, 0),
        solved: bool = True,
        dtype: type = np.uint16,
        pixels: Floats | None = None,
        **cards: Any,
    ) -> Path:
        """Write a frame taken at a place (dx, dy, turn)."""
        wcs = self.solution(*place)
        shot = self.shot(wcs, seed) if pixels is None else pixels
        if np.issubdtype(dtype, np.integer):
            shot = shot.round().clip(0, 65535)
        path.parent.mkdir(parents=True, exist_ok=True)
        hdu = fits.PrimaryHDU((shot if self.channels == 3 else shot[0]).astype(dtype))
        if solved:
            hdu.header.update(wcs.to_header())
        if self.pattern:
            hdu.header["BAYERPAT"] = self.pattern
        hdu.header.update(cards)
        hdu.writeto(path)
        return path


PLACES = ((0, 0, 0), (3.3, -2.6, 0.4), (-4.2, 1.7, -0.7), (1.4, 5.1, 0.2), (-2.8, -3.9, 1.1), (5.5, 2.2, -0.3))
"""How far six frames of one field are from one another: pixels, pixels, degrees."""


def take(folder: Path, camera: Camera | None = None, frames: int = 6, solved: bool = True, **cards: Any) -> Path:
    """Write frames of one field, and return their folder."""
    for number in range(frames):
        dx, dy, turn = PLACES[number % len(PLACES)]
        place = (dx + 0.31 * (number // len(PLACES)), dy, turn)
        (camera or Camera()).write(folder / f"light_{number:03}.fits", number, place, solved, **cards)
    return folder


def panels(folder: Path, camera: Camera | None = None, frames: int = 4, apart: float = 130.0) -> Path:
    """Write frames of two overlapping fields; the second under another sky: gain, level and gradient."""
    camera = camera or Camera()
    other = replace(camera, background=0)
    x, y = np.meshgrid(np.linspace(-1, 1, camera.size[1]), np.linspace(-1, 1, camera.size[0]))
    for number in range(frames):
        dx, dy, turn = PLACES[number]
        camera.write(folder / f"a_{number}.fits", number, (dx - apart / 2, dy, turn))
        place = (dx + apart / 2, dy, turn)
        sky = 1300 + 60 * x - 40 * y
        pixels = 0.9 * other.shot(other.solution(*place), 100 + number) + sky
        camera.write(folder / f"b_{number}.fits", 0, place, pixels=pixels)
    return folder


@dataclass(frozen=True)
class Made:
    """What a run of the mosaic left."""

    status: int
    said: str
    out: Path

    @property
    def document(self) -> dict[str, Any]:
        """``run.json``."""
        return json.loads((self.out / "run.json").read_text(encoding="utf-8"))

    @property
    def report(self) -> str:
        """The page."""
        return (self.out / "report.html").read_text(encoding="utf-8")

    @property
    def checks(self) -> dict[tuple[str, str], dict[str, Any]]:
        """The audit: every check by its name and where it was made."""
        checks = [check for item in self.document["items"] for check in item["details"]["checks"]]
        return {(check["name"], check["where"]): check for check in checks}

    @property
    def science(self) -> Path:
        """The mosaic."""
        return self.out / "mosaic_science.fits"

    def plane(self, name: str = "IMAGE") -> Floats:
        """Return one plane of the mosaic, (channels, height, width)."""
        with fits.open(self.science) as file:
            pixels = file[name].data.astype(np.float64)
        return pixels.reshape(-1, *pixels.shape[-2:])

    def wcs(self) -> WCS:
        """Return the mosaic's WCS."""
        return WCS(fits.getheader(self.science), naxis=2)

    def events(self, key: str) -> list[dict[str, Any]]:
        """Return what was said under a key."""
        return [event for event in self.document["events"] if event["key"] == key]


def mosaic(folder: Path, out: Path, *options: str, solver: str = "none") -> Made:
    """Make a mosaic in this process, as the command line does."""
    results = ("--results", str(out.parent / "results"), "--lang", "en")
    said = io.StringIO()
    with redirect_stderr(said):
        status = cli.run(["mosaic", "run", str(folder), "--out", str(out), "--solver", solver, *results, *options])
    return Made(status, said.getvalue(), out)
