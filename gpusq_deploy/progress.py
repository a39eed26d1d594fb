"""Who hears how work goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


def _nothing_said(_text: str) -> None:
    """Nobody listens."""


def _no_progress(_label: str, _done: int, _total: int) -> None:
    """Nobody watches."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reporter:
    """Who hears what is going on: sentences, progress as label, done, total, and beside it label, detail."""

    say: Callable[[str], None]
    progress: Callable[[str, int, int], None]
    detail: Callable[[str, str], None] | None = None


SILENT = Reporter(say=_nothing_said, progress=_no_progress)
