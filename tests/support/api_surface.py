"""The public Python API as text: what is exported, with which signatures, and the page that its docstrings make."""

from __future__ import annotations

import ast
import inspect
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gpusq_deploy

PACKAGE = Path(gpusq_deploy.__file__).parent


def public_names() -> list[str]:
    """Exported names in the order of the face, whoever is exported from elsewhere last."""
    face = ast.parse((PACKAGE / "__init__.pyi").read_text("utf-8"))
    return [
        alias.asname or alias.name for node in face.body if isinstance(node, ast.ImportFrom) for alias in node.names
    ]


def signatures() -> str:
    """One line for each exported function, and for each class its constructor, fields, properties and methods."""
    lines: list[str] = []
    for name in public_names():
        found = getattr(gpusq_deploy, name)
        lines += _class_lines(name, found) if inspect.isclass(found) else [f"{name}{inspect.signature(found)}"]
    return "\n".join(lines) + "\n"


def _class_lines(name: str, kind: type[Any]) -> Iterator[str]:
    if typing.is_typeddict(kind):
        yield f"class {name}(TypedDict, total={kind.__total__})"
        yield from (f"{name}[{key!r}]: {_annotation(value)}" for key, value in kind.__annotations__.items())
        return
    yield f"class {name}{inspect.signature(kind)}"
    for member, value in vars(kind).items():
        if member.startswith("_"):
            continue
        if isinstance(value, property):
            assert value.fget is not None
            yield f"{name}.{member} -> {inspect.signature(value.fget).return_annotation}"
        elif inspect.isfunction(value):
            yield f"{name}.{member}{inspect.signature(value)}"


def _annotation(value: Any) -> str:
    return value.__forward_arg__ if isinstance(value, typing.ForwardRef) else str(value)
