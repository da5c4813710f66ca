"""How near a prediction is to the cloud-free image, by the measures of the literature."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from safelight.kernels.gaussian import weigh_neighbours
from safelight.kernels.metrics import SSIM_SIGMA, SSIM_WINDOW, psnr
from safelight.pipelines.decloud.radiometry import BANDS

PSNR_OF_EQUALS = 100.0
ORIGINAL_CENTRE = SSIM_WINDOW / 2
"""Where GLF-CR's code has the middle of SSIM's window; that of 11 pixels is at 5."""
REGIONS = ("cloudy", "clear")

_C1, _C2 = 0.01**2, 0.03**2


def score(prediction: Tensor, reference: Tensor, mask: Tensor) -> dict[str, float]:
    """Return every measure of one image.

    Parameters
    ----------
    prediction, reference : Tensor
        (13, Y, X), reflectances of 0 to 1.
    mask : Tensor
        (Y, X): 0 where the sky is clear, else cloud or shadow.

    Returns
    -------
    dict
        ``psnr`` and ``ssim`` as GLF-CR's code defines them; ``ssim_centred`` with the window in the middle; ``mae``,
        ``rmse``, ``sam`` (degrees); and all but SSIM again with the suffix of each region that the image has.
    """
    a, b = prediction.double(), reference.double()
    whole = _pixelwise(a.flatten(1), b.flatten(1))
    found = {
        "psnr": whole["psnr"],
        "ssim": structural_similarity(a, b, ORIGINAL_CENTRE),
        "ssim_centred": structural_similarity(a, b, SSIM_WINDOW // 2),
        **whole,
    }
    for region, inside in zip(REGIONS, (mask != 0, mask == 0), strict=True):
        if bool(inside.any()):
            of_region = _pixelwise(a[:, inside], b[:, inside])
            found |= {f"{name}_{region}": value for name, value in of_region.items()}
    return found


def score_bands(prediction: Tensor, reference: Tensor) -> dict[str, dict[str, float]]:
    """Return PSNR, MAE and RMSE of each band of (13, Y, X)."""
    pairs = zip(BANDS, prediction.double(), reference.double(), strict=True)
    return {name: _errors(a, b) for name, a, b in pairs}


def structural_similarity(prediction: Tensor, reference: Tensor, centre: float) -> float:
    """Return the mean SSIM of planes (…, Y, X) of 0 to 1, zero beyond the edge, as GLF-CR's code defines it.

    Parameters
    ----------
    prediction, reference : Tensor
    centre : float
        Of the Gaussian window, counted from its first of 11 taps.
    """
    axis = torch.arange(SSIM_WINDOW, dtype=torch.float64) - centre
    window = torch.exp(-axis.square() / (2 * SSIM_SIGMA**2))
    weights = (window / window.sum()).tolist()
    a, b = prediction, reference
    padded = functional.pad(torch.stack((a, b, a * a, b * b, a * b)), (SSIM_WINDOW // 2,) * 4)
    mean_a, mean_b, mean_aa, mean_bb, mean_ab = weigh_neighbours(weigh_neighbours(padded, weights, -2), weights, -1)
    luminance = (2 * mean_a * mean_b + _C1) / (mean_a.square() + mean_b.square() + _C1)
    variances = mean_aa - mean_a.square() + mean_bb - mean_b.square()
    similarity = luminance * (2 * (mean_ab - mean_a * mean_b) + _C2) / (variances + _C2)
    return float(similarity.mean())


def spectral_angle(prediction: Tensor, reference: Tensor) -> float:
    """Return the mean over pixels of the angle between spectra (13, pixels), in degrees; 0 between two black ones."""
    lengths = prediction.norm(dim=0) * reference.norm(dim=0)
    cosine = (prediction * reference).sum(0) / lengths.clamp(min=torch.finfo(lengths.dtype).tiny)
    black = (prediction == reference).all(0)
    angles = torch.rad2deg(torch.arccos(cosine.clamp(-1, 1))).masked_fill(black, 0.0)
    return angles.mean().item()


def _pixelwise(a: Tensor, b: Tensor) -> dict[str, float]:
    return {**_errors(a, b), "sam": spectral_angle(a, b)}


def _errors(a: Tensor, b: Tensor) -> dict[str, float]:
    decibels = psnr(a, b, 1.0).item()
    return {
        "psnr": decibels if math.isfinite(decibels) else PSNR_OF_EQUALS,
        "mae": (a - b).abs().mean().item(),
        "rmse": (a - b).square().mean().sqrt().item(),
    }
