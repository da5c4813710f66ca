"""World coordinate systems: read them, go between pixels and sky, correct them, measure on the sphere.

Pixels are 0-based, (0, 0) is the centre of the first; right ascension and declination are degrees. SIP distortions
(Shupe et al. 2005) are always applied, in both directions.
"""

from __future__ import annotations

import copyreg
import re
import threading
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io.fits import Card, Header, VerifyError
from astropy.wcs import WCS, NoConvergence, Sip, WcsError
from numpy.typing import NDArray

from safelight.core.errors import InputError
from safelight.pipelines.mosaic.plane_fit import Freedom, apply_plane, fit_plane

Floats = NDArray[np.float64]

ARCSECONDS = 3600.0
SIDECAR_SUFFIX = ".wcs.txt"
PACKING_SUFFIX = ".fz"
INVERSE_TOLERANCE = 1e-6  # pixels
INVERSE_ITERATIONS = 30
FIT_ITERATIONS = 4
FIT_TOLERANCE = 1e-9  # of the matrix, and degrees of the shift: a millionth of a pixel
GRID_POINTS = 5  # per side
CARD_LENGTH = 80
LARGEST_HEADER = 4 * 2**20  # bytes; a WCS takes 10 kB

# Only these cards are read: dates and units of telescopes make wcslib repair headers and complain.
_SOLUTION_CARDS = re.compile(
    r"(CTYPE|CRVAL|CRPIX|CUNIT|CDELT|CROTA)[12]|(CD|PC)[12]_[12]|PV[12]_\d+|LONPOLE|LATPOLE|EQUINOX|RADESYS|RADECSYS"
    r"|(A|B|AP|BP)_(ORDER|\d_\d)"
)
_MATRIX_CARDS = re.compile(r"(CDELT|CROTA)[12]|(CD|PC)[12]_[12]")
_TABLE_CARDS = re.compile(r"(CPDIS|D2IMDIS|CQDIS)[12]")
_TEXT_CARDS = ("CTYPE", "CUNIT", "RADE")
_CURRENT_NAMES = {"RADECSYS": "RADESYS"}
_SIZE_CARDS = re.compile(r"IMAGE[WH]")
_NEEDED = tuple(f"{name}{axis}" for name in ("CTYPE", "CRVAL", "CRPIX") for axis in (1, 2))

# A WCS changes its C structure while it computes: every call works on a copy of its own, made under this lock.
_copying = threading.Lock()


def celestial_wcs(header: Mapping[str, object], path: Path | None = None) -> WCS | None:
    """Return the celestial solution of a frame's header; None if there is none.

    A solution has types, reference values, reference pixels and a matrix (CD, PC or CDELT). RA and DEC alone say
    where the telescope was meant to point; that is no solution.

    Raises
    ------
    InputError
        There is a solution, but it is not usable: singular, malformed, of galactic or other axes than right ascension
        and declination, or with a distortion in a table.
    """
    if any(name not in header for name in _NEEDED) or not _has_matrix(header):
        return None
    if tables := [name for name in header if _TABLE_CARDS.fullmatch(name)]:
        raise InputError(f"the WCS has its distortion in a table ({tables[0]})", path=path, expected="TAN, SIP or TPV")
    cards = Header()
    for name in header:
        if _SOLUTION_CARDS.fullmatch(name):
            cards[_CURRENT_NAMES.get(name, name)] = _checked(name, header[name], path)
    try:
        wcs = WCS(_with_cd(cards), naxis=2, fix=False)
        wcs.wcs.set()
    except (WcsError, ValueError, KeyError, TypeError, VerifyError) as error:
        raise InputError(f"the WCS cannot be used: {' '.join(str(error).split())}", path=path) from error
    if wcs.has_celestial and (wcs.wcs.lng, wcs.wcs.lngtyp.strip(), wcs.wcs.lattyp.strip()) != (0, "RA", "DEC"):
        raise InputError(
            f"the WCS has the axes {wcs.wcs.ctype[0]} and {wcs.wcs.ctype[1]}",
            path=path,
            expected="right ascension, then declination, such as RA---TAN and DEC--TAN",
            remedy="solve the frame in equatorial coordinates, or take these cards out of its header",
        )
    return wcs if wcs.has_celestial else None


def sidecar_of(frame: Path) -> Path:
    """Return where the WCS of ``NAME.fits`` or ``NAME.fits.fz`` would be: ``NAME.wcs.txt`` beside it."""
    name = frame.name.removesuffix(PACKING_SUFFIX)
    return frame.with_name(Path(name).stem + SIDECAR_SUFFIX)


def read_wcs_file(path: Path, width: int, height: int) -> WCS:
    """Read a WCS from a file that holds just a FITS header, one card a line or in blocks of 80 characters.

    Raises
    ------
    InputError
        The file holds no usable solution, or one for a frame of another size than ``width`` × ``height``.
    """
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST_HEADER).decode("ascii", errors="replace")
    except OSError as error:
        raise InputError(f"the WCS cannot be read: {error.strerror}", path=path) from error
    try:
        lines = text.splitlines() if "\n" in text else re.findall(f".{{1,{CARD_LENGTH}}}", text)
        cards = [Card.fromstring(line[:CARD_LENGTH]) for line in lines if _known(line[:8].strip())]
        header = {card.keyword: card.value for card in cards}
    except (ValueError, VerifyError) as error:
        raise InputError(f"this is no FITS header: {error}", path=path) from error
    solved = (header.get("IMAGEW", width), header.get("IMAGEH", height))
    if solved != (width, height):
        raise InputError(
            f"the WCS is for a frame of {solved[0]} × {solved[1]} pixels", path=path, expected=f"{width} × {height}"
        )
    wcs = celestial_wcs(header, path)
    if wcs is None:
        raise InputError("the header holds no celestial WCS", path=path, expected="CTYPE, CRVAL, CRPIX and CD cards")
    return wcs


def relative_wcs(width: int, height: int, scale: float = 1.0) -> WCS:
    """Return a TAN grid for frames that nobody has solved: the frame's centre at RA 0°, Dec 0°, row 0 in the north.

    Parameters
    ----------
    width, height : int
        Size of the reference frame in pixels.
    scale : float
        Arc seconds per pixel.
    """
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [0.0, 0.0]
    wcs.wcs.crpix = [(width + 1) / 2, (height + 1) / 2]
    wcs.wcs.cd = np.diag([-scale, -scale]) / ARCSECONDS
    wcs.wcs.set()
    return wcs


def pixel_to_sky(wcs: WCS, x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Return right ascension and declination (degrees) of pixels; NaN where the projection has no sky."""
    ra, dec = _own(wcs).all_pix2world(np.ravel(x), np.ravel(y), 0)
    return ra.reshape(np.shape(x)), dec.reshape(np.shape(x))


def sky_to_pixel(wcs: WCS, ra: Floats, dec: Floats) -> tuple[Floats, Floats]:
    """Return pixels of sky positions (degrees): NaN where they have none, or where the inverse of SIP diverges."""
    try:
        x, y = _own(wcs).all_world2pix(
            np.ravel(ra),
            np.ravel(dec),
            0,
            tolerance=INVERSE_TOLERANCE,
            maxiter=INVERSE_ITERATIONS,
            detect_divergence=True,
        )
    except NoConvergence as error:
        x, y = np.array(error.best_solution, dtype=np.float64).T
        for lost in (error.divergent, error.slow_conv):
            if lost is not None:
                x[lost] = y[lost] = np.nan
    return x.reshape(np.shape(ra)), y.reshape(np.shape(ra))


def parity(wcs: WCS) -> int:
    """Return the sign of det(CD): −1 for the usual handedness of FITS images, +1 for rows stored top-down."""
    return 1 if np.linalg.det(wcs.pixel_scale_matrix) > 0 else -1


def pixel_scale(wcs: WCS) -> float:
    """Return arc seconds per pixel: the root of the area of a pixel at the reference point."""
    return float(np.sqrt(abs(np.linalg.det(wcs.pixel_scale_matrix))) * ARCSECONDS)


def sky_outline(wcs: WCS, width: int, height: int, points_per_side: int = 8) -> tuple[Floats, Floats]:
    """Return the sky positions along the outer edge of a frame, from the first pixel's corner on, not closed.

    With ``points_per_side=1`` these are the four corners.
    """
    along = np.arange(points_per_side) / points_per_side
    zeros, ones = np.zeros(points_per_side), np.ones(points_per_side)
    x = np.concatenate([along, ones, 1 - along, zeros]) * width - 0.5
    y = np.concatenate([zeros, along, ones, 1 - along]) * height - 0.5
    return pixel_to_sky(wcs, x, y)


def pixel_grid(width: int, height: int, points_per_side: int) -> Floats:
    """Return points all over a frame, from its first pixel to its last, (points, 2) as x, y."""
    x, y = np.meshgrid(np.linspace(0, width - 1, points_per_side), np.linspace(0, height - 1, points_per_side))
    return np.stack([x.ravel(), y.ravel()], axis=1)


def unit_vectors(ra: Floats, dec: Floats) -> Floats:
    """Return sky positions (degrees) as unit vectors, (…, 3): without a seam at RA 0° or at the poles."""
    a, d = np.radians(ra), np.radians(dec)
    return np.stack([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)], axis=-1)


def sky_of_vectors(vectors: Floats) -> tuple[Floats, Floats]:
    """Return right ascension (0 to 360°) and declination of vectors (…, 3) of any length."""
    x, y, z = np.moveaxis(vectors, -1, 0)
    return np.degrees(np.arctan2(y, x)) % 360, np.degrees(np.arctan2(z, np.hypot(x, y)))


def separation(ra1: Floats, dec1: Floats, ra2: Floats, dec2: Floats) -> Floats:
    """Return the angle between sky positions in degrees; precise at every distance, also at the poles."""
    first, second = unit_vectors(ra1, dec1), unit_vectors(ra2, dec2)
    sine = np.linalg.norm(np.cross(first, second), axis=-1)
    return np.asarray(np.degrees(np.arctan2(sine, (first * second).sum(axis=-1))))


def tangent_plane(ra: Floats, dec: Floats, ra0: float, dec0: float) -> Floats:
    """Return the gnomonic projection about (ra0, dec0), (…, 2) as ξ (east), η (north) in degrees; NaN beyond 90°."""
    east, north, centre = _tangent_axes(ra0, dec0)
    vectors = unit_vectors(ra, dec)
    towards = vectors @ centre
    towards = np.where(towards > 0, towards, np.nan)
    return np.asarray(np.degrees(np.stack([vectors @ east, vectors @ north], axis=-1) / towards[..., None]))


def fitted(wcs: WCS, positions: Floats, ra: Floats, dec: Floats, freedom: Freedom) -> WCS:
    """Return the WCS corrected by least squares in its tangent plane, so that pixels (n, 2) fall on the sky.

    Distortions stay as they are. A shift needs one position, a similarity two, an affinity three.
    """
    for _ in range(FIT_ITERATIONS):  # moving the tangent point turns its north: the linear step is repeated
        ra0, dec0 = (float(value) for value in wcs.wcs.crval)
        now = tangent_plane(*pixel_to_sky(wcs, *positions.T), ra0, dec0)
        correction = fit_plane(now, tangent_plane(ra, dec, ra0, dec0), freedom)
        if np.abs(correction - np.eye(2, 3)).max() < FIT_TOLERANCE:
            break
        wcs = wcs.deepcopy()
        wcs.wcs.cd = correction[:, :2] @ wcs.pixel_scale_matrix
        wcs.wcs.crval = _from_tangent_plane(correction[:, 2], ra0, dec0)
        wcs.wcs.set()
    return wcs


def same_camera_wcs(reference: WCS, transform: Floats, width: int, height: int, *, distorted: bool) -> WCS:
    """Return the WCS of a frame that an affine transform takes to the pixels of a solved frame.

    Parameters
    ----------
    reference : WCS
        The solution of the reference frame.
    transform : float64 (2, 3)
        From the frame's pixels to the reference's.
    width, height : int
        Size of the frame in pixels.
    distorted : bool
        Whether the frame has the reference's distortion: the same camera, binning and handedness.
    """
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crpix = reference.wcs.crpix
    wcs.wcs.equinox, wcs.wcs.radesys = reference.wcs.equinox, reference.wcs.radesys
    if distorted and reference.sip is not None:
        wcs.wcs.ctype = ["RA---TAN-SIP", "DEC--TAN-SIP"]
        wcs.sip = reference.sip
    grid = pixel_grid(width, height, GRID_POINTS)
    ra, dec = pixel_to_sky(reference, *apply_plane(transform, grid).T)
    wcs.wcs.crval = sky_of_vectors(unit_vectors(ra, dec).mean(axis=0))
    wcs.wcs.cd = reference.pixel_scale_matrix @ transform[:, :2]
    wcs.wcs.set()
    return fitted(wcs, grid, ra, dec, "affine")


def _has_matrix(header: Mapping[str, object]) -> bool:
    return any(name in header for name in ("CD1_1", "CD1_2")) or all(f"CDELT{axis}" in header for axis in (1, 2))


def _known(keyword: str) -> bool:
    return any(cards.fullmatch(keyword) for cards in (_SOLUTION_CARDS, _TABLE_CARDS, _SIZE_CARDS))


def _checked(name: str, value: object, path: Path | None) -> str | float:
    """Return the value of a card: text where the card holds text, else a finite number."""
    if isinstance(value, str) and name.startswith(_TEXT_CARDS):
        return value
    if isinstance(value, int | float) and isfinite(value) and not name.startswith(_TEXT_CARDS):
        return value
    raise InputError(f"the WCS cannot be used: {name} is {value!r}", path=path)


def _with_cd(cards: Header) -> Header:
    """Return the cards with the matrix as CD, whichever of CD, PC × CDELT and CROTA × CDELT they have."""
    matrix = WCS(cards, naxis=2, fix=False).pixel_scale_matrix
    if not np.isfinite(matrix).all() or not np.linalg.det(matrix):
        raise ValueError("its matrix is singular")
    for name in [name for name in cards if _MATRIX_CARDS.fullmatch(name)]:
        del cards[name]
    for row, column in np.ndindex(2, 2):
        cards[f"CD{row + 1}_{column + 1}"] = matrix[row, column]
    return cards


def _own(wcs: WCS) -> WCS:
    with _copying:
        return wcs.deepcopy()


def _parts(wcs: WCS) -> tuple[Any, ...]:
    """Return how to make an equal WCS in another process: a header, and what the header rounds."""
    sip = wcs.sip
    distortion = None if sip is None else (sip.a, sip.b, sip.ap, sip.bp, sip.crpix)
    exact = {"crval": np.array(wcs.wcs.crval), "crpix": np.array(wcs.wcs.crpix), "cd": wcs.pixel_scale_matrix}
    return _of_parts, (_with_cd(wcs.to_header(relax=True)).tostring(), exact, distortion, wcs.pixel_shape)


def _of_parts(
    header: str,
    exact: Mapping[str, Floats],
    distortion: tuple[Floats | None, ...] | None,
    pixel_shape: tuple[int, int] | None,
) -> WCS:
    wcs = WCS(Header.fromstring(header), naxis=2, fix=False)
    for name, value in exact.items():
        setattr(wcs.wcs, name, value)
    wcs.sip = None if distortion is None else Sip(*distortion)
    wcs.pixel_shape = pixel_shape
    wcs.wcs.set()
    return wcs


copyreg.pickle(WCS, _parts)


def _tangent_axes(ra0: float, dec0: float) -> Floats:
    """Return the unit vectors towards east, towards north and to the point itself, (3, 3)."""
    a, d = np.radians(ra0), np.radians(dec0)
    return np.array(
        [
            [-np.sin(a), np.cos(a), 0.0],
            [-np.sin(d) * np.cos(a), -np.sin(d) * np.sin(a), np.cos(d)],
            [np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)],
        ]
    )


def _from_tangent_plane(plane: Floats, ra0: float, dec0: float) -> list[float]:
    east, north, centre = _tangent_axes(ra0, dec0)
    xi, eta = np.radians(plane)
    ra, dec = sky_of_vectors(centre + xi * east + eta * north)
    return [float(ra), float(dec)]
