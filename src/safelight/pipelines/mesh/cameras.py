"""Cameras: where a point is in each view.

Axes are those of the original data: a camera looks along −Z, Y is up, X to the right; rows of a picture count from its
top. Meshes live in the frame of the first camera.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

WORLD_SCALE = 0.57
"""Of the frame of the meshes to that of ShapeNet's models."""
SIDE = 224
"""Pixels of the pictures that networks see."""


@dataclass(frozen=True)
class Cameras:
    """Cameras of a batch of samples, in float64: whether a point is at a whole pixel depends on the last bit.

    Parameters
    ----------
    axes : Tensor
        (samples, views, 3, 3): the rows are the camera's X, Y and Z in the world.
    origin : Tensor
        (samples, views, 3): where the camera is.
    focal, centre : Tensor
        (samples, views, 2): in pixels of a picture of 224 × 224, x and y.
    """

    axes: Tensor
    origin: Tensor
    focal: Tensor
    centre: Tensor

    @property
    def views(self) -> int:
        """Views of each sample."""
        return self.origin.shape[1]

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Return the cameras of samples of as many views each, one after the other."""
        return cls(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    def to(self, device: torch.device) -> Self:
        """Return the same cameras on a device."""
        return type(self)(*(part.to(device) for part in (self.axes, self.origin, self.focal, self.centre)))

    def __getitem__(self, samples: slice | Tensor) -> Self:
        """Return the cameras of some samples."""
        return type(self)(self.axes[samples], self.origin[samples], self.focal[samples], self.centre[samples])

    def to_world(self, points: Tensor) -> Tensor:
        """Return points (samples, n, 3) of the first camera's frame in the world."""
        # x, y and z in planes of their own, here and below: many times as fast as rows of three.
        return (self.axes[:, 0].mT @ points.mT + self.origin[:, 0, :, None]).mT

    def pixels(self, points: Tensor) -> Tensor:
        """Return where points (samples, n, 3) of the first camera's frame are in each view.

        Returns
        -------
        Tensor
            (samples, views, n, 2): x and y in pixels, in the type of the points. A point behind a camera is,
            as published, where the line through both meets the picture.
        """
        return self.project(self.in_view(self.to_world(points.double()))).to(points.dtype)

    def in_view(self, world: Tensor) -> Tensor:
        """Return points (samples, n, 3) of the world in the frame of each camera, (samples, views, n, 3)."""
        return (self.axes @ (world.mT[:, None] - self.origin[..., None])).mT

    def project(self, points: Tensor) -> Tensor:
        """Return the pixels (…, 2) of points (samples, views, n, 3) in the frames of the cameras."""
        x, y, z = points.unbind(-1)
        slope = torch.stack([x / -z, y / z], dim=-2)
        return (self.focal[..., None] * slope + self.centre[..., None]).mT


def orbiting(azimuth: Tensor, elevation: Tensor, distance: Tensor, focal: float) -> Cameras:
    """Return cameras on a sphere that look at the origin of the world.

    Parameters
    ----------
    azimuth, elevation : Tensor
        (samples, views) in degrees.
    distance : Tensor
        (samples, views): of the origin of the world, in the unit of the meshes.
    focal : float
        In pixels.
    """
    azimuth, elevation = azimuth.double().deg2rad(), elevation.double().deg2rad()
    distance = distance.double()
    level = distance * elevation.cos()
    z = torch.stack([level * azimuth.cos(), distance * elevation.sin(), level * azimuth.sin()], dim=-1)
    behind, height = azimuth + torch.pi, distance * elevation.sin()
    y = torch.stack([height * behind.cos(), level, height * behind.sin()], dim=-1)
    axes = [torch.nn.functional.normalize(axis, dim=-1) for axis in (torch.linalg.cross(y, z, dim=-1), y, z)]
    both = torch.ones(*distance.shape, 2, dtype=torch.float64)
    return Cameras(torch.stack(axes, dim=-2), z, focal * both, SIDE / 2 * both)
