"""Training patches: drawn at random, gathered and augmented where the network is, without waiting for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor

from safelight.core.errors import InputError
from safelight.pipelines.denoise.frames import Frames
from safelight.pipelines.denoise.model import Normalisation

MOST_RING_BYTES = 2**30
"""More would only take longer to fill: it is some ten thousand patches."""
_READ_BYTES = 2**26
"""Frames are read in blocks of at most about this size, so that reading takes little beside the pool itself."""
_VALUES_AT_ONCE = 2**20


@dataclass
class Moments:
    """Mean and variance per channel of all finite values seen, merged exactly in float64 (Chan et al. 1979)."""

    channels: int
    count: np.ndarray = field(init=False)
    mean: np.ndarray = field(init=False)
    squares: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.count, self.mean, self.squares = (np.zeros(self.channels) for _ in range(3))

    def add(self, frame: np.ndarray) -> None:
        """Take a (C, …) frame into account."""
        for channel, plane in enumerate(frame):
            flat = plane.reshape(-1)
            for start in range(0, flat.size, _VALUES_AT_ONCE):
                self._add(channel, flat[start : start + _VALUES_AT_ONCE])

    def _add(self, channel: int, part: np.ndarray) -> None:
        values = part[np.isfinite(part)].astype(np.float64)
        if not values.size:
            return
        mean, before = values.mean(), self.count[channel]
        after = before + values.size
        shift = mean - self.mean[channel]
        self.squares[channel] += ((values - mean) ** 2).sum() + shift**2 * before * values.size / after
        self.mean[channel] += shift * values.size / after
        self.count[channel] = after

    def normalisation(self) -> Normalisation:
        """Return what brings each channel to mean 0 and deviation 1; a constant channel is only shifted."""
        deviation = np.sqrt(self.squares / np.maximum(self.count, 1))
        smallest = 1e-7 * np.maximum(np.abs(self.mean), np.finfo(np.float32).tiny)
        deviation = np.where(deviation > smallest, deviation, 1.0)
        return Normalisation(tuple(self.mean.tolist()), tuple(deviation.tolist()))

    def constant(self) -> list[int]:
        """Return the channels that hold one value only, or none."""
        smallest = 1e-7 * np.abs(self.mean)
        return np.flatnonzero(np.sqrt(self.squares / np.maximum(self.count, 1)) <= smallest).tolist()


def whole_bytes(images: Sequence[Frames]) -> int:
    """Return what all of the images take as float32."""
    return 4 * sum(math.prod(image.shape) for image in images)


def pool_bytes(images: Sequence[Frames], limit_bytes: int) -> int:
    """Return what a pool of images takes at most on the device: all of them, or the ring's limit."""
    whole = whole_bytes(images)
    return whole if whole <= limit_bytes else min(limit_bytes, MOST_RING_BYTES)


class PoolState(TypedDict):
    """What a pool needs to hold the same crops again; tensors and numbers only."""

    generator: Tensor
    places: Tensor
    oldest: int


class Pool:
    """The training data on the device: every frame where they fit, otherwise a ring of random crops.

    The frames may have different sizes. Where they do not fit, crops are read from them at random, as many as fit,
    and ``refresh`` replaces the oldest: images larger than memory are sampled evenly over time, in an order that
    the seed alone decides.

    Parameters
    ----------
    images : sequence of Frames
        At least as large as a patch along every axis, with equal channels.
    device : torch.device
    limit_bytes : int
        Most memory that the pool may take on the device.
    crop : sequence of int
        Spatial size of the crops of the ring.
    seed : int
        Decides where crops are read.
    """

    def __init__(
        self,
        images: Sequence[Frames],
        device: torch.device,
        limit_bytes: int,
        crop: Sequence[int],
        seed: int = 0,
    ) -> None:
        self.channels = images[0].channels
        self.device = device
        self.normalisation: Normalisation | None = None
        self.moments = Moments(self.channels)
        self.has_gaps = False
        self._images = images
        self._generator = torch.Generator().manual_seed(seed)
        self._oldest = 0
        most = pool_bytes(images, limit_bytes)
        self.whole = most == whole_bytes(images)
        if self.whole:
            self._places = [
                (number, sample, *(0 for _ in image.spatial))
                for number, image in enumerate(images)
                for sample in range(len(image))
            ]
            self.sizes = [images[place[0]].spatial for place in self._places]
        else:
            smallest = [min(sizes) for sizes in zip(*(image.spatial for image in images), strict=True)]
            size = tuple(min(sides) for sides in zip(crop, smallest, strict=True))
            slots = max(1, most // (4 * self.channels * math.prod(size)))
            self._places = [self._random_place(size) for _ in range(slots)]
            self.sizes = [size] * slots
        lengths = [self.channels * math.prod(size) for size in self.sizes]
        self._starts = [0, *accumulate(lengths)]
        self.values = torch.empty(self._starts[-1], dtype=torch.float32, device=device)
        for slot in range(len(self._places)):
            self._fill(slot)

    @property
    def starts(self) -> list[int]:
        """Where each slot begins in ``values``."""
        return self._starts[:-1]

    def normalise(self, normalisation: Normalisation) -> None:
        """Bring the data to normalised units, now and whenever crops are replaced. Gaps stay NaN."""
        self.normalisation = normalisation
        for slot in range(len(self._places)):
            for part in torch.split(self._of(slot), self._rows_at_once(slot), 1):
                part.copy_(normalisation.apply(part))

    def refresh(self, crops: int) -> None:
        """Replace the oldest crops of a ring by new ones; whole frames stay."""
        if self.whole:
            return
        for _ in range(min(crops, len(self._places))):
            slot = self._oldest
            self._places[slot] = self._random_place(self.sizes[slot])
            self._fill(slot)
            self._oldest = (slot + 1) % len(self._places)

    def state(self) -> PoolState:
        """Return what ``restore`` needs."""
        return {
            "generator": self._generator.get_state(),
            "places": torch.tensor(self._places),
            "oldest": self._oldest,
        }

    def restore(self, state: PoolState) -> None:
        """Hold the same crops, and read the same ones next, as when ``state`` was taken."""
        self._generator.set_state(state["generator"])
        self._oldest = state["oldest"]
        if self.whole:
            return
        self._places = [tuple(place) for place in state["places"].tolist()]
        for slot in range(len(self._places)):
            self._fill(slot)

    def _random_place(self, size: Sequence[int]) -> tuple[int, ...]:
        """Draw an image, a sample and a corner, every corner of every sample equally likely."""
        corners = [[most - side + 1 for most, side in zip(image.spatial, size, strict=True)] for image in self._images]
        totals = [len(image) * math.prod(c) for image, c in zip(self._images, corners, strict=True)]
        drawn = int(torch.randint(sum(totals), (), generator=self._generator))
        number = 0
        while drawn >= totals[number]:
            drawn -= totals[number]
            number += 1
        shape = (len(self._images[number]), *corners[number])
        return (number, *(int(n) for n in np.unravel_index(drawn, shape)))

    def _of(self, slot: int) -> Tensor:
        """Return the values of a slot, (C, [Z,] Y, X), as a view."""
        return self.values[self._starts[slot] : self._starts[slot + 1]].view(self.channels, *self.sizes[slot])

    def _rows_at_once(self, slot: int) -> int:
        return max(1, _READ_BYTES // (4 * self.channels * math.prod(self.sizes[slot][1:])))

    def _fill(self, slot: int) -> None:
        """Read a slot's part of its image; until the normalisation is known, its moments count."""
        number, sample, *corner = self._places[slot]
        first, *others = (slice(at, at + side) for at, side in zip(corner, self.sizes[slot], strict=True))
        step = self._rows_at_once(slot)
        for part, start in zip(torch.split(self._of(slot), step, 1), range(first.start, first.stop, step), strict=True):
            rows = slice(start, min(start + step, first.stop))
            self._put(part, self._images[number].read(sample, (rows, *others)))

    def _put(self, part: Tensor, crop: np.ndarray) -> None:
        self.has_gaps |= not bool(np.isfinite(crop).all())
        values = torch.from_numpy(crop)
        if self.device.type == "cuda":
            values = values.pin_memory()
        values = values.to(self.device, non_blocking=True)
        if self.normalisation is None:
            self.moments.add(crop)
        else:
            values = self.normalisation.apply(values)
        part.copy_(values)


@dataclass(frozen=True)
class Symmetries:
    """The symmetries by which patches are augmented, together up to eight orientations."""

    flip_y: bool = True
    flip_x: bool = True
    transpose: bool = True

    @classmethod
    def of(cls, structure: tuple[tuple[int, ...], ...]) -> Symmetries:
        """Return the symmetries that leave a structural mask as it is: noise along rows must stay along rows."""
        return cls(
            flip_y=structure == structure[::-1],
            flip_x=structure == tuple(row[::-1] for row in structure),
            transpose=structure == tuple(zip(*structure, strict=True)),
        )

    def orientations(self) -> list[tuple[list[int], bool]]:
        """Return every combination: the axes to flip, and whether to transpose after that."""
        flips_y: list[list[int]] = [[], [-2]] if self.flip_y else [[]]
        flips_x: list[list[int]] = [[], [-1]] if self.flip_x else [[]]
        transposes = (False, True) if self.transpose else (False,)
        return [(y + x, transpose) for y in flips_y for x in flips_x for transpose in transposes]


class PatchSampler:
    """Draws random patches from a pool: every origin of every frame is equally likely.

    Parameters
    ----------
    pool : Pool
    patch : sequence of int
        Spatial size of the patches; the last two sides are equal where patches are transposed.
    symmetries : Symmetries

    Raises
    ------
    InputError
        A frame is smaller than a patch.
    """

    def __init__(self, pool: Pool, patch: Sequence[int], symmetries: Symmetries | None = None) -> None:
        symmetries = symmetries or Symmetries()
        self.patch = tuple(patch)
        self._pool = pool
        origins = [[size - side + 1 for size, side in zip(sizes, patch, strict=True)] for sizes in pool.sizes]
        if any(count < 1 for counts in origins for count in counts):
            raise InputError(
                f"a frame of {'×'.join(map(str, min(pool.sizes)))} pixels is smaller than a training patch",
                expected=f"at least {'×'.join(map(str, patch))} pixels",
                remedy="choose smaller patches with --patch",
            )

        def on_device(numbers: object) -> Tensor:
            return torch.tensor(numbers, dtype=torch.int64, device=pool.device)

        self._origins = on_device(origins)
        self._starts = on_device(pool.starts)
        self._ends = self._origins.prod(1).cumsum(0)
        self._total = sum(math.prod(counts) for counts in origins)
        self._strides = on_device([[math.prod(size[axis + 1 :]) for axis in range(len(size))] for size in pool.sizes])
        self._planes = on_device([math.prod(size) for size in pool.sizes])
        self._channels = torch.arange(pool.channels, device=pool.device)
        allowed = (symmetries.flip_y, symmetries.flip_x, symmetries.transpose and patch[-2] == patch[-1])
        self._symmetries = on_device(sum(bit << n for n, bit in enumerate(allowed)))

    def draw(self, batch: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draw the origins, numbered through all frames, and the orientations of a batch: two (B,) tensors."""
        device = self._pool.device
        origins = torch.randint(self._total, (batch,), generator=generator, device=device)
        orientations = torch.randint(8, (batch,), generator=generator, device=device)
        return origins, orientations & self._symmetries

    def gather(self, origins: Tensor, orientations: Tensor) -> Tensor:
        """Return the patches (B, C, [Z,] Y, X) of drawn origins and orientations, by one gather."""
        frames = torch.searchsorted(self._ends, origins, right=True)
        extents, strides = self._origins[frames], self._strides[frames]
        number = origins - (self._ends[frames] - extents.prod(1))
        start = self._starts[frames]
        for axis in reversed(range(len(self.patch))):
            start = start + number % extents[:, axis] * strides[:, axis]
            number = number // extents[:, axis]
        index = self._plane(strides, orientations)[:, None]
        if len(self.patch) == 3:
            rows = torch.arange(self.patch[0], device=start.device)
            index = index[:, :, None] + (rows * strides[:, :1])[:, None, :, None, None]
        first = start[:, None] + self._channels * self._planes[frames][:, None]
        return self._pool.values.take(index + first.view(*first.shape, *(1,) * len(self.patch)))

    def _plane(self, strides: Tensor, orientations: Tensor) -> Tensor:
        """Return where each pixel of a plane lies from the patch's first one, (B, Y, X)."""
        flip_y, flip_x, transpose = ((orientations[:, None] & bit).bool() for bit in (1, 2, 4))
        y, x = (torch.arange(side, device=strides.device) for side in self.patch[-2:])
        y = torch.where(flip_y, self.patch[-2] - 1 - y, y)
        x = torch.where(flip_x, self.patch[-1] - 1 - x, x)
        along_y, along_x = strides[:, -2:-1], strides[:, -1:]
        y = y * torch.where(transpose, along_x, along_y)
        x = x * torch.where(transpose, along_y, along_x)
        return y[:, :, None] + x[:, None, :]
