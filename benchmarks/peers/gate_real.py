"""Real gates on this machine: a ViT-Tiny of 6 blocks against one of 8 (+33 % of the blocks), and against itself.

    python benchmarks/peers/gate_real.py --json benchmarks/results/gate_real.json --page docs/benchmarking.md \
        --state "both cores busy"

Each named state replaces the one of that name in the file; see `gate_noise.py` for what they are. A gate ends undecided
after 120 s, so that a state takes five minutes at most.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from gpusq_deploy import interleave
from gpusq_deploy.benchmarks.gate import log_ratios
from gpusq_deploy.benchmarks.peers.gate_noise import STATES, prepared, require_idle, states_with, vision_transformer
from gpusq_deploy.benchmarks.peers.page import put_part

SECONDS = 120
BEGIN, END = "<!-- gate real: begin -->", "<!-- gate real: end -->"


def main() -> None:
    """Run both gates in the states that were named, and write each state as it ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--page", type=Path, help="put the table into it")
    parser.add_argument("--state", action="append", choices=tuple(STATES), help="(default: all of them)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base, deeper = (vision_transformer(Path(folder), blocks) for blocks in (6, 8))
        for name in options.state or STATES:
            with prepared(name) as watch:
                gates = [_gate(base, head, STATES[name].threads) for head in (deeper, base)]
                other = watch.other_cores()
            require_idle(name, other)
            found = merge(options.json, name, gates, other)
            if options.page is not None:
                put_part(options.page, BEGIN, END, table(found))


def merge(path: Path, name: str, gates: list[dict[str, Any]], other: float) -> dict[str, Any]:
    """Put one state into the file, in the order of `STATES`; what the file then holds."""
    found = {"seconds": SECONDS, "states": states_with(path, name, other, gates=gates)}
    path.write_text(json.dumps(found) + "\n")
    return found


def table(found: dict[str, Any]) -> str:
    """One row per state and head."""
    lines = [
        "| machine (load average) | head | verdict | pairs | time | change | bounds | by wall time |",
        "|---|---|---|---:|---:|---:|---:|---:|",
    ]
    for state in found["states"]:
        for gate in state["gates"]:
            low, high = gate["loads"]
            bounds = " to ".join("-" if end is None else f"{end - 1:+.1%}" for end in (gate["lower"], gate["upper"]))
            wall = "decides" if gate["wall_ratio"] is None else f"{gate['wall_ratio'] - 1:+.1%}"
            cells = [f"{state['name']} ({low:.1f} to {high:.1f})", gate["head"], gate["verdict"]]
            cells += [str(gate["pairs"]), f"{gate['seconds']:.0f} s", f"{gate['ratio'] - 1:+.1%}", bounds, wall]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _gate(base: Path, head: Path, threads: int | None) -> dict[str, Any]:
    result = interleave(base, head, runtime="onnxruntime", threads=threads, max_seconds=SECONDS)
    (entry,) = result.batches
    loads = [load for load in result.loads if load is not None]
    found = {
        "head": "8 blocks" if head != base else "6 blocks, as base",
        "verdict": result.verdict,
        "stopped": result.stopped,
        "seconds": round(result.seconds, 1),
        "pairs": len(result.pair_seconds),
        "clock": entry.clock,
        "ratio": round(entry.ratio, 4),
        "lower": entry.lower,
        "upper": entry.upper,
        "wall_ratio": None if entry.wall is None else round(entry.wall.ratio, 4),
        "turns": result.turns,
        "log_ratios": [round(float(value), 4) for value in log_ratios(result, 1)],
        "pair_seconds": [round(value, 2) for value in result.pair_seconds],
        "loads": [round(min(loads), 1), round(max(loads), 1)],
    }
    print(found["head"], found["verdict"], f"{found['seconds']} s", file=sys.stderr)
    return found


if __name__ == "__main__":
    main()
