"""The audit notices what a user would: noise that did not fall, light that is gone, stars that grew or moved."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from safelight.core.pipeline import Record
from safelight.pipelines.mosaic import audit
from safelight.pipelines.mosaic.audit import (
    check_noise,
    check_seam,
    check_stars,
    evenly_covered,
    measure_part,
    middle_of,
    missed_checks,
)
from safelight.pipelines.mosaic.stars import StarField
from sky import Camera

TOLERANCE = 2.0


def stars(number: int = 40, seed: int = 0) -> StarField:
    generator = np.random.default_rng(seed)
    x, y = generator.uniform(10, 490, (2, number))
    flux = np.sort(generator.uniform(1e3, 1e5, number))[::-1]
    return StarField(x, y, flux, np.full(number, 3.0), np.zeros(number, bool), 500, 500, 1000.0, 20.0)


def passed(stack: StarField, frames: int = 3) -> dict[str, bool]:
    return {check.name: check.passed for check in check_stars("group-01", [stars()] * frames, stack, TOLERANCE)}


def test_a_perfect_stack_passes() -> None:
    assert passed(stars()) == {"flux_conservation": True, "fwhm_growth": True, "astrometric_residual": True}


@pytest.mark.parametrize(
    ("missed", "change"),
    [
        ("flux_conservation", {"flux": 0.95 * stars().flux}),
        ("flux_conservation", {"flux": 1.05 * stars().flux}),
        ("fwhm_growth", {"fwhm": 1.1 * stars().fwhm}),
        ("astrometric_residual", {"x": stars().x + 0.5}),
    ],
)
def test_what_is_wrong_is_named(missed: str, change: dict[str, np.ndarray]) -> None:
    assert [name for name, ok in passed(replace(stars(), **change)).items() if not ok] == [missed]


def test_saturated_stars_do_not_count() -> None:
    full = np.arange(40) < 15
    stack = replace(stars(), saturated=full, flux=np.where(full, 0.3, 1.0) * stars().flux)
    assert all(passed(stack).values())


def test_what_could_not_be_measured_is_no_pass() -> None:
    """No common stars, and a stack without noise: both mean that something is wrong."""
    assert not any(passed(replace(stars(), x=stars().x + 50)).values())
    assert not check_noise("group-01", [20.0, 21.0], 0.0, 4.0).passed


def test_one_frame_s_noise_in_a_stack_of_nine_is_noticed() -> None:
    good, lost = (check_noise("group-01", [20.0] * 9, noise, 9.0) for noise in (7.0, 20.0))
    assert good.passed
    assert not lost.passed
    assert lost.measured == pytest.approx(1)


def test_a_seam_may_have_a_tenth_of_the_noise_on_either_side() -> None:
    assert [check_seam("a / b", step, 20.0).passed for step in (-2.1, -1.9, 1.9, 2.1)] == [False, True, True, False]


def test_missed_checks_of_all_records_are_found() -> None:
    checks = [check_noise("group-01", [20.0], noise, 1.0).as_json() for noise in (20.0, 40.0)]
    records = [Record(details={"checks": [check]}) for check in checks]
    assert missed_checks(records) == [checks[1]]


def test_noise_is_compared_where_as_many_frames_lie_as_usual() -> None:
    frames = np.array([[0, 1, 5, 10, 10, 10, 10, 9]], np.float32)
    assert evenly_covered(frames).tolist() == [[False, False, False, True, True, True, True, True]]


def test_of_a_large_picture_the_middle_is_audited_with_stars_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    camera = Camera()
    height, width = camera.size
    picture = camera.shot(camera.solution(), 0)[0].astype(np.float32)
    whole = measure_part(picture, middle_of(height, width))
    monkeypatch.setattr(audit, "AUDITED_PIXELS", height * width // 2)
    rows, columns = middle_of(height, width)
    assert (rows.stop - rows.start) * (columns.stop - columns.start) == pytest.approx(height * width / 2, rel=0.02)
    part = measure_part(picture[rows, columns], (rows, columns))
    off = np.hypot(part.x[:, None] - whole.x, part.y[:, None] - whole.y).min(axis=1)
    assert 5 <= len(part) < len(whole)
    assert np.median(off) < 0.05
