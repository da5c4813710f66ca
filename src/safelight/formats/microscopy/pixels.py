"""Pixel types and raw regions: conversion that never wraps, and writing parts of a large array to a file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from safelight.core.events import Event
from safelight.formats.microscopy.image import Slices


@dataclass(frozen=True)
class Conversion:
    """How many pixels a change of type altered; conversions of the parts of an image add up.

    Parameters
    ----------
    dtype : str
        The new type.
    rounded : int
        Pixels whose fraction was rounded away.
    clipped : int
        Pixels outside the type's range, which got its end (infinities too).
    not_a_number : int
        NaN pixels, which became 0.
    """

    dtype: str
    rounded: int = 0
    clipped: int = 0
    not_a_number: int = 0

    def __add__(self, other: Conversion) -> Conversion:
        return Conversion(
            self.dtype,
            self.rounded + other.rounded,
            self.clipped + other.clipped,
            self.not_a_number + other.not_a_number,
        )

    def notices(self, file: str) -> tuple[Event, ...]:
        """Return the events that say what the conversion altered, if anything."""
        counts = {"rounded": self.rounded, "clipped": self.clipped, "not_a_number": self.not_a_number}
        if not any(counts.values()):
            return ()
        return (Event("pixels_converted", data={"file": file, "dtype": self.dtype, **counts}),)


def to_dtype(array: np.ndarray, dtype: np.dtype[Any] | type | str) -> tuple[np.ndarray, Conversion]:
    """Return an array in another type of real number, rounded to the nearest and clipped to its range.

    Ties round to even. For whole numbers NaN becomes 0 and an infinity the end of the range; for floating point both
    stay, and a finite number beyond the range becomes the largest finite one.

    Parameters
    ----------
    array : ndarray
        Whole or real numbers.
    dtype : dtype
        Whole or real numbers.

    Returns
    -------
    array : ndarray
        Same shape.
    conversion : Conversion
        How many pixels were altered.
    """
    target = np.dtype(dtype)
    if array.dtype == target:
        return array, Conversion(target.name)
    if target.kind == "f":
        return _to_float(array, target)
    if array.dtype.kind == "f":
        return _float_to_whole(array, target)
    return _whole_to_whole(array, target)


def _to_float(array: np.ndarray, target: np.dtype[Any]) -> tuple[np.ndarray, Conversion]:
    largest = np.finfo(target).max
    with np.errstate(over="ignore"):
        result = array.astype(target)
    beyond = np.isinf(result) & np.isfinite(array)
    result[beyond] = np.copysign(largest, array[beyond]).astype(target)
    return result, Conversion(target.name, clipped=int(beyond.sum()))


def _float_to_whole(array: np.ndarray, target: np.dtype[Any]) -> tuple[np.ndarray, Conversion]:
    low, high = _range(target)
    if array.dtype.itemsize < 4:  # float16 cannot hold the ends of the range
        array = array.astype(np.float32)
    nan = np.isnan(array)
    rounded = np.rint(array)
    # float(high) may be high + 1 (2**31 - 1 in float32, 2**63 - 1 in any float): casting it would wrap.
    top = array.dtype.type(high)
    above = rounded > top if int(top) <= high else rounded >= top
    below = rounded < array.dtype.type(low)
    inside = ~(nan | above | below)
    result = np.zeros(array.shape, target)
    np.copyto(result, np.where(inside, rounded, 0).astype(target), where=inside)
    result[above] = high
    result[below] = low
    altered = int(np.count_nonzero((rounded != array) & inside))
    clipped = int(np.count_nonzero(above | below))
    return result, Conversion(target.name, altered, clipped, int(np.count_nonzero(nan)))


def _whole_to_whole(array: np.ndarray, target: np.dtype[Any]) -> tuple[np.ndarray, Conversion]:
    (low, high), (own_low, own_high) = _range(target), _range(array.dtype)
    fitting = np.clip(array, max(low, own_low), min(high, own_high))
    clipped = int(np.count_nonzero(fitting != array))
    return fitting.astype(target), Conversion(target.name, clipped=clipped)


def _range(dtype: np.dtype[Any]) -> tuple[int, int]:
    if dtype.kind == "b":
        return 0, 1
    limits = np.iinfo(dtype)
    return int(limits.min), int(limits.max)


class RawArray:
    """An array of known place in a file, written by regions.

    A memory map would do the same until the disk is full: then it kills the process instead of raising OSError.

    Parameters
    ----------
    stream : binary file
        Open for writing, and long enough already.
    offset : int
        Where the first pixel is, in bytes.
    shape : tuple of int
        In C order.
    dtype : numpy.dtype
        With the file's byte order.
    """

    def __init__(self, stream: IO[bytes], offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._stream = stream
        self._offset = offset
        self._shape = shape
        self._dtype = dtype

    def __setitem__(self, region: Slices, array: np.ndarray) -> None:
        if array.size == 0:
            return
        array = np.ascontiguousarray(array, dtype=self._dtype)
        split = self._first_axis_of_runs(region)
        starts = [part.start for part in region]
        for index in np.ndindex(array.shape[:split]):
            corner = [start + step for start, step in zip(starts, index, strict=False)] + starts[split:]
            position = int(np.ravel_multi_index(corner, self._shape)) * self._dtype.itemsize
            self._stream.seek(self._offset + position)
            self._stream.write(array[index].data)

    def _first_axis_of_runs(self, region: Slices) -> int:
        """Return the axis from which on the region lies in one piece in the file."""
        split = len(region) - 1
        while split > 0 and region[split] == slice(0, self._shape[split]):
            split -= 1
        return split
