"""Noise is told from structure, whatever the noise; what is wrong with a result is found and named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from safelight.core.messages import LANGUAGES, translate
from safelight.formats.microscopy import open_image
from safelight.kernels.gaussian import gaussian_filter
from safelight.pipelines.denoise.diagnostics import (
    LARGEST_LEAK,
    Diagnostics,
    diagnose,
    find_structure,
    measure_checkerboard,
    measure_leak,
)
from safelight.pipelines.denoise.masking import MaskingSettings
from safelight.pipelines.denoise.noise_model import fit_noise, noise_correlation
from safelight.pipelines.denoise.structure import format_structure

SIZE = 320


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cells(*shape: int) -> Tensor:
    """Blobs of a few pixels, some 20 to 400 grey levels, as optics blur them."""
    blobs = gaussian_filter(random(*shape, seed=7), 2.0, dims=len(shape))
    return 20 + 120 * (blobs / blobs.std()).clamp(min=0)


def photons(clean: Tensor, gain: float) -> Tensor:
    """Photon noise with ``gain`` grey levels per photon."""
    return gain * torch.poisson(clean / gain, generator=torch.Generator().manual_seed(3))


def noisy_versions(clean: Tensor) -> dict[str, Tensor]:
    noise = random(*clean.shape[:-1], clean.shape[-1] + 1, seed=1)
    return {
        "gaussian": clean + 20 * noise[..., 1:],
        "photons": photons(clean, 5.0),
        "few photons": photons(clean, 60.0),
        "correlated": clean + 20 * (noise[..., 1:] + 0.3 * noise[..., :-1]),
    }


@pytest.mark.parametrize("noise", ["gaussian", "photons", "few photons", "correlated"])
@pytest.mark.parametrize("shape", [(SIZE, SIZE), (5, 130, 190)])
def test_a_perfect_result_leaves_no_structure(noise: str, shape: tuple[int, ...]) -> None:
    clean = cells(*shape)
    diagnostics = diagnose(noisy_versions(clean)[noise], clean)
    assert not diagnostics.structure.found
    assert diagnostics.notices("cells")[0].key == "residual_is_noise"


@pytest.mark.parametrize("noise", ["gaussian", "photons", "few photons", "correlated"])
@pytest.mark.parametrize("shape", [(SIZE, SIZE), (5, 130, 190)])
def test_smoothed_away_structure_is_found(noise: str, shape: tuple[int, ...]) -> None:
    clean = cells(*shape)
    noisy = noisy_versions(clean)[noise]
    for result in (gaussian_filter(clean, 2.5), gaussian_filter(noisy, 4.0)):
        diagnostics = diagnose(noisy, result)
        assert diagnostics.structure.found
        assert diagnostics.notices("cells")[0].key == "residual_has_structure"


def test_one_lost_object_is_found_where_it_was() -> None:
    clean = torch.full((SIZE, SIZE), 100.0, dtype=torch.float64)
    result = clean.clone()
    clean[200:212, 70:82] += 12
    test = find_structure(clean + 10 * random(SIZE, SIZE) - result)
    assert test.found
    assert test.structured == 1
    assert test.places[3][1]


def test_lines_are_found_though_their_sides_cancel() -> None:
    """A fine line that was smoothed away is positive along it and negative across."""
    lines = torch.zeros((SIZE, SIZE), dtype=torch.float64)
    lines[:, 5::20] = 200.0
    clean = gaussian_filter(lines, 0.8)
    noisy = clean + 20 * random(SIZE, SIZE)
    assert diagnose(noisy, gaussian_filter(clean, 1.5)).structure.found


def test_a_bright_hot_pixel_is_no_structure() -> None:
    residual = random(128, 128)
    residual[64, 64] = 1000
    assert not find_structure(residual).found


@pytest.mark.parametrize("case", ["constant", "equal", "gaps", "tiny", "one row", "one pixel"])
def test_odd_images_give_an_answer_in_json(case: str) -> None:
    noisy = 100 + random(*{"tiny": (5, 7), "one row": (1, 40), "one pixel": (1, 1)}.get(case, (64, 64)))
    noisy = torch.full_like(noisy, 7.0) if case == "constant" else noisy
    if case == "gaps":
        noisy[3:9] = torch.nan
    result = noisy if case == "equal" else torch.full_like(noisy, 100.0)
    diagnostics = diagnose(noisy, result)
    assert not diagnostics.structure.found
    text = json.dumps(diagnostics.as_json(), allow_nan=False)
    assert json.loads(text)["structure"]["found"] is False


def test_white_noise_is_white_and_correlated_noise_is_not() -> None:
    clean = cells(SIZE, SIZE)
    versions = noisy_versions(clean)
    assert diagnose(versions["gaussian"], clean).white
    assert diagnose(versions["photons"], clean).white
    correlated = diagnose(versions["correlated"], clean)
    assert not correlated.white
    assert correlated.autocorrelation["X"][0] == pytest.approx(0.3 / 1.09, abs=0.02)
    assert abs(correlated.autocorrelation["Y"][0]) < 0.02


def test_volumes_have_a_correlation_along_z() -> None:
    diagnostics = diagnose(random(6, 64, 64), torch.zeros(6, 64, 64, dtype=torch.float64))
    assert {axis: len(values) for axis, values in diagnostics.autocorrelation.items()} == {"X": 10, "Y": 10, "Z": 5}


def test_float32_gives_the_same_verdict() -> None:
    clean = cells(SIZE, SIZE)
    noisy = photons(clean, 5.0)
    single, double = diagnose(noisy.float(), clean.float()), diagnose(noisy, clean)
    assert single.structure.share == pytest.approx(double.structure.share, abs=1e-4)
    assert single.deviation == pytest.approx(double.deviation, rel=1e-5)


@pytest.mark.parametrize(("gain", "read"), [(1.0, 0.0), (5.0, 0.0), (2.0, 12.0)])
def test_gain_and_read_noise_are_fitted(gain: float, read: float) -> None:
    clean = cells(SIZE, SIZE)
    noisy = photons(clean, gain) + read * random(SIZE, SIZE)
    fit = fit_noise(noisy, clean)
    assert fit is not None
    assert fit.gain == pytest.approx(gain, rel=0.05)
    assert fit.intercept == pytest.approx(read**2, abs=0.1 * read**2 + 4 * gain)


def test_saturated_levels_are_left_out_of_the_fit() -> None:
    clean = 3 * cells(SIZE, SIZE)
    noisy = photons(clean, 2.0).clamp(max=255)
    fit = fit_noise(noisy, clean.clamp(max=255))
    assert fit is not None
    assert max(fit.levels) < 255
    assert fit.gain == pytest.approx(2.0, rel=0.1)


def test_noise_correlation_is_measured_beside_structure() -> None:
    versions = noisy_versions(cells(SIZE, SIZE))
    measured = noise_correlation(versions["correlated"])
    assert measured is not None
    assert measured.horizontal[0] == pytest.approx(0.3 / 1.09, abs=0.03)
    assert abs(measured.vertical[0]) < 0.03
    assert format_structure(measured.suggested_structure()) == "111"
    independent = noise_correlation(versions["gaussian"])
    assert independent is not None
    assert independent.suggested_structure() == ()


@pytest.mark.parametrize(("axes", "expected"), [((-2,), "1/1/1"), ((-1, -2), "010/111/010")])
def test_structural_masks_follow_the_correlation(axes: tuple[int, ...], expected: str) -> None:
    noise = random(SIZE, SIZE)
    correlated = noise + sum(0.3 * noise.roll(1, axis) for axis in axes)
    measured = noise_correlation(correlated)
    assert measured is not None
    assert format_structure(measured.suggested_structure()) == expected


def test_real_noise_correlations(shared: Path) -> None:
    """W2S: independent pixels. FMD mice: 0.042 along the scan lines, by the average of 50 frames."""
    measured = {}
    for name in ("w2s/input_avg1_001_0.png", "fmd/mice_raw.tif"):
        with open_image(shared / "data/micro" / name) as image:
            pixels = image.read((slice(None),) * len(image.shape))
        correlation = noise_correlation(torch.from_numpy(np.squeeze(pixels).astype(np.float64)))
        assert correlation is not None
        measured[name] = correlation
    w2s, mice = measured.values()
    assert w2s.horizontal[0] == pytest.approx(0, abs=0.015)
    assert w2s.vertical[0] == pytest.approx(0, abs=0.015)
    assert mice.horizontal[0] == pytest.approx(0.042, abs=0.012)
    assert mice.vertical[0] == pytest.approx(0, abs=0.015)


def test_real_images_are_judged_as_they_should_be(shared: Path) -> None:
    """One FMD frame against its average of 50: noise only. Against the average smoothed: structure."""
    planes = []
    for name in ("mice_raw", "mice_avg50"):
        with open_image(shared / f"data/micro/fmd/{name}.tif") as image:
            pixels = image.read((slice(None),) * len(image.shape))
        planes.append(torch.from_numpy(np.squeeze(pixels).astype(np.float64)))
    noisy, clean = planes
    assert not diagnose(noisy, clean).structure.found
    assert diagnose(noisy, gaussian_filter(clean, 2.0)).structure.found


def test_a_checkerboard_is_found_where_it_can_be_seen() -> None:
    clean = cells(SIZE, SIZE)
    noisy = noisy_versions(clean)["gaussian"]
    board = (-1.0) ** torch.arange(SIZE)[:, None] * (-1.0) ** torch.arange(SIZE)
    smooth = gaussian_filter(clean, 1.0)
    assert not diagnose(noisy, clean).has_checkerboard
    assert diagnose(noisy, smooth + 5 * board).has_checkerboard
    faint = diagnose(noisy, smooth + 0.5 * board)
    assert faint.checkerboard is not None
    assert faint.checkerboard.ratio > 1.5
    assert not faint.has_checkerboard


def test_white_noise_is_no_checkerboard() -> None:
    measured = measure_checkerboard(3 * random(SIZE, SIZE))
    assert measured is not None
    assert measured.ratio == pytest.approx(1, abs=0.1)
    assert measured.strength == pytest.approx(3 * 0.19**0.5, rel=0.1)  # 19 % of all frequencies


@pytest.mark.parametrize(
    "settings",
    [
        MaskingSettings(),
        MaskingSettings(replacement="uniform", radius=5),
        MaskingSettings(replacement="mean", structure=((1, 1, 1),)),
    ],
)
@pytest.mark.parametrize("dims", [2, 3])
def test_blind_spots_do_not_leak(settings: MaskingSettings, dims: int) -> None:
    assert abs(measure_leak(settings, dims)) <= LARGEST_LEAK


def test_a_leak_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The defect of an unfold that includes the centre: the median correlates with the pixel that it hides."""
    from safelight.pipelines.denoise import masking

    real = masking.Masker._window.func  # type: ignore[attr-defined]
    leaky = property(lambda self: torch.cat((real(self), torch.zeros(1, 2, dtype=torch.int64))))
    monkeypatch.setattr(masking.Masker, "_window", leaky)
    measure_leak.cache_clear()
    leak = measure_leak(MaskingSettings(radius=1), 2)
    measure_leak.cache_clear()
    assert leak == pytest.approx(0.275, abs=0.03)
    clean = cells(SIZE, SIZE)
    found = diagnose(noisy_versions(clean)["gaussian"], clean, leak)
    assert "blind_spots_leak" in [event.key for event in found.notices("cells")]
    assert found.as_json()["leaks"] is True


@pytest.mark.parametrize("language", LANGUAGES)
def test_notices_are_sentences(language: str) -> None:
    clean = cells(SIZE, SIZE)
    noisy = noisy_versions(clean)["correlated"]
    board = 300 * (-1.0) ** torch.arange(SIZE)[:, None] * (-1.0) ** torch.arange(SIZE)
    notices = diagnose(noisy, gaussian_filter(clean, 3.0) + board).notices("cells")
    assert [event.key for event in notices] == ["residual_has_structure", "checkerboard_found", "noise_is_correlated"]
    for event in notices:
        sentence = translate(event, language)
        assert sentence.startswith("cells")
        assert "{" not in sentence


def test_json_has_everything_that_was_measured() -> None:
    clean = cells(SIZE, SIZE)
    values = diagnose(photons(clean, 5.0), clean).as_json()
    assert set(Diagnostics.__dataclass_fields__) <= set(values)
    assert values["white"] is True
    assert values["suggested_structure"] == []
