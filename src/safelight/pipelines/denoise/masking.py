"""Blind spots: which pixels are hidden from the network, and what it sees in their place.

Noise2Void (Krull et al. 2019) hides pixels behind a random neighbour; N2V2 (Höck et al. 2022) behind the median or
mean of the neighbourhood without the pixel itself; structN2V (Broaddus et al. 2020) also hides the neighbours
whose noise is correlated with the pixel's. One blind spot per box (stratified); only the windows around blind spots
are gathered, in a fixed number of operations of fixed shape, so nothing waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from safelight.core.options import Settings
from safelight.kernels.neighbours import mean_of, median_of, pick_of
from safelight.pipelines.denoise.structure import Structure, check_structure

Replacement = Literal["median", "mean", "uniform"]


class MaskingSettings(Settings):
    """How blind spots are chosen and filled."""

    # The papers hide 0.198 %; every hidden pixel teaches, and with 3 % as many steps give 0.1 to 0.7 dB more.
    percent: float = Field(3.0, gt=0, le=25, description="Share of the pixels that are hidden, in percent.")
    replacement: Replacement = Field(
        "median", description="Seen in place of a hidden pixel: median or mean of its neighbours, or one of them."
    )
    radius: int = Field(2, ge=1, le=15, description="Half the side of the neighbourhood, in pixels.")
    structure: Structure = Field(
        (),
        description="Rows of 0 and 1 centred on the hidden pixel: the last two axes' sites whose noise is "
        "correlated with it (structN2V).",
    )

    @field_validator("structure")
    @classmethod
    def _centred(cls, rows: Structure) -> Structure:
        return check_structure(rows)

    @property
    def sites(self) -> tuple[tuple[int, int], ...]:
        """The structural sites as (y, x) displacements from the blind spot, without the blind spot."""
        middle_y, middle_x = len(self.structure) // 2, len(self.structure[0]) // 2 if self.structure else 0
        return tuple(
            (y - middle_y, x - middle_x)
            for y, row in enumerate(self.structure)
            for x, site in enumerate(row)
            if site and (y, x) != (middle_y, middle_x)
        )


def box_side(percent: float, dims: int) -> int:
    """Return the side of the box that holds one blind spot: 22 pixels for 0.198 % in two dimensions."""
    return max(2, round(math.pow(100 / percent, 1 / dims)))


@dataclass(frozen=True)
class BlindSpots:
    """Patches with hidden pixels.

    Parameters
    ----------
    visible : Tensor
        (B, C, …): what the network sees.
    positions : Tensor
        (B, C, K) int64: flat positions of the blind spots in their patch.
    targets : Tensor
        (B, C, K): the hidden values.
    weights : Tensor
        (B, C, K): 1, or 0 where the draw fell outside the patch or on a gap.
    """

    visible: Tensor
    positions: Tensor
    targets: Tensor
    weights: Tensor

    @classmethod
    def joined(cls, parts: Sequence[BlindSpots]) -> BlindSpots:
        """Return the blind spots of several batches as those of one."""
        return cls(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    def loss_sum(self, prediction: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Return Σ (target − prediction)² · weight over patches ``start`` to ``stop``, in fp32.

        ``prediction`` holds these patches only.
        """
        part = slice(start, stop)
        predicted = prediction.flatten(2).gather(2, self.positions[part]).float()
        return ((self.targets[part] - predicted).square() * self.weights[part]).sum()


@dataclass(frozen=True)
class Draws:
    """The random numbers behind one set of blind spots, each uniform in [0, 1).

    Parameters
    ----------
    offsets : Tensor
        (B, C, K, dims): where in its box each blind spot lies.
    picks : Tensor
        (B, C, K): which neighbour replaces it (uniform replacement).
    noise : Tensor
        (B, C, K · sites): what overwrites the structural sites.
    """

    offsets: Tensor
    picks: Tensor
    noise: Tensor

    def part(self, patches: slice) -> Draws:
        """Return the numbers of some of the patches."""
        return Draws(self.offsets[patches], self.picks[patches], self.noise[patches])


class Masker:
    """Hides pixels of patches of one size.

    Parameters
    ----------
    settings : MaskingSettings
    patch : sequence of int
        Spatial size of the patches.
    device : torch.device
    """

    def __init__(self, settings: MaskingSettings, patch: Sequence[int], device: torch.device) -> None:
        self.settings = settings
        self.patch = tuple(patch)
        self.device = device
        side = box_side(settings.percent, len(self.patch))
        corners = torch.cartesian_prod(*(torch.arange(0, size, side) for size in self.patch))
        self._corners = corners.reshape(-1, len(self.patch)).to(device)
        self._side = side
        self._size = torch.tensor(self.patch, device=device)
        strides = [math.prod(self.patch[axis + 1 :]) for axis in range(len(self.patch))]
        self._strides = torch.tensor(strides, device=device)

    @property
    def boxes(self) -> int:
        """How many boxes a patch has: the number K of blind spots."""
        return len(self._corners)

    @cached_property
    def _sites(self) -> Tensor:
        return self._displacements(self.settings.sites).to(self.device)

    @cached_property
    def _window(self) -> Tensor:
        """Displacements of the neighbourhood, (W, dims), without the centre and the structural sites."""
        reach = torch.arange(-self.settings.radius, self.settings.radius + 1)
        window = torch.cartesian_prod(*(reach,) * len(self.patch)).reshape(-1, len(self.patch))
        hidden = self._displacements(((0, 0), *self.settings.sites))
        kept = (window[:, None] != hidden[None]).any(2).all(1)
        return window[kept].to(self.device)

    def _displacements(self, sites: Sequence[tuple[int, int]]) -> Tensor:
        """Return displacements in a plane as those in a patch, (N, dims) on the CPU."""
        depth = (0,) * (len(self.patch) - 2)
        return torch.tensor([(*depth, *site) for site in sites], dtype=torch.int64).reshape(-1, len(self.patch))

    def draw(self, batch: int, channels: int, generator: torch.Generator | None = None) -> Draws:
        """Draw the random numbers for one batch."""
        dims = len(self.patch)
        columns = dims + 1 + len(self._sites)
        numbers = torch.rand((batch, channels, self.boxes, columns), generator=generator, device=self.device)
        return Draws(numbers[..., :dims], numbers[..., dims], numbers[..., dims + 1 :])

    def hide(self, patches: Tensor, draws: Draws) -> BlindSpots:
        """Hide one pixel per box.

        Parameters
        ----------
        patches : Tensor
            (B, C, …) float32, normalised; gaps are NaN and look like the mean, 0, to the network.
        draws : Draws

        Returns
        -------
        BlindSpots
        """
        drawn = self._corners + (draws.offsets * self._side).long().clamp_(max=self._side - 1)
        inside = (drawn < self._size).all(-1)
        spots = torch.minimum(drawn, self._size - 1)
        positions = self._flat(spots)
        flat = patches.flatten(2)
        targets = flat.gather(2, positions)
        replacements = self._replacements(flat, spots, draws)
        if self.settings.structure:
            flat = self._overwrite_structure(flat, spots, positions, inside, draws)
        filled = torch.where(inside, replacements, flat.gather(2, positions))
        visible = _without_gaps(flat.scatter(2, positions, filled)).view_as(patches)
        weights = (inside & targets.isfinite()).to(patches.dtype)
        return BlindSpots(visible, positions, _without_gaps(targets), weights)

    def _flat(self, coordinates: Tensor) -> Tensor:
        return (coordinates * self._strides).sum(-1)

    def _replacements(self, flat: Tensor, spots: Tensor, draws: Draws) -> Tensor:
        if self.settings.replacement == "uniform" and not self.settings.structure:
            return flat.gather(2, self._flat(self._other_pixel(spots, draws.picks)))
        neighbours = spots[..., None, :] + self._window
        inside = ((neighbours >= 0) & (neighbours < self._size)).all(-1)
        neighbours = torch.minimum(neighbours.clamp(min=0), self._size - 1)
        values = flat.gather(2, self._flat(neighbours).flatten(2)).view(inside.shape)
        inside = inside & values.isfinite()
        if self.settings.replacement == "mean":
            return mean_of(values, inside)
        if self.settings.replacement == "median":
            return median_of(values, inside)
        return pick_of(values, inside, draws.picks)

    def _other_pixel(self, spots: Tensor, picks: Tensor) -> Tensor:
        """Return the coordinates of a pixel of the window, all equally likely, never the spot itself."""
        first = (spots - self.settings.radius).clamp(min=0)
        extent = torch.minimum(spots + self.settings.radius, self._size - 1) - first + 1
        others = extent.prod(-1) - 1
        chosen = torch.minimum((picks * others).long(), others - 1)
        own = spots - first
        rank = own[..., 0]
        for axis in range(1, len(self.patch)):
            rank = rank * extent[..., axis] + own[..., axis]
        chosen = chosen + (chosen >= rank)
        coordinates = []
        for axis in reversed(range(len(self.patch))):
            coordinates.append(chosen % extent[..., axis] + first[..., axis])
            chosen = chosen // extent[..., axis]
        return torch.stack(coordinates[::-1], -1)

    def _overwrite_structure(
        self, flat: Tensor, spots: Tensor, positions: Tensor, inside: Tensor, draws: Draws
    ) -> Tensor:
        """Overwrite the structural sites with U(−2, 2). Sites outside the patch fall on the blind spot itself."""
        sites = spots[..., None, :] + self._sites
        written = ((sites >= 0) & (sites < self._size)).all(-1) & inside[..., None]
        places = torch.where(written, self._flat(sites), positions[..., None]).flatten(2)
        return flat.scatter(2, places, draws.noise.flatten(2) * 4 - 2)


def _without_gaps(values: Tensor) -> Tensor:
    return torch.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
