"""The command line, derived from the pipelines' options. Importing it imports no torch."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

from cyclopts import App, CycloptsError, Group, Parameter
from pydantic import BeforeValidator, ValidationError
from pydantic.fields import FieldInfo

from safelight import __version__
from safelight.core.errors import CancelledError, SafelightError, UsageError
from safelight.core.options import CommonOptions

if TYPE_CHECKING:
    from safelight.core.pipeline import Command, Pipeline

REGISTRY = "safelight.pipelines"
HELP = """Restores, aligns, stacks and reconstructs images on whatever hardware there is.

Never dies of out-of-memory, loses nothing that was finished, and always says what it did and why.
Start with: safelight demo, or: safelight COMMAND --help
"""


Switch = Annotated[bool, Parameter(negative=(), show_default=False)]
READER_GONE = 141
"""The exit status that shells give to a program whose output nobody reads any more: 128 + SIGPIPE."""


def main() -> None:
    """Run the command line of this process and exit with its status."""
    try:
        status = run(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # as in: safelight history | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains when it ends
        status = READER_GONE
    sys.exit(status)


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit status.

    Parameters
    ----------
    arguments : sequence of str
        Without the program's name.
    """
    try:
        status = _app(arguments)(list(arguments), exit_on_error=False, result_action="return_value")
    except CycloptsError:  # cyclopts has said what is wrong
        return UsageError.exit_status
    except SafelightError as error:
        return _fail(str(error), error.exit_status)
    except KeyboardInterrupt:
        return _fail("stopped.", CancelledError.exit_status)
    return int(status or 0)


def _fail(sentence: str, status: int) -> int:
    sys.stderr.write(f"safelight: {sentence}\n")
    return status


def registered() -> dict[str, EntryPoint]:
    """Return the entry point of every pipeline by name, sorted; of two with one name, the first."""
    points = sorted(entry_points(group=REGISTRY), key=lambda point: point.name)
    return {point.name: point for point in reversed(points)}


def _app(arguments: Sequence[str]) -> App:
    app = App(
        name="safelight", help=HELP, version=__version__, help_format="plaintext", suppress_keyboard_interrupt=False
    )
    pipelines = registered()
    first = next((argument for argument in arguments if not argument.startswith("-")), None)
    if first in pipelines:
        app.command(_pipeline_app(pipelines[first].load()))
    else:  # their names and what they are for: enough for --help, which is in a hurry
        for point in pipelines.values():
            pipeline: Pipeline = point.load()
            app.command(App(name=pipeline.name, help=pipeline.help))
    for command in (demo, doctor, history, plan):
        app.command(command)
    return app


def _pipeline_app(pipeline: Pipeline) -> App:
    app = App(name=pipeline.name, help=pipeline.help)
    for command in pipeline.commands:
        app.command(_function(pipeline, command), name=command.name, help=command.help)
    return app


def _function(pipeline: Pipeline, command: Command[Any]) -> Callable[..., int]:
    """Return a function whose signature is the command's options."""

    def call(*values: Any, **named: Any) -> int:
        given = signature.bind(*values, **named).arguments
        return _run_command(pipeline, command, _options(command, given))

    fields = command.Options.model_fields
    order = [*command.positional, *(name for name in fields if name not in command.positional)]
    parameters = [_parameter(name, fields[name], name in command.positional) for name in order]
    signature = inspect.Signature(parameters)
    setattr(call, "__signature__", signature)  # noqa: B010 - mypy knows no attribute of that name
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return call


def _parameter(name: str, field: FieldInfo, positional: bool) -> inspect.Parameter:
    # Values with a unit ("2GiB", "10min") are text on the command line; pydantic reads them.
    kind: Any = str | None if _has_unit(field) else field.annotation
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    panel = "Common options" if name in CommonOptions.model_fields else str(extra.get("panel", "Options"))
    option = f"--{(field.alias or name).replace('_', '-')}"
    required = field.is_required()
    parameter = Parameter(
        name=None if positional else option,
        help=field.description,
        group=Group(panel, sort_key=(panel != "Options") + 9 * (panel == "Common options")),
        required=required,
        negative=() if extra.get("one_way") else None,
        show_default=field.default not in (None, "", (), False) and not required,
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.POSITIONAL_OR_KEYWORD if positional else inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if required else field.default,
        annotation=Annotated[kind, parameter],
    )


def _has_unit(field: FieldInfo) -> bool:
    parts = [*field.metadata, *(part for kind in get_args(field.annotation) for part in get_args(kind))]
    return any(isinstance(part, BeforeValidator) for part in parts)


def _options(command: Command[Any], given: dict[str, Any]) -> Any:
    try:
        return command.Options(**given)
    except ValidationError as error:
        raise UsageError("; ".join(map(_sentence, error.errors()))) from None


def _sentence(problem: Any) -> str:
    """Say which option has which value and what was expected."""
    message = str(problem["msg"]).removeprefix("Value error, ")
    if not problem["loc"]:
        return message
    return f"--{str(problem['loc'][0]).replace('_', '-')} {problem['input']}: {message[0].lower()}{message[1:]}"


def _run_command(pipeline: Pipeline, command: Command[Any], options: CommonOptions) -> int:
    from safelight.console import Console
    from safelight.core.events import EventLog
    from safelight.core.handover import Handover
    from safelight.core.runner import run_command

    console, events = Console(options), EventLog()
    events.subscribe(console.show)
    try:
        outcome = run_command(pipeline, command, options, events, console.progress, Handover.take())
    finally:
        console.close()
    return outcome.exit_status if outcome.handover is None else _go_on(outcome.handover)


def _go_on(handover: Path) -> int:
    """Start this process's command line again: to this process the device is lost, and its memory on it as well."""
    from safelight.core.handover import VARIABLE

    command = [sys.executable, *sys.orig_argv[1:]]
    environment = {**os.environ, VARIABLE: str(handover.resolve())}
    sys.stdout.flush()
    if os.name != "nt":  # where exec gives the prompt back at once
        os.execve(sys.executable, command, environment)
    return subprocess.call(command, env=environment)


def demo(pipeline: str = "denoise", *, out: Path = Path("demo")) -> int:
    """Run a pipeline on a real image that ships with Safelight's dependencies.

    Parameters
    ----------
    pipeline
        Which one.
    out
        Folder for the input, the result and the report.
    """
    entry = registered().get(pipeline)
    value: Pipeline | None = entry.load() if entry else None
    if value is None or value.demo is None:
        raise UsageError(f"there is no demo called {pipeline!r}", expected=", ".join(sorted(registered())))
    arguments = [pipeline, *value.demo(out)]
    sys.stdout.write(f"$ safelight {' '.join(arguments)}\n")
    sys.stdout.flush()
    return run(arguments)


def doctor(*, json: Switch = False) -> int:
    """Say what hardware there is, what is active, and what would run where.

    Parameters
    ----------
    json
        As one JSON document.
    """
    from safelight.doctor import show

    return show(as_json=json)


def history(
    model_names: Annotated[Sequence[str], Parameter(show_default=False)] = (),
    /,
    *,
    results: Path = Path("results"),
    last: int = 20,
    json: Switch = False,
) -> int:
    """List the runs, newest last, or compare those with the given model names side by side.

    Parameters
    ----------
    model_names
        Names to compare; the best value of each metric is marked.
    results
        Folder of the history.
    last
        How many runs to list.
    json
        As JSON lines.
    """
    from safelight.listing import show

    return show(tuple(model_names), results, last, as_json=json)


def plan(
    *job: Annotated[str, Parameter(allow_leading_hyphen=True)],
) -> int:
    """Print a job's memory plan without running it.

    Example: safelight plan denoise run stack.tif

    Parameters
    ----------
    job
        Its command line without 'safelight'.
    """
    if len(job) < 2 or job[0] not in registered():
        raise UsageError(
            f"'{' '.join(job)}' is no job of a pipeline" if job else "no job was given",
            expected=f"a command line that begins with one of {', '.join(registered())}",
            remedy="safelight plan denoise run stack.tif",
        )
    return run([*job, "--dry-run"])
