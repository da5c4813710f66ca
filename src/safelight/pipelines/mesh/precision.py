"""Where mixed precision ends: positions keep full precision."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Return a context without mixed precision.

    Numbers of eight bits would move vertices by 2⁻⁹ of their distance from the camera, about half a pixel.
    """
    if not torch.amp.is_autocast_available(device.type):  # meta
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
