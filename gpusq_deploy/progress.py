"""Who hears how work goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Reporter:
    """Who hears what is going on: sentences, and progress as label, done, total."""

    say: Callable[[str], None]
    progress: Callable[[str, int, int], None]
