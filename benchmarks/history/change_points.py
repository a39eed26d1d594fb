"""Where the level of a series of latencies changed: the exact optimum of a penalised cost, by ruptures.

With x the logarithms of the medians and s their noise, told from neighbours (a step changes one difference of many):

    s = median |x_i - x_(i-1)| / (0.6745 · √2)
    minimise over segmentations     Σ over segments Σ |x_i - median of its segment| / s  +  PENALTY · log n · changes

The absolute deviation is the cost under which an outlier is no step, and PELT finds the exact optimum (Killick,
Fearnhead, Eckley, JASA 107, 2012; Truong, Oudre, Vayatis, Signal Processing 167, 2020, for the library). What the
penalty does to false alarms and catches is simulated in tests/unit/benchmarks/test_history.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import numpy as np

from gpusq_deploy.artifacts import Value
from gpusq_deploy.benchmarks.gate_batches import EXIT_CODES, worst_verdict
from gpusq_deploy.benchmarks.history.entry import HistoryEntry, HistoryKey
from gpusq_deploy.benchmarks.sequential import SequentialVerdict
from gpusq_deploy.frontend import library

# Of a segment: fewer measurements are no level, and a run of outliers is one.
FEWEST = 4
# The optimum takes time that grows with the square of the measurements; what is older changed long ago.
MOST = 200
PENALTY = 3.0
_MAD_OF_NORMAL = 0.6745
_EXTRA = "pip install 'gpusq-deploy[history]' (ruptures has no release for Python 3.14 yet)"


class ChangePoint(Value):
    """From the measurement `created` at `commit` on, latencies are `ratio` times those before; above 1 is slower.

    `last_commit` is the last one of the old level: what changed lies between the two.
    """

    created: str
    commit: str | None
    last_commit: str | None
    before_ms: float
    after_ms: float
    ratio: float


class SeriesChanges(Value):
    """One series: its medians in ms by time, the noise of one as a share, and its change points, oldest first.

    `levels` are the positions where a new level begins.
    """

    key: HistoryKey
    medians_ms: tuple[float, ...]
    noise: float
    changes: tuple[ChangePoint, ...]
    levels: tuple[int, ...]
    verdict: SequentialVerdict
    reason: str


class HistoryReport(Value):
    """All series of a history: the worst verdict, and the lines that couldn't be read."""

    schema: Literal["gpusq.changes/1"] = "gpusq.changes/1"
    verdict: SequentialVerdict
    max_regression: float
    series: tuple[SeriesChanges, ...]
    damaged: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0 holds, 1 regressed, 3 inconclusive."""
        return EXIT_CODES[self.verdict]


def changes_of(entries: Sequence[HistoryEntry], max_regression: float, damaged: Sequence[str] = ()) -> HistoryReport:
    """Change points of each series; a series regressed if its newest one made it slower by more than the budget.

    Args:
        entries: Of any number of series, at least one.
        max_regression: The budget as a share.
        damaged: Lines of the file that are no measurements.

    Raises:
        GpusqError: The library isn't installed.
        ValueError: There are no entries.
    """
    if not entries:
        raise ValueError("a history needs at least one measurement")
    keys = dict.fromkeys(entry.key for entry in entries)
    series = tuple(_series(key, [entry for entry in entries if entry.key == key], max_regression) for key in keys)
    worst = worst_verdict(one.verdict for one in series)
    return HistoryReport(verdict=worst, max_regression=max_regression, series=series, damaged=tuple(damaged))


def positions(medians: Sequence[float]) -> list[int]:
    """Where new levels begin, of medians by time.

    Raises:
        GpusqError: The library isn't installed.
    """
    if len(medians) < 2 * FEWEST:
        return []
    logs = np.log(np.asarray(medians, dtype=np.float64))
    noise = noise_of(medians)
    if noise == 0:  # of equal neighbours: any step is one
        noise = float(np.finfo(np.float64).eps)
    ruptures = library("ruptures", place="--history", hint=_EXTRA)
    found = ruptures.Pelt(model="l1", min_size=FEWEST, jump=1).fit(logs / noise)
    return [int(end) for end in found.predict(pen=PENALTY * math.log(logs.size))[:-1]]


def noise_of(medians: Sequence[float]) -> float:
    """Standard deviation of one logarithm, told from neighbours; 0 of fewer than two."""
    if len(medians) < 2:
        return 0.0
    steps = np.abs(np.diff(np.log(np.asarray(medians, dtype=np.float64))))
    return float(np.median(steps)) / (_MAD_OF_NORMAL * math.sqrt(2))


def _series(key: HistoryKey, entries: Sequence[HistoryEntry], budget: float) -> SeriesChanges:
    newest = sorted(entries, key=lambda entry: entry.created)[-MOST:]
    medians = [entry.median_ms for entry in newest]
    levels = positions(medians)
    ends = [0, *levels, len(medians)]
    centres = [float(np.median(medians[start:end])) for start, end in pairwise(ends)]
    changes = tuple(
        ChangePoint(
            created=newest[level].created,
            commit=newest[level].commit,
            last_commit=newest[level - 1].commit,
            before_ms=before,
            after_ms=after,
            ratio=after / before,
        )
        for level, (before, after) in zip(levels, pairwise(centres), strict=True)
    )
    verdict, reason = _judge(len(medians), changes, budget)
    return SeriesChanges(
        key=key,
        medians_ms=tuple(medians),
        noise=noise_of(medians),
        changes=changes,
        levels=tuple(levels),
        verdict=verdict,
        reason=reason,
    )


def _judge(count: int, changes: Sequence[ChangePoint], budget: float) -> tuple[SequentialVerdict, str]:
    if count < 2 * FEWEST:
        return "inconclusive", f"{count} measurements; a change of level needs {2 * FEWEST}"
    if not changes:
        return "holds", f"{count} measurements on one level"
    change = changes[-1].ratio - 1
    beyond = change > budget
    said = f"the newest of {len(changes)} changes is {change:+.1%}, {'above' if beyond else 'within'} the budget"
    return "regressed" if beyond else "holds", f"{said} of {budget:+.2%}"
