"""What a pipeline is: a value with a name and commands. The command line is derived from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from safelight.core.errors import InputError, SafelightError
from safelight.core.events import EventLog, Severity, Value
from safelight.core.options import CommonOptions

if TYPE_CHECKING:
    from safelight.core.device import Device
    from safelight.core.execute import Executor
    from safelight.core.plan import Plan

OptionsT = TypeVar("OptionsT", bound=CommonOptions)


@dataclass(frozen=True)
class Item:
    """The natural unit of independent work: a volume, a scene, a sky group.

    Parameters
    ----------
    name : str
        Unique within the run; names the outputs and the journal's entry.
    inputs : tuple of Path
        The files it is read from; their digests decide whether a finished item is still valid.
    payload : object
        What the pipeline knows about it.
    """

    name: str
    inputs: tuple[Path, ...]
    payload: Any = None


@dataclass(frozen=True)
class Refusal:
    """An input that was found and cannot be used, with the reason.

    Parameters
    ----------
    name : str
    error : SafelightError
        Why.
    severity : Severity
        An error makes the run's exit status non-zero; a warning does so only with ``--strict``.
    """

    name: str
    error: SafelightError
    severity: Severity = Severity.ERROR


@dataclass(frozen=True)
class Found:
    """The result of discovery.

    Raises
    ------
    InputError
        Two items have one name: the output of one would replace the other's.
    """

    items: tuple[Item, ...]
    refused: tuple[Refusal, ...] = ()

    def __post_init__(self) -> None:
        seen: dict[str, Item] = {}
        for item in self.items:
            other = seen.setdefault(item.name.casefold(), item)  # some disks do not tell a from A
            if other is not item:
                raise InputError(
                    f"its results would replace those of {', '.join(map(str, other.inputs)) or other.name}: "
                    f"both are called {item.name!r}",
                    path=item.inputs[0] if item.inputs else None,
                    remedy="rename one, or do them in runs of their own",
                )


@dataclass(frozen=True)
class Record:
    """What came of one item.

    Parameters
    ----------
    outputs : tuple of Path
        Files written whole, inside the run's folder or where the options say.
    metrics : mapping
        Numbers to average over items.
    details : mapping
        Anything else worth keeping in ``run.json``; JSON types only.
    """

    outputs: tuple[Path, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    details: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True)
class Context:
    """What ``prepare`` and ``process`` may use.

    Parameters
    ----------
    device : Device
        Where to compute and how precisely.
    executor : Executor
        Runs kernels within the memory budget.
    events : EventLog
        Where to say what happens.
    folder : Path
        The run's folder.
    progress : callable
        ``progress(done, total, key, data)`` shows how far a long job is.
    """

    device: Device
    executor: Executor
    events: EventLog
    folder: Path
    progress: Callable[..., None] = lambda *_, **__: None


def mean_of_metrics(records: Sequence[Record]) -> dict[str, float]:
    """Return the mean of each metric over the records that have it."""
    names = dict.fromkeys(name for record in records for name in record.metrics)
    return {
        name: sum(values) / len(values)
        for name in names
        if (values := [record.metrics[name] for record in records if name in record.metrics])
    }


@dataclass(frozen=True)
class Prepared:
    """What the items of a run share.

    Parameters
    ----------
    value : object
        Given to ``process``.
    digest : str
        Changes whenever the value does; finished items are then done again.
    items : tuple of Item, optional
        What to do instead of the items found, for instance groups of frames that only registration can tell.
    refused : tuple of Refusal
        Inputs that turned out to be unusable.
    """

    value: Any = None
    digest: str = ""
    items: tuple[Item, ...] | None = None
    refused: tuple[Refusal, ...] = ()


def deferred(target: str) -> Callable[..., Any]:
    """Return a function that imports ``module:function`` when it is first called.

    So a pipeline can be listed and its ``--help`` shown without importing torch. It can be pickled: workers get it.
    """
    return partial(_call, target)


def _call(target: str, /, *arguments: Any, **keywords: Any) -> Any:
    module, name = target.split(":")
    return getattr(import_module(module), name)(*arguments, **keywords)


@dataclass(frozen=True)
class ForeignFile:
    """What a configuration file of another program says.

    Parameters
    ----------
    document : mapping
        The whole file.
    options : mapping
        By the option's name, the file's own name of the setting and the value.
    unknown : tuple of str
        Settings that mean nothing here.
    """

    document: Mapping[str, Any]
    options: Mapping[str, tuple[str, Any]]
    unknown: tuple[str, ...]


@dataclass(frozen=True)
class ForeignSettings:
    """How a command takes over the configuration of another program.

    Parameters
    ----------
    suffix : str
        Of its files, for instance ``.json``.
    load : callable
        ``(path) -> ForeignFile``.
    variables : callable
        ``(environment) -> mapping``: by the option's name, a variable of that program and the option's value.
    save : callable
        ``(path, document, options) -> None``: writes the options into a document, and keeps all that it holds besides.
    """

    suffix: str
    load: Callable[[Path], ForeignFile]
    variables: Callable[[Mapping[str, str]], Mapping[str, tuple[str, str]]]
    save: Callable[[Path, Mapping[str, Any], Mapping[str, Any]], None]


@dataclass(frozen=True)
class Command(Generic[OptionsT]):
    """One job of a pipeline, for instance ``denoise train``.

    Parameters
    ----------
    name : str
    help : str
        First line: what it does. The rest: how to use it, with an example.
    Options : type
        Every option, with unit, bounds, default and description; those in ``positional`` need no name.
    folder : callable
        ``(options) -> Path``: the folder that the run owns.
    find_items : callable
        ``(options) -> Found``.
    process : callable
        ``(item, options, context, prepared) -> Record``: one item from files to files.
    prepare : callable, optional
        ``(items, options, context) -> Prepared``: once, before the items, for instance training; resumable.
    finish : callable, optional
        ``(item, options, context, prepared) -> Record``: once, after the items, for instance assembling their results.
        Its item bears the pipeline's name, its inputs are all outputs of the items, its payload their records by name.
    plan : callable, optional
        ``(item, options, context) -> sequence of Plan``: the memory plans of an item, without running it.
    plan_prepare : callable, optional
        ``(items, options, context) -> sequence of Plan``: the memory plans of ``prepare``, without running it.
    summarise : callable
        ``(records) -> mapping``: numbers for the history.
    entry : callable
        ``(records by name) -> mapping``: what else the run's entry in the history says, for instance results by image.
    audit : callable
        ``(records) -> sequence of mappings``: the checks that the results do not pass, each as the data of an event
        ``audit_missed``. With ``--strict`` any makes the exit status non-zero.
    report : callable, optional
        ``(folder, run document) -> Path``: writes the report after the items.
    without_result : frozenset of str
        Own options that do not change the result; changing another one does finished items again.
    foreign : ForeignSettings, optional
        The configuration of another program, which ``--config`` takes too.
    """

    name: str
    help: str
    Options: type[OptionsT]
    folder: Callable[[OptionsT], Path]
    find_items: Callable[[OptionsT], Found]
    process: Callable[[Item, OptionsT, Context, Any], Record]
    prepare: Callable[[Sequence[Item], OptionsT, Context], Prepared] | None = None
    finish: Callable[[Item, OptionsT, Context, Any], Record] | None = None
    plan: Callable[[Item, OptionsT, Context], Sequence[Plan]] | None = None
    plan_prepare: Callable[[Sequence[Item], OptionsT, Context], Sequence[Plan]] | None = None
    summarise: Callable[[Sequence[Record]], Mapping[str, float]] = mean_of_metrics
    entry: Callable[[Mapping[str, Record]], Mapping[str, Value]] = lambda _: {}
    audit: Callable[[Sequence[Record]], Sequence[Mapping[str, Value]]] = lambda _: ()
    report: Callable[[Path, Mapping[str, Any]], Path] | None = None
    positional: tuple[str, ...] = ("input",)
    without_result: frozenset[str] = frozenset()
    foreign: ForeignSettings | None = None

    def options_of_result(self, options: OptionsT) -> dict[str, Any]:
        """Return the options on which the result depends, as JSON values."""
        common = set(CommonOptions.model_fields) - {"amp", "tf32"}
        return options.model_dump(mode="json", exclude=common | {"out"} | self.without_result)


@dataclass(frozen=True)
class Pipeline:
    """A pipeline: a name, a line of help, and its commands.

    Parameters
    ----------
    name : str
    help : str
    commands : tuple of Command
    demo : callable, optional
        ``(folder) -> arguments``: makes a real input in ``folder`` and returns the command line that uses it.
    """

    name: str
    help: str
    commands: tuple[Command[Any], ...]
    demo: Callable[[Path], list[str]] | None = None
