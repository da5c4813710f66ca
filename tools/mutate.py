"""Breaks a module in one place at a time and looks whether the tests notice: the score of the tests.

    python tools/mutate.py src/safelight/pipelines/decloud/network.py \
        tests/parity/test_decloud.py tests/pipelines/decloud/test_network.py --slips tools/decloud_slips.toml

The source is never touched: mutants live in a copy. What the tests do not notice is listed.
"""

from __future__ import annotations

import argparse
import ast
import copy
import os
import random
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src"
SECONDS = 120

OPERATORS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
}
"""Each is replaced by the other."""


@dataclass(frozen=True)
class Mutant:
    """One change: what it is, in which file, and the whole new text of it."""

    name: str
    path: Path
    text: str


def main() -> None:
    """Run the tests against every mutant and print the score."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("module", type=Path)
    parser.add_argument("tests", type=Path, nargs="+")
    parser.add_argument("--slips", type=Path, help="TOML with slips by name: path, old, new")
    parser.add_argument("--sample", type=int, help="so many of the automatic mutants, drawn with a fixed seed")
    options = parser.parse_args()
    slips = list(from_slips(options.slips)) if options.slips else []
    automatic = list(from_syntax(options.module))
    if options.sample is not None:
        automatic = random.Random(0).sample(automatic, min(options.sample, len(automatic)))
    import torch  # noqa: F401 - once, before the processes part: it takes most of the time of a run

    with tempfile.TemporaryDirectory() as folder:
        copied = Path(folder) / "src"
        shutil.copytree(PACKAGE, copied)
        if not passes(copied, options.tests):
            sys.exit("the tests fail without any change")
        for kind, mutants in (("slips by hand", slips), ("automatic", automatic)):
            score(kind, mutants, copied, options.tests)


def score(kind: str, mutants: list[Mutant], copied: Path, tests: list[Path]) -> None:
    """Try each mutant, print those that live and how many there are."""
    alive = []
    for mutant in mutants:
        place = copied / mutant.path.resolve().relative_to(PACKAGE)
        before = place.read_text(encoding="utf-8")
        place.write_text(mutant.text, encoding="utf-8")
        if passes(copied, tests):
            alive.append(mutant.name)
            sys.stdout.write(f"alive: {mutant.name}\n")
            sys.stdout.flush()
        place.write_text(before, encoding="utf-8")
    sys.stdout.write(f"{kind}: {len(mutants) - len(alive)} of {len(mutants)} noticed\n")
    sys.stdout.flush()


def passes(copied: Path, tests: list[Path]) -> bool:
    """Return whether the tests pass on the package in a folder, in a process of their own."""
    child = os.fork()
    if child == 0:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        sys.dont_write_bytecode = True
        sys.path.insert(0, str(copied))
        import pytest

        arguments = ["-x", "-q", "-p", "no:cacheprovider", f"--timeout={SECONDS}", *map(str, tests)]
        os._exit(int(pytest.main(arguments)))
    return os.waitpid(child, 0)[1] == 0


def from_slips(path: Path) -> Iterator[Mutant]:
    """Yield the slips of a file; each must still find its place, once."""
    for name, slip in tomllib.loads(path.read_text(encoding="utf-8")).items():
        source = ROOT / slip["path"]
        text = source.read_text(encoding="utf-8")
        if text.count(slip["old"]) != 1:
            sys.exit(f"{name}: {slip['old']!r} is {text.count(slip['old'])} times in {source}")
        yield Mutant(name, source, text.replace(slip["old"], slip["new"]))


def from_syntax(path: Path) -> Iterator[Mutant]:
    """Yield one mutant per operator, number and truth value of the functions of a module."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        skipped = {id(part) for note in annotations(function) for part in ast.walk(note)}
        for statement in function.body:
            for node in ast.walk(statement):
                if id(node) not in skipped:
                    yield from changed(tree, node, path)


def annotations(function: ast.FunctionDef) -> Iterator[ast.AST]:
    """Yield what in a function's body is for readers and type checkers only."""
    for node in ast.walk(function):
        if isinstance(node, ast.AnnAssign):
            yield node.annotation
        if isinstance(node, ast.Raise):
            yield node


def changed(tree: ast.Module, node: ast.AST, path: Path) -> Iterator[Mutant]:
    """Yield the mutants that change one node; the tree is as it was afterwards."""
    before = copy.copy(node.__dict__)
    for what in mutate(node):
        name = f"{path.name}:{getattr(node, 'lineno', 0)} {what}: {ast.unparse(node)}"
        yield Mutant(name, path, ast.unparse(tree))
        node.__dict__.clear()
        node.__dict__.update(before)


def mutate(node: ast.AST) -> Iterator[str]:
    """Change a node in place and yield what was done, once per possible change."""
    match node:
        case ast.BinOp(op=op) if type(op) in OPERATORS:
            node.op = OPERATORS[type(op)]()
            yield "operator"
        case ast.Compare(ops=[op]) if type(op) in OPERATORS:
            node.ops = [OPERATORS[type(op)]()]
            yield "comparison"
        case ast.Constant(value=bool() as value):
            node.value = not value
            yield "truth value"
        case ast.Constant(value=int() | float() as value):
            node.value = value + 1
            yield "number"
        case ast.UnaryOp(op=ast.USub()):
            node.op = ast.UAdd()
            yield "sign"
        case ast.IfExp():
            node.body, node.orelse = node.orelse, node.body
            yield "condition"


if __name__ == "__main__":
    main()
