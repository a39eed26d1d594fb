"""The GPU suite: everything that only a GPU can answer, in one command and seven minutes, what tells most first.

    python -m gpusq_deploy.benchmarks.gpu.suite --kit DIR --out DIR

DIR of --kit is an unpacked kit, see `kit`. Each step is a process with a time of its own; its findings are lines of
OUT/N-STEP.jsonl as they come, so what a dying machine leaves behind is told. OUT/gpu.json and report.md hold them all.
Where there is no GPU the same happens, and says why nothing ran.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from pathlib import Path

from gpusq_deploy.artifacts.base import json_from_value, write_whole
from gpusq_deploy.benchmarks.environment import read_environment
from gpusq_deploy.benchmarks.gpu.possible import ways_among
from gpusq_deploy.benchmarks.gpu.report import markdown_from_report
from gpusq_deploy.benchmarks.gpu.runs import ITERATIONS, TIME_IS_UP, WARMUP, Ground, no_gpu
from gpusq_deploy.benchmarks.gpu.values import STEPS, Finding, GpuReport, StepName, Ways
from gpusq_deploy.benchmarks.gpu.worker import BY_NAME, GO_ON, add_line, read_lines
from gpusq_deploy.benchmarks.gpu.yardstick import LAUNCHES
from gpusq_deploy.engines.api import find_api
from gpusq_deploy.engines.gpu import Gpu, find_gpu

BUDGET = 420.0
# Seconds of the whole; what a step leaves over goes to those behind it.
SHARES: dict[StepName, float] = {"possible": 75, "models": 120, "products": 110, "torch": 60, "tests": 55}
# A worker that is late ends by itself; after so much longer it is ended.
_GRACE = 10.0
_HERE = "gpusq_deploy.benchmarks.gpu"
# torch's own remedy where CUDA graphs are profiled more than once in a process, which crashes otherwise: see
# torch/profiler/profiler.py.
_PROFILER = {"TEARDOWN_CUPTI": "0", "DISABLE_CUPTI_LAZY_REINIT": "1"}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kit", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    report = run_suite(asked.kit, asked.out, asked.budget, asked.steps)
    print(markdown_from_report(report))


def run_suite(kit: Path, out: Path, budget: float = BUDGET, steps: Sequence[StepName] = STEPS) -> GpuReport:
    """All steps; `out` has the report of those so far after each."""
    end = time.monotonic() + budget
    seconds: dict[StepName, float] = {}
    ways = Ways(why_not="the first step wasn't asked for")
    with tempfile.TemporaryDirectory(prefix="gpusq-suite-") as folder, _preparing(kit, Path(folder), budget):
        for index, name in enumerate(steps):
            begun = time.monotonic()
            share = SHARES[name] / sum(SHARES[step] for step in steps[index:])
            run_step(name, Ground(kit, Path(folder), begun + (end - begun) * share), out / _file(name))
            if name == "possible":
                ways = _tell_ways(out / _file(name), Path(folder))
            seconds[name] = round(time.monotonic() - begun, 1)
            report = _report(out, ways, seconds)
            write_whole(out / "gpu.json", json_from_value(report))
            write_whole(out / "report.md", markdown_from_report(report).encode())
    return _report(out, ways, seconds)


def run_step(name: StepName, ground: Ground, out: Path) -> None:
    """One step to its end, by as many processes as it needs; what killed one is a finding."""
    out.unlink(missing_ok=True)
    rest = TIME_IS_UP
    while not ground.late:
        before = read_lines(out)[0]
        code = _worker(name, ground, out)
        begun = read_lines(out)[0]
        if name == "possible" and _is_best(ways_among(read_lines(out)[1])):
            _tell_ways(out, ground.work)
        if code not in {0, GO_ON}:
            last = begun[-1] if len(begun) > len(before) else name
            add_line(out, None, Finding(step=name, name=last, why_not=_death(code)))
        if code == 0:
            break
        # A process that began nothing will begin nothing next time.
        if len(begun) == len(before):
            rest = f"not begun: {_death(code)}"
            break
    begun = read_lines(out)[0]
    for item in BY_NAME[name].items(ground):
        if item not in begun:
            add_line(out, item, Finding(step=name, name=item, why_not=rest))


def _tell_ways(out: Path, work: Path) -> Ways:
    """What the first step has found, for those that build plans and for the steps behind it."""
    ways = ways_among(read_lines(out)[1])
    write_whole(work / "ways.json", json_from_value(ways))
    return ways


def _is_best(ways: Ways) -> bool:
    """Whether no answer that is still to come can change which plans are built, so that building can begin."""
    return any(way.capability == "CURRENT" for way in ways.ways) and isinstance(find_api("tensorrt"), str)


def _worker(name: StepName, ground: Ground, out: Path) -> int:
    """Its exit status; negative is the signal that ended it."""
    left = max(ground.deadline - time.monotonic(), 1.0)
    command = [sys.executable, "-m", f"{_HERE}.worker", name, "--kit", str(ground.kit), "--work", str(ground.work)]
    command += ["--out", str(out), "--seconds", str(left)]
    with _process(command) as process:
        try:
            return process.wait(left + _GRACE)
        except subprocess.TimeoutExpired:
            return -signal.SIGKILL


@contextlib.contextmanager
def _process(command: Sequence[str]) -> Generator[subprocess.Popen[bytes], None, None]:
    """A process with a group of its own, which is ended whole afterwards, children and all."""
    process = subprocess.Popen(command, stdout=sys.stderr, start_new_session=True, env=os.environ | _PROFILER)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextlib.contextmanager
def _preparing(kit: Path, work: Path, seconds: float) -> Generator[None, None, None]:
    """Plans and references are made meanwhile, where something can run them; four cores are left to who measures."""
    if no_gpu():
        yield
        return
    processes = max((os.cpu_count() or 1) - 4, 1)
    command = [sys.executable, "-m", f"{_HERE}.prepare", "--kit", str(kit), "--work", str(work)]
    with _process([*command, "--processes", str(processes), "--seconds", str(seconds)]):
        yield


def _death(code: int) -> str:
    if code == -signal.SIGKILL:
        return "its process was ended: it took too long, or the machine's memory ran out"
    return f"its process died: {signal.Signals(-code).name if code < 0 else f'status {code}'}"


def _file(name: StepName) -> str:
    return f"{STEPS.index(name) + 1}-{name}.jsonl"


def _report(out: Path, ways: Ways, seconds: dict[StepName, float]) -> GpuReport:
    gpu = find_gpu()
    return GpuReport(
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        environment=read_environment(),
        compute_capability=gpu.compute_capability if isinstance(gpu, Gpu) else None,
        pretended=not isinstance(gpu, Gpu),
        ways=ways,
        seconds=seconds,
        findings=tuple(one for step in seconds for one in read_lines(out / _file(step))[1]),
        notes=(
            f"{ITERATIONS} samples after {WARMUP} warm-ups, CUDA events, copies not included, clocks as found; plans "
            "are built on the CPU meanwhile",
            f"torch's products: each sample is the mean of {LAUNCHES} in a row; kernels are of one",
        ),
    )


if __name__ == "__main__":
    main()
