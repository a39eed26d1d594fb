"""One page for a browser: the table, and the images whose answer changed. It needs no other file."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from PIL import Image

from gpusq_deploy.benchmarks.accuracy.table import heading_of, rows_of
from gpusq_deploy.benchmarks.accuracy.tasks_and_data import Entries
from gpusq_deploy.benchmarks.accuracy.values import Evaluation
from gpusq_deploy.bundle import render_page, save_page

_MOST = 200  # images
_SIDE = 160  # pixels


def write_page(path: Path, evaluation: Evaluation, entries: Entries) -> None:
    """Write the page, whole or not at all.

    Raises:
        GpusqError: Something else lies there, or the disk refused.
    """
    headings, rows = rows_of(evaluation)
    shown = evaluation.changed[:_MOST]
    more = f"; the first {_MOST} are shown" if len(evaluation.changed) > _MOST else ""
    several = len(evaluation.subjects) > 1
    page = render_page(
        "evaluation.html.j2",
        title=heading_of(evaluation),
        headings=tuple(headings),
        rows=rows,
        notes=evaluation.notes,
        changed=f"{len(evaluation.changed)} images changed their answer{more}" if several else "",
        names=tuple(subject.name for subject in evaluation.subjects),
        images=[(_picture(entries, each.index), each) for each in shown],
    )
    save_page(path, page)


def _picture(entries: Entries, index: int) -> str:
    """A thumbnail in base 64; nothing of an entry that is an array."""
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
    return base64.b64encode(content.getvalue()).decode()
