"""Functions stay small: what is longer or more branched than a reader can hold is cut."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PARTS = ("gpusq_deploy", "engines", "calibration", "benchmarks")
# Scripts beside the package: no command uses them, and they aren't shipped.
SCRIPTS = ("benchmarks/peers", "benchmarks/demo")

LONG = 40
MOST_LONG = 5
MOST_BRANCHES = 15
# As radon counts: each is one more way through a function.
_BRANCHES = (
    *(ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.Assert, ast.comprehension),
    ast.match_case,
)


class Size(NamedTuple):
    """Of one function: lines, from its `def` to its end without the docstring; ways through it."""

    lines: int
    branches: int
    where: str


def sizes(text: str, name: str) -> Iterator[Size]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            lines = node.end_lineno - node.lineno + 1 - _docstring_lines(node)
            yield Size(lines, 1 + sum(_ways(child) for child in ast.walk(node)), f"{name}:{node.lineno} {node.name}")


def _docstring_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    first = node.body[0]
    if ast.get_docstring(node) is None or first.end_lineno is None:
        return 0
    return first.end_lineno - first.lineno + 1


def _ways(node: ast.AST) -> int:
    if isinstance(node, ast.BoolOp):
        return len(node.values) - 1
    if isinstance(node, ast.comprehension):
        return 1 + len(node.ifs)
    return int(isinstance(node, _BRANCHES))


@pytest.fixture(scope="module")
def package() -> list[Size]:
    files = [path for part in PARTS for path in sorted((ROOT / part).rglob("*.py"))]
    names = {path: path.relative_to(ROOT).as_posix() for path in files}
    kept = [path for path, name in names.items() if not name.startswith(SCRIPTS)]
    return [size for path in kept for size in sizes(path.read_text("utf-8"), names[path])]


def test_few_functions_are_long(package: list[Size]) -> None:
    long = sorted((size for size in package if size.lines > LONG), reverse=True)
    assert len(package) > 1000
    assert len(long) <= MOST_LONG, "\n".join(f"{size.lines} lines: {size.where}" for size in long)


def test_no_function_has_many_branches(package: list[Size]) -> None:
    wild = {re.sub(r":\d+", "", size.where): size.branches for size in package if size.branches > MOST_BRANCHES}
    assert not wild


def test_lines_and_branches_are_counted() -> None:
    text = '''def f(a, b):
    """Two
    lines."""
    if a and b or a:
        return [x for x in b if x]
    return a if b else b
'''
    (size,) = sizes(text, "m.py")
    assert size == Size(4, 1 + 1 + 2 + 2 + 1, "m.py:1 f")
