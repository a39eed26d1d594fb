"""Base and head in pairs of fresh processes, until it is decided or the time is up."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np

from gpusq_deploy.artifacts import MeasureSettings, Runs, Series, Value, digest_of_file
from gpusq_deploy.benchmarks.environment import read_environment
from gpusq_deploy.benchmarks.pairs import TURN, Pair, log_ratio, take_pair
from gpusq_deploy.benchmarks.recording import Compared, notes_on, now, outputs_compared
from gpusq_deploy.benchmarks.sequential import (
    HOLDS_ERROR,
    REGRESSED_ERROR,
    Decision,
    Differences,
    SequentialVerdict,
    decide,
    last_look,
)
from gpusq_deploy.benchmarks.subject import MeasuredModel
from gpusq_deploy.benchmarks.worker import WorkerRequest
from gpusq_deploy.benchmarks.worker_process import request_for
from gpusq_deploy.errors import GpusqError

EXIT_CODES: dict[SequentialVerdict, int] = {"holds": 0, "regressed": 1, "inconclusive": 3}
# The first of these that a batch size has is the whole gate's.
_WORST_FIRST: tuple[SequentialVerdict, ...] = ("regressed", "inconclusive", "holds")

Progress = Callable[[str, int, int], None]


class GateSettings(Value):
    """How a gate is run. `max_regression` is a share; `max_iterations` the most of one process and batch size.

    `turn` inferences are timed before the other side has its turn; `fixed_pairs` are taken whatever they say.
    """

    max_regression: float = 0.03
    max_seconds: float = 300.0
    max_iterations: int = 90
    turn: int = TURN
    warmup: int = 10
    seed: int = 0
    fixed_pairs: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.max_regression < math.inf:
            raise ValueError(f"a budget must be finite and not negative, not {self.max_regression}")
        if not 0 < self.max_seconds < math.inf or self.max_iterations < 2 * TURN or self.warmup < 0:
            raise ValueError(f"needs max_seconds > 0, max_iterations >= {2 * TURN} and warmup >= 0")


class GateBatch(Value):
    """One batch size: `ratio` is head over base, its bounds hold whenever one looks; None: too few pairs for one.

    The true ratio lies below `lower` by a chance of 0.1 % at most, above `upper` by 1 %. `more` is how many further
    pairs would probably decide; None: decided, or none that anybody would wait for.
    """

    batch: int
    base_ms: float
    head_ms: float
    ratio: float
    lower: float | None
    upper: float | None
    verdict: SequentialVerdict
    more: int | None


class GateResult(Value):
    """The verdict, and everything that was measured for it: repeat i of `base` and of `head` are pair i.

    `loads` are the load averages before the pairs, `pair_seconds` their wall times, `stopped` why no further pair was
    taken.
    """

    schema: Literal["gpusq.gate/1"] = "gpusq.gate/1"
    verdict: SequentialVerdict
    stopped: Literal["decided", "time is up", "asked for so many pairs"]
    settings: GateSettings
    seconds: float
    batches: tuple[GateBatch, ...]
    pair_seconds: tuple[float, ...]
    loads: tuple[float | None, ...]
    base: Runs
    head: Runs

    @property
    def exit_code(self) -> int:
        """0 holds, 1 regressed, 3 inconclusive."""
        return EXIT_CODES[self.verdict]


class Sided(NamedTuple):
    """Base and head, each with what a worker is told of it."""

    base: MeasuredModel
    head: MeasuredModel
    base_request: WorkerRequest
    head_request: WorkerRequest


def sided(
    base: MeasuredModel,
    head: MeasuredModel,
    batches: tuple[int, ...],
    *,
    seed: int = 0,
    threads: int | None = None,
    cuda_graph: bool = False,
) -> Sided:
    """Both sides on one runtime, told the same.

    Raises:
        GpusqError: They have different runtimes, or threads were asked of one that has none to choose.
    """
    names = (base.choice.name, head.choice.name)
    if names[0] != names[1]:
        raise GpusqError(
            f"base runs on {names[0]}, head on {names[1]}", place="--interleave", hint="choose one with --runtime"
        )
    if threads is not None and names[0] != "onnxruntime":
        raise GpusqError(f"{names[0]} has no number of threads to choose", place="--threads", hint="leave it out")
    requests = [request_for(side, batches, seed=seed, threads=threads, cuda_graph=cuda_graph) for side in (base, head)]
    return Sided(base, head, *requests)


def interleave(sides: Sided, settings: GateSettings, progress: Progress | None = None) -> GateResult:
    """Take pairs until every batch size is decided, one has regressed, or the next pair wouldn't fit into the time.

    Args:
        sides: Base and head, see `sided`.
        settings: Budget, time and counts.
        progress: Told before each pair: a label, pairs done, pairs until the next look.

    Raises:
        GpusqError: A side can't be run here, or its outputs are wrong.
    """
    start = time.monotonic()
    checked = [
        outputs_compared(sides.base, sides.base_request),
        outputs_compared(sides.head, sides.head_request),
    ]
    digests = [digest_of_file(side.path) for side in (sides.base, sides.head)]
    pairs: list[Pair] = []
    batches: tuple[GateBatch, ...] = ()
    stopped = None
    while stopped is None:
        if progress is not None:
            progress("pairs of processes", len(pairs), _goal(len(pairs), settings))
        pairs.append(
            take_pair(
                sides.base_request,
                sides.head_request,
                len(pairs),
                warmup=settings.warmup,
                turns=pairs[0].turns if pairs else None,
                most_turns=settings.max_iterations // TURN,
            )
        )
        batches = _decided(pairs, settings)
        stopped = _stopped(pairs, batches, settings, time.monotonic() - start)
    return GateResult(
        verdict=_overall(batches),
        stopped=stopped,
        settings=settings,
        seconds=time.monotonic() - start,
        batches=batches,
        pair_seconds=tuple(pair.seconds for pair in pairs),
        loads=tuple(pair.load for pair in pairs),
        base=_runs(sides.base, digests[0], pairs, settings, checked[0], side=0),
        head=_runs(sides.head, digests[1], pairs, settings, checked[1], side=1),
    )


def log_ratios(result: GateResult, batch: int) -> Differences:
    """What each pair says, see `log_ratio`: [pairs]."""
    pairs = zip(result.base.of_batch(batch), result.head.of_batch(batch), strict=True)
    turn = result.settings.turn
    return np.array([log_ratio(ours.samples_ms, theirs.samples_ms, turn) for ours, theirs in pairs])


def _goal(done: int, settings: GateSettings) -> int:
    """Pairs at the next look."""
    if settings.fixed_pairs is not None:
        return settings.fixed_pairs
    goal = done + 1
    while (look := last_look(goal)) is None or look.pairs != goal:
        goal += 1
    return goal


def _decided(pairs: list[Pair], settings: GateSettings) -> tuple[GateBatch, ...]:
    sizes = tuple(pairs[0].samples)
    found: list[GateBatch] = []
    for batch in sorted(sizes):
        sides = [pair.samples[batch] for pair in pairs]
        differences = np.array([log_ratio(side.base, side.head) for side in sides])
        decision = decide(differences, settings.max_regression, families=len(sizes))
        found.append(
            _gate_batch(
                batch,
                statistics.median(value for side in sides for value in side.base),
                statistics.median(value for side in sides for value in side.head),
                decision,
            )
        )
    return tuple(found)


def _gate_batch(batch: int, base_ms: float, head_ms: float, decision: Decision) -> GateBatch:
    return GateBatch(
        batch=batch,
        base_ms=base_ms,
        head_ms=head_ms,
        ratio=decision.ratio,
        lower=decision.lower if decision.lower > 0 else None,
        upper=decision.upper if math.isfinite(decision.upper) else None,
        verdict=decision.verdict,
        more=decision.more,
    )


def _stopped(
    pairs: list[Pair], batches: tuple[GateBatch, ...], settings: GateSettings, seconds: float
) -> Literal["decided", "time is up", "asked for so many pairs"] | None:
    if settings.fixed_pairs is not None:
        return "asked for so many pairs" if len(pairs) >= settings.fixed_pairs else None
    if _overall(batches) != "inconclusive":
        return "decided"
    longest = max(pair.seconds for pair in pairs[-3:])
    return "time is up" if seconds + longest > settings.max_seconds else None


def _overall(batches: tuple[GateBatch, ...]) -> SequentialVerdict:
    verdicts = {entry.verdict for entry in batches}
    return next(verdict for verdict in _WORST_FIRST if verdict in verdicts)


def _runs(
    subject: MeasuredModel, digest: str, pairs: list[Pair], settings: GateSettings, compared: Compared, *, side: int
) -> Runs:
    counts = MeasureSettings(
        warmup=settings.warmup,
        iterations=pairs[0].turns * TURN,
        repeats=len(pairs),
        seed=settings.seed,
        isolation="pair",
    )
    series = tuple(
        Series(batch=batch, repeat=number, warmup=settings.warmup, samples_ms=sides[side])
        for number, pair in enumerate(pairs)
        for batch, sides in pair.samples.items()
    )
    return Runs(
        created=now(),
        model=subject.name,
        model_digest=digest,
        runtime=pairs[0].opened[side],
        environment=read_environment(),
        settings=counts,
        outputs=compared.outputs,
        notes=(*notes_on(counts), *compared.notes),
        series=series,
    )


ERRORS = (
    f"a head within the budget is called regressed in {REGRESSED_ERROR:.1%} of gates at most, "
    f"one beyond it is said to hold in {HOLDS_ERROR:.0%} at most"
)
