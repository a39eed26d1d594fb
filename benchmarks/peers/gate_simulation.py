"""Gates resampled from recorded noise: false alarms, catches and time to decide, ours beside what others use.

    python benchmarks/peers/gate_simulation.py --json OUT.json --page docs/benchmarking.md

Each gate draws pairs of processes with replacement from `benchmarks/results/gate_noise.json`, even pairs from even and
odd from odd, so that the order within a pair keeps its effect; half of the gates swap base and head. Of each recorded
pair the first turns are taken, as many as a gate would take. A head that is slower by x has its recorded latencies, by
both clocks, multiplied by 1 + x. Ours ends undecided after 300 s. The others get 10 of the longer pairs, in turns,
which is kinder to them than files that were taken one after the other. Apache Otava needs its package on PYTHONPATH;
without it its rows are left out, and the script says so.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpusq_deploy.benchmarks.pairs import FIRST_SPAN, LATER_SPAN, TURN, TURN_WARMUP, turns_within
from gpusq_deploy.benchmarks.peers.page import put_part
from gpusq_deploy.benchmarks.sequential import FIRST_LOOK, decide, looks

# By name: scipy ships no types. It is there as scikit-learn's dependency.
stats: Any = importlib.import_module("scipy.stats")

Array = NDArray[np.float64]
BUDGET = 0.03
EFFECTS = (0.0, 0.035, 0.05, 0.33)
NOISE = Path("benchmarks/results/gate_noise.json")
MOST_TURNS = 30  # as gpusq-bench --interleave
GATE_SECONDS = 300.0
TURN_COST = (TURN + TURN_WARMUP) / TURN / 1000
OTHERS_PAIRS = 10
# More than any recorded state starts in GATE_SECONDS.
MOST_PAIRS = 700
BEGIN, END = "<!-- gate simulation: begin -->", "<!-- gate simulation: end -->"


class State(NamedTuple):
    """One state of the machine: samples [pairs, side, turns * TURN] in ms, by wall and by CPU time where it has that.

    `starting` are the seconds to start each pair, `loads` the load averages before them.
    """

    name: str
    wall: Array
    cpu: Array | None
    starting: Array
    loads: Array


class Gate(NamedTuple):
    """One drawn gate: samples [pairs, side, turns * TURN] in ms, and the seconds to start each pair."""

    wall: Array
    cpu: Array | None
    starting: Array


class Outcome(NamedTuple):
    """What a rule said, and after which time in s."""

    verdict: str
    seconds: float


def main() -> None:
    """Simulate, write the figures, put the table into the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gates", type=int, default=1000)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--page", type=Path)
    options = parser.parse_args()
    if "Apache Otava" not in RULES:
        print("without Apache Otava: its package isn't installed", file=sys.stderr)
    rows = [
        row
        for number, state in enumerate(read_states(NOISE))
        for effect in EFFECTS
        for row in simulate(state, effect, options.gates, seed=number)
    ]
    options.json.write_text(json.dumps({"gates": options.gates, "budget": BUDGET, "rows": rows}, indent=1) + "\n")
    if options.page is not None:
        put_part(options.page, BEGIN, END, table(rows))


def read_states(path: Path) -> list[State]:
    """What was recorded."""
    found: list[State] = []
    recorded = json.loads(path.read_text("utf-8"))
    assert recorded["turn"] == TURN, "recorded in the gate's own turns"
    for state in recorded["states"]:
        pairs: list[dict[str, Any]] = state["pairs"]
        wall = np.array([[pair["base_ms"], pair["head_ms"]] for pair in pairs])
        cpu = np.array([[pair["base_cpu_ms"], pair["head_cpu_ms"]] for pair in pairs])
        seconds = np.array([pair["seconds"] for pair in pairs])
        starting = np.maximum(0.0, seconds - TURN_COST * wall.sum(axis=(1, 2)))
        loads = np.array([pair["load"] for pair in pairs])
        found.append(State(state["name"], wall, cpu if cpu.size else None, starting, loads))
    return found


def draw(state: State, effect: float, rng: np.random.Generator) -> Gate:
    """MOST_PAIRS pairs, even and odd in turns."""
    half = len(state.wall) // 2
    chosen = 2 * rng.integers(half, size=MOST_PAIRS) + np.arange(MOST_PAIRS) % 2
    first = int(rng.random() >= 0.5)
    slower = np.array([1, 1 + effect])[:, None]
    wall, cpu = (
        None if samples is None else samples[chosen][:, [first, 1 - first]] * slower
        for samples in (state.wall, state.cpu)
    )
    assert wall is not None
    return Gate(wall, cpu, state.starting[chosen])


def lengths(gate: Gate) -> list[int]:
    """Samples of each side in each pair: short until the first look, as told from the warm-up of a pair."""
    first, later = (
        TURN * turns_within(span.after(gate.starting[pair]), _warm_up(gate, pair), MOST_TURNS)
        for span, pair in ((FIRST_SPAN, 0), (LATER_SPAN, FIRST_LOOK))
    )
    return [first] * FIRST_LOOK + [later] * (MOST_PAIRS - FIRST_LOOK)


def _warm_up(gate: Gate, pair: int) -> float:
    """The slower side's median in ms, of as many samples as the gate chooses a length by."""
    return float(np.median(gate.wall[pair, :, :TURN], axis=1).max())


def ours(gate: Gate) -> Outcome:
    """Look after 11, 15, 20, … pairs, until it is decided or the time is up."""
    counts = lengths(gate)
    took = [TURN_COST * gate.wall[pair, :, :count].sum() for pair, count in enumerate(counts)]
    until = np.cumsum(gate.starting + np.array(took))
    clock = gate.wall if gate.cpu is None else gate.cpu
    assert until[-1] >= GATE_SECONDS, "a gate ends by its time, not for want of drawn pairs"
    within = int(np.searchsorted(until, GATE_SECONDS))
    differences: list[float] = []
    for look in looks():
        if look.pairs > within:
            return Outcome("inconclusive", float(until[within - 1]))
        new = range(len(differences), look.pairs)
        differences += [log_ratio_of(clock[pair, :, : counts[pair]]) for pair in new]
        weights = np.sqrt(np.array(counts[: look.pairs], dtype=np.float64))
        verdict = decide(np.array(differences), BUDGET, weights=weights).verdict
        if verdict != "inconclusive":
            return Outcome(verdict, float(until[look.pairs - 1]))
    raise AssertionError("looks have no end")


def log_ratio_of(sides: Array) -> float:
    """As `pairs.log_ratio`, of [side, samples]."""
    turns: Array = np.median(sides.reshape(2, -1, TURN), axis=2)
    ratios: Array = np.log(turns[1] / turns[0])
    both: Array = ratios.reshape(-1, 2).mean(axis=1)
    return float(np.median(both))


def threshold(gate: Gate) -> Outcome:
    """The medians of all samples by wall time, 3 % apart."""
    base, head, seconds = _long_pairs(gate, gate.wall)
    return _fixed(seconds, np.median(head) > (1 + BUDGET) * np.median(base))


def cpu_threshold(gate: Gate) -> Outcome:
    """The same by CPU time."""
    assert gate.cpu is not None, "asked only where it was recorded"
    base, head, seconds = _long_pairs(gate, gate.cpu)
    return _fixed(seconds, np.median(head) > (1 + BUDGET) * np.median(base))


def pytest_benchmark(gate: Gate) -> Outcome:
    """As `--benchmark-compare-fail=mean:3%`: of one process each, the means of all rounds."""
    base, head, seconds = _long_pairs(gate, gate.wall)
    return _fixed(seconds[:1], head[0].mean() > (1 + BUDGET) * base[0].mean())


def mann_whitney(gate: Gate) -> Outcome:
    """All samples pooled as if they were independent; head beyond the budget at p < 0.001."""
    base, head, seconds = _long_pairs(gate, gate.wall)
    slower = stats.mannwhitneyu(head.ravel(), (1 + BUDGET) * base.ravel(), alternative="greater")
    return _fixed(seconds, slower.pvalue < 0.001)


def otava(gate: Gate) -> Outcome:
    """Change points of the medians of processes, all of base, then all of head, by its defaults; 3 % at least."""
    analysis: Any = importlib.import_module("otava.analysis")
    base, head, seconds = _long_pairs(gate, gate.wall)
    series = [*np.median(base, axis=1), *np.median(head, axis=1)]
    points, _ = analysis.compute_change_points(series, min_magnitude=BUDGET)
    return _fixed(seconds, any(point.stats.forward_rel_change() > BUDGET for point in points))


def _long_pairs(gate: Gate, clock: Array) -> tuple[Array, Array, Array]:
    """Base and head of the others' pairs [pairs, samples], and the seconds that each took."""
    count = lengths(gate)[-1]
    seconds = gate.starting + TURN_COST * gate.wall[:, :, :count].sum(axis=(1, 2))
    return clock[:OTHERS_PAIRS, 0, :count], clock[:OTHERS_PAIRS, 1, :count], seconds[:OTHERS_PAIRS]


def _fixed(seconds: Array, regressed: Any) -> Outcome:
    return Outcome("regressed" if regressed else "holds", float(seconds.sum()))


RULES: dict[str, Callable[[Gate], Outcome]] = {
    "gpusq-bench --interleave": ours,
    "3 % threshold": threshold,
    "3 % threshold, CPU time": cpu_threshold,
    "pytest-benchmark mean:3%": pytest_benchmark,
    "Mann-Whitney, pooled": mann_whitney,
    **({"Apache Otava": otava} if importlib.util.find_spec("otava") else {}),
}


def simulate(state: State, effect: float, gates: int, *, seed: int) -> list[dict[str, Any]]:
    """The share of each verdict, and the times."""
    rules = {name: rule for name, rule in RULES.items() if state.cpu is not None or rule is not cpu_threshold}
    outcomes: dict[str, list[Outcome]] = {name: [] for name in rules}
    rng = np.random.default_rng([seed, round(1000 * effect)])
    for _ in range(gates):
        gate = draw(state, effect, rng)
        for name, rule in rules.items():
            outcomes[name].append(rule(gate))
    return [_row(state, effect, name, found) for name, found in outcomes.items()]


def _row(state: State, effect: float, rule: str, found: list[Outcome]) -> dict[str, Any]:
    seconds = np.array([outcome.seconds for outcome in found])
    counts = {
        name: sum(outcome.verdict == name for outcome in found) for name in ("regressed", "holds", "inconclusive")
    }
    return {
        "state": state.name,
        "load": [round(float(state.loads.min()), 1), round(float(state.loads.max()), 1)],
        "effect": effect,
        "rule": rule,
        **counts,
        "seconds_median": round(float(np.median(seconds)), 1),
        "seconds_p99": round(float(np.percentile(seconds, 99)), 1),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """One row per state and rule."""
    lines = [
        "| machine (load average) | rule | A/A: regressed | A/A: holds | +3.5 %: holds | +5 %: regressed "
        "| +33 %: regressed | +33 %: median, p99 time |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    cases = ((0.0, "regressed"), (0.0, "holds"), (0.035, "holds"), (0.05, "regressed"), (0.33, "regressed"))
    keys = dict.fromkeys((row["state"], row["rule"]) for row in rows)
    for state, rule in keys:
        by = {row["effect"]: row for row in rows if (row["state"], row["rule"]) == (state, rule)}
        gates = sum(by[0.0][name] for name in ("regressed", "holds", "inconclusive"))
        load = "{} to {}".format(*by[0.0]["load"])
        shares = [by[effect][name] / gates for effect, name in cases]
        times = f"{by[0.33]['seconds_median']:.0f} s, {by[0.33]['seconds_p99']:.0f} s"
        cells = [f"{state} ({load})", rule, *(f"{share:.1%}" for share in shares), times]
        lines.append("| " + " | ".join(cells) + " |")
    gates = sum(rows[0][name] for name in ("regressed", "holds", "inconclusive"))
    return "\n".join([*lines, "", f"{gates} gates of each kind."])


if __name__ == "__main__":
    main()
