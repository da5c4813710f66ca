"""The layout of overlapping tiles: which region each tile reads, and which part of it is its own.

Every tile reads a region of the same size whose start is aligned, so that a network that halves the resolution
sees the same grid in every tile, and owns a core at least a halo away from the region's inner edges. The cores
cover the image once. Regions may pass the image's far edge, up to the next aligned size: ``reflect`` fills them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Span:
    """One tile along one axis: it reads ``start`` to ``stop`` and owns ``core_start`` to ``core_stop``."""

    start: int
    stop: int
    core_start: int
    core_stop: int

    @property
    def read(self) -> slice:
        """What is read; may pass the image's far edge."""
        return slice(self.start, self.stop)

    @property
    def core(self) -> slice:
        """What the tile owns, in the image."""
        return slice(self.core_start, self.core_stop)

    @property
    def core_in_tile(self) -> slice:
        """What the tile owns, counted from its own start."""
        return slice(self.core_start - self.start, self.core_stop - self.start)


def aligned(size: int, alignment: int) -> int:
    """Return the smallest multiple of ``alignment`` that is at least ``size``."""
    return -(-size // alignment) * alignment


def spans(size: int, tile: int, halo: int, alignment: int = 1) -> tuple[Span, ...]:
    """Cover one axis with equal tiles.

    Parameters
    ----------
    size : int
        Length of the axis.
    tile : int
        Length of a tile; rounded up to a multiple of ``alignment``.
    halo : int
        How far, at least, a core stays away from its tile's inner edges.
    alignment : int
        Every start is a multiple of it.

    Raises
    ------
    ValueError
        A tile has no core: it must be longer than two halos.
    """
    whole, tile = aligned(size, alignment), aligned(tile, alignment)
    if tile >= whole:
        return (Span(0, whole, 0, size),)
    stride = (tile - 2 * halo) // alignment * alignment
    if stride <= 0:
        raise ValueError(f"a tile of {tile} has no core between two halos of {halo}")
    starts = [*range(0, whole - tile, stride), whole - tile]
    edges = [0, *(_seam(left + tile, right, size) for left, right in pairwise(starts)), size]
    return tuple(Span(start, start + tile, *core) for start, core in zip(starts, pairwise(edges), strict=True))


def _seam(left_stop: int, right_start: int, size: int) -> int:
    """Return where one core ends and the next begins: in the middle of the overlap."""
    return min((left_stop + right_start) // 2, size)


@dataclass(frozen=True)
class Layout:
    """The tiles of an image, numbered in the order of its axes.

    Parameters
    ----------
    axes : tuple of tuple of Span
        The spans along each axis.
    """

    axes: tuple[tuple[Span, ...], ...]

    @classmethod
    def of(cls, shape: Sequence[int], tile: Sequence[int], halo: int, alignment: int = 1) -> Layout:
        """Cover a shape with tiles, see ``spans``."""
        return cls(tuple(spans(size, side, halo, alignment) for size, side in zip(shape, tile, strict=True)))

    def __len__(self) -> int:
        return math.prod(len(axis) for axis in self.axes)

    @property
    def tile(self) -> tuple[int, ...]:
        """Size of every tile."""
        return tuple(axis[0].stop - axis[0].start for axis in self.axes)

    def numbers(self, number: int) -> tuple[int, ...]:
        """Return the tile's number along each axis."""
        found: list[int] = []
        for axis in reversed(self.axes):
            found.insert(0, number % len(axis))
            number //= len(axis)
        return tuple(found)

    def __getitem__(self, number: int) -> tuple[Span, ...]:
        """Return one tile: a span per axis."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        return tuple(axis[n] for axis, n in zip(self.axes, self.numbers(number), strict=True))


def reflect(start: int, stop: int, size: int) -> list[int]:
    """Return the positions within ``size`` that stand for ``start`` to ``stop``, mirrored at the edges.

    The edge itself is not repeated, as in ``numpy.pad(mode="reflect")``; any size works, also 1.
    """
    period = max(2 * (size - 1), 1)
    return [min(x % period, period - x % period) if size > 1 else 0 for x in range(start, stop)]
