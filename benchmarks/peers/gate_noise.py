"""Record what a machine's noise does to latencies: pairs of processes of one model, as the interleaved gate takes them.

    python benchmarks/peers/gate_noise.py --json benchmarks/results/gate_noise.json --state "both cores busy"

A ViT-Tiny of 6 blocks at 96 pixels with random weights, on ONNX Runtime. Busy cores are made by processes that count.
Other work on the machine isn't stopped: the cores that it held, by /proc/stat of Linux, are written down, and the load
average before each pair. Each named state replaces the one of that name in the file; a state called idle is refused
where other work held more than a tenth of a core.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch

from gpusq_deploy.benchmarks.environment import read_environment
from gpusq_deploy.benchmarks.pairs import TURN, Length, Pair, pairs_at_once, take_pairs
from gpusq_deploy.benchmarks.worker import WorkerRequest

WARMUP = 10
SECONDS = 330.0
FEWEST_PAIRS = 20
IDLE_LOAD = 0.5
IDLE_CORES = 0.1
# Seconds until a load of 5 that has ended falls below `IDLE_LOAD`, and more.
PATIENCE = 240.0


class State(NamedTuple):
    """Cores that other work keeps busy, and threads of ONNX Runtime (None: its own choice, all cores)."""

    busy: int
    threads: int | None


STATES = {
    "idle": State(0, 1),
    "idle, all threads": State(0, None),
    "one core busy": State(1, 1),
    "both cores busy": State(2, 1),
    "both cores busy, all threads": State(2, None),
}


def main() -> None:
    """Record the states that were named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--state", action="append", choices=tuple(STATES), help="(default: all of them)")
    parser.add_argument("--pairs", type=int, default=30, help="fewer where they would last longer than 330 s")
    parser.add_argument("--turns", type=int, default=30)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = vision_transformer(Path(folder), blocks=6)
        for name in options.state or STATES:
            with prepared(name) as watch:
                pairs = _record(model, STATES[name], options.pairs, options.turns)
                other = watch.other_cores()
            require_idle(name, other)
            merge(options.json, name, pairs, other)


def merge(path: Path, name: str, pairs: list[dict[str, Any]], other: float) -> None:
    """Put one state into the file, in the order of `STATES`."""
    what = (
        f"ms of each of two processes of one model, by pair; turns of {TURN} inferences, A B B A; "
        "cpu_ms without waiting for a core"
    )
    states = states_with(path, name, other, pairs=pairs)
    path.write_text(json.dumps({"what": what, "turn": TURN, "states": states}) + "\n")


def states_with(path: Path, name: str, other: float, **measured: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The states of a file in the order of `STATES`, this one in place of the one of its name.

    Args:
        path: The file; it needn't be there.
        name: The state.
        other: Cores that other work held.
        measured: What was measured in it.
    """
    environment = read_environment()
    kept: list[dict[str, Any]] = json.loads(path.read_text("utf-8"))["states"] if path.exists() else []
    state: dict[str, Any] = {
        "name": name,
        "threads": STATES[name].threads,
        "other_cores": round(other, 3),
        "machine": {"cpu": environment.cpu, "cores": environment.cores, "os": environment.os},
        **measured,
    }
    by_name = {entry["name"]: entry for entry in kept} | {name: state}
    return [by_name[known] for known in STATES if known in by_name]


def vision_transformer(folder: Path, blocks: int) -> Path:
    """A ViT-Tiny at 96 pixels, random weights, as ONNX."""
    torch.manual_seed(0)
    module = timm.create_model("vit_tiny_patch16_224", img_size=96, depth=blocks).eval()
    path = folder / f"vit-{blocks}.onnx"
    torch.onnx.export(module, (torch.zeros(1, 3, 96, 96),), path, dynamo=False, opset_version=17)
    return path


@contextmanager
def prepared(name: str) -> Generator[CoreWatch, None, None]:
    """The state: so much other work, and of an idle machine, that it is idle. Gives what tells the cores of other work.

    Raises:
        SystemExit: It isn't, not even after four minutes.
    """
    if name.startswith("idle"):
        end = time.monotonic() + PATIENCE
        while (load := os.getloadavg()[0]) > IDLE_LOAD:
            if time.monotonic() > end:
                raise SystemExit(f"the machine isn't idle: its load average is {load:.2f}, above {IDLE_LOAD}")
            time.sleep(5)
    with busy_cores(STATES[name].busy):
        yield CoreWatch()


class CoreWatch:
    """How many cores other work holds from now on: all but this process and its children that have ended."""

    def __init__(self) -> None:
        self._start, self._before = time.monotonic(), _other_seconds()

    def other_cores(self) -> float:
        """On average."""
        return self.other_seconds() / (time.monotonic() - self._start)

    def other_seconds(self) -> float:
        """CPU seconds since it was made."""
        return _other_seconds() - self._before


def _other_seconds() -> float:
    """CPU seconds since boot: user, nice, system, irq, softirq and steal of proc(5)'s first line, without our own.

    Raises:
        SystemExit: A sandbox counts none.
    """
    ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    own = os.times()
    busy = sum(ticks[:3] + ticks[5:8]) / os.sysconf("SC_CLK_TCK")
    if not busy:
        raise SystemExit("/proc/stat counts no time here, so what other work held can't be told")
    return busy - (own.user + own.system + own.children_user + own.children_system)


def require_idle(name: str, other: float) -> None:
    """Refuse a state that is called idle and wasn't.

    Args:
        name: The state.
        other: Cores that other work held.

    Raises:
        SystemExit: They were more than a tenth of one.
    """
    if name.startswith("idle") and other > IDLE_CORES:
        raise SystemExit(f"the machine wasn't idle: other work held {other:.2f} cores, above {IDLE_CORES}")


@contextmanager
def busy_cores(count: int) -> Generator[None, None, None]:
    """Other work: so many processes that count until they are ended."""
    with ExitStack() as stack:
        for _ in range(count):
            process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            stack.callback(process.wait)
            stack.callback(process.kill)
        yield


def _record(model: Path, state: State, count: int, turns: int) -> list[dict[str, Any]]:
    request = WorkerRequest(
        path=str(model), runtime="onnxruntime", reason="asked for", batches=(1,), threads=state.threads
    )
    taken: list[dict[str, Any]] = []
    start = time.monotonic()
    while len(taken) < count and (len(taken) < FEWEST_PAIRS or time.monotonic() - start < SECONDS):
        numbers = range(len(taken), min(count, len(taken) + pairs_at_once(request)))
        pairs = take_pairs(request, request, numbers, warmup=WARMUP, length=Length(turns, turns))
        taken.extend(_row(pair) for pair in pairs)
        seconds = sum(pair.seconds for pair in pairs)
        print(f"pairs {len(taken)} of {count}: {seconds:.1f} s", file=sys.stderr)
    return taken


def _row(pair: Pair) -> dict[str, Any]:
    base, head = pair.samples[1]
    samples = {"base_ms": base.wall, "head_ms": head.wall, "base_cpu_ms": base.cpu, "head_cpu_ms": head.cpu}
    rounded = {name: [round(value, 3) for value in values] for name, values in samples.items()}
    return {"load": pair.load, "core": pair.core, "seconds": round(pair.seconds, 2), **rounded}


if __name__ == "__main__":
    main()
