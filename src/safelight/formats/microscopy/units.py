"""Units of length and time as OME, OME-Zarr and ImageJ spell them."""

from __future__ import annotations

_MICROMETRES = {
    "angstrom": 1e-4,
    "å": 1e-4,
    "nm": 1e-3,
    "nanometer": 1e-3,
    "µm": 1.0,
    "μm": 1.0,
    "um": 1.0,
    "micron": 1.0,
    "microns": 1.0,
    "micrometer": 1.0,
    "mm": 1e3,
    "millimeter": 1e3,
    "cm": 1e4,
    "centimeter": 1e4,
    "m": 1e6,
    "meter": 1e6,
}
_SECONDS = {
    "ns": 1e-9,
    "µs": 1e-6,
    "μs": 1e-6,
    "us": 1e-6,
    "microsecond": 1e-6,
    "ms": 1e-3,
    "msec": 1e-3,
    "millisecond": 1e-3,
    "s": 1.0,
    "sec": 1.0,
    "second": 1.0,
    "min": 60.0,
    "minute": 60.0,
    "h": 3600.0,
    "hour": 3600.0,
    "d": 86400.0,
    "day": 86400.0,
}


def micrometres(value: object, unit: str | None) -> float | None:
    """Return a length in micrometres; None where the unit is not of length, or the value not positive."""
    return _scaled(value, _MICROMETRES.get((unit or "").strip().lower()))


def seconds(value: object, unit: str | None) -> float | None:
    """Return a duration in seconds; None where the unit is not of time, or the value not positive."""
    return _scaled(value, _SECONDS.get((unit or "").strip().lower()))


def _scaled(value: object, factor: float | None) -> float | None:
    try:
        number = float(value)  # type: ignore[arg-type]  # whatever a file holds: the except below refuses the rest
    except (TypeError, ValueError):
        return None
    if factor is None or not 0 < number < float("inf"):
        return None
    return number * factor
