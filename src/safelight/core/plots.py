"""Plots of reports: one style for all."""

from __future__ import annotations

from io import BytesIO

from matplotlib.axes import Axes
from matplotlib.figure import Figure

ACCENT, SECOND, THIRD, PALE = "#0f6f78", "#d97706", "#7c3aed", "#94a3b8"


def new_plot() -> tuple[Figure, Axes]:
    """Return an empty plot."""
    figure = Figure(figsize=(4.4, 2.9), dpi=160, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(PALE)
    axes.tick_params(colors="#475569", labelsize=8)
    axes.grid(color="#e2e8f0", linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def label(axes: Axes, x: str, y: str, language: str) -> None:
    """Write what the axes are, with numbers as the language has them, and what the lines are."""
    axes.set_xlabel(x, fontsize=9, color="#334155")
    axes.set_ylabel(y, fontsize=9, color="#334155")
    if language == "fr":
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(lambda value, _: f"{value:g}".replace(".", ",").replace("-", "−"))
    axes.legend(frameon=False, fontsize=8, labelcolor="#334155")


def as_png(figure: Figure) -> bytes:
    """Return a plot as a PNG."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
