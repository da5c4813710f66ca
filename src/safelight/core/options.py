"""The options that every pipeline has, in one place."""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AllowInfNan, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

CompileMode = Literal["default", "reduce-overhead", "max-autotune"]
Language = Literal["en", "fr"]

_UNITS = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 2**10,
    "mi": 2**20,
    "gi": 2**30,
    "ti": 2**40,
}
_LARGEST_WHOLE = (1 << 63) - 1
"""What torch, NumPy and the system's sizes hold."""
_NUMBER = r"[0-9]+(?:\.[0-9]*)?|\.[0-9]+"
_DURATIONS = {"": 1.0, "s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def parse_bytes(text: object) -> object:
    """Return ``"2GiB"`` as 2147483648; numbers and None pass through.

    Raises
    ------
    ValueError
        The text is not a size.
    """
    if not isinstance(text, str):
        return text
    match = re.fullmatch(rf"\s*({_NUMBER})\s*([kmgt]?i?)b?\s*", text.lower())
    if match is None or match[2] not in _UNITS:
        raise ValueError(f"{text!r} is not a size; write for instance 2GiB, 500MB or 1000000")
    return int(Decimal(match[1]) * _UNITS[match[2]])


def parse_seconds(text: object) -> object:
    """Return ``"10min"`` as 600.0; numbers and None pass through.

    Raises
    ------
    ValueError
        The text is not a duration.
    """
    if not isinstance(text, str):
        return text
    match = re.fullmatch(rf"\s*({_NUMBER})\s*([a-z]*)\s*", text.lower())
    if match is None or match[2] not in _DURATIONS:
        raise ValueError(f"{text!r} is not a duration; write for instance 90s, 10min or 1.5h")
    return float(match[1]) * _DURATIONS[match[2]]


def as_several(value: object) -> object:
    """Return a path alone, or a list, as a tuple; other values pass through."""
    if isinstance(value, str | Path):
        return (str(value),)
    return tuple(value) if isinstance(value, list) else value


Bytes = Annotated[int, BeforeValidator(parse_bytes)]
Seconds = Annotated[float, BeforeValidator(parse_seconds), AllowInfNan(False)]
NAMES_FILES = "names files"
PathPatterns = Annotated[tuple[str, ...], NAMES_FILES, BeforeValidator(as_several)]
"""Paths, or globs such as ``data/*.tif``; in a file of settings they are relative to that file, as a ``Path`` is.

One may stand alone, without brackets.
"""

OWN_PANEL = "Options"
COMMON_PANEL = "Common options"


def _switch(description: str, alias: str | None = None) -> Any:
    """Return a flag without a negative form: ``--quiet`` but no ``--no-quiet``."""
    return Field(False, description=description, alias=alias, json_schema_extra={"one_way": True})


class Settings(BaseModel):
    """Base of all options: frozen, unknown names refused, every field described."""

    # Validators are built when they are first used: --help needs none, and they take 10 ms per pipeline.
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, defer_build=True)

    @model_validator(mode="after")
    def _fit_for_the_system(self) -> Self:
        for public, name in public_names(type(self)).items():
            value = getattr(self, name)
            for part in value if isinstance(value, tuple) else (value,):
                if isinstance(part, str | Path) and "\0" in str(part):
                    raise ValueError(f"{flag(public)} holds a null character, which no name may")
                if isinstance(part, int) and abs(part) > _LARGEST_WHOLE:
                    raise ValueError(
                        f"{flag(public)} is a number of {part.bit_length()} bits, at most 63 are computed with"
                    )
        return self


def public_names(options: type[Settings]) -> dict[str, str]:
    """Return the name of each field by the name that users know; they differ where there is an alias."""
    return {field.alias or name: name for name, field in options.model_fields.items()}


def flag(public: str) -> str:
    """Return an option's name as the command line has it."""
    return f"--{public.replace('_', '-')}"


def panel_of(options: type[Settings], name: str) -> str:
    """Return the heading under which an option is listed."""
    if name in CommonOptions.model_fields:
        return COMMON_PANEL
    extra = options.model_fields[name].json_schema_extra
    return str(extra.get("panel", OWN_PANEL)) if isinstance(extra, dict) else OWN_PANEL


class CommonOptions(Settings):
    """Options that every command of every pipeline has."""

    config: Path | None = Field(
        None, description="A TOML file with settings; variables SAFELIGHT_… and the command line go before it."
    )
    device: str = Field("auto", description="Where to compute: auto, cpu, cuda, cuda:1 or mps.")
    memory_limit: Bytes | None = Field(None, gt=0, description="Most memory to use, for instance 2GiB.")
    safety_fraction: float = Field(
        0.75, ge=0.1, le=0.9, description="Share of the free device memory that may be planned for."
    )
    cpu_fallback: bool = Field(True, description="Go on with the CPU when the device cannot.")
    amp: bool = Field(False, description="Mixed precision where the device has it; losses stay in fp32.")
    tf32: bool = Field(False, description="TF32 matrix arithmetic on NVIDIA GPUs that have it.")
    compile: bool = Field(False, description="Compile networks with torch.compile.")
    compile_mode: CompileMode = Field("default", description="How torch.compile optimises.")
    workers: int = Field(1, ge=1, description="Processes that share the items, with one thread and one GPU each.")
    cluster: str | None = Field(None, description="Address of a Dask scheduler whose workers share the items.")
    warmup_iters: int = Field(3, ge=0, description="Iterations not counted in timings.")
    results: Path = Field(Path("results"), description="Folder of the history of all runs.")
    model_name: str = Field("", description="Name of this run in the history; the pipeline's by default.")
    notes: str = Field("", description="Free text kept with this run in the history.")
    dry_run: bool = _switch("Say what would be done and how much memory it takes, do nothing.")
    fresh: bool = _switch("Do everything again, even what an earlier run finished.")
    strict: bool = _switch("Exit with an error when any item was left out or any check of the results failed.")
    lang: Language | None = Field(None, description="Language of messages; the system's by default.")
    quiet: bool = _switch("Say only warnings and errors.")
    verbose: bool = _switch("Say everything.")
    json_events: bool = _switch("Write events as JSON lines on standard output.", alias="json")

    @model_validator(mode="after")
    def _one_voice(self) -> Self:
        if self.quiet and self.verbose:
            raise ValueError("quiet and verbose exclude each other")
        return self

    @model_validator(mode="after")
    def _one_kind_of_workers(self) -> Self:
        if self.cluster and self.workers > 1:
            raise ValueError("workers and cluster exclude each other: a cluster has workers of its own")
        return self
