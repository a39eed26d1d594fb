"""One step in a process of its own: every finding is on disk before the next begins, and a crash costs one of them.

    python -m gpusq_deploy.benchmarks.gpu.worker STEP --kit DIR --work DIR --out FILE --seconds S

FILE gets a line for each thing that is begun and one for each finding. What FILE says was begun isn't begun again, so a
process that follows a dead one goes on behind what killed it.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from gpusq_deploy.artifacts.base import plain_from_scalar
from gpusq_deploy.benchmarks.gpu import models, own_tests, possible, products, yardstick
from gpusq_deploy.benchmarks.gpu.runs import TIME_IS_UP, Ground, is_sticky, no_gpu, why
from gpusq_deploy.benchmarks.gpu.values import Finding, StepName

# The process ended to be followed by another, for what is left.
GO_ON = 75
_BEGUN = b'{"begun"'


class Step(NamedTuple):
    """A step: what it tries, in order; how; and whether each thing gets a process of its own."""

    items: Callable[[Ground], tuple[str, ...]]
    run: Callable[[str, Ground], Iterator[Finding]]
    alone: bool = False


BY_NAME: dict[StepName, Step] = {
    # Each asks what another would spoil: TensorRT has one log for a process, and a plan may end it.
    "possible": Step(possible.items, possible.run, alone=True),
    "models": Step(models.items, models.run),
    "products": Step(products.items, products.run),
    "torch": Step(yardstick.items, yardstick.run),
    "tests": Step(own_tests.items, own_tests.run),
}


def main() -> None:
    """Entry point: 0 where nothing is left to do, `GO_ON` where another process is to go on."""
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=list(BY_NAME))
    parser.add_argument("--kit", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    asked = parser.parse_args()
    ground = Ground(asked.kit, asked.work, time.monotonic() + asked.seconds)
    sys.exit(GO_ON if work(asked.step, ground, asked.out) else 0)


def work(name: StepName, ground: Ground, out: Path) -> bool:
    """Try what the step hasn't begun yet; True where the rest wants a new process."""
    step = BY_NAME[name]
    begun, _findings = read_lines(out)
    items = step.items(ground)
    for item in items:
        if item in begun:
            continue
        if ground.late:
            add_line(out, item, Finding(step=name, name=item, why_not=TIME_IS_UP))
            continue
        add_line(out, item)
        try:
            for finding in step.run(item, ground):
                add_line(out, None, finding)
        # A driver's, a library's or our own mistake: one failure is one line of the report.
        except Exception as error:
            reason = why(error)
            add_line(out, None, Finding(step=name, name=item, why_not=f"failed: {reason}"))
            if is_sticky(reason):
                return True
        if step.alone and not no_gpu():
            return item != items[-1]
    return False


def add_line(out: Path, begun: str | None, finding: Finding | None = None) -> None:
    """Append what was begun, what was found, or both."""
    lines = b""
    if begun is not None:
        lines += json.dumps({"begun": begun}).encode() + b"\n"
    if finding is not None:
        lines += msgspec.json.encode(finding, enc_hook=plain_from_scalar) + b"\n"
    with out.open("ab") as stream:
        stream.write(lines)


def read_lines(out: Path) -> tuple[list[str], list[Finding]]:
    """What was begun, and what was found; a line that was cut off counts as none."""
    lines = [_decoded(line) for line in out.read_bytes().splitlines()] if out.exists() else []
    begun = [line for line in lines if isinstance(line, str)]
    return begun, [line for line in lines if isinstance(line, Finding)]


def _decoded(line: bytes) -> str | Finding | None:
    try:
        found: str | Finding
        found = json.loads(line)["begun"] if line.startswith(_BEGUN) else msgspec.json.decode(line, type=Finding)
    except (msgspec.DecodeError, json.JSONDecodeError):
        return None
    return found


if __name__ == "__main__":
    main()
