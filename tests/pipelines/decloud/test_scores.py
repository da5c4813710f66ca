"""Scores: hand-made cases, regions, bands, and tables of means."""

from __future__ import annotations

import math

import pytest
import torch

from safelight.pipelines.decloud.scores import score, score_bands, spectral_angle
from safelight.pipelines.decloud.tables import by_band, by_cover, by_measure


def test_a_constant_error_has_the_scores_one_computes_by_hand() -> None:
    reference = torch.full((13, 16, 16), 0.4)
    found = score(reference + 0.1, reference, torch.zeros(16, 16))
    assert found["psnr"] == pytest.approx(20)
    assert found["mae"] == pytest.approx(0.1)
    assert found["rmse"] == pytest.approx(0.1)
    assert found["sam"] == pytest.approx(0, abs=1e-4)
    assert found["psnr_clear"] == found["psnr"]
    assert "psnr_cloudy" not in found


def test_equal_images_get_the_best_scores() -> None:
    image = torch.rand((13, 20, 24), generator=torch.Generator().manual_seed(0))
    found = score(image, image, torch.ones(20, 24))
    assert (found["psnr"], found["mae"], found["sam"]) == (100.0, 0.0, 0.0)
    assert found["ssim"] == pytest.approx(1)
    assert found["ssim_centred"] == pytest.approx(1)


def test_regions_count_cloud_and_shadow_apart_from_the_clear() -> None:
    reference = torch.full((13, 8, 8), 0.5)
    prediction, mask = reference.clone(), torch.zeros(8, 8, dtype=torch.int8)
    mask[0], mask[1] = 1, -1
    prediction[:, :2] += 0.1
    prediction[:, 2:] += 0.01
    found = score(prediction, reference, mask)
    assert found["psnr_cloudy"] == pytest.approx(20, abs=1e-4)
    assert found["psnr_clear"] == pytest.approx(40, abs=1e-3)
    assert found["mae"] == pytest.approx((2 * 0.1 + 6 * 0.01) / 8)


def test_the_spectral_angle_is_in_degrees_and_black_equals_black() -> None:
    a = torch.zeros((13, 3), dtype=torch.float64)
    b = a.clone()
    a[0, :2], b[0, 0], b[1, 1] = 1, 3, 2
    assert spectral_angle(a, b) == pytest.approx(90 / 3)
    b[1, 0] = 3
    assert spectral_angle(a[:, :1], b[:, :1]) == pytest.approx(45)


def test_bands_are_scored_one_by_one() -> None:
    reference = torch.full((13, 8, 8), 0.5)
    prediction = reference.clone()
    prediction[10] += 0.1
    found = score_bands(prediction, reference)
    assert found["B10"]["psnr"] == pytest.approx(20, abs=1e-4)
    assert found["B8A"]["psnr"] == 100.0


def test_tables_are_means_over_the_images_that_have_the_measure() -> None:
    metrics = [
        {"psnr": 20.0, "psnr_cloudy": 10.0, "identity_psnr": 15.0, "identity_psnr_cloudy": 5.0},
        {"psnr": 30.0, "identity_psnr": 25.0},
        {"psnr": 40.0, "identity_psnr": 35.0},
    ]
    assert by_measure(metrics) == [
        {"name": "psnr", "network": 30.0, "identity": 25.0},
        {"name": "psnr_cloudy", "network": 10.0, "identity": 5.0},
    ]
    rows = by_cover(metrics, [1.0, 0.2, 0.1])
    assert [(row["low"], row["high"], row["images"], row["measures"]["psnr"]["network"]) for row in rows] == [
        (0.0, 0.2, 1, 40.0),
        (0.2, 0.4, 1, 30.0),
        (0.8, 1.0, 1, 20.0),
    ]


def test_the_table_of_bands() -> None:
    def detail(psnr: float) -> dict[str, object]:
        bands = score_bands(torch.full((13, 4, 4), 0.5 + psnr), torch.full((13, 4, 4), 0.5))
        return {"bands": bands, "identity_bands": bands}

    row = by_band([detail(0.1), detail(0.3)])[3]
    assert row["name"] == "B4"
    assert row["network"]["mae"] == pytest.approx(0.2)
    assert math.isclose(row["network"]["mae"], row["identity"]["mae"])
    assert by_band([]) == []
