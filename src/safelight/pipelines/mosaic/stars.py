"""The stars of one frame: where they are, how bright and how sharp, above which background and noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import sep
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from safelight.core.errors import InputError

Floats = NDArray[np.float64]

DETECTION_THRESHOLD = 5.0  # standard deviations of the smoothed sky
SMOOTHING_FWHM = 2.5  # pixels: near enough to stars of 1.5 to 5 px to find the faint ones
SMALLEST_AREA = 5  # pixels
BACKGROUND_MESH = 64  # pixels
HALF_LIGHT_APERTURE = 12.0  # pixels; holds the light of a star with a FWHM of up to 8 px
SHARPEST_STAR = 0.45  # share of the light in one pixel: a hot pixel has more, a star of 1.3 px FWHM just this
STELLAR_FWHM = (0.5, 2.0)  # times the median: galaxies, trails and blends are outside
SMALLEST_FRAME = 32  # pixels per side
GAUSSIAN_SIGMA_OF_FWHM = 1 / 2.3548
NORMAL_SIGMA_OF_MAD = 1.4826
NOISE_SAMPLES = 1 << 20  # pixels that a noise is taken from: the others would change it by 0.1 %
_PERIOD_OF_COLOURS = 6  # of X-Trans; Bayer's divides it. In steps that share no factor with it every site is met
DEBLENDED_PARTS = 8192
SPARE_ACTIVE_PIXELS = 1000


class NoStarsError(InputError):
    """A frame is sound, but shows no stars: clouds, a closed shutter or the wrong focus."""


@dataclass(frozen=True, eq=False)
class StarField:
    """The stars of one frame, brightest first, and what they stand on.

    Parameters
    ----------
    x, y : float64 (stars,)
        Pixel coordinates; the centre of the first pixel is (0, 0).
    flux : float64 (stars,)
        Light above the background, in the frame's units.
    fwhm : float64 (stars,)
        Full width at half maximum in pixels: twice the half-light radius, as for a Gaussian.
    saturated : bool (stars,)
        Whether the brightest pixel reaches the saturation level.
    width, height : int
        Size of the frame in pixels.
    background : float
        Level of the sky, in the frame's units.
    noise : float
        Standard deviation of one pixel of sky (robust, gradients removed), in the frame's units.
    """

    x: Floats
    y: Floats
    flux: Floats
    fwhm: Floats
    saturated: NDArray[np.bool_]
    width: int
    height: int
    background: float
    noise: float

    def __len__(self) -> int:
        return len(self.x)

    @property
    def positions(self) -> Floats:
        """Pixel coordinates, (stars, 2) as x, y."""
        return np.stack([self.x, self.y], axis=1)

    @property
    def median_fwhm(self) -> float:
        """Full width at half maximum of a typical unsaturated star, in pixels."""
        unsaturated = self.fwhm[~self.saturated]
        return float(np.median(unsaturated if len(unsaturated) else self.fwhm))


def measure_stars(
    luminance: NDArray[np.generic], *, saturation: float | None = None, threshold: float = DETECTION_THRESHOLD
) -> StarField:
    """Detect and measure the stars of a frame.

    The detection is Source Extractor's (Bertin & Arnouts 1996, doi:10.1051/aas:1996164), the positions are its
    windowed centroids. Hot pixels are left out because one pixel holds most of their light; galaxies, trails and
    blends because they are much wider than the median; stars that the edge cuts because their place is unknown.

    Parameters
    ----------
    luminance : array (height, width)
        Any real type and byte order; NaN and ±∞ are invalid and never enter. For a Bayer frame the demosaiced green.
    saturation : float, optional
        Level that a full pixel has, in the frame's units. Without it no star counts as saturated.
    threshold : float
        How far a star must rise above the smoothed sky, in its standard deviations.

    Raises
    ------
    InputError
        The frame is no picture, or holds no valid pixels.
    NoStarsError
        It holds no stars.
    """
    image, invalid = _prepared(luminance)
    sky, background = _without_background(image, invalid)
    found = _detect(sky, invalid, threshold)
    noise = _sky_noise(sky, invalid | (found.segments > 0))
    fwhm, light = _sizes(sky, invalid, found.objects)
    stellar = _is_stellar(_peaks(sky, found.objects), light, fwhm) & ~_is_cut(found.objects)
    if not stellar.any():
        raise NoStarsError(
            f"no stars stand {threshold:g} standard deviations above the sky",
            expected="a frame of stars in focus",
            remedy="leave the frame out: clouds, a closed shutter or the wrong focus",
        )
    objects, fwhm, light = found.objects[stellar], fwhm[stellar], light[stellar]
    x, y = _centroids(sky, invalid, objects, fwhm)
    full = _is_saturated(image, objects, saturation)
    order = np.lexsort((x, y, -light))  # equally bright stars in reading order
    height, width = image.shape
    return StarField(x[order], y[order], light[order], fwhm[order], full[order], width, height, background, noise)


@dataclass(frozen=True, eq=False)
class _Found:
    objects: NDArray[np.void]
    segments: NDArray[np.int32]


def _prepared(luminance: NDArray[np.generic]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return the picture in the type and byte order that sep takes, and its invalid pixels (0 there)."""
    if luminance.ndim != 2 or min(luminance.shape) < SMALLEST_FRAME:
        raise InputError(
            f"a frame of shape {luminance.shape} cannot be searched for stars",
            expected=f"height and width of at least {SMALLEST_FRAME} pixels",
        )
    image = np.array(luminance, dtype=np.float32, order="C")  # a copy: native byte order, ours to change
    invalid = ~np.isfinite(image)
    if invalid.all():
        raise InputError("the frame has no valid pixels", expected="numbers, not NaN everywhere")
    image[invalid] = 0
    return image, invalid


def _without_background(image: NDArray[np.float32], invalid: NDArray[np.bool_]) -> tuple[NDArray[np.float32], float]:
    background = sep.Background(image, mask=invalid, bw=BACKGROUND_MESH, bh=BACKGROUND_MESH, fw=3, fh=3)
    sky = background.back(dtype=np.float32)
    np.subtract(image, sky, out=sky)
    sky[invalid] = 0
    return sky, float(background.globalback)


def _robust_sigma(values: NDArray[np.float32]) -> float:
    """Return the standard deviation that normal values of this median absolute deviation have, from some of them."""
    step = -(-values.size // NOISE_SAMPLES)
    while math.gcd(step, _PERIOD_OF_COLOURS) > 1:
        step += 1
    samples = values[::step].copy()
    samples -= np.median(samples, overwrite_input=True)
    np.abs(samples, out=samples)
    return float(NORMAL_SIGMA_OF_MAD * np.median(samples, overwrite_input=True))


def _sky_noise(sky: NDArray[np.float32], occupied: NDArray[np.bool_]) -> float:
    """Return the noise of the pixels that no star touches; of all of them if stars cover everything."""
    free = sky[~occupied]
    return _robust_sigma(free if len(free) else sky.ravel())


def _detect(sky: NDArray[np.float32], invalid: NDArray[np.bool_], threshold: float) -> _Found:
    """Find what stands above the noise of the smoothed sky, measured there: demosaiced noise is not white."""
    smooth = gaussian_filter(sky, SMOOTHING_FWHM * GAUSSIAN_SIGMA_OF_FWHM)
    noise = _robust_sigma(smooth[~invalid])
    if noise == 0:
        raise NoStarsError("the sky has no noise: most pixels are equal", expected="a frame as the camera took it")
    # The default stack of active pixels overflows on bright nebulae; a place for every pixel takes as much memory as
    # ten pictures.
    sep.set_extract_pixstack(int(np.count_nonzero(smooth > threshold * noise)) + SPARE_ACTIVE_PIXELS)
    sep.set_sub_object_limit(DEBLENDED_PARTS)
    objects, segments = sep.extract(
        smooth,
        threshold,
        err=noise,
        mask=invalid,
        minarea=SMALLEST_AREA,
        filter_kernel=None,
        segmentation_map=True,
    )
    return _Found(objects, segments)


def _sizes(sky: NDArray[np.float32], invalid: NDArray[np.bool_], objects: NDArray[np.void]) -> tuple[Floats, Floats]:
    """Return FWHM and light of each object, both within an aperture that a pass over all objects has fitted.

    A second, smaller aperture keeps the noise and the neighbours out of faint stars' sizes.
    """
    radius = HALF_LIGHT_APERTURE
    fwhm = light = np.empty(0)
    for _ in range(2):
        light, _, _ = sep.sum_circle(sky, objects["x"], objects["y"], radius, mask=invalid, subpix=5)
        measurable = np.maximum(light, np.finfo(np.float32).tiny)
        half, _ = sep.flux_radius(
            sky,
            objects["x"],
            objects["y"],
            np.full(len(objects), radius),
            0.5,
            normflux=measurable,
            mask=invalid,
            subpix=5,
        )
        fwhm = 2 * np.asarray(half, dtype=np.float64)
        radius = min(HALF_LIGHT_APERTURE, max(4.0, 1.5 * float(np.median(fwhm)) if len(fwhm) else 0.0))
    return fwhm, np.asarray(light, dtype=np.float64)


def _peaks(sky: NDArray[np.float32], objects: NDArray[np.void]) -> NDArray[np.float32]:
    """Return the brightest of the 3 × 3 pixels around the peak of the smoothed object."""
    height, width = sky.shape
    step_y, step_x = np.mgrid[-1:2, -1:2].reshape(2, 9, 1)
    rows = np.clip(objects["ypeak"] + step_y, 0, height - 1)
    columns = np.clip(objects["xpeak"] + step_x, 0, width - 1)
    return np.asarray(sky[rows, columns].max(axis=0), dtype=np.float32)


def _is_stellar(peak: NDArray[np.float32], light: Floats, fwhm: Floats) -> NDArray[np.bool_]:
    pointlike = (light > 0) & (peak < SHARPEST_STAR * light)
    if not pointlike.any():
        return pointlike
    smallest, widest = (share * float(np.median(fwhm[pointlike])) for share in STELLAR_FWHM)
    return pointlike & (fwhm >= smallest) & (fwhm <= widest)


def _is_cut(objects: NDArray[np.void]) -> NDArray[np.bool_]:
    """Return whether the edge of the frame cuts an object: its centroid then is pixels away from the star."""
    return np.asarray(objects["flag"] & sep.OBJ_TRUNC != 0)


def _centroids(
    sky: NDArray[np.float32], invalid: NDArray[np.bool_], objects: NDArray[np.void], fwhm: Floats
) -> tuple[Floats, Floats]:
    """Return windowed centroids; the isophotal one where the window ran off to a neighbour."""
    x, y, _ = sep.winpos(sky, objects["x"], objects["y"], fwhm * GAUSSIAN_SIGMA_OF_FWHM, mask=invalid)
    strayed = ~(np.hypot(x - objects["x"], y - objects["y"]) < fwhm)
    return np.where(strayed, objects["x"], x), np.where(strayed, objects["y"], y)


def _is_saturated(image: NDArray[np.float32], objects: NDArray[np.void], saturation: float | None) -> NDArray[np.bool_]:
    if saturation is None:
        return np.zeros(len(objects), dtype=np.bool_)
    return np.asarray(image[objects["ypeak"], objects["xpeak"]] >= saturation, dtype=np.bool_)
