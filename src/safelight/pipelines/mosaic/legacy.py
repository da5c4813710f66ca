"""Configuration files (JSON) of the program that ``mosaic`` replaces. What is not known here stays in the file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safelight.core.errors import InputError, UsageError
from safelight.core.files import atomic_write
from safelight.core.pipeline import ForeignFile

GPU_KEY = "use_gpu_phase5"
GPU_KEYS = (GPU_KEY, "stack_use_gpu", "use_gpu_stack")
"""Whether to stack on a GPU: the canonical name and its synonyms, in order of precedence."""
USE_GPU_BY_DEFAULT = True

OPTION_KEYS = (
    "normalisation",
    "weighting",
    "rejection",
    "kappa_low",
    "kappa_high",
    "combine",
    "final_assembly",
    "match_background",
)
"""Settings that bear the same name here and there."""

VARIABLE_PREFIX = "SAFELIGHT_"
_TRUE = ("1", "true", "yes", "on")
_FALSE = ("0", "false", "no", "off")
_DEFAULT = ("", "none", "auto")


def load(path: Path) -> ForeignFile:
    """Read a configuration.

    Returns
    -------
    ForeignFile
        Its document has all three GPU flags as booleans, those that are missing as the canonical one is. Options that
        the file leaves to the default are not in ``options``.

    Raises
    ------
    InputError
        The file cannot be read or is no JSON object.
    UsageError
        A GPU flag is neither yes nor no.
    """
    document = _read_object(path)
    flags = {key: flag for key in GPU_KEYS if (flag := _flag(document.get(key), key, path)) is not None}
    use_gpu = next(iter(flags.values()), USE_GPU_BY_DEFAULT)
    options = {key: (key, document[key]) for key in OPTION_KEYS if _is_given(document.get(key))}
    if flags:
        options["device"] = (next(iter(flags)), _device(use_gpu))
    unknown = tuple(key for key in document if key not in (*GPU_KEYS, *OPTION_KEYS))
    return ForeignFile({**document, **dict.fromkeys(GPU_KEYS, use_gpu), **flags}, options, unknown)


def variables(environment: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Return the device that a variable such as SAFELIGHT_USE_GPU_PHASE5 asks for: the first that is given decides.

    Raises
    ------
    UsageError
        It is neither yes nor no.
    """
    names = [VARIABLE_PREFIX + key.upper() for key in GPU_KEYS]
    flags = {name: flag for name in names if (flag := _flag(environment.get(name), name)) is not None}
    first = next(iter(flags.items()), None)
    return {} if first is None else {"device": (first[0], _device(first[1]))}


def save(path: Path, document: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Write options into a configuration, whole or not at all; all else in its document stays.

    Parameters
    ----------
    path : Path
    document : mapping
        As ``load`` returns it.
    options : mapping
        Of ``mosaic run``. A device that is a CPU clears the GPU flag, every other one sets it.

    Raises
    ------
    OutputError
        The file cannot be written.
    """
    known = {key: options[key] for key in OPTION_KEYS if key in options}
    if "device" in options:
        known[GPU_KEY] = options["device"] != "cpu"
    text = json.dumps({**document, **known}, indent=2, ensure_ascii=False) + "\n"
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _read_object(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"is not JSON: {error}", path=path, expected="a configuration file") from error
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", path=path, remedy="check the path") from error
    if not isinstance(document, dict):
        raise InputError(f"holds a JSON {type(document).__name__}", path=path, expected="a JSON object")
    return document


def _device(use_gpu: bool) -> str:
    return "auto" if use_gpu else "cpu"


def _is_given(value: object) -> bool:
    """Return whether a setting is more than "the default". ``none`` is: for instance no rejection."""
    return value is not None and str(value).strip().lower() not in ("", "auto")


def _flag(value: object, name: str, path: Path | None = None) -> bool | None:
    """Return a flag as a boolean, or None where it leaves the choice to the default."""
    text = "" if value is None else str(value).strip().lower()
    if text in _DEFAULT:
        return None
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    raise UsageError(
        f"{name} is {value!r}", path=path, expected=f"one of {', '.join((*_TRUE, *_FALSE))}, or auto for the default"
    )
