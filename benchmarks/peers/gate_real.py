"""Real gates on this machine: a ViT-Tiny of 6 blocks against itself, and against one of 8 blocks (+33 % of the work).

python benchmarks/peers/gate_real.py --json benchmarks/results/gate_real.json
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
from gpusq_deploy.benchmarks.peers.gate_noise import busy_cores, vision_transformer

SECONDS = 120


def main() -> None:
    """Run them, two kinds in turns, and write each as it ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--gates", type=int, default=3)
    parser.add_argument("--busy", type=int, default=0, help="cores kept busy meanwhile")
    options = parser.parse_args()
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, busy_cores(options.busy):
        base, deeper = (vision_transformer(Path(folder), blocks) for blocks in (6, 8))
        for number in range(2 * options.gates):
            head = deeper if number % 2 == 0 else base
            found.append(_gate(base, head))
            print(found[-1]["head"], found[-1]["verdict"], f"{found[-1]['seconds']} s", file=sys.stderr)
            options.json.write_text(json.dumps({"busy": options.busy, "gates": found}) + "\n")


def _gate(base: Path, head: Path) -> dict[str, Any]:
    result = interleave(base, head, runtime="onnxruntime", max_seconds=SECONDS)
    (entry,) = result.batches
    return {
        "head": "8 blocks" if head != base else "6 blocks, as base",
        "verdict": result.verdict,
        "stopped": result.stopped,
        "seconds": round(result.seconds, 1),
        "ratio": round(entry.ratio, 4),
        "lower": entry.lower,
        "upper": entry.upper,
        "iterations": result.base.settings.iterations,
        "log_ratios": [round(float(value), 4) for value in log_ratios(result, 1)],
        "pair_seconds": [round(value, 2) for value in result.pair_seconds],
        "loads": result.loads,
    }


if __name__ == "__main__":
    main()
