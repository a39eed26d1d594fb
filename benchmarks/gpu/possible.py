"""Step 1: does this GPU run TensorRT-RTX at all, and whose plans? Asked, not assumed: every answer is a finding.

Plans are built here, run and compared, then launched as a CUDA graph, then looked at by a profiler and by TensorRT's
inspector: each of these may kill the process, so what is known is on disk before the next. Plans that were built
elsewhere for each capability are judged by the runtime, loaded, run and compared. What gives right results becomes the
way that the other steps build.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from gpusq_deploy.artifacts.base import write_whole
from gpusq_deploy.artifacts.manifest import BatchRange
from gpusq_deploy.benchmarks.gpu.references import repeated
from gpusq_deploy.benchmarks.gpu.runs import (
    Engine,
    Ground,
    built_kernels,
    no_gpu,
    refused,
    target_here,
    with_kernels,
)
from gpusq_deploy.benchmarks.gpu.values import Fact, Finding, Way, Ways
from gpusq_deploy.engines.api import find_api, load_api
from gpusq_deploy.engines.build_log import BuildLog
from gpusq_deploy.engines.builder import EngineBuildOptions, build_engine
from gpusq_deploy.engines.configure import BuildSettings
from gpusq_deploy.engines.cuda_api import find_cuda
from gpusq_deploy.engines.cuda_graph import find_graph_driver
from gpusq_deploy.engines.inspection import inspect_plan
from gpusq_deploy.engines.installed import ENGINES, LIBRARIES, installed_versions
from gpusq_deploy.errors import GpusqError

BATCH = BatchRange(minimum=1, optimum=8, maximum=128)
# tensorrt-rtx's names; "" leaves it to the builder.
CAPABILITIES = ("", "SM80", "SM89", "SM120")
# The GPU's own kernels first, then what the builder takes by itself, then the nearest older architecture.
_BEST = ("CURRENT", *CAPABILITIES)
_HERE = ("CURRENT", "", "SM80")
_MACHINE = "the machine"
_GRAPH, _NAMES, _INSPECTED = ": CUDA graph", ": kernel names", ": inspector"
_SPARSE_LIBRARY = "nvidia-cusparselt-cu13"
_MOST_TEXT = 8000
_T = TypeVar("_T")
_QUERY = "name,driver_version,compute_cap,clocks.sm,clocks.mem,clocks.max.sm,power.draw,temperature.gpu"


def items(_ground: Ground) -> tuple[str, ...]:
    """What is asked, in this order."""
    plans = [Way(backend="tensorrt-rtx", capability=name) for name in _BEST[1:]]
    here = [Way(backend="tensorrt-rtx", capability=name) for name in _HERE]
    return (
        _MACHINE,
        *(f"build here, {way.name}" for way in here),
        *(f"plan from elsewhere, {way.name}" for way in plans),
        "build here, tensorrt",
    )


def run(item: str, ground: Ground) -> Iterator[Finding]:
    """One question's answers, each as soon as it is known: what comes next may end the process."""
    finding = Finding(step="possible", name=item)
    if item == _MACHINE:
        yield msgspec.structs.replace(finding, facts=_machine(), why_not=no_gpu())
        return
    where, _, name = item.partition(", ")
    way = way_named(name)
    if where == "build here":
        yield from _built_here(finding, way, ground)
    else:
        plan = ground.kit / "small" / f"{way.capability or 'none'}.plan"
        yield from _judged(finding, plan)
        yield from _tried(finding, plan, way, ground)


def way_named(name: str) -> Way:
    """The way of a name; see `Way.name`."""
    backend, _, capability = name.partition(" ")
    if backend == "tensorrt":
        return Way(backend="tensorrt")
    return Way(backend="tensorrt-rtx", capability="" if capability == "none named" else capability)


def ways_among(findings: Sequence[Finding]) -> Ways:
    """The best way of each builder: one whose outputs were right; else why there is none."""
    named = {one.name for one in findings if one.kernels}
    right = {one.name for one in findings if one.right}
    found = [
        msgspec.structs.replace(
            way_named(name.partition(", ")[2]), graph=f"{name}{_GRAPH}" in right, names=f"{name}{_NAMES}" in named
        )
        for name in sorted(right)
        if not name.endswith((_GRAPH, _NAMES))
    ]
    rtx = [way for way in found if way.backend == "tensorrt-rtx"]
    best = sorted(rtx, key=lambda way: _BEST.index(way.capability or ""))[:1]
    ways = (*best, *(way for way in found if way.backend == "tensorrt"))
    reasons = dict.fromkeys(one.why_not for one in findings if one.why_not)
    return Ways(ways=ways, why_not="" if ways else "no plan runs here: " + (next(iter(reasons), "nothing was asked")))


def _machine() -> dict[str, Fact]:
    facts: dict[str, Fact] = {**installed_versions((*LIBRARIES, *ENGINES, _SPARSE_LIBRARY))}
    cuda, graphs = find_cuda(), find_graph_driver()
    facts["CUDA calls"] = cuda if isinstance(cuda, str) else "can be made"
    facts["CUDA graphs"] = graphs if isinstance(graphs, str) else "the driver has them"
    for backend in ("tensorrt-rtx", "tensorrt"):
        api = find_api(backend)
        facts[backend] = api if isinstance(api, str) else api.__version__
    tool = shutil.which("nvidia-smi")
    if tool is not None:
        command = [tool, f"--query-gpu={_QUERY}", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
        facts[_QUERY] = (done.stdout or done.stderr).strip()
    return facts


def _built_here(finding: Finding, way: Way, ground: Ground) -> Iterator[Finding]:
    reason = no_gpu() if way.capability in {None, "CURRENT"} else ""
    if reason:
        yield refused(finding, reason)
        return
    settings = BuildSettings(batch=BATCH, sparse=True)
    options = EngineBuildOptions(backend=way.backend, capability=way.capability)
    built = build_engine(ground.kit / "small" / "model.onnx", target_here(), settings, options)
    plan = ground.work / f"{way.name.replace(' ', '-')}.plan"
    write_whole(plan, built.engine_bytes)
    facts: dict[str, Fact] = {
        "build_seconds": built.seconds,
        "plan_bytes": len(built.engine_bytes),
        "said": _text(built.notes),
    }
    done = msgspec.structs.replace(finding, facts=facts, built=built_kernels(built.layers))
    yield msgspec.structs.replace(done, name=f"{finding.name}: the build")
    yield from _tried(msgspec.structs.replace(finding, facts=facts), plan, way, ground)
    # Once the best way is known, the others are asked for their outputs alone.
    if not no_gpu() and not ground.ways.ways:
        yield from _launched(finding, plan, way, ground)
        api, log = load_api(way.backend), BuildLog()
        text = inspect_plan(plan.read_bytes(), api, log.as_logger(api), _made, stripped=None, host_code=False)
        yield msgspec.structs.replace(finding, name=f"{finding.name}{_INSPECTED}", facts={"said": text[:_MOST_TEXT]})


def _launched(finding: Finding, plan: Path, way: Way, ground: Ground) -> Iterator[Finding]:
    """The same as a CUDA graph, and the names of its kernels, twice: a profiler that dies does so the second time."""
    feeds = repeated(ground.kit / "small" / "reference.npz", 8)
    with contextlib.closing(Engine(plan, msgspec.structs.replace(way, graph=True))) as engine:
        done = engine.checked(*feeds, msgspec.structs.replace(finding, name=f"{finding.name}{_GRAPH}"))
        yield refused(done, f"not as a graph: {engine.uncaptured}") if engine.uncaptured else done
        take = engine.timer(feeds[0])
        with_kernels(finding, take)
        yield with_kernels(msgspec.structs.replace(finding, name=f"{finding.name}{_NAMES}"), take)


def _made(thing: _T | None, step: str) -> _T:
    if thing is None:
        raise GpusqError(f"the runtime couldn't {step}")
    return thing


def _judged(finding: Finding, plan: Path) -> Iterator[Finding]:
    """What the runtime says of a plan before it loads it, then whether it loads it; with all that it logs."""
    reason = no_gpu()
    if reason:
        return
    api, log = load_api("tensorrt-rtx"), BuildLog()
    runtime: Any = api.Runtime(log.as_logger(api))
    content = plan.read_bytes()
    validity, reasons = runtime.get_engine_validity(content)
    facts: dict[str, Fact] = {"validity": validity.name, "diagnostics": str(reasons), "said": _text(log.texts())}
    yield msgspec.structs.replace(finding, name=f"{finding.name}: validity", facts=facts)
    engine = runtime.deserialize_cuda_engine(content)
    facts = {"loads": "yes" if engine is not None else "no", "said": _text(log.texts())}
    yield msgspec.structs.replace(finding, name=f"{finding.name}: loading", facts=facts)


def _tried(finding: Finding, plan: Path, way: Way, ground: Ground) -> Iterator[Finding]:
    reason = no_gpu()
    if reason:
        yield refused(finding, reason)
        return
    with contextlib.closing(Engine(plan, way)) as engine:
        yield engine.checked(*repeated(ground.kit / "small" / "reference.npz", 8), finding)


def _text(lines: Sequence[str]) -> str:
    return "\n".join(lines)[-_MOST_TEXT:]
