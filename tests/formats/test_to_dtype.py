"""A change of pixel type rounds and clips; it never truncates or wraps, and says what it altered."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from safelight.formats.microscopy import to_dtype

WHOLE = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"]
REAL = ["float16", "float32", "float64"]


@given(
    array=st.sampled_from(REAL).flatmap(lambda dtype: hnp.arrays(dtype, st.integers(0, 20))),
    target=st.sampled_from(WHOLE),
)
def test_real_to_whole_is_the_nearest_value_of_the_range(array: np.ndarray, target: str) -> None:
    result, conversion = to_dtype(array, target)

    limits = np.iinfo(target)
    expected, rounded, clipped = [], 0, 0
    for value in array.astype(np.float64).tolist():
        if np.isnan(value):
            expected.append(0)
        elif np.isinf(value) or not limits.min <= round(Fraction(value)) <= limits.max:
            expected.append(limits.max if value > 0 else limits.min)
            clipped += 1
        else:
            expected.append(round(Fraction(value)))
            rounded += value != round(Fraction(value))
    assert result.dtype == target
    assert result.tolist() == expected
    assert (conversion.rounded, conversion.clipped) == (rounded, clipped)
    assert conversion.not_a_number == np.isnan(array).sum()


@given(
    array=st.sampled_from(WHOLE).flatmap(lambda dtype: hnp.arrays(dtype, st.integers(0, 20))),
    target=st.sampled_from(WHOLE),
)
def test_whole_to_whole_clips(array: np.ndarray, target: str) -> None:
    result, conversion = to_dtype(array, target)

    limits = np.iinfo(target)
    assert result.dtype == target
    assert result.tolist() == [min(max(value, limits.min), limits.max) for value in array.tolist()]
    assert conversion.clipped == sum(a != b for a, b in zip(result.tolist(), array.tolist(), strict=True))


def test_float_in_zero_to_one_is_rounded_not_truncated() -> None:
    result, _ = to_dtype(np.array([0.2, 0.5, 0.7, 1.5]), np.uint16)
    assert result.tolist() == [0, 0, 1, 2]


def test_above_65535_is_clipped_not_wrapped() -> None:
    result, conversion = to_dtype(np.array([65535.0, 65536.0, 70000.0, -3.0], np.float32), np.uint16)
    assert result.tolist() == [65535, 65535, 65535, 0]
    assert conversion.clipped == 3


def test_one_nan_does_not_spoil_the_rest() -> None:
    result, conversion = to_dtype(np.array([1.0, np.nan, 3.0]), np.uint8)
    assert result.tolist() == [1, 0, 3]
    assert conversion.not_a_number == 1


def test_real_to_real_keeps_nan_and_infinity_and_stays_finite() -> None:
    result, conversion = to_dtype(np.array([np.nan, np.inf, 1e300, -1e300, 0.1]), np.float32)
    largest = np.finfo(np.float32).max
    np.testing.assert_array_equal(result, np.array([np.nan, np.inf, largest, -largest, 0.1], np.float32))
    assert conversion.clipped == 2


@pytest.mark.parametrize("dtype", WHOLE + REAL)
def test_an_image_that_fits_says_nothing(dtype: str) -> None:
    array = np.array([0, 1, 100], dtype)
    for target in WHOLE + REAL:
        result, conversion = to_dtype(array, target)
        assert result.tolist() == [0, 1, 100]
        assert conversion.notices("a.tif") == ()
