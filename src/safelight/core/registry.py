"""The registry of pipelines: the entry points of a group, of whatever package."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from safelight.core.errors import UsageError
from safelight.core.pipeline import Command, Pipeline

GROUP = "safelight.pipelines"


def registered() -> dict[str, EntryPoint]:
    """Return the entry point of every pipeline by name, sorted; of two with one name, the first."""
    points: dict[str, EntryPoint] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        points.setdefault(point.name, point)
    return points


def load(point: EntryPoint) -> Pipeline:
    """Return the pipeline of an entry point.

    Raises
    ------
    UsageError
        Its package is broken, or lacks something.
    """
    try:
        value = point.load()
    except (ImportError, AttributeError, SyntaxError) as error:
        raise _broken(point, str(error)) from error
    if not isinstance(value, Pipeline):
        raise _broken(point, f"{point.value} is no Pipeline")
    return value


def _broken(point: EntryPoint, reason: str) -> UsageError:
    package = point.dist.name if point.dist else point.module
    return UsageError(
        f"the pipeline {point.name} cannot be loaded: {reason}",
        remedy=f"install the package {package} again, or remove it",
    )


def find(pipeline: str, command: str) -> tuple[Pipeline, Command[Any]]:
    """Return a job by its names.

    Raises
    ------
    UsageError
        There is none; names those that there are.
    """
    points = registered()
    if pipeline not in points:
        raise UsageError(f"there is no pipeline {pipeline!r}", expected=", ".join(points))
    owner = load(points[pipeline])
    commands = {each.name: each for each in owner.commands}
    if command not in commands:
        raise UsageError(f"there is no job {pipeline} {command!r}", expected=", ".join(commands))
    return owner, commands[command]
