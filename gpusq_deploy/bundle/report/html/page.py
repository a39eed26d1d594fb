"""From values to one self-contained page: no script, no other file, all text escaped."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from gpusq_deploy.artifacts import require_folder, write_whole
from gpusq_deploy.errors import GpusqError

# What every page of ours begins with, older ones of gpusq-eval too.
_MARK = b'<meta name="generator" content="gpusq-'


def render_page(template: str, **values: Any) -> str:
    """Fill a template of this package; equal values give equal text.

    Args:
        template: Its file's name in `templates`.
        values: What it shows. Text is escaped; `tojson` escapes what would end a script element.
    """
    return _environment().get_template(template).render(**values)


def require_page(path: Path) -> None:
    """Refuse, before any work, a place where no page can be written, or where something else lies.

    Raises:
        GpusqError: Says which.
    """
    require_folder(path)
    if not path.exists():
        return
    try:
        with path.open("rb") as stream:
            ours = _MARK in stream.read(1 << 10)
    except OSError as error:
        raise GpusqError(f"cannot read what is there: {error.strerror}", place=str(path)) from error
    if not ours:
        raise GpusqError(
            "the file exists and is no earlier page; it was left alone", place=str(path), hint="name another file"
        )


def save_page(path: Path, page: str) -> None:
    """Write a page, whole or not at all, and never over a file that isn't one.

    Raises:
        GpusqError: See `require_page`; or the disk refused.
    """
    require_page(path)
    try:
        write_whole(path, page.encode())
    except OSError as error:
        raise GpusqError(f"cannot write the page: {error.strerror}", place=str(path)) from error


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader(__package__ or ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["breakable"] = _breakable
    # JSON has no infinity: better no page than one whose data no parser reads.
    environment.policies["json.dumps_kwargs"] = {"sort_keys": True, "allow_nan": False, "separators": (",", ":")}
    return environment


def _breakable(name: str) -> Markup:
    """A dotted name that may be broken behind each of its dots."""
    return Markup(".<wbr>").join(name.split("."))
