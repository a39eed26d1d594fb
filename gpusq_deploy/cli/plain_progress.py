"""Progress where stderr is no terminal: one line per stage now and then."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

# Seconds between two lines of a stage; one that ends sooner says nothing.
_EVERY = 10.0


@dataclass(kw_only=True, slots=True)
class _Stage:
    """When a stage began and when it was last told, in seconds; and how much was done at the beginning and just now."""

    began: float
    told: float
    first: int
    done: int


@dataclass(slots=True)
class PlainProgress:
    """Says label, done, total and the time left: every ten seconds at most for each label, and nothing of short stages.

    Args:
        say: Hears the lines.
        clock: Seconds.
    """

    say: Callable[[str], None]
    clock: Callable[[], float] = time.monotonic
    _stages: dict[str, _Stage] = field(default_factory=dict[str, _Stage])
    _details: dict[str, str] = field(default_factory=dict[str, str])

    def detail(self, label: str, text: str) -> None:
        """Hear what belongs beside a label's next line."""
        self._details[label] = text

    def update(self, label: str, done: int, total: int) -> None:
        """Hear that `done` of `total` steps are done; fewer than before begin the stage anew."""
        now = self.clock()
        stage = self._stages.get(label)
        if stage is None or done < stage.done:
            self._stages[label] = _Stage(began=now, told=now, first=done, done=done)
            return
        stage.done = done
        if now - stage.told < _EVERY or done >= total:
            return
        stage.told = now
        made = done - stage.first
        left = f", about {_time((now - stage.began) / made * (total - done))} left" if made else ""
        detail = f", {self._details[label]}" if label in self._details else ""
        self.say(f"{label}: {done}/{total}{left}{detail}")


def _time(seconds: float) -> str:
    """`40 s`, `3 min`, `2 h 5 min`: in steps of ten seconds below two minutes."""
    if seconds < 120:
        return f"{max(10, round(seconds / 10) * 10)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
