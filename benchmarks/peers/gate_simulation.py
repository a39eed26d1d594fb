"""Gates resampled from recorded noise: false alarms, catches and time to decide, ours beside what others use.

    python benchmarks/peers/gate_simulation.py --json OUT.json --page docs/benchmarking.md

Each gate draws pairs of processes with replacement from `benchmarks/results/gate_noise.json`, even pairs from even and
odd from odd, so that the order within a pair keeps its effect; half of the gates swap base and head. Of each recorded
turn the first inferences are taken, as many as a gate's turn has, and as many turns as a gate would allow. A head
that is slower by x has its recorded latencies multiplied by 1 + x. The others get 10 pairs (a
head of each in turns, which is kinder to them than files that were taken one after the other).
"""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpusq_deploy.benchmarks.pairs import MOST_SECONDS, TURN, TURN_WARMUP, turns_within
from gpusq_deploy.benchmarks.sequential import decide, looks
from gpusq_deploy.benchmarks.statistics import median

# By name: scipy ships no types. It is there as scikit-learn's dependency.
stats: Any = importlib.import_module("scipy.stats")

Array = NDArray[np.float64]
BUDGET = 0.03
EFFECTS = (0.0, 0.035, 0.05, 0.33)
NOISE = Path("benchmarks/results/gate_noise.json")
MOST_TURNS = 30  # as gpusq-bench --interleave
TURN_COST = (TURN + TURN_WARMUP) / TURN
OTHERS_PAIRS = 10
MOST_PAIRS = 115
BEGIN, END = "<!-- gate simulation: begin -->", "<!-- gate simulation: end -->"


class State(NamedTuple):
    """One state of the machine: samples [pairs, side, turns * TURN] in ms, seconds to start each pair, loads."""

    name: str
    samples: Array
    starting: Array
    loads: Array


class Gate(NamedTuple):
    """One drawn gate: samples of base and head [pairs, iterations] in ms, and the seconds that each pair took."""

    base: Array
    head: Array
    seconds: Array


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
    rows = [
        row
        for number, state in enumerate(read_states(NOISE))
        for effect in EFFECTS
        for row in simulate(state, effect, options.gates, seed=number)
    ]
    options.json.write_text(json.dumps({"gates": options.gates, "budget": BUDGET, "rows": rows}, indent=1) + "\n")
    if options.page is not None:
        put_table(rows, options.page)


def put_table(rows: list[dict[str, Any]], page: Path) -> None:
    """The table, in place of the one that is there."""
    text = page.read_text("utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n{table(rows)}\n{END}{after}", "utf-8")


def read_states(path: Path) -> list[State]:
    """What was recorded, cut to what a gate takes."""
    found: list[State] = []
    recorded = json.loads(path.read_text("utf-8"))
    turn = recorded["turn"]
    for state in recorded["states"]:
        pairs: list[dict[str, Any]] = state["pairs"]
        full = np.array([[pair["base_ms"], pair["head_ms"]] for pair in pairs])
        seconds = np.array([pair["seconds"] for pair in pairs])
        starting = np.maximum(0.0, seconds - (turn + TURN_WARMUP) / turn * full.sum(axis=(1, 2)) / 1000)
        turns = full.reshape(*full.shape[:2], -1, turn)[:, :, :, :TURN]
        loads = np.array([pair["load"] for pair in pairs])
        found.append(State(state["name"], turns.reshape(*full.shape[:2], -1), starting, loads))
    return found


def draw(state: State, effect: float, rng: np.random.Generator) -> Gate:
    """MOST_PAIRS pairs, even and odd in turns."""
    half = len(state.samples) // 2
    chosen = 2 * rng.integers(half, size=MOST_PAIRS) + np.arange(MOST_PAIRS) % 2
    first = int(rng.random() >= 0.5)
    base: Array = state.samples[chosen, first]
    head: Array = state.samples[chosen, 1 - first] * (1 + effect)
    slowest = max(median(base[0]), median(head[0]))
    count = TURN * turns_within(MOST_SECONDS, slowest, MOST_TURNS)
    base, head = base[:, :count], head[:, :count]
    took = TURN_COST * (base.sum(axis=1) + head.sum(axis=1)) / 1000
    return Gate(base, head, state.starting[chosen] + took)


def ours(gate: Gate) -> Outcome:
    """Look after 11, 15, 20, … pairs, until it is decided."""
    base, head = (np.median(side.reshape(len(side), -1, TURN), axis=2) for side in (gate.base, gate.head))
    differences = np.median(np.log(head / base), axis=1)
    for look in looks():
        if look.pairs > MOST_PAIRS:
            return Outcome("inconclusive", float(gate.seconds.sum()))
        verdict = decide(differences[: look.pairs], BUDGET).verdict
        if verdict != "inconclusive":
            return Outcome(verdict, float(gate.seconds[: look.pairs].sum()))
    raise AssertionError("looks have no end")


def threshold(gate: Gate) -> Outcome:
    """The medians of all samples, 3 % apart."""
    return _fixed(gate, np.median(gate.head[:OTHERS_PAIRS]) > (1 + BUDGET) * np.median(gate.base[:OTHERS_PAIRS]))


def pytest_benchmark(gate: Gate) -> Outcome:
    """As `--benchmark-compare-fail=mean:3%`: of one process each, the means of all rounds."""
    return _fixed(gate, gate.head[0].mean() > (1 + BUDGET) * gate.base[0].mean(), pairs=1)


def mann_whitney(gate: Gate) -> Outcome:
    """All samples pooled as if they were independent; head beyond the budget at p < 0.001."""
    base, head = gate.base[:OTHERS_PAIRS].ravel(), gate.head[:OTHERS_PAIRS].ravel()
    return _fixed(gate, stats.mannwhitneyu(head, (1 + BUDGET) * base, alternative="greater").pvalue < 0.001)


def _fixed(gate: Gate, regressed: Any, *, pairs: int = OTHERS_PAIRS) -> Outcome:
    return Outcome("regressed" if regressed else "holds", float(gate.seconds[:pairs].sum()))


RULES: dict[str, Callable[[Gate], Outcome]] = {
    "gpusq-bench --interleave": ours,
    "3 % threshold": threshold,
    "pytest-benchmark mean:3%": pytest_benchmark,
    "Mann-Whitney, pooled": mann_whitney,
}


def simulate(state: State, effect: float, gates: int, *, seed: int) -> list[dict[str, Any]]:
    """The share of each verdict, and the times."""
    outcomes: dict[str, list[Outcome]] = {name: [] for name in RULES}
    rng = np.random.default_rng([seed, round(1000 * effect)])
    for _ in range(gates):
        gate = draw(state, effect, rng)
        for name, rule in RULES.items():
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
        "| machine (load average) | rule | A/A: regressed | +3.5 %: holds | +5 %: regressed | +33 %: regressed "
        "| +33 %: median, p99 time |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    keys = dict.fromkeys((row["state"], row["rule"]) for row in rows)
    for state, rule in keys:
        by = {row["effect"]: row for row in rows if (row["state"], row["rule"]) == (state, rule)}
        gates = sum(by[0.0][name] for name in ("regressed", "holds", "inconclusive"))
        load = "{} to {}".format(*by[0.0]["load"])
        shares = [
            by[effect][name] / gates
            for effect, name in ((0.0, "regressed"), (0.035, "holds"), (0.05, "regressed"), (0.33, "regressed"))
        ]
        times = f"{by[0.33]['seconds_median']:.0f} s, {by[0.33]['seconds_p99']:.0f} s"
        cells = [f"{state} ({load})", rule, *(f"{share:.1%}" for share in shares), times]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
