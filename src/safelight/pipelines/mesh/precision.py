"""Where mixed precision ends: all that decides where a vertex is looked up or placed keeps full precision.

Mixed are the matrix products of the refining network's blocks alone: nine tenths of the arithmetic, whose result moves
a vertex by 0.02 at most. The coarse network gives coordinates themselves; eight bits of them are half a pixel.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Return a context without mixed precision."""
    if not torch.amp.is_autocast_available(device.type):  # meta
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
