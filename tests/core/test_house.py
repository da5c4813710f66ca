"""Rules of the house that no linter knows: what is said has a sentence in both languages, and starting is quick."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from string import Formatter
from typing import TypeGuard

import pytest

import safelight
from safelight.core.messages import LANGUAGES, catalogue, placeholders

SOURCE = Path(safelight.__file__).parent
EMITTERS = {"debug", "info", "warning", "error", "emit"}
BROAD = {"Exception", "BaseException"}
MAY_CATCH_ALL = {SOURCE / "core" / "stream.py"}
HEAVY = ("torch", "numpy")


@dataclass(frozen=True)
class Said:
    """An event in the source: where, which key, and with which values, if they can be read off."""

    place: str
    key: str
    names: frozenset[str] | None


@cache
def sources() -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(SOURCE.rglob("*.py"))}


def place(path: Path, node: ast.expr | ast.excepthandler) -> str:
    return f"{path.relative_to(SOURCE)}:{node.lineno}"


def called(call: ast.Call) -> str:
    """Return the last part of a called name: ``info`` of ``context.events.info(...)``."""
    if isinstance(call.func, ast.Attribute):
        return call.func.attr
    return call.func.id if isinstance(call.func, ast.Name) else ""


def literals(node: ast.expr | None) -> list[str]:
    """Return the text that an expression is, or the texts that it chooses from."""
    if isinstance(node, ast.IfExp):
        return [*literals(node.body), *literals(node.orelse)]
    return [node.value] if isinstance(node, ast.Constant) and isinstance(node.value, str) else []


def names_of_keywords(call: ast.Call) -> frozenset[str] | None:
    names = [keyword.arg for keyword in call.keywords]
    return None if None in names else frozenset(name for name in names if name)


def names_of_data(call: ast.Call) -> frozenset[str] | None:
    """Return the names in the dictionary that an ``Event(key, severity, data)`` is made with."""
    by_name = {keyword.arg: keyword.value for keyword in call.keywords}
    data = by_name.get("data", call.args[2] if len(call.args) > 2 else None)
    if data is None:
        return frozenset()
    if not isinstance(data, ast.Dict):
        return None
    names = [text for name in data.keys for text in literals(name)]
    return frozenset(names) if len(names) == len(data.keys) else None


def said_by(path: Path, module: ast.Module) -> Iterator[Said]:
    for call in ast.walk(module):
        if not isinstance(call, ast.Call):
            continue
        name, arguments = called(call), call.args
        if name in EMITTERS and arguments:
            key, names = arguments[0], names_of_keywords(call)
        elif name == "progress" and len(arguments) > 2:
            key, names = arguments[2], names_of_keywords(call)
        elif name == "Event" and arguments:
            key, names = arguments[0], names_of_data(call)
        else:
            continue
        yield from (Said(place(path, call), text, names) for text in literals(key))


@cache
def all_said() -> list[Said]:
    return [said for path, module in sources().items() for said in said_by(path, module)]


def test_this_file_sees_what_is_said() -> None:
    text = """
events.info("a", x=1)
context.events.emit("b" if bad else "c", Severity.INFO, **data)
context.progress(1, 2, "d", name=3)
Event("e", data={"y": 1})
Event("f", Severity.INFO, data)
Event("g")
"""
    seen = {said.key: said.names for said in said_by(SOURCE / "core", ast.parse(text))}
    assert seen == {"a": {"x"}, "b": None, "c": None, "d": {"name"}, "e": {"y"}, "f": None, "g": frozenset()}
    assert {"run_started", "denoising_progress", "progress_line"} <= {said.key for said in all_said()}


@pytest.mark.parametrize("language", LANGUAGES)
def test_whatever_is_said_has_a_sentence(language: str) -> None:
    sentences = catalogue(language)
    assert [f"{said.place} {said.key}" for said in all_said() if said.key not in sentences] == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_sentence_has_a_place_for_every_value_and_no_other(language: str) -> None:
    wrong = [
        f"{said.place} {said.key}: {sorted(said.names ^ places)}"
        for said in all_said()
        if said.names is not None and said.names != (places := placeholders(catalogue(language).get(said.key, "")))
    ]
    assert wrong == []


def test_keys_are_written_out_and_values_are_data_not_sentences() -> None:
    """Whoever says something names a sentence; what passes on an event of another place names that event's key."""
    wrong = [
        place(path, call)
        for path, module in sources().items()
        for call in ast.walk(module)
        if is_said_to_a_log(call)
        and (not is_key(call.args[0]) or any(is_sentence(keyword.value) for keyword in call.keywords))
    ]
    assert wrong == []


def is_said_to_a_log(call: ast.AST) -> TypeGuard[ast.Call]:
    """Return whether this is ``events.info(...)``, ``self._events.warning(...)`` and the like."""
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute) or not call.args:
        return False
    return call.func.attr in EMITTERS and ast.unparse(call.func.value).endswith("events")


def is_key(node: ast.expr) -> bool:
    chosen = [node.body, node.orelse] if isinstance(node, ast.IfExp) else [node]
    return all((isinstance(one, ast.Attribute) and one.attr == "key") or is_snake_case(one) for one in chosen)


def is_snake_case(node: ast.expr) -> bool:
    return any(re.fullmatch(r"[a-z][a-z0-9_]*", text) for text in literals(node))


def is_sentence(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or any(" " in text for text in literals(node))


@pytest.mark.parametrize(
    ("call", "fine"),
    [
        ("events.info('run_started', items=3, folder=str(folder))", True),
        ("context.events.emit(notice.key, notice.severity, **notice.data)", True),
        ("self.events.info('a' if x else 'b')", True),
        ("events.info('Run started')", False),
        ("events.info(f'run_{name}')", False),
        ("events.info(key)", False),
        ("events.warning('item_failed', error=f'{name} went wrong')", False),
        ("events.warning('item_failed', error='it went wrong')", False),
    ],
)
def test_this_file_tells_keys_and_data_from_sentences(call: str, fine: bool) -> None:
    (node,) = (node for node in ast.walk(ast.parse(call)) if is_said_to_a_log(node))
    assert (is_key(node.args[0]) and not any(is_sentence(keyword.value) for keyword in node.keywords)) == fine


@pytest.mark.parametrize("language", LANGUAGES)
def test_sentences_leave_the_form_of_numbers_to_the_language(language: str) -> None:
    formed = [
        key
        for key, sentence in catalogue(language).items()
        for _, name, form, conversion in Formatter().parse(sentence)
        if name is not None and (form or conversion or not name.isidentifier())
    ]
    assert formed == []


def test_all_languages_say_the_same() -> None:
    english, *others = (catalogue(language) for language in LANGUAGES)
    for other in others:
        assert other.keys() == english.keys()
        assert {key: placeholders(text) for key, text in other.items()} == {
            key: placeholders(text) for key, text in english.items()
        }
        assert [key for key in english if english[key] == other[key]] == [], "not translated"


def test_no_sentence_is_for_nothing() -> None:
    texts = {
        node.value
        for module in sources().values()
        for node in ast.walk(module)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert set(catalogue("en")) - texts == set()


def test_nothing_is_printed_past_the_console() -> None:
    prints = [
        place(path, call)
        for path, module in sources().items()
        for call in ast.walk(module)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "print"
    ]
    assert prints == []


def test_no_error_is_caught_without_being_named() -> None:
    broad = [
        place(path, handler)
        for path, module in sources().items()
        if path not in MAY_CATCH_ALL
        for handler in ast.walk(module)
        if isinstance(handler, ast.ExceptHandler)
        and (handler.type is None or BROAD & {n.id for n in ast.walk(handler.type) if isinstance(n, ast.Name)})
    ]
    assert broad == []


@pytest.mark.parametrize("arguments", [[], ["--help"], ["denoise", "--help"], ["denoise", "run", "--help"]])
def test_the_command_line_starts_without_torch(arguments: list[str]) -> None:
    code = (
        f"import sys\nimport safelight.cli\n{arguments} and safelight.cli.run({arguments})\n"
        f"sys.exit(', '.join(name for name in {HEAVY} if name in sys.modules))"
    )
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert outcome.stderr.strip() == ""
    assert bool(outcome.stdout) == bool(arguments)


def test_what_describes_a_job_or_records_it_needs_no_torch() -> None:
    """A cluster's scheduler, a listing of runs and ``--help`` use these."""
    core = ("errors", "events", "files", "history", "lines", "messages", "options", "pipeline", "run")
    rooms = [path.parent.name for path in SOURCE.glob("pipelines/*/options.py")]
    modules = ["safelight", "safelight.cli", *(f"safelight.core.{name}" for name in core)]
    modules += [f"safelight.pipelines.{room}{part}" for room in rooms for part in ("", ".options")]
    code = f"import sys, {', '.join(modules)}\nprint([name for name in {HEAVY} if name in sys.modules])"
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert outcome.stdout.strip() == "[]"
