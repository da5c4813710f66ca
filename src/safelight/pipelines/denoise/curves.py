"""The report's curves: how training went, and what was removed, drawn from the run's record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from safelight.core.plots import ACCENT, PALE, SECOND, THIRD, as_png, label, new_plot

_FRENCH = {
    "training": "entraînement",
    "validation": "validation",
    "step": "pas",
    "loss": "perte",
    "distance in pixels": "distance en pixels",
    "correlation": "corrélation",
    "95 % of white noise": "95 % d'un bruit blanc",
    "along X": "selon X",
    "along Y": "selon Y",
    "along Z": "selon Z",
    "cycles per pixel": "cycles par pixel",
    "power": "puissance",
    "white noise": "bruit blanc",
    "brightness": "luminosité",
    "variance of what was removed": "variance de ce qui a été retiré",
    "photon noise and read noise": "bruit de photons et de lecture",
    "measured": "mesuré",
}


def draw_loss(loss: Mapping[str, Sequence[float]], language: str) -> bytes:
    """Return the curves of training and validation loss as a PNG.

    Parameters
    ----------
    loss : mapping
        ``steps``, ``training`` and ``validation``, equally long.
    language : str
        Of the words, ``en`` or ``fr``.
    """
    figure, axes = new_plot()
    axes.plot(loss["steps"], loss["training"], color=PALE, label=_word("training", language))
    axes.plot(loss["steps"], loss["validation"], color=ACCENT, label=_word("validation", language))
    _label(axes, "step", "loss", language)
    return as_png(figure)


def draw_curves(diagnostics: Mapping[str, Any], language: str) -> dict[str, bytes]:
    """Return the curves behind an image's verdict as PNGs by name: those for which something was measured.

    Parameters
    ----------
    diagnostics : mapping
        ``Diagnostics.as_json()``.
    language : str
        Of the words, ``en`` or ``fr``.
    """
    curves = {}
    if diagnostics["autocorrelation"]:
        curves["autocorrelation"] = _autocorrelation(diagnostics, language)
    if diagnostics["spectrum"]:
        curves["spectrum"] = _spectrum(diagnostics["spectrum"], language)
    if diagnostics["noise_fit"] is not None:
        curves["noise_fit"] = _noise_fit(diagnostics["noise_fit"], language)
    return curves


def _autocorrelation(diagnostics: Mapping[str, Any], language: str) -> bytes:
    figure, axes = new_plot()
    band = diagnostics["confidence"]
    axes.axhspan(-band, band, color=PALE, alpha=0.35, linewidth=0, label=_word("95 % of white noise", language))
    for (axis, values), colour, mark in zip(
        sorted(diagnostics["autocorrelation"].items()), (ACCENT, SECOND, THIRD), "os^", strict=False
    ):
        lags = range(1, len(values) + 1)
        axes.plot(lags, values, mark + "-", color=colour, markersize=4, label=_word(f"along {axis}", language))
    largest = max(max(map(abs, values)) for values in diagnostics["autocorrelation"].values())
    reach = max(1.2 * largest, 3 * band, 0.05)
    axes.set_ylim(-reach, reach)
    _label(axes, "distance in pixels", "correlation", language)
    return as_png(figure)


def _spectrum(values: Sequence[float], language: str) -> bytes:
    figure, axes = new_plot()
    frequencies = (np.arange(len(values)) + 0.5) * 0.5 / len(values)
    axes.axhline(1, color=PALE, linewidth=3, alpha=0.6, label=_word("white noise", language))
    axes.plot(frequencies, values, "o-", color=ACCENT, markersize=4, label=_word("measured", language))
    axes.set_ylim(0, max(2.0, 1.15 * max(values)))
    _label(axes, "cycles per pixel", "power", language)
    return as_png(figure)


def _noise_fit(fit: Mapping[str, Any], language: str) -> bytes:
    figure, axes = new_plot()
    levels = np.array(fit["levels"])
    axes.plot(levels, fit["variances"], "o", color=ACCENT, markersize=4, label=_word("measured", language))
    ends = np.array([levels.min(), levels.max()])
    line = fit["gain"] * ends + fit["intercept"]
    axes.plot(ends, line, color=SECOND, label=_word("photon noise and read noise", language))
    axes.set_ylim(bottom=0)
    _label(axes, "brightness", "variance of what was removed", language)
    return as_png(figure)


def _label(axes: Axes, x: str, y: str, language: str) -> None:
    label(axes, _word(x, language), _word(y, language), language)


def _word(word: str, language: str) -> str:
    return _FRENCH[word] if language == "fr" else word
