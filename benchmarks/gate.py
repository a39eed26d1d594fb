"""Base and head in pairs of fresh processes, until it is decided or the time is up."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from gpusq_deploy.artifacts import MeasureSettings, Runs, Series, Value, digest_of_file
from gpusq_deploy.benchmarks.cpu_clock import Taken
from gpusq_deploy.benchmarks.environment import read_environment
from gpusq_deploy.benchmarks.gate_batches import (
    EXIT_CODES,
    GateBatch,
    decided_batches,
    differences_of,
    worst_of,
    worst_verdict,
)
from gpusq_deploy.benchmarks.pairs import FIRST_SPAN, LATER_SPAN, TURN, Length, Pair, Sides, pairs_at_once, take_pairs
from gpusq_deploy.benchmarks.recording import Compared, notes_on, now, outputs_compared, require_threads
from gpusq_deploy.benchmarks.sequential import (
    FIRST_LOOK,
    HOLDS_ERROR,
    REGRESSED_ERROR,
    Differences,
    SequentialVerdict,
    last_look,
)
from gpusq_deploy.benchmarks.subject import MeasuredModel
from gpusq_deploy.benchmarks.worker import WorkerRequest
from gpusq_deploy.benchmarks.worker_process import request_for
from gpusq_deploy.errors import GpusqError

Stopped = Literal["decided", "time is up", "asked for so many pairs"]
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


class GateResult(Value):
    """The verdict, and everything that was measured for it: repeat i of `base` and of `head` are pair i.

    `loads` are the load averages before the pairs, `pair_seconds` their wall times, `turns` how many each side had in
    them (empty in older files: equally many), `stopped` why no further pair was taken. `families` is how many batch
    sizes, of all models of the gate, share the errors (0 in older files: those of this model). `cores` are those that
    the processes of each pair shared, see `placement`; None where they didn't, empty in older files.

    Invariant: each pair has as many samples as its turns say, so that a file from which some were dropped is refused.
    """

    schema: Literal["gpusq.gate/1"] = "gpusq.gate/1"
    verdict: SequentialVerdict
    stopped: Stopped
    settings: GateSettings
    seconds: float
    batches: tuple[GateBatch, ...]
    pair_seconds: tuple[float, ...]
    loads: tuple[float | None, ...]
    base: Runs
    head: Runs
    turns: tuple[int, ...] = ()
    families: int = 0
    cores: tuple[int | None, ...] = ()

    def __post_init__(self) -> None:
        if self.cores and len(self.cores) != len(self.pair_seconds):
            raise ValueError(f"{len(self.cores)} cores of {len(self.pair_seconds)} pairs")
        turns = self.turns or (self.base.settings.iterations // self.settings.turn,) * len(self.pair_seconds)
        for batch in self.base.batches:
            for side in (self.base.of_batch(batch), self.head.of_batch(batch)):
                if [len(entry.samples_ms) for entry in side] != [self.settings.turn * count for count in turns]:
                    raise ValueError(f"batch {batch}: a pair has other samples than its turns say")

    @property
    def exit_code(self) -> int:
        """0 holds, 1 regressed, 3 inconclusive."""
        return EXIT_CODES[self.verdict]


class Gates(Value):
    """Several models in one gate: the worst verdict, and each model's. They share both errors."""

    schema: Literal["gpusq.gates/1"] = "gpusq.gates/1"
    verdict: SequentialVerdict
    gates: tuple[GateResult, ...]

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
    require_threads(base, threads)
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
    return interleave_models([sides], settings, progress).gates[0]


def interleave_models(models: Sequence[Sided], settings: GateSettings, progress: Progress | None = None) -> Gates:
    """The same of several models: a pair of each in turns, until each is decided or the time of all is up.

    All batch sizes of all models share both errors, so that the chance of any false alarm stays that of one gate.

    Args:
        models: Base and head of each.
        settings: Budget and counts of each; the time is that of all together.
        progress: Told before each pair.

    Raises:
        GpusqError: A side can't be run here, or its outputs are wrong.
        ValueError: There are no models.
    """
    if not models:
        raise ValueError("a gate needs at least one model")
    start = time.monotonic()
    families = sum(len(model.base_request.batches) for model in models)
    gates = [_Gate(model, settings, families) for model in models]
    while waiting := [gate for gate in gates if gate.stopped is None]:
        for gate in waiting:
            if gate.is_late(time.monotonic() - start):
                gate.stopped = "time is up"
                continue
            if progress is not None:
                progress("pairs of processes", len(gate.pairs), _goal(len(gate.pairs), settings))
            gate.step()
    results = tuple(gate.result() for gate in gates)
    return Gates(verdict=worst_verdict(result.verdict for result in results), gates=results)


class _Gate:
    """One base and head: the pairs that were taken, and what they say."""

    def __init__(self, sides: Sided, settings: GateSettings, families: int) -> None:
        start = time.monotonic()
        self.pairs: list[Pair] = []
        self.stopped: Stopped | None = None
        self._sides, self._settings, self._families = sides, settings, families
        self._checked = [
            outputs_compared(sides.base, sides.base_request),
            outputs_compared(sides.head, sides.head_request),
        ]
        self._digests = [digest_of_file(side.path) for side in (sides.base, sides.head)]
        self._batches: tuple[GateBatch, ...] = ()
        self._checking = time.monotonic() - start

    def is_late(self, elapsed: float) -> bool:
        """Whether the next pair wouldn't fit into the time, `elapsed` seconds after the gate of all models began."""
        if not self.pairs or self._settings.fixed_pairs is not None:
            return False
        longest = max(pair.seconds for pair in self.pairs[-3:])
        return elapsed + longest * len(self._next()) > self._settings.max_seconds

    def _next(self) -> range:
        """The pairs that start together: up to the next look, and all of one length."""
        done = len(self.pairs)
        goal = _goal(done, self._settings)
        goal = min(goal, FIRST_LOOK) if done < FIRST_LOOK else goal
        return range(done, min(goal, done + pairs_at_once(self._sides.base_request)))

    def step(self) -> None:
        """Take the next pairs, and look."""
        requests = (self._sides.base_request, self._sides.head_request)
        length = _length(self.pairs, self._settings)
        self.pairs.extend(take_pairs(*requests, self._next(), warmup=self._settings.warmup, length=length))
        samples = [pair.samples for pair in self.pairs]
        self._batches = decided_batches(samples, self._settings.max_regression, families=self._families)
        self.stopped = _stopped(self.pairs, self._batches, self._settings)

    def result(self) -> GateResult:
        """What was found, once it has stopped."""
        assert self.stopped is not None, "a gate ends when it has stopped"
        pairs, settings = self.pairs, self._settings
        base, head = (
            _runs(side, digest, pairs, settings, compared, side=number)
            for number, (side, digest, compared) in enumerate(
                zip((self._sides.base, self._sides.head), self._digests, self._checked, strict=True)
            )
        )
        return GateResult(
            verdict=worst_of(self._batches),
            stopped=self.stopped,
            settings=settings,
            seconds=self._checking + sum(pair.seconds for pair in pairs),
            batches=self._batches,
            pair_seconds=tuple(pair.seconds for pair in pairs),
            loads=tuple(pair.load for pair in pairs),
            base=base,
            head=head,
            turns=tuple(pair.turns for pair in pairs),
            families=self._families,
            cores=tuple(pair.core for pair in pairs),
        )


def log_ratios(result: GateResult, batch: int) -> Differences:
    """What each pair says by the clock that decides, see `pairs.log_ratio`: [pairs]."""
    pairs = zip(result.base.of_batch(batch), result.head.of_batch(batch), strict=True)
    clocks = [Sides(*(Taken(side.samples_ms, side.cpu_ms) for side in pair)) for pair in pairs]
    return differences_of(clocks, cpu=all(sides.has_cpu for sides in clocks), turn=result.settings.turn)


def _length(pairs: Sequence[Pair], settings: GateSettings) -> Length:
    """Short until the first look, longer after it; within either, all pairs have the same number of turns."""
    chosen = None if len(pairs) in {0, FIRST_LOOK} else pairs[-1].turns
    span = FIRST_SPAN if len(pairs) < FIRST_LOOK else LATER_SPAN
    return Length(chosen, settings.max_iterations // TURN, span)


def _goal(done: int, settings: GateSettings) -> int:
    """Pairs at the next look."""
    if settings.fixed_pairs is not None:
        return settings.fixed_pairs
    goal = done + 1
    while (look := last_look(goal)) is None or look.pairs != goal:
        goal += 1
    return goal


def _stopped(pairs: list[Pair], batches: tuple[GateBatch, ...], settings: GateSettings) -> Stopped | None:
    if settings.fixed_pairs is not None:
        return "asked for so many pairs" if len(pairs) >= settings.fixed_pairs else None
    return "decided" if worst_of(batches) != "inconclusive" else None


def _runs(
    subject: MeasuredModel, digest: str, pairs: list[Pair], settings: GateSettings, compared: Compared, *, side: int
) -> Runs:
    counts = MeasureSettings(
        warmup=settings.warmup,
        iterations=max(pair.turns for pair in pairs) * TURN,
        repeats=len(pairs),
        seed=settings.seed,
        isolation="pair",
    )
    series = tuple(
        Series(
            batch=batch,
            repeat=number,
            warmup=settings.warmup,
            samples_ms=sides[side].wall,
            cpu_ms=sides[side].cpu,
        )
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
