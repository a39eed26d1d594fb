"""Step 5: the project's own tests that need a GPU, on this one."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from gpusq_deploy.benchmarks.gpu.runs import Ground
from gpusq_deploy.benchmarks.gpu.values import Fact, Finding

_ITEM = "tests/gpu"


def items(_ground: Ground) -> tuple[str, ...]:
    """All tests are one item."""
    return (_ITEM,)


def run(_item: str, ground: Ground) -> Iterator[Finding]:
    """A finding for each test, by pytest's own record."""
    record, folder = ground.work / "tests.xml", ground.kit / "tests"
    command = [sys.executable, "-m", "pytest", str(folder / "gpu"), "-c", str(folder / "pytest.ini"), "-q", "-ra"]
    command += ["-p", "no:cacheprovider", f"--rootdir={folder}", f"--junitxml={record}"]
    left = max(ground.deadline - time.monotonic(), 5.0)
    try:
        done = subprocess.run(command, check=False, timeout=left, capture_output=True, text=True)
    except subprocess.TimeoutExpired:
        yield Finding(step="tests", name=_ITEM, why_not=f"stopped after {left:.0f} s")
        return
    said = (done.stdout + done.stderr)[-6000:]
    print(said, file=sys.stderr)
    found = list(read_record(record)) if record.exists() else []
    yield from found
    if not found:
        yield Finding(step="tests", name=_ITEM, why_not=f"pytest ended with {done.returncode}: {said[-1000:]}")


def read_record(record: Path) -> Iterator[Finding]:
    """The tests of a JUnit file: seconds each, and why one was skipped or failed."""
    for case in ElementTree.parse(record).getroot().iter("testcase"):
        problem = next((child for child in case if child.tag in {"failure", "error", "skipped"}), None)
        reason = "" if problem is None else f"{problem.tag}: {problem.get('message', '')[:1000]}"
        facts: dict[str, Fact] = {"seconds": float(case.get("time", "0"))}
        yield Finding(step="tests", name=case.get("name", "?"), facts=facts, why_not=reason)
