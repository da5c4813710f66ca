"""The registry of pipelines: the entry points of a group, of whatever package."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

GROUP = "safelight.pipelines"


def registered() -> dict[str, EntryPoint]:
    """Return the entry point of every pipeline by name, sorted; of two with one name, the first."""
    points = sorted(entry_points(group=GROUP), key=lambda point: point.name)
    return {point.name: point for point in reversed(points)}
