"""Configuration files (JSON) of the program that ``mosaic`` replaces.

The environment goes before the file, the file before the defaults. What is not known here stays in the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError

from safelight.core.errors import InputError
from safelight.core.files import atomic_write
from safelight.pipelines.mosaic.options import RunOptions

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


@dataclass(frozen=True)
class LegacyConfiguration:
    """What a configuration file and the environment say.

    Parameters
    ----------
    document : mapping
        The whole file, known keys and others, with all three GPU flags as booleans. The environment is not in it.
    options : mapping
        Options of ``mosaic run`` that are given: a subset of ``OPTION_KEYS``, and ``device``.
    """

    document: Mapping[str, Any]
    options: Mapping[str, Any]


def load(path: Path, environment: Mapping[str, str]) -> LegacyConfiguration:
    """Read a configuration.

    Parameters
    ----------
    path : Path
    environment : mapping
        Variables that overrule the file: ``SAFELIGHT_`` and the key in capitals, for instance SAFELIGHT_KAPPA_LOW.

    Raises
    ------
    InputError
        The file is missing or is no JSON object, or a known key has an impossible value.
    """
    document = _read_object(path)
    flags = {key: _flag(document.get(key), key, path) for key in GPU_KEYS}
    use_gpu = _first_given(flags)
    if use_gpu is None:
        use_gpu = USE_GPU_BY_DEFAULT
    explicit = {key: flag for key, flag in flags.items() if flag is not None}
    whole = {**document, **dict.fromkeys(GPU_KEYS, use_gpu), **explicit}

    variables = {key: environment.get(_variable(key)) for key in (*GPU_KEYS, *OPTION_KEYS)}
    overruled = _first_given({key: _flag(variables[key], _variable(key)) for key in GPU_KEYS})
    use_gpu = use_gpu if overruled is None else overruled
    options = {key: _option(document[key], key, key, path) for key in OPTION_KEYS if _is_given(document.get(key))}
    options |= {key: _option(variables[key], key, _variable(key)) for key in OPTION_KEYS if _is_given(variables[key])}
    return LegacyConfiguration(whole, {**options, "device": "auto" if use_gpu else "cpu"})


def save(path: Path, configuration: LegacyConfiguration) -> None:
    """Write a configuration's document, whole or not at all.

    Raises
    ------
    OutputError
        The file cannot be written.
    """
    text = json.dumps(configuration.document, indent=2, ensure_ascii=False) + "\n"
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


def _variable(key: str) -> str:
    return VARIABLE_PREFIX + key.upper()


def _first_given(flags: Mapping[str, bool | None]) -> bool | None:
    return next((flag for flag in flags.values() if flag is not None), None)


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
    raise InputError(
        f"{name} is {value!r}", path=path, expected=f"one of {', '.join((*_TRUE, *_FALSE))}, or auto for the default"
    )


def _option(value: object, key: str, name: str, path: Path | None = None) -> Any:
    """Return the value of an option as the pipeline has it, checked against the option's own bounds."""
    field = RunOptions.model_fields[key]
    try:
        return TypeAdapter(Annotated[(field.annotation, field, *field.metadata)]).validate_python(value)
    except ValidationError as error:
        raise InputError(f"{name} is {value!r}: {error.errors()[0]['msg']}", path=path) from error
