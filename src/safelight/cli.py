"""The command line, derived from the pipelines' options. Importing it imports no torch."""

from __future__ import annotations

import gc
import inspect
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin

from cyclopts import App, ArgumentCollection, CycloptsError, Group, Parameter, Token
from pydantic import BeforeValidator
from pydantic.fields import FieldInfo

from safelight import __version__, streams
from safelight.core.errors import CancelledError, SafelightError, UsageError, as_failure
from safelight.core.options import COMMON_PANEL, OWN_PANEL, Settings, flag, panel_of
from safelight.core.registry import load, registered

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from safelight.core.pipeline import Command, Pipeline
    from safelight.core.settings import Gathered

HELP = """Restores, aligns, stacks and reconstructs images on whatever hardware there is.

Never dies of out-of-memory, loses nothing that was finished, and always says what it did and why.
Start with: safelight demo, or: safelight COMMAND --help
"""


Switch = Annotated[bool, Parameter(negative=(), show_default=False)]
READER_GONE = 141
"""The exit status that shells give to a program whose output nobody reads any more: 128 + SIGPIPE."""

Act = Callable[["Pipeline", "Command[Any]", "Gathered[Any]"], int]
"""What is done with a job and its settings; returns the exit status."""


def main() -> None:
    """Run the command line of this process and exit with its status."""
    streams.settle()
    try:
        status = run(sys.argv[1:])
        sys.stdout.flush()
    except OSError as error:
        streams.lead_to_nothing(sys.stdout)  # else Python complains when it ends
        is_gone = isinstance(error, BrokenPipeError)  # as in: safelight history | head
        status = READER_GONE if is_gone else _fail(str(as_failure(error)), SafelightError.exit_status)
    sys.exit(status)


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit status.

    Parameters
    ----------
    arguments : sequence of str
        Without the program's name.
    """
    return _run(arguments, _do)


def _run(arguments: Sequence[str], act: Act) -> int:
    try:
        status = _app(arguments, act)(list(arguments), exit_on_error=False, result_action="return_value")
    except CycloptsError:  # cyclopts has said what is wrong
        return UsageError.exit_status
    except SafelightError as error:
        return _fail(str(error), error.exit_status)
    except KeyboardInterrupt:
        return _fail("stopped.", CancelledError.exit_status)
    return int(status or 0)


def _fail(sentence: str, status: int) -> int:
    streams.Patient(sys.stderr).write(f"safelight: {sentence}\n")
    return status


def _app(arguments: Sequence[str], act: Act) -> App:
    app = App(
        name="safelight",
        help=HELP,
        version=__version__,
        help_format="plaintext",
        suppress_keyboard_interrupt=False,
        config=_let_be_missing,
    )
    pipelines = registered()
    first = next((argument for argument in arguments if not argument.startswith("-")), None)
    if first in pipelines:
        app.command(_pipeline_app(load(pipelines[first]), act))
    else:  # their names and what they are for: enough for --help, which is in a hurry
        for point in pipelines.values():
            app.command(App(name=point.name, help=_help_of(point)))
    for command in (demo, doctor, history, plan, settings):
        app.command(command)
    return app


def _help_of(point: EntryPoint) -> str:
    try:
        return load(point).help
    except UsageError as error:  # another package's: the others are of use
        return error.problem


def _let_be_missing(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Let required options be None on the command line: a file or the environment may give them."""
    for argument in arguments:
        if argument.required and not argument.has_tokens:
            argument.append(Token(implicit_value=None))


def _pipeline_app(pipeline: Pipeline, act: Act) -> App:
    app = App(name=pipeline.name, help=pipeline.help)
    for command in pipeline.commands:
        app.command(_function(pipeline, command, act), name=command.name, help=_unwrapped(command.help))
    return app


def _unwrapped(text: str) -> str:
    """Return a text with one line per paragraph: cyclopts keeps line breaks, and adds the terminal's."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def _function(pipeline: Pipeline, command: Command[Any], act: Act) -> Callable[..., int]:
    """Return a function whose signature is the command's options."""

    def call(*values: Any, **named: Any) -> int:
        from safelight.core.settings import gather

        gc.enable()
        bound = signature.bind(*values, **named).arguments
        given = {name: value for name, value in bound.items() if value is not None}
        return act(pipeline, command, gather(pipeline, command, given, os.environ))

    fields = command.Options.model_fields
    order = [*command.positional, *(name for name in fields if name not in command.positional)]
    parameters = [_parameter(command.Options, name, name in command.positional) for name in order]
    signature = inspect.Signature(parameters)
    setattr(call, "__signature__", signature)  # noqa: B010 - mypy knows no attribute of that name
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return call


def _parameter(options: type[Settings], name: str, positional: bool) -> inspect.Parameter:
    field, panel = options.model_fields[name], panel_of(options, name)
    # Values with a unit ("2GiB", "10min") are text on the command line; pydantic reads them.
    kind: Any = str if _has_unit(field) else field.annotation
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    required = field.is_required()
    parameter = Parameter(
        name=None if positional else flag(field.alias or name),
        help=field.description,
        group=Group(panel, sort_key=(panel != OWN_PANEL) + 9 * (panel == COMMON_PANEL)),
        required=required,
        negative=() if extra.get("one_way") or required else None,
        negative_iterable=(),
        show_default=not (required or field.default is False or field.default in (None, "", ())),
        consume_multiple=get_origin(field.annotation) is tuple and not positional,  # --views 1.png 2.png
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.POSITIONAL_OR_KEYWORD if positional else inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if required else field.default,
        annotation=Annotated[kind | None, parameter],
    )


def _has_unit(field: FieldInfo) -> bool:
    if get_origin(field.annotation) is tuple:
        return False
    parts = [*field.metadata, *(part for kind in get_args(field.annotation) for part in get_args(kind))]
    return any(isinstance(part, BeforeValidator) for part in parts)


def _do(pipeline: Pipeline, command: Command[Any], gathered: Gathered[Any]) -> int:
    """Run a job."""
    from safelight.console import Console
    from safelight.core.events import EventLog
    from safelight.core.handover import Handover
    from safelight.core.runner import run_command

    options = gathered.options()
    console, events, before = Console(options), EventLog(), Handover.take()
    events.subscribe(console.show)
    if not before.lost:  # else the process before this one has said it
        gathered.say(events)
    try:
        with _heeding_interrupts():
            outcome = run_command(pipeline, command, options, events, console.progress, before)
    finally:
        console.close()
    return outcome.exit_status if outcome.handover is None else _go_on(outcome.handover)


@contextmanager
def _heeding_interrupts() -> Iterator[None]:
    """Have Ctrl-C raise KeyboardInterrupt in the block; elsewhere nothing is to be kept, and the system ends us."""
    is_fatal = signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    if is_fatal:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        if is_fatal:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


def _go_on(handover: Path) -> int:
    """Start this process's command line again: to this process the device is lost, and its memory on it as well."""
    import subprocess  # takes 6 ms of those that --help has

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
    points = registered()
    make = load(points[pipeline]).demo if pipeline in points else None
    if make is None:
        raise UsageError(
            f"there is no demo called {pipeline!r}",
            expected=" or ".join(point.name for point in points.values() if load(point).demo is not None),
        )
    arguments = [pipeline, *make(out)]
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
    _demand_job(job, "safelight plan denoise run stack.tif")
    return run([*job[:2], "--dry-run", *job[2:]])  # not at the end, where "--" may make names of all that follow


def settings(
    *job: Annotated[str, Parameter(allow_leading_hyphen=True)],
    save: Path | None = None,
) -> int:
    """Print a job's settings as a file for --config, without running it.

    Example: safelight settings mosaic run --kappa-low 2.5 > my.toml

    Parameters
    ----------
    job
        Its command line without 'safelight'; what is required may be left out.
    save
        Write them to this file. NAME.json for the program that mosaic replaces; all else that its file holds stays.
    """
    from safelight.settings import write

    _demand_job(job, "safelight settings mosaic run --kappa-low 2.5")
    return _run(job, partial(write, path=save))


def _demand_job(job: Sequence[str], example: str) -> None:
    if len(job) < 2 or job[0] not in registered():
        raise UsageError(
            f"'{' '.join(job)}' is no job of a pipeline" if job else "no job was given",
            expected=f"a command line that begins with one of {', '.join(registered())}",
            remedy=example,
        )
