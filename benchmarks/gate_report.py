"""A gate's result as text, as Markdown for a job's summary, and as JUnit's XML."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from gpusq_deploy.benchmarks.gate import ERRORS, GateResult, Gates
from gpusq_deploy.benchmarks.gate_batches import ClockReading, GateBatch
from gpusq_deploy.benchmarks.junit import JunitCase, JunitSuite, Outcome, junit_xml
from gpusq_deploy.benchmarks.markdown import code, table
from gpusq_deploy.benchmarks.noise import MachineNoise, unlike
from gpusq_deploy.benchmarks.report import columns
from gpusq_deploy.benchmarks.sequential import SequentialVerdict
from gpusq_deploy.text import counted, some

_HEADINGS = ("batch", "base ms", "head ms", "change", "at least", "at most", "verdict")
_OUTCOMES: dict[SequentialVerdict, Outcome] = {"holds": "passed", "regressed": "failed", "inconclusive": "skipped"}


def text_from_gate(result: GateResult | Gates, noise: MachineNoise | None = None) -> str:
    """Each model's table, what would decide and what this machine can see; the verdict is the last line."""
    if isinstance(result, GateResult):
        return _text(result, noise)
    parts = [f"{_names(one)}\n\n{_text(one, noise)}" for one in result.gates]
    return "\n\n".join([*parts, gate_line(result)])


def _text(result: GateResult, noise: MachineNoise | None = None) -> str:
    lines = columns(_HEADINGS, [_row(entry) for entry in result.batches])
    loads = [load for load in result.loads if load is not None]
    load = f", load average {min(loads):.1f} to {max(loads):.1f}" if loads else ""
    iterations = result.base.settings.iterations
    lines += [
        "",
        f"{len(result.pair_seconds)} pairs of processes x {iterations} inferences in {result.seconds:.0f} s{load}",
        ERRORS,
        *(f"batch {entry.batch}: {_outlook(entry, result)}" for entry in result.batches if _open(entry)),
        *(f"batch {entry.batch}: {line}" for entry in result.batches for line in clock_lines(entry)),
        *_core_lines(result),
        *noise_lines(result, noise),
        "",
        gate_line(result),
    ]
    return "\n".join(lines)


def gate_line(result: GateResult | Gates) -> str:
    """The verdict in one line."""
    if isinstance(result, Gates):
        return models_line(result.verdict, [(one.verdict, one.head.model) for one in result.gates])
    changes = ", ".join(f"{entry.ratio - 1:+.1%} at batch {entry.batch}" for entry in result.batches)
    budget = f"budget {result.settings.max_regression:+.2%}"
    return f"{result.verdict}: {changes} ({budget}; {result.stopped} after {result.seconds:.0f} s)"


def models_line(verdict: str, models: Sequence[tuple[str, str]]) -> str:
    """The verdict over several models in one line: how many have which, and those that aren't as they should be."""
    counts = Counter(found for found, _ in models)
    said = ", ".join(f"{count} {found}" for found, count in counts.items())
    named = [name for found, name in models if found == verdict]
    which = "" if len(counts) == 1 else f" ({some(named)})"
    return f"{verdict}{which}: of {len(models)} models {said}"


def markdown_from_gate(result: GateResult | Gates, noise: MachineNoise | None = None) -> str:
    """For a job's summary: each model's verdict, its table, and what it rests on."""
    parts = [_markdown(one, noise) for one in _each(result)]
    return "\n".join(parts if isinstance(result, GateResult) else [f"## Latency: {gate_line(result)}", "", *parts])


def _markdown(result: GateResult, noise: MachineNoise | None) -> str:
    said = [f"batch {entry.batch}: {_outlook(entry, result)}" for entry in result.batches if _open(entry)]
    said += [f"batch {entry.batch}: {line}" for entry in result.batches for line in clock_lines(entry)]
    said += _core_lines(result)
    return "\n".join(
        [
            f"### Latency: {gate_line(result)}",
            "",
            f"{_names(result)}, {len(result.pair_seconds)} pairs of processes; {ERRORS}.",
            "",
            *table(_HEADINGS, [_row(entry) for entry in result.batches], numbers=True),
            *(["", *(f"- {line}" for line in said)] if said else []),
            *(["", *(f"- {line}" for line in lines)] if (lines := noise_lines(result, noise)) else []),
            "",
        ]
    )


def junit_from_gate(result: GateResult | Gates) -> bytes:
    """One test case per batch size: regressed is a failure, inconclusive is skipped, with the reason. UTF-8."""
    return junit_xml([_suite(one) for one in _each(result)])


def _suite(result: GateResult) -> JunitSuite:
    budget = f"(budget {result.settings.max_regression:+.2%})"
    cases = [
        JunitCase(
            of=result.head.model,
            name=f"latency at batch {entry.batch}",
            outcome=_OUTCOMES[entry.verdict],
            text=f"{entry.ratio - 1:+.2%}: {_bounds(entry)} {budget}",
        )
        for entry in result.batches
    ]
    return JunitSuite("gpusq-bench --interleave", cases, result.seconds)


def clock_lines(entry: GateBatch) -> list[str]:
    """Which clock decided where it isn't wall time, what wall time says, and a warning where that says otherwise."""
    if entry.wall is None:
        return []
    wall = entry.wall
    lines = [
        f"decided by CPU time, which leaves out waiting for a core; wall time: {wall.base_ms:.3f} to "
        f"{wall.head_ms:.3f} ms, {wall.ratio - 1:+.1%} ({_bounds(wall)})"
    ]
    if wall.verdict == "regressed" and entry.verdict != "regressed":
        lines.append("warning: by wall time head is slower by more than the budget: it waits longer for a core")
    return lines


def _core_lines(result: GateResult) -> list[str]:
    """A word where processes on one thread couldn't share a core."""
    apart = result.cores.count(None) if result.batches[0].clock == "CPU time" else 0
    said = f"{counted(apart, 'pair')} of processes couldn't share a core, so that differences of cores count as theirs"
    return [said] if apart else []


def noise_lines(result: GateResult, noise: MachineNoise | None) -> list[str]:
    """What this machine can see in the time that was allowed, by its calibration."""
    if noise is None:
        return []
    if obstacles := unlike(noise, result):
        return [f"the noise was calibrated elsewhere, so it says nothing here: {'; '.join(obstacles)}"]
    seconds, families = result.settings.max_seconds, result.families
    return [_effect(noise, entry.batch, seconds, families) for entry in result.batches]


def _effect(noise: MachineNoise, batch: int, seconds: float, families: int) -> str:
    found = noise.smallest_effect(batch, seconds, families)
    if found is None:
        return f"batch {batch}: what this machine can see isn't known: not calibrated, or too little time for a look"
    return (
        f"batch {batch}: in {seconds:.0f} s this machine sees {found:+.1%} beyond the budget in 99 of 100 gates "
        f"(calibrated {noise.created[:10]})"
    )


def _each(result: GateResult | Gates) -> tuple[GateResult, ...]:
    return (result,) if isinstance(result, GateResult) else result.gates


def _names(result: GateResult) -> str:
    return f"{code(result.base.model)} to {code(result.head.model)}"


def _open(entry: GateBatch) -> bool:
    return entry.verdict == "inconclusive"


def _outlook(entry: GateBatch, result: GateResult) -> str:
    if entry.more is None:
        return "no number of further pairs that anybody would wait for decides: the change lies at the budget"
    seconds = entry.more * result.seconds / len(result.pair_seconds)
    return f"about {entry.more} more pairs of processes would decide ({seconds:.0f} s)"


def _row(entry: GateBatch) -> tuple[str, ...]:
    return (
        str(entry.batch),
        f"{entry.base_ms:.3f}",
        f"{entry.head_ms:.3f}",
        f"{entry.ratio - 1:+.2%}",
        _bound(entry.lower),
        _bound(entry.upper),
        entry.verdict,
    )


def _bounds(entry: GateBatch | ClockReading) -> str:
    return f"at least {_bound(entry.lower)}, at most {_bound(entry.upper)}"


def _bound(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio - 1:+.2%}"
