"""The public Python API as text: what is exported, with which signatures, and the page that its docstrings make."""

from __future__ import annotations

import ast
import inspect
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gpusq_deploy

PACKAGE = Path(gpusq_deploy.__file__).parent


class _Words:
    """An annotation as it is written: whether `inspect` puts quotes around it depends on Python's version."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def signature_of(found: Any) -> str:
    """A function's or a class's signature."""
    signature = inspect.signature(found)
    parameters = [each.replace(annotation=_worded(each.annotation)) for each in signature.parameters.values()]
    returned = signature.empty if inspect.isclass(found) else _worded(signature.return_annotation)
    return str(signature.replace(parameters=parameters, return_annotation=returned))


def _worded(annotation: Any) -> Any:
    return _Words(annotation) if isinstance(annotation, str) else annotation


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
        lines += _class_lines(name, found) if inspect.isclass(found) else [f"{name}{signature_of(found)}"]
    return "\n".join(lines) + "\n"


def _class_lines(name: str, kind: type[Any]) -> Iterator[str]:
    if typing.is_typeddict(kind):
        yield f"class {name}(TypedDict, total={kind.__total__})"
        yield from (f"{name}[{key!r}]: {_annotation(value)}" for key, value in kind.__annotations__.items())
        return
    yield f"class {name}{signature_of(kind)}"
    for member, value in vars(kind).items():
        if member.startswith("_"):
            continue
        if isinstance(value, property):
            assert value.fget is not None
            yield f"{name}.{member} -> {inspect.signature(value.fget).return_annotation}"
        elif inspect.isfunction(value):
            yield f"{name}.{member}{signature_of(value)}"


def page() -> str:
    """The reference part of docs/api.md, made from the docstrings."""
    parts: list[str] = []
    for name in public_names():
        found = getattr(gpusq_deploy, name)
        if found.__module__.partition(".")[2].partition(".")[0] != "api":
            continue
        if inspect.isclass(found):
            parts += [f"## {name}", _text_of(found), *_member_parts(found)]
        else:
            parts += [f"## {name}", _code(f"{name}{signature_of(found)}"), _text_of(found)]
    return "\n\n".join(parts) + "\n"


def _member_parts(kind: type[Any]) -> Iterator[str]:
    for member, value in vars(kind).items():
        if member.startswith("_"):
            continue
        if isinstance(value, property):
            yield f"### {kind.__name__}.{member}\n\n{_text_of(value)}"
        elif inspect.isfunction(value):
            signature = signature_of(value).replace("(self, ", "(").replace("(self)", "()")
            yield f"### {kind.__name__}.{member}\n\n{_code(member + signature)}\n\n{_text_of(value)}"


def _code(signature: str) -> str:
    """As the formatter would wrap it: one parameter a line where it is too long for one."""
    if len(signature) > 100:
        head, _, tail = signature.partition("(")
        inner, arrow, returned = tail.rpartition(") -> ")
        signature = f"{head}(\n    {_one_a_line(inner)},\n{arrow}{returned}"
    return f"```python\n{signature}\n```"


def _one_a_line(inner: str) -> str:
    """Split at the commas outside brackets."""
    depth, text = 0, ""
    for character in inner:
        depth += (character in "[(") - (character in "])")
        text += ",\n   " if character == "," and not depth else character
    return text


def _text_of(found: Any) -> str:
    """A docstring in Google's form as Markdown: a section's entries become a list."""
    lines: list[str] = []
    inside = False
    for line in (inspect.getdoc(found) or "").splitlines():
        if line in {"Args:", "Returns:", "Raises:", "Attributes:"}:
            inside = True
            lines += [f"**{line}**", ""]
        elif inside and line.startswith("    ") and not line.startswith("     "):
            lines.append(_entry(line.strip()))
        elif inside and line:
            lines.append(f"  {line.strip()}")
        else:
            inside = inside and bool(line)
            lines.append(line)
    return "\n".join(lines)


def _entry(text: str) -> str:
    named = re.match(r"([A-Za-z_]\w*): (.*)", text)
    return f"- `{named[1]}`: {named[2]}" if named else text


def _annotation(value: Any) -> str:
    return value.__forward_arg__ if isinstance(value, typing.ForwardRef) else str(value)
