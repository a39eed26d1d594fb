"""What the pairs of a gate say of each batch size, by the clock that decides. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from gpusq_deploy.artifacts import Value
from gpusq_deploy.benchmarks.pairs import TURN, Sides, log_ratio
from gpusq_deploy.benchmarks.sequential import Differences, SequentialVerdict, decide

Clock = Literal["wall time", "CPU time"]
EXIT_CODES: dict[SequentialVerdict, int] = {"holds": 0, "regressed": 1, "inconclusive": 3}

# The first of these that a batch size has is the whole gate's.
_WORST_FIRST: tuple[SequentialVerdict, ...] = ("regressed", "inconclusive", "holds")


class ClockReading(Value):
    """One clock's medians in ms, the ratio of head over base, its bounds, and what they would say of the budget.

    The true ratio lies below `lower` by a chance of 0.1 % at most, above `upper` by 1 %, whenever one looks. None: too
    few pairs for a bound.
    """

    base_ms: float
    head_ms: float
    ratio: float
    lower: float | None
    upper: float | None
    verdict: SequentialVerdict


class GateBatch(Value):
    """One batch size, by the `clock` that decides; see `ClockReading` for the bounds.

    `more` is how many further pairs would probably decide; None: decided, or none that anybody would wait for. `wall`
    is what wall time says where CPU time decides.
    """

    batch: int
    base_ms: float
    head_ms: float
    ratio: float
    lower: float | None
    upper: float | None
    verdict: SequentialVerdict
    more: int | None
    clock: Clock = "wall time"
    wall: ClockReading | None = None


def decided_batches(pairs: Sequence[dict[int, Sides]], budget: float, *, families: int) -> tuple[GateBatch, ...]:
    """Decide each batch size by the last look that the pairs allow.

    Args:
        pairs: Of each, the samples by batch size.
        budget: As a share.
        families: How many batch sizes of all models share the errors.
    """
    return tuple(_batch(batch, [pair[batch] for pair in pairs], budget, families) for batch in sorted(pairs[0]))


def worst_of(batches: Iterable[GateBatch]) -> SequentialVerdict:
    """The verdict over several batch sizes: one regressed is enough, else one inconclusive."""
    return worst_verdict(entry.verdict for entry in batches)


def worst_verdict(verdicts: Iterable[SequentialVerdict]) -> SequentialVerdict:
    """The same of verdicts, at least one."""
    found = set(verdicts)
    return next(verdict for verdict in _WORST_FIRST if verdict in found)


def differences_of(pairs: Iterable[Sides], *, cpu: bool, turn: int = TURN) -> Differences:
    """What each pair says by one of the clocks, see `pairs.log_ratio`: [pairs]."""
    sides = [(pair.base.cpu, pair.head.cpu) if cpu else (pair.base.wall, pair.head.wall) for pair in pairs]
    return np.array([log_ratio(base, head, turn) for base, head in sides])


def _batch(batch: int, pairs: list[Sides], budget: float, families: int) -> GateBatch:
    cpu = all(pair.has_cpu for pair in pairs)
    reading, more = _read(pairs, budget, families, cpu=cpu)
    return GateBatch(
        batch=batch,
        base_ms=reading.base_ms,
        head_ms=reading.head_ms,
        ratio=reading.ratio,
        lower=reading.lower,
        upper=reading.upper,
        verdict=reading.verdict,
        more=more,
        clock="CPU time" if cpu else "wall time",
        wall=_read(pairs, budget, families, cpu=False)[0] if cpu else None,
    )


def _read(pairs: list[Sides], budget: float, families: int, *, cpu: bool) -> tuple[ClockReading, int | None]:
    differences = differences_of(pairs, cpu=cpu)
    # The spread of a pair's ratio falls about as the root of its samples.
    weights = np.sqrt([len(pair.base.wall) for pair in pairs])
    decision = decide(differences, budget, families=families, weights=weights)
    base_ms, head_ms = (
        statistics.median(value for pair in pairs for value in (pair[side].cpu if cpu else pair[side].wall))
        for side in (0, 1)
    )
    reading = ClockReading(
        base_ms=base_ms,
        head_ms=head_ms,
        ratio=decision.ratio,
        lower=decision.lower if decision.lower > 0 else None,
        upper=decision.upper if math.isfinite(decision.upper) else None,
        verdict=decision.verdict,
    )
    return reading, decision.more
