"""How ``make docs`` builds the user's guide."""

from __future__ import annotations

from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

from sphinx.application import Sphinx

from safelight import __version__
from safelight.cli import run
from safelight.core.registry import registered

project = "Safelight"
release = __version__
html_title = f"Safelight {release}"
html_theme = "furo"
extensions = ["myst_parser"]
myst_heading_anchors = 2
exclude_patterns = ["_build"]


def setup(app: Sphinx) -> None:
    """Write the page of commands anew at each build: so the guide cannot lag behind."""
    app.connect("builder-inited", lambda _: _write_commands())


def commands_page() -> str:
    """Return what ``--help`` says of every command, as Markdown."""
    pipelines = [point.load() for point in registered().values()]
    jobs = [(pipeline.name, command.name) for pipeline in pipelines for command in pipeline.commands]
    return "\n".join(map(_section, [*jobs, ("plan",), ("settings",), ("doctor",), ("history",), ("demo",)]))


def _write_commands() -> None:
    folder = Path(__file__).parent / "_build"
    folder.mkdir(exist_ok=True)
    (folder / "commands.md").write_text(commands_page(), "utf-8")


def _section(command: tuple[str, ...]) -> str:
    shown = StringIO()
    with redirect_stdout(shown):
        run([*command, "--help"])
    return f"## safelight {' '.join(command)}\n\n```text\n{shown.getvalue()}```\n"
