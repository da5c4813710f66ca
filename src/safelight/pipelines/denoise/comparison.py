"""How near a denoised image is to a clean one, beside the noisy image and the best Gaussian."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from safelight.core.errors import InputError
from safelight.core.events import EventLog
from safelight.formats.microscopy import ImageFile, find_images, open_image
from safelight.kernels.gaussian import gaussian_filter
from safelight.kernels.metrics import SSIM_WINDOW, high_pass_ratio, psnr, range_of, scale_invariant_psnr, ssim
from safelight.pipelines.denoise.frames import Frames

COARSE_SIGMAS = tuple(0.25 * step for step in range(1, 17))
FINE_STEP = 0.05


def find_clean(noisy: Path, clean: Path) -> Path:
    """Return the clean reference of a noisy image: the file itself, or the one of the same name in a folder.

    Raises
    ------
    InputError
        There is none.
    """
    if clean.is_file() or clean.suffix == ".zarr":
        return clean
    stem = noisy.name.split(".")[0]
    matches = [path for path in find_images(clean).paths if path.name.split(".")[0] == stem]
    if len(matches) != 1:
        raise InputError(
            f"{len(matches)} images are called {stem!r}, as the noisy one", path=clean, expected="exactly one"
        )
    return matches[0]


def check_shape(clean: ImageFile, shape: tuple[int, ...]) -> None:
    """Refuse a clean image of another shape than the noisy one's.

    Raises
    ------
    InputError
        Its shape differs.
    """
    if clean.shape != shape:
        raise InputError(
            f"the clean image has shape {clean.shape}", path=clean.path, expected=f"{shape}, as the noisy one"
        )


def compare_with_clean(
    name: str, noisy: ImageFile, denoised: ImageFile, clean: Path, dims: int, data_range: float | None, events: EventLog
) -> dict[str, float]:
    """Measure an item's noisy image, the best Gaussian and the denoised image against a clean one.

    Every sample and channel is measured alone, with ``data_range`` or the clean frame's max − min; means are returned.

    Raises
    ------
    InputError
        The clean image has another shape.
    """
    with open_image(clean, noisy.axes) as reference:
        check_shape(reference, noisy.shape)
        frames = [Frames(image, dims) for image in (noisy, denoised, reference)]
        measured = [_measure(*triple, data_range) for triple in _triples(*frames)]
    means = {name: sum(one[name] for one in measured) / len(measured) for name in measured[0]}
    events.info(
        "compared_with_clean",
        name=name,
        before=round(means["input_psnr"], 2),
        gaussian=round(means["gaussian_psnr"], 2),
        sigma=round(means["gaussian_sigma"], 2),
        after=round(means["psnr"], 2),
        scale_invariant=round(means["scale_invariant_psnr"], 2),
    )
    return means


def best_gaussian(noisy: Tensor, clean: Tensor, data_range: float | Tensor) -> tuple[float, Tensor]:
    """Return the σ of the Gaussian filter with the highest PSNR, to 0.05 pixels, and the filtered image.

    Parameters
    ----------
    noisy, clean : Tensor
        (Y, X) or (Z, Y, X).
    data_range : float or Tensor
    """

    def quality(sigma: float) -> float:
        return float(psnr(gaussian_filter(noisy, sigma, noisy.ndim), clean, data_range))

    coarse = max(COARSE_SIGMAS, key=quality)
    near = [round(coarse + FINE_STEP * step, 3) for step in range(-4, 5) if coarse + FINE_STEP * step > 0]
    sigma = max(near, key=quality)
    return sigma, gaussian_filter(noisy, sigma, noisy.ndim)


def _triples(noisy: Frames, denoised: Frames, clean: Frames) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    for sample in range(len(noisy)):
        read = [torch.from_numpy(frames.read(sample)).double() for frames in (noisy, denoised, clean)]
        yield from zip(*read, strict=True)


def _measure(noisy: Tensor, denoised: Tensor, clean: Tensor, data_range: float | None) -> dict[str, float]:
    span: float | Tensor = data_range or range_of(clean)
    sigma, smoothed = best_gaussian(noisy, clean, span)
    measured: dict[str, float] = {}
    for label, image in (("", denoised), ("input_", noisy), ("gaussian_", smoothed)):
        measured[f"{label}psnr"] = float(psnr(image, clean, span))
        measured[f"{label}scale_invariant_psnr"] = float(scale_invariant_psnr(image, clean, span))
        measured[f"{label}high_pass_ratio"] = float(high_pass_ratio(image, clean))
        if min(clean.shape[-2:]) >= SSIM_WINDOW:
            measured[f"{label}ssim"] = float(ssim(image, clean, span))
    return {**measured, "gaussian_sigma": sigma}
