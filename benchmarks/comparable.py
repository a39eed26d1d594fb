"""May two runs be compared? Only where nothing but the model, its build and its software may have changed.

And only where the outputs are known to be right: no latency of wrong numbers counts.
"""

from __future__ import annotations

from gpusq_deploy.artifacts import Runs

_Facts = dict[str, object]


def obstacles(base: Runs, head: Runs) -> tuple[str, ...]:
    """Every reason why a difference in latency could come from somewhere else than the model. None: comparable."""
    reasons = _different(_circumstances(base), _circumstances(head))
    if not set(base.batches) & set(head.batches):
        reasons.append(f"no shared batch size: {list(base.batches)} in base, {list(head.batches)} in head")
    locked = (base.environment.clocks_locked, head.environment.clocks_locked)
    if None not in locked and locked[0] != locked[1]:
        reasons.append("the CPU's clocks were locked in one of the two only")
    reasons += [
        f"the outputs of {name} weren't compared with the CPU's, so its latency may be of wrong numbers: "
        "gpusq-bench BUNDLE compares them, and gpusq-bench PLAN --reference MODEL.onnx"
        for name, runs in (("base", base), ("head", head))
        if runs.outputs == "not compared"
    ]
    return tuple(reasons)


def remarks(base: Runs, head: Runs) -> tuple[str, ...]:
    """Differences that may be what one compares, and what was left out: said, not refused."""
    said = _different(_software(base), _software(head))
    if base.model_digest == head.model_digest:
        said.append(
            "base and head are one and the same model file: an A/A comparison, unless something listed above changed"
        )
    for name, ours, theirs in (("base", base, head), ("head", head, base)):
        only = sorted(set(ours.batches) - set(theirs.batches))
        if ours.outputs is None and ours.runtime.name != "onnxruntime":
            said.append(f"whether the outputs of {name} were compared with the CPU's isn't in its file, which is older")
        if only:
            said.append(f"measured in {name} only, so not compared: batch {', '.join(map(str, only))}")
    return tuple(said)


def _circumstances(runs: Runs) -> _Facts:
    environment, settings = runs.environment, runs.settings
    return {
        "CPU": environment.cpu,
        "cores": environment.cores,
        "CPU quota": environment.cpu_quota,
        "GPU": environment.gpu,
        "runtime": runs.runtime.name,
        "device": runs.runtime.device,
        "threads": runs.runtime.threads,
        "CUDA graph": runs.runtime.cuda_graph,
        "warm-up": settings.warmup,
        "iterations": settings.iterations,
        "order": settings.order,
        "inputs": settings.inputs,
        "seed": settings.seed,
        "a repeat is a fresh": settings.isolation,
    }


def _software(runs: Runs) -> _Facts:
    return {
        "model": runs.model,
        "runtime version": runs.runtime.version,
        "package that calls CUDA": runs.runtime.cuda_api,
        "GPU driver": runs.environment.gpu_driver,
        "operating system": runs.environment.os,
        "Python": runs.environment.python,
    }


def _different(base: _Facts, head: _Facts) -> list[str]:
    return [
        f"{name}: {_spoken(value)} in base, {_spoken(head[name])} in head"
        for name, value in base.items()
        if value != head[name]
    ]


def _spoken(value: object) -> str:
    return "unknown or none" if value is None else str(value)
