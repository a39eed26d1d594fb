"""Who hears how work goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Reporter:
    """Who hears what is going on: sentences, and progress as label, done, total."""

    say: Callable[[str], None]
    progress: Callable[[str, int, int], None]


def _nothing_said(_text: str) -> None:
    """Nobody listens."""


def _no_progress(_label: str, _done: int, _total: int) -> None:
    """Nobody watches."""


SILENT = Reporter(say=_nothing_said, progress=_no_progress)
