"""What can be told of a denoised image without a clean one."""

from __future__ import annotations

from typing import Any


def look_closer(*arguments: Any) -> dict[str, Any]:
    return {}
