"""Stack registered frames: normalise, weight, reject and combine, a block of rows of all of them at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from safelight.core.errors import InputError
from safelight.core.kernel import Kernel
from safelight.kernels.combine import PLANES, Statistic, combine, rows_of_block
from safelight.kernels.normalisation import frame_weights, normalise_to
from safelight.kernels.rejection import Rejection
from safelight.pipelines.mosaic.options import RunOptions
from safelight.pipelines.mosaic.registered import RegisteredFrame


@dataclass(frozen=True)
class StackSource:
    """The same rows of all registered frames, (planes, width, frames) each: frames last, as combining wants them."""

    frames: Sequence[RegisteredFrame]
    dtype: torch.dtype = field(default=torch.float32, init=False)

    @property
    def extent(self) -> int:
        """Rows of the grid."""
        return self.frames[0].shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Planes, width, frames."""
        return (*self.frames[0].shape[1:], len(self.frames))

    def read(self, start: int, stop: int) -> Tensor:
        """Return the rows of all frames."""
        block = np.empty((len(self.frames), stop - start, *self.shape[:-1]), np.float32)
        for frame, rows in zip(self.frames, block, strict=True):
            frame.read_into(rows, start)
        return torch.from_numpy(block).movedim(0, -1)  # frame after frame in memory: written and sorted fastest


def stack_kernel(frames: Sequence[RegisteredFrame], options: RunOptions) -> Kernel:
    """Return the kernel that turns rows of a ``StackSource`` into the planes of a stack.

    Raises
    ------
    InputError
        No frame is left that can be normalised.
    """
    method = "additive" if options.normalisation == "sky_mean" else options.normalisation
    coefficients = normalise_to((frame.background().double() for frame in frames), method, _reference(frames))
    noise = torch.tensor([frame.noise for frame in frames], dtype=torch.float64) * coefficients.scale.abs()
    fwhm = torch.tensor([frame.fwhm for frame in frames], dtype=torch.float64)
    weights = frame_weights(noise, fwhm, options.weighting)
    constants = (coefficients.scale, coefficients.offset, weights, noise)
    if not all(bool(constant.isfinite().all()) for constant in constants):
        bad = [f.name for f, *rows in zip(frames, *constants, strict=True) if not torch.stack(rows).isfinite().all()]
        raise InputError(
            f"{', '.join(bad)}: the background cannot be normalised by {options.normalisation}",
            remedy="--normalisation sky_mean",
        )
    return stacking(tuple(constant.float() for constant in constants), options, frames[0].shape[2])


def stacking(constants: tuple[Tensor, ...], options: RunOptions, width: int) -> Kernel:
    """Return ``stack_rows`` as a kernel.

    Parameters
    ----------
    constants : tuple of Tensor
        Scale, offset, weight and noise of the frames, (frames, channels) each.
    options : RunOptions
    width : int
        Of a row.
    """
    function = partial(stack_rows, rejection=rejection_of(options), statistic=statistic_of(options))
    return Kernel("stack", function, constants, alignment=rows_of_block(width, len(constants[0])))


def stack_rows(
    samples: Tensor,
    scale: Tensor,
    offset: Tensor,
    weights: Tensor,
    noise: Tensor,
    *,
    rejection: Rejection,
    statistic: Statistic,
) -> Tensor:
    """Combine rows (rows, channels, width, frames), each channel with its coefficients (frames, channels).

    Where the rows have one plane more than there are channels, it holds radial weights.

    Returns
    -------
    Tensor
        (rows, 7, channels, width): the planes of ``combine``.
    """
    rows, given, width, _ = samples.shape
    channels = scale.shape[1]
    planes = samples.new_empty((rows, len(PLANES), channels, width))
    radial = samples[:, channels].nan_to_num() if given > channels else None  # NaN where there is no sample either
    for channel in range(channels):
        combined = combine(
            samples[:, channel],
            weights[:, channel] if radial is None else radial * weights[:, channel],
            noise[:, channel],
            scale=scale[:, channel],
            offset=offset[:, channel],
            rejection=rejection,
            statistic=statistic,
        )
        for number, plane in enumerate(combined):
            planes[:, number, channel] = plane
    return planes


def rejection_of(options: RunOptions) -> Rejection:
    """Return the rejection that the options ask for."""
    return Rejection(
        "none" if options.rejection == "median" else options.rejection,
        kappa_low=options.kappa_low,
        kappa_high=options.kappa_high,
        percentile_low=options.percentile_low,
        percentile_high=options.percentile_high,
        drop_low=options.reject_lowest,
        drop_high=options.reject_highest,
    )


def statistic_of(options: RunOptions) -> Statistic:
    """Return how survivors are combined; rejecting by median is taking the median."""
    return "median" if options.rejection == "median" else options.combine


def _reference(frames: Sequence[RegisteredFrame]) -> int:
    """Return the frame with the least noise, to which the others are brought; of equal ones the first by name."""
    return min(range(len(frames)), key=lambda number: (sum(frames[number].noise), frames[number].name))
