"""Where a job's settings come from: the command line, then the environment, then a file, then the defaults."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Generic

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from safelight.core.errors import UsageError
from safelight.core.events import Event, EventLog, Severity, Value
from safelight.core.options import flag, public_names
from safelight.core.pipeline import Command, ForeignSettings, OptionsT, Pipeline
from safelight.core.settings_file import CONFIG, is_list, read_table, relative_to, toml

VARIABLE_PREFIX = "SAFELIGHT_"
LIKENESS = 0.8
"""From 0 to 1: a variable whose name is so like an option's is taken for a slip."""


@dataclass(frozen=True)
class Setting:
    """The value of one option, and where it stands.

    Parameters
    ----------
    value : object
    label : str
        What the user calls it there: ``--kappa-low``, ``SAFELIGHT_KAPPA_LOW`` or ``kappa_low``.
    path : Path, optional
        The file that it stands in.
    """

    value: Any
    label: str
    path: Path | None = None

    @property
    def place(self) -> str:
        """Where to look for it."""
        return self.label if self.path is None else str(self.path)

    def error(self, message: str) -> UsageError:
        """Return the error that says what is wrong with the value."""
        verb = "" if self.label.startswith("--") else "is "
        value = self.value if self.path is None else toml(self.value)
        return UsageError(f"{self.label} {verb}{value}: {_lowered(message)}", path=self.path)


@dataclass(frozen=True)
class Gathered(Generic[OptionsT]):
    """The settings of one job from all sources; what none of them gives is left to the defaults.

    Parameters
    ----------
    command : Command
    settings : mapping
        By the option's name, each from the source that goes before the others.
    said : tuple of Event
        Which settings came from where, and what was not used.
    document : mapping
        The whole file, where it is another program's.
    """

    command: Command[OptionsT]
    settings: Mapping[str, Setting]
    said: tuple[Event, ...] = ()
    document: Mapping[str, Any] = field(default_factory=dict)

    def values(self) -> dict[str, Any]:
        """Return the value of every option that some source gives."""
        return {name: setting.value for name, setting in self.settings.items()}

    def options(self) -> OptionsT:
        """Return the options of the command.

        Raises
        ------
        UsageError
            A value is wrong or a required option is missing.
        """
        try:
            return self.command.Options(**self.values())
        except ValidationError as error:
            raise self._in_words(error.errors()) from None

    def check(self) -> None:
        """Check the values that are given; required options may be missing.

        Raises
        ------
        UsageError
            A value is wrong.
        """
        try:
            self.command.Options(**self.values())
        except ValidationError as error:
            wrong = [problem for problem in error.errors() if problem["type"] != "missing"]
            if wrong:
                raise self._in_words(wrong) from None

    def say(self, events: EventLog) -> None:
        """Say which settings came from where, and what was not used."""
        for event in self.said:
            events.add(event)

    def _in_words(self, problems: Iterable[Any]) -> UsageError:
        errors = [self._explain(problem) for problem in problems]
        return errors[0] if len(errors) == 1 else UsageError("; ".join(str(error).rstrip(".") for error in errors))

    def _explain(self, problem: Any) -> UsageError:
        """Return what pydantic found as an error that names the option as the user did."""
        if not problem["loc"]:  # several options that do not go together
            return UsageError(str(problem["msg"]).removeprefix("Value error, "))
        name = public_names(self.command.Options).get(problem["loc"][0], problem["loc"][0])
        if problem["type"] == "missing":
            about = self.command.Options.model_fields[name].description or "it has no default."
            return UsageError(f"{flag(name)} is missing: {_lowered(about)}")
        return self.settings[name].error(problem["msg"])


def gather(
    pipeline: Pipeline, command: Command[OptionsT], given: Mapping[str, Any], environment: Mapping[str, str]
) -> Gathered[OptionsT]:
    """Gather the settings of a job.

    Parameters
    ----------
    pipeline, command
        The job.
    given : mapping
        What the command line gives, by the option's name.
    environment : mapping
        Variables; those that are called ``SAFELIGHT_`` and an option's name in capitals are read.

    Raises
    ------
    InputError
        The file cannot be read.
    UsageError
        The file holds an unknown setting; the file or a variable holds a wrong value.
    """
    names = {name: public for public, name in public_names(command.Options).items()}
    told = {name: Setting(value, flag(names[name])) for name, value in given.items()}
    variables = _from_environment(command, environment)
    config = {**variables, **told}.get(CONFIG, Setting(None, "")).value
    file = _from_file(pipeline, command, Path(config)) if isinstance(config, str | Path) else _File()
    settings = {**file.settings, **variables, **told}
    said = (*file.said, *_origins(file, variables, settings), *_slips(command, environment))
    return Gathered(command, settings, said, file.document)


@dataclass(frozen=True)
class _File:
    """What a file of settings holds."""

    path: Path | None = None
    settings: Mapping[str, Setting] = field(default_factory=dict)
    said: tuple[Event, ...] = ()
    document: Mapping[str, Any] = field(default_factory=dict)


def _from_environment(command: Command[Any], environment: Mapping[str, str]) -> dict[str, Setting]:
    found = {
        name: (VARIABLE_PREFIX + public.upper(), environment[VARIABLE_PREFIX + public.upper()])
        for public, name in public_names(command.Options).items()
        if environment.get(VARIABLE_PREFIX + public.upper())
    }
    if command.foreign is not None:
        found = {**command.foreign.variables(environment), **found}
    return {name: _read_loosely(command, name, Setting(text, variable)) for name, (variable, text) in found.items()}


def _from_file(pipeline: Pipeline, command: Command[Any], path: Path) -> _File:
    if command.foreign is not None and path.suffix.lower() == command.foreign.suffix:
        return _from_foreign_file(command, command.foreign, path)
    table, others = read_table(path, pipeline, command)
    names = public_names(command.Options)
    settings = {
        names[public]: _read_strictly(command, names[public], Setting(value, public, path), path.parent)
        for public, value in table.items()
    }
    unused = Event("settings_of_other_jobs", Severity.INFO, {"file": str(path), "tables": list(others)})
    return _File(path, settings, (unused,) if others else ())


def _from_foreign_file(command: Command[Any], foreign: ForeignSettings, path: Path) -> _File:
    found = foreign.load(path)
    settings = {
        name: _read_loosely(command, name, Setting(value, label, path))
        for name, (label, value) in found.options.items()
    }
    unknown = Event("settings_foreign", Severity.INFO, {"file": str(path), "settings": list(found.unknown)})
    return _File(path, settings, (unknown,) if found.unknown else (), found.document)


def _read_loosely(command: Command[Any], name: str, setting: Setting) -> Setting:
    """Return a setting with the value that its text stands for: "on" is true, a list has commas."""
    option = command.Options.model_fields[name]
    listed = is_list(option) and isinstance(setting.value, str)
    value = [part.strip() for part in setting.value.split(",")] if listed else setting.value
    try:
        return replace(setting, value=_adapter(option).validate_python(value))
    except ValidationError as error:
        raise setting.error(error.errors()[0]["msg"]) from None


def _read_strictly(command: Command[Any], name: str, setting: Setting, folder: Path) -> Setting:
    """Return a setting of a TOML file, which must be of the option's own type; its paths are relative to the file."""
    option = command.Options.model_fields[name]
    try:
        value = _adapter(option).validate_json(json.dumps(setting.value, default=str), strict=True)
    except ValidationError as error:
        raise setting.error(error.errors()[0]["msg"]) from None
    return replace(setting, value=relative_to(folder, value, option))


def _adapter(option: FieldInfo) -> TypeAdapter[Any]:
    kind: Any = option.annotation
    return TypeAdapter(Annotated[(kind, *option.metadata)] if option.metadata else kind)


def _origins(file: _File, variables: Mapping[str, Setting], settings: Mapping[str, Setting]) -> list[Event]:
    """Say which settings came from the file and the environment, and which of them gave way to another."""
    said = []
    if file.path is not None:
        used = [s.label for name, s in file.settings.items() if settings[name] is s]
        said.append(Event("settings_from_file", Severity.INFO, {"file": str(file.path), "settings": [*used]}))
    used = [s.label for name, s in variables.items() if settings[name] is s]
    if used:
        said.append(Event("settings_from_environment", Severity.INFO, {"settings": [*used]}))
    for name, setting in (*file.settings.items(), *variables.items()):
        if settings[name] is not setting:
            data = {"setting": setting.label, "place": setting.place, "by": settings[name].label}
            said.append(Event("setting_overruled", Severity.INFO, data))
    return said


def _slips(command: Command[Any], environment: Mapping[str, str]) -> list[Event]:
    """Say which variables look like settings of the job and are none."""
    known = [public.upper() for public in public_names(command.Options)]
    names = sorted(name.removeprefix(VARIABLE_PREFIX) for name in environment if name.startswith(VARIABLE_PREFIX))
    said = []
    for name in names:
        near = [] if name in known else get_close_matches(name, known, cutoff=LIKENESS)
        if near:
            data: dict[str, Value] = {"variable": VARIABLE_PREFIX + name, "near": [VARIABLE_PREFIX + n for n in near]}
            said.append(Event("variable_unknown", Severity.WARNING, data))
    return said


def _lowered(message: str) -> str:
    """Return a message so that it can stand in the middle of a sentence."""
    message = message.removeprefix("Value error, ")
    return message[0].lower() + message[1:]
