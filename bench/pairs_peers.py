"""Shifts of a pair by the peers: what each is usually given, brought back to pixels of the mosaic."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray

from safelight.formats.raw import RawFrame
from safelight.kernels.demosaic import demosaic

Floats = NDArray[np.float32]
Shift = tuple[float, float]


def by_phase_cross_correlation(clean: RawFrame, noisy: RawFrame) -> Shift:
    """scikit-image, on the mean of both greens."""
    from skimage.registration import phase_cross_correlation

    shift, _, _ = phase_cross_correlation(_green(noisy), _green(clean), upsample_factor=20)
    return -2 * float(shift[0]), -2 * float(shift[1])


def by_phase_correlate(clean: RawFrame, noisy: RawFrame) -> Shift:
    """OpenCV's phaseCorrelate with a Hann window, on grey cells."""
    import cv2

    first, second = _grey(noisy), _grey(clean)
    (dx, dy), _ = cv2.phaseCorrelate(first, second, cv2.createHanningWindow(first.shape[::-1], cv2.CV_32F))
    return 2 * dy, 2 * dx


def by_ecc(clean: RawFrame, noisy: RawFrame) -> Shift:
    """OpenCV's ECC for a translation, on grey cells, from the whole shift of phaseCorrelate on."""
    import cv2

    dy, dx = (round(value / 2) for value in by_phase_correlate(clean, noisy))
    warp = np.array([[1, 0, dx], [0, 1, dy]], np.float32)
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 200, 1e-6)
    with suppress(cv2.error):  # where it does not converge, the answer is where it began
        _, warp = cv2.findTransformECC(_grey(noisy), _grey(clean), warp, cv2.MOTION_TRANSLATION, criteria, None, 5)
    return 2 * float(warp[1, 2]), 2 * float(warp[0, 2])


def by_channel_fft(clean: RawFrame, noisy: RawFrame) -> Shift:
    """Plain cross-correlation of each of the four planes, whole positions, their median."""
    found = []
    for y, x in product((0, 1), (0, 1)):
        first, second = (frame.mosaic[y::2, x::2].astype(float) for frame in (clean, noisy))
        first, second = first - first.mean(), second - second.mean()
        surface = np.fft.irfft2(np.fft.rfft2(first) * np.fft.rfft2(second).conj(), s=first.shape)
        peak = np.unravel_index(surface.argmax(), surface.shape)
        found.append([at - size if 2 * at > size else at for at, size in zip(peak, surface.shape, strict=True)])
    dy, dx = np.median(found, axis=0)
    return 2 * float(dy), 2 * float(dx)


def by_greedy_l1(clean: RawFrame, noisy: RawFrame) -> Shift:
    """Step to the neighbour with the least mean absolute difference of demosaiced colours, until none is better."""
    first, second = (_colours(frame) for frame in (clean, noisy))
    second = second * (first.mean() / second.mean())
    losses: dict[tuple[int, int], float] = {}

    def loss(at: tuple[int, int]) -> float:
        if at not in losses:
            losses[at] = _l1(first, second, at)
        return losses[at]

    best, step = (0, 0), 8
    while step:
        around = [(best[0] + step * y, best[1] + step * x) for y, x in product((-1, 0, 1), (-1, 0, 1))]
        nearest = min(around, key=loss)
        best, step = nearest, step if nearest != best else step // 2
    return float(best[0]), float(best[1])


def _l1(first: Floats, second: Floats, shift: tuple[int, int]) -> float:
    (ay, ty), (ax, tx) = ((max(value, 0), max(-value, 0)) for value in shift)
    height, width = first.shape[1] - abs(shift[0]), first.shape[2] - abs(shift[1])
    part = first[:, ay : ay + height, ax : ax + width] - second[:, ty : ty + height, tx : tx + width]
    return float(abs(part).mean())


def _light(frame: RawFrame) -> Floats:
    return ((frame.mosaic - frame.black[0]) / (frame.white - frame.black[0])).astype(np.float32)


def _colours(frame: RawFrame) -> Floats:
    colours: Floats = demosaic(torch.from_numpy(_light(frame)), "RGGB").numpy()
    return colours


def _green(frame: RawFrame) -> Floats:
    light = _light(frame)
    return np.asarray((light[::2, 1::2] + light[1::2, ::2]) / 2)


def _grey(frame: RawFrame) -> Floats:
    light = _light(frame)
    return np.asarray((light[::2, ::2] + light[::2, 1::2] + light[1::2, ::2] + light[1::2, 1::2]) / 4)


PEERS: dict[str, Callable[[RawFrame, RawFrame], Shift]] = {
    "per-channel CFA FFT, median": by_channel_fft,
    "greedy L1 on demosaiced RGB": by_greedy_l1,
}
"""What is installed."""
if find_spec("skimage"):
    PEERS["scikit-image phase_cross_correlation, green"] = by_phase_cross_correlation
if find_spec("cv2"):
    PEERS |= {"OpenCV phaseCorrelate + Hann": by_phase_correlate, "OpenCV ECC on grey cells": by_ecc}
