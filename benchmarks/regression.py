"""The gate: is head slower than base by more than the budget? Pure; two runs in, one verdict per batch size out.

For each shared batch size, with r = median(head) / median(base), its 95 % interval [lower, upper] (`ratio_interval`)
and p, the one-sided Mann-Whitney p-value on the medians of the units (`mann_whitney`), adjusted for the number of
batch sizes (`false_discovery_adjusted`). A unit is a repeat; or a build, where both have several:

    regressed       lower > 1 + budget  and  p < 0.01
    holds           upper <= 1 + budget
    inconclusive    anything else, or fewer than 5 units or 10 iterations on a side

`steady` asks whether a machine was the same in two measurements of one model, so the change counts on both sides:

    steady          lower >= 1 - budget  and  upper <= 1 + budget
    not steady      anything else, or too few samples

Five units, because with four against four the smallest possible p is 1/70: nothing could ever be proven.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from gpusq_deploy.artifacts import Runs, Value
from gpusq_deploy.benchmarks.comparable import obstacles, remarks
from gpusq_deploy.benchmarks.statistics import (
    SAMPLE_FLOORS,
    Interval,
    Samples,
    false_discovery_adjusted,
    instability,
    mann_whitney,
    median,
    percentile,
    ratio_interval,
    unit_medians,
)
from gpusq_deploy.benchmarks.summary import samples_of

BatchVerdict = Literal["holds", "regressed", "inconclusive", "steady", "not steady"]
Verdict = Literal["holds", "regressed", "inconclusive", "steady", "not steady", "not comparable"]

EXIT_CODES: dict[Verdict, int] = {
    "holds": 0,
    "regressed": 1,
    "inconclusive": 3,
    "steady": 0,
    "not steady": 3,
    "not comparable": 4,
}
# The first of these that a batch size has is the whole comparison's.
_WORST_FIRST: tuple[BatchVerdict, ...] = ("regressed", "inconclusive", "not steady", "steady", "holds")
_WORST_MODEL_FIRST: tuple[Verdict, ...] = ("regressed", "not comparable", *_WORST_FIRST[1:])
SIGNIFICANCE = 0.01
MIN_UNITS = 5
MIN_ITERATIONS = 10


class BatchComparison(Value):
    """One batch size. `ratio` is head over base: above 1 is slower. Interval and p-values need enough repeats.

    `p_adjusted` is `p_slower` adjusted for all batch sizes together. The three of the p99 need enough samples for one.
    """

    batch: int
    base_ms: float
    head_ms: float
    ratio: float
    lower: float | None
    upper: float | None
    p_slower: float | None
    verdict: BatchVerdict
    reason: str
    warnings: tuple[str, ...]
    p_adjusted: float | None = None
    p99_ratio: float | None = None
    p99_lower: float | None = None
    p99_upper: float | None = None


class Comparison(Value):
    """The verdict over all shared batch sizes. `reasons` says why runs aren't comparable; `batches` is then empty."""

    schema: Literal["gpusq.comparison/1"] = "gpusq.comparison/1"
    verdict: Verdict
    max_regression: float
    base_digest: str
    head_digest: str
    reasons: tuple[str, ...]
    remarks: tuple[str, ...]
    batches: tuple[BatchComparison, ...]

    @property
    def exit_code(self) -> int:
        """0 holds or steady, 1 regressed, 3 inconclusive or not steady, 4 not comparable."""
        return EXIT_CODES[self.verdict]


class NamedComparison(Value):
    """The comparison of one model, and what it is called."""

    name: str
    comparison: Comparison


class Comparisons(Value):
    """Several models compared together: the worst verdict, and each model's."""

    schema: Literal["gpusq.comparisons/1"] = "gpusq.comparisons/1"
    verdict: Verdict
    max_regression: float
    models: tuple[NamedComparison, ...]

    @property
    def exit_code(self) -> int:
        """As of one: 0 holds or steady, 1 regressed, 3 inconclusive or not steady, 4 not comparable."""
        return EXIT_CODES[self.verdict]


def compare(base: Runs, head: Runs, max_regression: float, *, steady: bool = False) -> Comparison:
    """Compare two runs.

    Args:
        base: What holds today.
        head: What would replace it.
        max_regression: The budget as a share: 0.03 allows 3 % more latency. Not negative.
        steady: Both are of one model; ask whether the machine was the same: 3 % less latency counts as 3 % more.

    Raises:
        ValueError: The budget is negative or not finite.
    """
    return compare_named([("", base, head)], max_regression, steady=steady).models[0].comparison


def compare_named(
    models: Sequence[tuple[str, Runs, Runs]], max_regression: float, *, steady: bool = False
) -> Comparisons:
    """Compare the runs of several models; p-values are adjusted over all of their batch sizes together.

    Args:
        models: Name, base and head of each.
        max_regression: See `compare`.
        steady: See `compare`.

    Raises:
        ValueError: No models, or the budget is negative or not finite.
    """
    if not 0 <= max_regression < float("inf"):
        raise ValueError(f"a budget must be finite and not negative, not {max_regression}")
    if not models:
        raise ValueError("a comparison needs at least one model")
    asked = [_asked(base, head, steady=steady) for _, base, head in models]
    enough = [pair for one in asked for pair in one.pairs if pair.shortage is None]
    adjusted = iter(false_discovery_adjusted([_p_slower(pair) for pair in enough]))
    compared = tuple(
        NamedComparison(name=name, comparison=_compared(one, base, head, adjusted, max_regression, steady=steady))
        for (name, base, head), one in zip(models, asked, strict=True)
    )
    verdicts = {entry.comparison.verdict for entry in compared}
    worst: Verdict = next(verdict for verdict in _WORST_MODEL_FIRST if verdict in verdicts)
    return Comparisons(verdict=worst, max_regression=max_regression, models=compared)


class _Asked(NamedTuple):
    """Why two runs can't be compared, or the batch sizes that they share."""

    reasons: tuple[str, ...]
    pairs: tuple[_Sides, ...]


def _asked(base: Runs, head: Runs, *, steady: bool) -> _Asked:
    reasons = obstacles(base, head)
    if steady:
        reasons = (*reasons, *_not_one_model_twice(base, head))
    shared = () if reasons else tuple(sorted(set(base.batches) & set(head.batches)))
    return _Asked(reasons, tuple(_Sides(batch, samples_of(base, batch), samples_of(head, batch)) for batch in shared))


def _compared(
    asked: _Asked, base: Runs, head: Runs, adjusted: Iterator[float], max_regression: float, *, steady: bool
) -> Comparison:
    reasons = asked.reasons
    batches = tuple(
        _compare_batch(pair, None if pair.shortage else next(adjusted), max_regression, steady=steady)
        for pair in asked.pairs
    )
    return Comparison(
        verdict="not comparable" if reasons else _overall(batches),
        max_regression=max_regression,
        base_digest=base.model_digest,
        head_digest=head.model_digest,
        reasons=reasons,
        remarks=remarks(base, head),
        batches=batches,
    )


def _not_one_model_twice(base: Runs, head: Runs) -> tuple[str, ...]:
    if base == head:
        return ("a steady machine takes two measurements to see, and base and head are one and the same",)
    if base.model_digest != head.model_digest:
        return ("a steady machine is seen by one model measured twice, and base and head are two model files",)
    return ()


def _overall(batches: tuple[BatchComparison, ...]) -> BatchVerdict:
    verdicts = {entry.verdict for entry in batches}
    return next(verdict for verdict in _WORST_FIRST if verdict in verdicts)


class _Sides(NamedTuple):
    batch: int
    base: Samples
    head: Samples

    @property
    def shortage(self) -> str | None:
        """Why there are too few samples for a verdict; None: there are enough."""
        return _shortage(self.base, self.head)


def _p_slower(pair: _Sides) -> float:
    return mann_whitney(unit_medians(pair.head), unit_medians(pair.base))


def _compare_batch(pair: _Sides, adjusted: float | None, budget: float, *, steady: bool) -> BatchComparison:
    base, head = pair.base, pair.head
    interval: Interval | None = None
    p_slower: float | None = None
    if adjusted is not None:
        interval = ratio_interval(base, head)
        p_slower = _p_slower(pair)
        p_faster = mann_whitney(unit_medians(base), unit_medians(head))
        judged = _judge_steady(interval, budget) if steady else _judge(interval, adjusted, p_faster, budget)
        verdict, reason = judged
    else:
        verdict, reason = "not steady" if steady else "inconclusive", pair.shortage or ""
    p99 = _p99(base, head) if interval else None
    slow_tail = [] if p99 is None or p99.lower <= 1 + budget else [f"p99 is slower by at least {_change(p99.lower)}"]
    return BatchComparison(
        batch=pair.batch,
        base_ms=median(base),
        head_ms=median(head),
        ratio=median(head) / median(base),
        lower=interval.lower if interval else None,
        upper=interval.upper if interval else None,
        p_slower=p_slower,
        verdict=verdict,
        reason=reason,
        warnings=(*_warnings(base, head), *slow_tail),
        p_adjusted=adjusted,
        p99_ratio=percentile(head, 99) / percentile(base, 99) if p99 else None,
        p99_lower=p99.lower if p99 else None,
        p99_upper=p99.upper if p99 else None,
    )


def _p99(base: Samples, head: Samples) -> Interval | None:
    """The interval of the ratio of p99; None where a side has too few samples for one."""
    if min(base.size, head.size) < SAMPLE_FLOORS[99]:
        return None
    return ratio_interval(base, head, percent=99)


def _judge(interval: Interval, p_slower: float, p_faster: float, budget: float) -> tuple[BatchVerdict, str]:
    limit = 1 + budget
    least, most = _change(interval.lower), _change(interval.upper)
    if interval.upper <= limit:
        return "holds", _praise(interval, p_slower, p_faster)
    if interval.lower <= limit:
        return (
            "inconclusive",
            f"the change lies between {least} and {most}, on both sides of the budget ({budget:+.2%})",
        )
    if p_slower >= SIGNIFICANCE:
        return "inconclusive", f"slower by at least {least}, but p = {p_slower:.2g} is not below {SIGNIFICANCE}"
    return "regressed", f"slower by at least {least}, above the budget of {budget:+.2%} (p = {p_slower:.2g})"


def _judge_steady(interval: Interval, budget: float) -> tuple[BatchVerdict, str]:
    said = f"between {_change(interval.lower)} and {_change(interval.upper)}"
    if 1 - budget <= interval.lower and interval.upper <= 1 + budget:
        return "steady", f"the change lies {said}, within {budget:.2%} on both sides"
    return "not steady", f"the change lies {said}, not within {budget:.2%} on both sides"


def _praise(interval: Interval, p_slower: float, p_faster: float) -> str:
    least, most = _change(interval.lower), _change(interval.upper)
    if interval.upper < 1 and p_faster < SIGNIFICANCE:
        return f"faster: the change lies between {least} and {most} (p = {p_faster:.2g})"
    if interval.lower > 1 and p_slower < SIGNIFICANCE:
        return f"slower, but within the budget: the change lies between {least} and {most} (p = {p_slower:.2g})"
    return f"no change beyond the budget: it lies between {least} and {most}"


def _shortage(base: Samples, head: Samples) -> str | None:
    for name, samples in (("base", base), ("head", head)):
        units, iterations = samples.shape[0], samples.shape[-1]
        if units < MIN_UNITS:
            return f"{name} has {units} {'repeats' if samples.ndim == 2 else 'builds'}; a verdict needs {MIN_UNITS}"
        if iterations < MIN_ITERATIONS:
            return f"{name} has {iterations} iterations per repeat; a verdict needs {MIN_ITERATIONS}"
    return None


def _warnings(base: Samples, head: Samples) -> tuple[str, ...]:
    found = (("base", instability(base)), ("head", instability(head)))
    return tuple(f"{name} is {warning}" for name, warning in found if warning is not None)


def _change(ratio: float) -> str:
    return f"{ratio - 1:+.2%}"
