"""One page for a browser: the table, and the images whose answer changed. It needs no other file."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from gpusq_deploy.artifacts import require_folder, write_whole
from gpusq_deploy.benchmarks.accuracy.table import heading_of, rows_of
from gpusq_deploy.benchmarks.accuracy.tasks_and_data import Entries
from gpusq_deploy.benchmarks.accuracy.values import ChangedImage, Evaluation
from gpusq_deploy.errors import GpusqError

_MARK = '<meta name="generator" content="gpusq-eval">'
_MOST = 200  # images
_SIDE = 160  # pixels
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2em;color:#222}table{border-collapse:collapse;margin:1em 0}"
    "th,td{text-align:left;padding:.3em .8em;border-bottom:1px solid #ddd;vertical-align:top}"
    "td.n{text-align:right;font-variant-numeric:tabular-nums}"
)


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
            ours = _MARK.encode() in stream.read(1 << 10)
    except OSError as error:
        raise GpusqError(f"cannot read what is there: {error.strerror}", place=str(path)) from error
    if not ours:
        raise GpusqError(
            "the file exists and is no earlier page; it was left alone", place=str(path), hint="name another file"
        )


def write_page(path: Path, evaluation: Evaluation, entries: Entries) -> None:
    """Write the page, whole or not at all.

    Raises:
        GpusqError: The disk refused.
    """
    headings, rows = rows_of(evaluation)
    shown = evaluation.changed[:_MOST]
    more = f"; the first {_MOST} are shown" if len(evaluation.changed) > _MOST else ""
    parts = [
        f"<!doctype html><html><head><meta charset='utf-8'>{_MARK}<title>gpusq-eval</title>",
        f"<style>{_STYLE}</style></head><body>",
        f"<h1>{html.escape(heading_of(evaluation))}</h1>",
        _table(headings, rows, numbers=2),
        *(f"<p>{html.escape(note)}</p>" for note in evaluation.notes),
        f"<h2>{len(evaluation.changed)} images changed their answer{more}</h2>" if len(evaluation.subjects) > 1 else "",
        _images(evaluation, shown, entries) if shown else "",
        "</body></html>\n",
    ]
    try:
        write_whole(path, "".join(parts).encode())
    except OSError as error:
        raise GpusqError(f"cannot write the page: {error.strerror}", place=str(path)) from error


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: int) -> str:
    """`numbers`: from this column on cells are numbers."""
    head = "".join(f"<th>{html.escape(text)}</th>" for text in headings)
    body = "".join(
        "<tr>"
        + "".join(
            f"<td{' class=n' if place >= numbers else ''}>{html.escape(cell)}</td>" for place, cell in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _images(evaluation: Evaluation, shown: Sequence[ChangedImage], entries: Entries) -> str:
    names = "".join(f"<th>{html.escape(subject.name)}</th>" for subject in evaluation.subjects)
    rows = "".join(
        f"<tr><td>{_picture(entries, each.index)}</td><td>{html.escape(each.image)}</td>"
        f"<td>{html.escape(each.label)}</td>"
        + "".join(f"<td>{html.escape(answer)}</td>" for answer in each.answers)
        + "</tr>"
        for each in shown
    )
    return f"<table><tr><th></th><th>image</th><th>label</th>{names}</tr>{rows}</table>"


def _picture(entries: Entries, index: int) -> str:
    """A thumbnail; nothing of an entry that is an array."""
    image = entries.entry(index).image
    if isinstance(image, Path):
        with Image.open(image) as opened:
            return _thumbnail(opened)
    return _thumbnail(image) if isinstance(image, Image.Image) else ""


def _thumbnail(image: Image.Image) -> str:
    small = image.convert("RGB")
    small.thumbnail((_SIDE, _SIDE))
    content = io.BytesIO()
    small.save(content, "JPEG", quality=85)
    return f"<img src='data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}'>"
