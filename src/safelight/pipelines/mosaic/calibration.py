"""Calibrate frames with master bias, dark and flat: (light − dark) / flat, per pixel of the sensor.

A master is one file, or a folder of frames that are combined with rejection.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from safelight.core.errors import InputError
from safelight.core.events import EventLog
from safelight.core.execute import Executor
from safelight.core.files import digest
from safelight.core.kernel import Kernel
from safelight.core.stream import TensorSink
from safelight.formats.fits import FitsImage, is_fits_name, open_fits
from safelight.kernels.combine import combine
from safelight.kernels.demosaic import sites
from safelight.kernels.rejection import Rejection
from safelight.pipelines.mosaic.discovery import FrameFacts, read_facts

LEAST_FLAT = 0.05
"""Share of a colour's mean below which a pixel of a flat saw no light and cannot be corrected."""

SAME_EXPOSURE = 0.05
"""Relative difference up to which a dark's exposure is that of the lights."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """The masters of a run, each (channels, height, width) float32 or None.

    Parameters
    ----------
    offset : ndarray, optional
        What is subtracted: the dark, or the bias where there is no dark.
    flat : ndarray, optional
        What is divided by, with a mean of 1 in each colour; NaN where it is too dark.
    digest : str
        Of the files that the masters were made from.
    """

    offset: NDArray[np.float32] | None = None
    flat: NDArray[np.float32] | None = None
    digest: str = ""

    def apply(self, pixels: NDArray[np.float32], facts: FrameFacts) -> NDArray[np.float32]:
        """Return calibrated pixels (channels, height, width).

        Raises
        ------
        InputError
            The frame has another size than the masters.
        """
        for master in (self.offset, self.flat):
            if master is not None and master.shape != pixels.shape:
                raise InputError(
                    f"has {pixels.shape[2]} × {pixels.shape[1]} pixels, the calibration frames have "
                    f"{master.shape[2]} × {master.shape[1]}",
                    path=facts.path,
                )
        if self.offset is not None:
            pixels = pixels - self.offset
        return pixels / self.flat if self.flat is not None else pixels


def read_calibration(
    bias: Path | None, dark: Path | None, flat: Path | None, facts: FrameFacts, executor: Executor
) -> Calibration:
    """Read or make the masters.

    Parameters
    ----------
    bias, dark, flat : Path, optional
        A file, or a folder of frames. The dark holds the bias; the bias is for lights without a dark, and for flats.
    facts : FrameFacts
        Of a light: the masters must fit it.
    executor : Executor

    Raises
    ------
    InputError
        A master is missing, damaged, or of another size than the lights; or a dark has another exposure.
    """
    if dark is not None:
        _check_exposure(dark, facts, executor.events)
    for kind, path in (("bias", bias), ("dark", dark), ("flat", flat)):
        if path is not None:
            executor.events.info("calibration_master", kind=kind, path=str(path), frames=len(_files(path)))
    masters = {path: _master(path, facts, executor) for path in (bias, dark) if path is not None}
    dark_or_bias = dark or bias
    files = "".join(digest(file) for path in (bias, dark, flat) if path is not None for file in _files(path))
    return Calibration(
        masters[dark_or_bias] if dark_or_bias else None,
        _flat(flat, masters[bias] if bias else None, facts, executor) if flat is not None else None,
        hashlib.sha256(files.encode()).hexdigest() if files else "",
    )


@dataclass(frozen=True)
class _SameRows:
    """The same rows of many frames, (channels, width, frames) each; less ``bias`` and times ``scales`` if given."""

    images: Sequence[FitsImage]
    bias: NDArray[np.float32] | None = None
    scales: NDArray[np.float32] | None = None
    dtype: torch.dtype = field(default=torch.float32, init=False)

    @property
    def extent(self) -> int:
        return self.images[0].shape[1]

    @property
    def shape(self) -> tuple[int, ...]:
        channels, _, width = self.images[0].shape
        return (channels, width, len(self.images))

    def read(self, start: int, stop: int) -> Tensor:
        rows = np.stack([image.read(slice(start, stop)) for image in self.images], axis=-1)
        if self.bias is not None:
            rows -= self.bias[:, start:stop, :, None]
        if self.scales is not None:
            rows *= self.scales
        return torch.from_numpy(rows.transpose(1, 0, 2, 3))


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.iterdir() if is_fits_name(file))
    if not files:
        raise InputError("holds no FITS frames", path=path, expected="calibration frames")
    return files


def _check_exposure(dark: Path, facts: FrameFacts, events: EventLog) -> None:
    """Refuse darks of another exposure: their dark current is not that of the lights. Unknown exposures pass."""
    exposures = {file: read_facts(file, "none").exposure for file in _files(dark)}
    for file, exposure in exposures.items():
        if abs(exposure - facts.exposure) > SAME_EXPOSURE * facts.exposure:
            raise InputError(
                f"was exposed for {exposure:g} s",
                path=file,
                expected=f"{facts.exposure:g} s, as the lights were",
                remedy="darks of the lights' exposure, or --bias alone",
            )
    if not np.isfinite([facts.exposure, *exposures.values()]).all():
        events.warning("dark_exposure_unknown", path=str(dark))


def _master(path: Path, facts: FrameFacts, executor: Executor) -> NDArray[np.float32]:
    """Return a master, (channels, height, width)."""
    with _opened(path, facts) as images:
        return _combined(_SameRows(images), executor)


def _flat(path: Path, bias: NDArray[np.float32] | None, facts: FrameFacts, executor: Executor) -> NDArray[np.float32]:
    """Return the flat without its bias and with a mean of 1 in each colour.

    Flats of the sky at dusk differ in level: each is brought to that of the first before they are compared.
    """
    if bias is None:
        executor.events.warning("flat_without_bias", path=str(path))
    with _opened(path, facts) as images:
        levels = np.array([_level(image, bias) for image in images])
        if len(images) > 1:
            executor.events.info(
                "flats_scaled", frames=len(images), lowest=float(levels.min()), highest=float(levels.max())
            )
        scales = (levels[0] / levels).astype(np.float32)
        flat = _normalised(_combined(_SameRows(images, bias, scales), executor), facts, path)
    if dim := int(np.isnan(flat).sum()):
        executor.events.warning("flat_too_dark", pixels=dim, share=LEAST_FLAT)
    return flat


def _level(image: FitsImage, bias: NDArray[np.float32] | None) -> float:
    """Return the median level of a flat above its bias."""
    pixels = image.read()
    level = float(np.nanmedian(pixels if bias is None else pixels - bias))
    if not level > 0:
        raise InputError(f"its level is {level:.4g}", path=image.path, expected="a flat that saw light")
    return level


@contextmanager
def _opened(path: Path, facts: FrameFacts) -> Iterator[list[FitsImage]]:
    """Open the frames of a master, which must be of the size of the lights."""
    shape = (facts.channels, facts.height, facts.width)
    with ExitStack() as stack:
        images = [stack.enter_context(open_fits(file)) for file in _files(path)]
        for image in images:
            if image.shape != shape:
                raise InputError(
                    f"has {image.shape[2]} × {image.shape[1]} pixels",
                    path=image.path,
                    expected=f"{facts.width} × {facts.height}, as the lights have",
                )
        yield images


def _combined(source: _SameRows, executor: Executor) -> NDArray[np.float32]:
    """Return the rejected mean of frames, (channels, height, width); a single one as it is."""
    if len(source.images) == 1:
        return np.ascontiguousarray(source.read(0, source.extent)[..., 0].numpy().transpose(1, 0, 2))
    sink = TensorSink(source.extent)
    executor.map(Kernel("master", _combine), source, sink)
    return np.ascontiguousarray(sink.result.cpu().numpy().transpose(1, 0, 2))


def _combine(samples: Tensor) -> Tensor:
    return combine(samples, rejection=Rejection("winsorized_sigma_clip")).image


def _normalised(flat: NDArray[np.float32], facts: FrameFacts, path: Path) -> NDArray[np.float32]:
    """Return the flat with a mean of 1 in each colour, so that it changes no colour balance."""
    _, height, width = flat.shape
    masks = sites(facts.pattern, height, width).numpy() if facts.pattern else np.ones((1, height, width), bool)
    result = np.full_like(flat, np.nan)
    for channel, plane in enumerate(flat):
        for mask in masks:
            mean = float(np.nanmean(plane[mask]))
            if not mean > 0:
                raise InputError(f"its mean is {mean:.4g}", path=path, expected="a flat that saw light")
            share = plane[mask] / mean
            result[channel][mask] = np.where(share >= LEAST_FLAT, share, np.nan)
    return result
