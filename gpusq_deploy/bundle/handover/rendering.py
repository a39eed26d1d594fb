"""Texts from templates; each kind of text has the quotes of its own."""

from __future__ import annotations

import shlex
from functools import lru_cache
from importlib import resources
from typing import Any

import jinja2


def rendered(template: str, **known: Any) -> bytes:
    """A template with what is known put in, UTF-8; a name that it lacks is our bug."""
    return _environment().get_template(template).render(**known).encode("utf-8", "backslashreplace")


def quoted(text: str) -> str:
    r"""In double quotes, as protobuf's text format and C++ read them: other bytes than plain ASCII as \ooo."""
    plain = (chr(byte) if 32 <= byte < 127 and byte not in b'"\\?' else f"\\{byte:03o}" for byte in text.encode())
    return f'"{"".join(plain)}"'


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    folder = resources.files("gpusq_deploy.bundle.handover") / "templates"
    found = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (folder / f"{name}.j2").read_text(encoding="utf-8")),
        undefined=jinja2.StrictUndefined,
        # Texts for shells, compilers and servers, not for browsers.
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters["quoted"] = quoted
    found.filters["shell"] = shlex.quote
    return found
