"""The curves of a training, drawn from the run's record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from safelight.core.plots import ACCENT, PALE, SECOND, THIRD, as_png, label, new_plot

_COLOURS = {"chamfer": ACCENT, "edge": SECOND, "normal": THIRD, "laplacian": PALE, "move": "#dc2626"}
_FRENCH = {
    "step": "pas",
    "loss": "perte",
    "chamfer": "Chamfer",
    "edge": "arêtes",
    "normal": "normales",
    "laplacian": "laplacien",
    "move": "déplacement",
    "validation": "validation",
    "Chamfer distance × 1000": "distance de Chamfer × 1000",
}


def draw_curves(curve: Mapping[str, Any], language: str) -> list[bytes]:
    """Return the terms of the loss, the validation's Chamfer distance and its F1 against the steps, as PNGs.

    Parameters
    ----------
    curve : mapping
        ``steps``, ``terms`` by name, ``chamfer`` and ``f1``, equally long.
    language : str
        Of the words, ``en`` or ``fr``.
    """

    def word(text: str) -> str:
        return _FRENCH.get(text, text) if language == "fr" else text

    figure, axes = new_plot()
    for name, values in curve["terms"].items():
        axes.semilogy(curve["steps"], values, "o-", color=_COLOURS[name], markersize=3, label=word(name))
    label(axes, word("step"), word("loss"), language)
    plots = [as_png(figure)]
    chamfer = [1000 * value for value in curve["chamfer"]]
    for values, name in ((chamfer, "Chamfer distance × 1000"), (curve["f1"], "F1 (%)")):
        figure, axes = new_plot()
        axes.plot(curve["steps"], values, "o-", color=ACCENT, markersize=3, label=word("validation"))
        axes.set_ylim(bottom=0)
        label(axes, word("step"), word(name), language)
        plots.append(as_png(figure))
    return plots
