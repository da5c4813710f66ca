"""How ``make docs`` builds the user's guide."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from safelight import __version__
from safelight.core.registry import registered

project = "Safelight"
release = __version__
html_title = f"Safelight {release}"
html_theme = "furo"
extensions = ["myst_parser"]
myst_heading_anchors = 2
exclude_patterns = ["_build"]


def _write_commands(page: Path) -> None:
    """Write the page of every command's ``--help``, anew at each build: so the guide cannot lag behind."""
    pipelines = {name: point.load() for name, point in registered().items()}
    commands = [(name, command.name) for name, pipeline in pipelines.items() for command in pipeline.commands]
    page.parent.mkdir(exist_ok=True)
    page.write_text(
        "\n".join(map(_section, [*commands, ("plan",), ("settings",), ("doctor",), ("history",), ("demo",)])), "utf-8"
    )


def _section(command: tuple[str, ...]) -> str:
    arguments = [sys.executable, "-m", "safelight", *command, "--help"]
    shown = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout
    return f"## safelight {' '.join(command)}\n\n```text\n{shown}```\n"


_write_commands(Path(__file__).parent / "_build" / "commands.md")
