"""Record what a machine's noise does to latencies: pairs of processes of one model, as the interleaved gate takes them.

    python benchmarks/peers/gate_noise.py --json benchmarks/results/gate_noise.json

A ViT-Tiny of 6 blocks at 96 pixels with random weights, on ONNX Runtime. Busy cores are made by processes that count.
Other work on the machine isn't stopped: the load average before each pair is written down.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import timm
import torch

from gpusq_deploy.benchmarks.environment import read_environment
from gpusq_deploy.benchmarks.pairs import TURN, take_pair
from gpusq_deploy.benchmarks.worker import WorkerRequest

WARMUP = 10
# Name, cores kept busy, threads of ONNX Runtime (None: its own choice, here both cores).
STATES = (
    ("as it was", 0, 1),
    ("one core busy", 1, 1),
    ("both cores busy", 2, 1),
    ("both cores busy, all threads", 2, None),
)


def main() -> None:
    """Record every state."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--turns", type=int, default=40)
    options = parser.parse_args()
    environment = read_environment()
    found: dict[str, Any] = {
        "what": f"ms of each of two processes of one model, by pair; turns of {TURN} inferences, A B B A",
        "turn": TURN,
        "machine": {"cpu": environment.cpu, "cores": environment.cores, "os": environment.os},
        "states": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        model = vision_transformer(Path(folder), blocks=6)
        for name, busy, threads in STATES:
            with busy_cores(busy):
                pairs = _record(model, threads, options.pairs, options.turns)
            found["states"].append({"name": name, "threads": threads, "pairs": pairs})
            options.json.write_text(json.dumps(found) + "\n")


def vision_transformer(folder: Path, blocks: int) -> Path:
    """A ViT-Tiny at 96 pixels, random weights, as ONNX."""
    torch.manual_seed(0)
    module = timm.create_model("vit_tiny_patch16_224", img_size=96, depth=blocks).eval()
    path = folder / f"vit-{blocks}.onnx"
    torch.onnx.export(module, (torch.zeros(1, 3, 96, 96),), path, dynamo=False, opset_version=17)
    return path


@contextmanager
def busy_cores(count: int) -> Generator[None, None, None]:
    """Other work: so many processes that count until they are ended."""
    with ExitStack() as stack:
        for _ in range(count):
            process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            stack.callback(process.wait)
            stack.callback(process.kill)
        yield


def _record(model: Path, threads: int | None, count: int, turns: int) -> list[dict[str, Any]]:
    request = WorkerRequest(path=str(model), runtime="onnxruntime", reason="asked for", batches=(1,), threads=threads)
    taken: list[dict[str, Any]] = []
    for number in range(count):
        pair = take_pair(request, request, number, warmup=WARMUP, turns=turns, most_turns=turns)
        sides = pair.samples[1]
        taken.append(
            {
                "load": pair.load,
                "seconds": round(pair.seconds, 2),
                "base_ms": [round(value, 3) for value in sides.base],
                "head_ms": [round(value, 3) for value in sides.head],
            }
        )
        print(f"pair {number + 1} of {count}: {pair.seconds:.1f} s", file=sys.stderr)
    return taken


if __name__ == "__main__":
    main()
