"""Images as the network sees them: samples of channels of planes or volumes, read lazily."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np

from safelight.core.errors import InputError

Slices = tuple[slice, ...]


class Image(Protocol):
    """An image in any order of axes, of which parts can be read."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Size of each axis."""

    @property
    def axes(self) -> str:
        """One letter of STCZYX per axis."""

    def read(self, slices: Slices) -> np.ndarray:
        """Return a part of the image."""


class ArrayImage:
    """An array as an Image.

    Parameters
    ----------
    array : ndarray
    axes : str
        One letter of STCZYX per axis.
    """

    def __init__(self, array: np.ndarray, axes: str) -> None:
        self._array = array
        self.axes = axes

    @property
    def shape(self) -> tuple[int, ...]:
        """Size of each axis."""
        return self._array.shape

    def read(self, slices: Slices) -> np.ndarray:
        """Return a part of the array, as a view."""
        return self._array[slices]


class Frames:
    """An image seen as (sample, channel, [Z,] Y, X): what the network takes, read lazily.

    Axes S and T, and Z where the network is two-dimensional, together number the samples.

    Parameters
    ----------
    image : Image
    dims : int
        Spatial dimensions of the network, 2 or 3.

    Raises
    ------
    InputError
        The axes lack Y and X (or Z, for three dimensions), repeat or are unknown.
    """

    def __init__(self, image: Image, dims: int) -> None:
        spatial = "ZYX"[-dims:]
        _check_axes(image, spatial)
        self._image = image
        self._spatial = spatial
        self._sample_axes = "".join(axis for axis in "STZ" if axis in image.axes and axis not in spatial)
        sizes = dict(zip(image.axes, image.shape, strict=True))
        self._sample_shape = tuple(sizes[axis] for axis in self._sample_axes)
        self.shape = (
            math.prod(self._sample_shape),
            sizes.get("C", 1),
            *(sizes[axis] for axis in spatial),
        )

    @property
    def spatial(self) -> tuple[int, ...]:
        """Size of one frame, ([Z,] Y, X)."""
        return self.shape[2:]

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self.shape[1]

    def __len__(self) -> int:
        return self.shape[0]

    def locate(self, sample: int, region: Slices) -> Slices:
        """Return the slices, in the image's own order of axes, of a spatial region of one sample."""
        numbers = np.unravel_index(sample, self._sample_shape) if self._sample_axes else ()
        where: dict[str, slice] = dict(zip(self._spatial, region, strict=True))
        where["C"] = slice(0, self.channels)
        where |= {axis: slice(int(n), int(n) + 1) for axis, n in zip(self._sample_axes, numbers, strict=True)}
        return tuple(where[axis] for axis in self._image.axes)

    def read(self, sample: int, region: Slices | None = None) -> np.ndarray:
        """Return a spatial region of one sample as (C, [Z,] Y, X) float32."""
        if region is None:
            region = tuple(slice(0, size) for size in self.spatial)
        part = np.asarray(self._image.read(self.locate(sample, region)))
        return np.ascontiguousarray(self._to_frame(part), dtype=np.float32)

    def _to_frame(self, part: np.ndarray) -> np.ndarray:
        axes = self._image.axes
        kept = "".join(axis for axis in axes if axis == "C" or axis in self._spatial)
        part = part.reshape([size for axis, size in zip(axes, part.shape, strict=True) if axis in kept])
        if "C" not in kept:
            part, kept = part[None], "C" + kept
        return part.transpose([kept.index(axis) for axis in "C" + self._spatial])

    def from_frame(self, frame: np.ndarray) -> np.ndarray:
        """Return a (C, [Z,] Y, X) region of one sample in the image's own order of axes."""
        order = [axis for axis in self._image.axes if axis == "C" or axis in self._spatial]
        own = "C" + self._spatial
        if "C" not in order:
            frame, own = frame[0], self._spatial
        turned = frame.transpose([own.index(axis) for axis in order])
        sizes = dict(zip(order, turned.shape, strict=True))
        return turned.reshape([sizes.get(axis, 1) for axis in self._image.axes])


def _check_axes(image: Image, spatial: str) -> None:
    axes = image.axes
    if set(axes) - set("STCZYX") or len(set(axes)) != len(axes) or len(axes) != len(image.shape):
        raise InputError(
            f"the axes {axes!r} do not describe an image of shape {tuple(image.shape)}",
            expected="one different letter of STCZYX per axis",
            remedy="say what the axes are with --axes",
        )
    if not set(spatial) <= set(axes):
        raise InputError(
            f"the image has the axes {axes}, the network needs {spatial}",
            remedy="say what the axes are with --axes, or use a model that was trained with --dimensions 2",
        )
