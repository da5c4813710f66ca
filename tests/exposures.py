"""Pairs of exposures with known shifts: a scene, moved, seen through a colour filter array, with independent noise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import rawpy
from numpy.typing import NDArray

from safelight.formats.raw import RawFrame

Floats = NDArray[np.float64]
Pattern = Sequence[Sequence[int]]
Shift = tuple[float, float]

BLACK, WHITE, FULL = 512.0, 15000.0, 16383
READ_NOISE = 2.0
"""Electrons."""
LOW, MID, HIGH = 20000.0, 1000.0, 50.0
"""Electrons at white: how noisy a frame is."""
MARGIN = 32

BAYER: dict[str, Pattern] = {
    "RGGB": ((0, 1), (3, 2)),
    "BGGR": ((2, 3), (1, 0)),
    "GRBG": ((1, 0), (2, 3)),
    "GBRG": ((3, 2), (0, 1)),
}
XTRANS: Pattern = (
    (1, 2, 1, 1, 0, 1),
    (0, 1, 0, 2, 1, 2),
    (1, 2, 1, 1, 0, 1),
    (1, 0, 1, 1, 2, 1),
    (2, 1, 2, 0, 1, 0),
    (1, 0, 1, 1, 2, 1),
)


def texture(height: int, width: int, seed: int) -> Floats:
    """Return a scene (3, height, width) from 0 to 1: soft texture with edged discs."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = 1
    spectrum = np.fft.rfft2(generator.normal(size=(height, width)))
    scene = np.fft.irfft2(spectrum * frequency**-1.2 * np.exp(-((frequency / 0.25) ** 2)), s=(height, width))
    scene /= scene.std()
    for _ in range(40):
        distance = np.hypot(y - generator.uniform(0, height), x - generator.uniform(0, width))
        scene += generator.normal() / (1 + np.exp(np.clip(2 * (distance - generator.uniform(5, 40)), -50, 50)))
    scene = (scene - scene.min()) / (scene.max() - scene.min())
    return np.stack([0.05 + 0.6 * scene**1.5, 0.05 + 0.8 * scene, 0.03 + 0.5 * scene**2])


def photograph(path: Path, height: int, width: int) -> Floats:
    """Return part of a real Bayer capture as a scene: its cells, enlarged twofold by their spectrum."""
    with rawpy.imread(str(path)) as raw:
        mosaic = raw.raw_image_visible.astype(float)
        black, white = raw.black_level_per_channel[0], raw.white_level
    mosaic = np.clip((mosaic - black) / (white - black), 0, 1)
    cells = np.stack([mosaic[::2, ::2], (mosaic[::2, 1::2] + mosaic[1::2, ::2]) / 2, mosaic[1::2, 1::2]])
    rows, columns = cells.shape[1:]
    spectrum = np.fft.fftshift(np.fft.fft2(cells), axes=(1, 2))
    padded = np.pad(spectrum, ((0, 0), (rows // 2,) * 2, (columns // 2,) * 2))
    scene = np.clip(4 * np.fft.ifft2(np.fft.ifftshift(padded, axes=(1, 2))).real, 0, 1)
    return np.asarray(scene[:, :height, :width])


def moved(scene: Floats, shift: Shift) -> Floats:
    """Return the scene where what was at y + dy, x + dx is at y, x."""
    y, x = np.fft.fftfreq(scene.shape[1])[:, None], np.fft.fftfreq(scene.shape[2])
    return np.asarray(np.fft.ifft2(np.fft.fft2(scene) * np.exp(2j * np.pi * (y * shift[0] + x * shift[1]))).real)


def expose(
    scene: Floats,
    pattern: Pattern,
    *,
    light: float = 1.0,
    full_well: float = LOW,
    seed: int = 0,
    phase: tuple[int, int] = (0, 0),
) -> RawFrame:
    """Return a frame of a scene (3, height, width), its pattern beginning at a phase of the array."""
    generator = np.random.default_rng(seed)
    sites = np.roll(pattern, (-phase[0], -phase[1]), (0, 1))
    height, width = scene.shape[1:]
    colours = np.tile(sites, (-(-height // len(sites)), -(-width // len(sites))))[:height, :width]
    plane = np.take_along_axis(scene, np.where(colours == 3, 1, colours)[None], 0)[0]
    electrons = generator.poisson(np.clip(plane * light, 0, None) * full_well).astype(float)
    electrons += generator.normal(scale=READ_NOISE, size=plane.shape)
    return frame_of(electrons / full_well * (WHITE - BLACK) + BLACK, sites)


def frame_of(raw: Floats, pattern: Pattern | NDArray[np.integer]) -> RawFrame:
    """Return a frame of raw values."""
    return RawFrame(
        mosaic=np.clip(np.round(raw), 0, FULL).astype(np.uint16),
        pattern=np.asarray(pattern, np.uint8),
        black=(BLACK,) * 4,
        white=WHITE,
        clipping=(WHITE,) * 4,
        white_balance=(1.0,) * 4,
        rgb_xyz_matrix=np.zeros((4, 3)),
    )


def pair(
    scene: Floats,
    pattern: Pattern,
    shift: Shift,
    *,
    full_well: float = MID,
    light: float = 0.45,
    phases: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0)),
    seed: int = 0,
) -> tuple[RawFrame, RawFrame]:
    """Return a clean frame and a noisy one, the scene's margin cut off; the noise of both is independent."""
    inside = (slice(None), slice(MARGIN, -MARGIN), slice(MARGIN, -MARGIN))
    clean = expose(scene[inside], pattern, seed=2 * seed, phase=phases[0])
    noisy = expose(
        moved(scene, shift)[inside], pattern, light=light, full_well=full_well, seed=2 * seed + 1, phase=phases[1]
    )
    return clean, noisy
