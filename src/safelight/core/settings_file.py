"""Files of settings: TOML with the names of the options, flat or in the table of a job such as ``[mosaic.run]``."""

from __future__ import annotations

import json
import textwrap
import tomllib
from collections.abc import Collection, Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from safelight.core.errors import InputError, UsageError
from safelight.core.options import COMMON_PANEL, NAMES_FILES, panel_of, public_names
from safelight.core.pipeline import Command, Pipeline
from safelight.core.registry import registered

CONFIG = "config"
"""The option that names the file; it cannot stand in one."""
LINE_WIDTH = 100


def read_table(path: Path, pipeline: Pipeline, command: Command[Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Read what a file says about one job.

    Settings outside of tables are for every job that the file is used with; those in the job's table go before them.

    Returns
    -------
    settings : dict
        By the names that users know.
    others : tuple of str
        The tables of other jobs.

    Raises
    ------
    InputError
        The file cannot be read or is no TOML.
    UsageError
        A setting or a table is unknown; names the file, the setting, and those that are like it.
    """
    document = _read(path)
    names = [public for public, name in public_names(command.Options).items() if name != CONFIG]
    tables = {name: part for name, part in document.items() if isinstance(part, dict) and name not in names}
    flat = {name: value for name, value in document.items() if name not in tables}
    jobs = tables.get(pipeline.name, {})
    own = jobs.get(command.name, {})
    if not isinstance(own, dict):
        raise UsageError(f"{pipeline.name}.{command.name} is {toml(own)}", path=path, expected="a table")
    job = f"{pipeline.name} {command.name}"
    demand_known(tables, {pipeline.name, *registered()}, job, path=path)
    demand_known(flat, names, job, path=path)
    demand_known(jobs, [each.name for each in pipeline.commands], job, f"{pipeline.name}.", path)
    demand_known(own, names, job, f"{pipeline.name}.{command.name}.", path)
    others = [name for name in tables if name != pipeline.name]
    others += [f"{pipeline.name}.{name}" for name in jobs if name != command.name]
    return {**flat, **own}, tuple(others)


def as_toml(pipeline: Pipeline, command: Command[Any], values: Mapping[str, Any]) -> str:
    """Return settings as a file: every option with its description, those that are not given as comments.

    Parameters
    ----------
    pipeline, command
        The job.
    values : mapping
        What is given, by the option's name. Relative paths become absolute: the file may be moved.

    Raises
    ------
    UsageError
        A path is not in UTF-8, and so cannot stand in a file of TOML.
    """
    lines = [
        f"# Settings for: safelight {pipeline.name} {command.name} --config FILE",
        "# What is commented out is not set; the value there is the default.",
        "",
        f"[{pipeline.name}.{command.name}]",
    ]
    for panel, names in _panels(command).items():
        lines += ["", f"## {panel}"]
        for public, name in names.items():
            lines += ["", *_entry(public, command.Options.model_fields[name], values.get(name))]
    text = "\n".join(lines) + "\n"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        name = text[: error.start].rpartition("\n")[2].partition(" = ")[0]
        raise UsageError(f"the value of {name} is not in UTF-8, as TOML must be", remedy="rename the file") from None
    return text


def relative_to(folder: Path, value: Any, option: FieldInfo) -> Any:
    """Return an option's value with its paths relative to a folder; what names no file is returned as it is."""
    if value is None or not (NAMES_FILES in option.metadata or Path in _parts(option.annotation)):
        return value
    if isinstance(value, tuple):
        return tuple(relative_to(folder, part, option) for part in value)
    return type(value)(folder / Path(value).expanduser())


def is_list(option: FieldInfo) -> bool:
    """Return whether an option takes several values."""
    return any(get_origin(part) is tuple for part in _parts(option.annotation))


def toml(value: object) -> str:
    """Return a value as TOML writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name} = {toml(part)}' for name, part in value.items())}}}"
    if isinstance(value, str | Path):  # JSON's text is TOML's, but for one character
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value)


def demand_known(
    settings: Iterable[str], names: Collection[str], job: str, table: str = "", path: Path | None = None
) -> None:
    """Raise an error if a setting is unknown.

    Parameters
    ----------
    settings : iterable of str
    names : collection of str
        Those that are known.
    job : str
        Whose settings they are, for instance ``mosaic run``.
    table : str
        Stands before the setting's name, for instance ``mosaic.run.``
    path : Path, optional
        The file that holds them.

    Raises
    ------
    UsageError
        Names the setting and those that are like it.
    """
    for name in settings:
        if name not in names:
            raise UsageError(
                f"{table}{name} is no setting of {job}",
                path=path,
                expected=" or ".join(get_close_matches(name, names)),
                remedy=f"safelight settings {job}, for a file with all of them",
            )


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"is not TOML: {error}", path=path, expected='lines such as: memory_limit = "2GiB"') from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", path=path, remedy="check --config") from error


def _parts(annotation: Any) -> Iterator[Any]:
    """Return a type and all that it is made of: ``tuple[Path, ...] | None`` holds ``Path``."""
    yield annotation
    for part in get_args(annotation):
        yield from _parts(part)


def _panels(command: Command[Any]) -> dict[str, dict[str, str]]:
    """Return the field's name of every option by the name that users know, by panel; the common ones come last."""
    panels: dict[str, dict[str, str]] = {}
    for public, name in public_names(command.Options).items():
        if name != CONFIG:
            panels.setdefault(panel_of(command.Options, name), {})[public] = name
    common = panels.pop(COMMON_PANEL)
    return {**panels, COMMON_PANEL: common}


def _entry(public: str, option: FieldInfo, value: Any) -> list[str]:
    """Return the description of an option, its choices, and its value or, as a comment, its default."""
    choices = [part for part in _parts(option.annotation) if get_origin(part) is Literal]
    allowed = f" One of: {', '.join(map(str, get_args(choices[0])))}." if choices else ""
    lines = [f"# {line}" for line in textwrap.wrap(f"{option.description or public}{allowed}", LINE_WIDTH)]
    if value is not None:
        return [*lines, f"{public} = {toml(relative_to(Path.cwd(), value, option))}"]
    if option.is_required():
        return [*lines, f"# {public} is required"]
    return [*lines, f"# {public} is not set" if option.default is None else f"# {public} = {toml(option.default)}"]
