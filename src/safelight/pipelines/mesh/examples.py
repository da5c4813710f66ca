"""What a training step sees: the views of objects, their cameras and the ground truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from safelight.core.errors import InputError
from safelight.pipelines.mesh.cameras import Cameras
from safelight.pipelines.mesh.dataset import Rendered, in_camera_frame, normals_in_camera_frame, read_truth, read_views
from safelight.pipelines.mesh.losses import Target


@dataclass(frozen=True, eq=False)
class Examples:
    """Some objects.

    Parameters
    ----------
    images : Tensor
        (samples, views, 3, 224, 224), blue first, 0 to 1.
    cameras : Cameras
    targets : tuple of Target
        One for each; they have points in any number.
    """

    images: Tensor
    cameras: Cameras
    targets: tuple[Target, ...]

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Return examples one after the other; all have as many views."""
        cameras = Cameras.joined([p.cameras for p in parts])
        return cls(torch.cat([p.images for p in parts]), cameras, tuple(t for p in parts for t in p.targets))

    def to(self, device: torch.device) -> Self:
        """Return the same examples on a device."""
        targets = tuple(target.to(device) for target in self.targets)
        return type(self)(self.images.to(device), self.cameras.to(device), targets)


def read_example(rendered: Rendered, focal: float) -> Examples:
    """Read one object to train on.

    Raises
    ------
    InputError
        A file cannot be read, or the ground truth has no normals, or some that are none.
    """
    _, cameras, images = read_views(rendered, focal)
    truth = read_truth(rendered.truth)
    normals = normals_in_camera_frame(truth, cameras)
    if normals is None or not _are_directions(normals):
        raise InputError(
            "has no normals, or some that are not finite or have no length",
            path=rendered.truth,
            expected="points with their normals, as 'safelight mesh render' writes them",
        )
    target = Target(_float(in_camera_frame(truth, cameras)), _float(normals))
    return Examples(images[None], cameras, (target,))


def _are_directions(normals: NDArray[np.float64]) -> bool:
    return bool(np.isfinite(normals).all() and normals.any(axis=1).all())


def _float(values: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(values).float()
