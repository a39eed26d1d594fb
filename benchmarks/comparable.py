"""May two runs be compared? Only where nothing but the model, its build and its software may have changed.

And only where the outputs are known to be right: no latency of wrong numbers counts.
"""

from __future__ import annotations

from gpusq_deploy.artifacts import Environment, Runs
from gpusq_deploy.benchmarks.machine.steadiness import unsteadiness

_Facts = dict[str, object]


def obstacles(base: Runs, head: Runs) -> tuple[str, ...]:
    """Every reason why a difference in latency could come from somewhere else than the model. None: comparable."""
    reasons = _different(_circumstances(base), _circumstances(head))
    if not set(base.batches) & set(head.batches):
        reasons.append(f"no shared batch size: {list(base.batches)} in base, {list(head.batches)} in head")
    reasons += _unlike_builds(base, head)
    reasons += _different_where_known(_settings_of(base.environment), _settings_of(head.environment))
    reasons += [
        f"the outputs of {name} weren't compared with the CPU's, so its latency may be of wrong numbers: "
        "gpusq-bench BUNDLE compares them, and gpusq-bench PLAN --reference MODEL.onnx"
        for name, runs in (("base", base), ("head", head))
        if runs.outputs == "not compared"
    ]
    return tuple(reasons)


def _settings_of(environment: Environment) -> _Facts:
    """What a person sets on a machine and what changes a latency; older files don't know all of it."""
    return {
        "CPU clocks locked": environment.clocks_locked,
        "CPU frequency governor": environment.governor,
        # Memory of another node is farther away; which of a node's cores run it says less.
        "NUMA nodes": environment.numa_nodes,
        "NUMA nodes that the process may use": environment.allowed_nodes,
        # Where it is off, all repeats share one layout, and how layouts differ isn't known.
        "randomisation of addresses": environment.address_randomisation,
        "transparent huge pages": environment.huge_pages,
        "GPU power limit in W": environment.gpu_power_limit_w,
        "power mode": environment.power_mode,
        "GPU clocks locked": environment.gpu_clocks_locked,
    }


def remarks(base: Runs, head: Runs) -> tuple[str, ...]:
    """Differences that may be what one compares, and what was left out: said, not refused."""
    said = _different(_software(base), _software(head))
    said += _different_where_known(_placement(base.environment), _placement(head.environment))
    if base.model_digest == head.model_digest:
        said.append(
            "base and head are one and the same model file: an A/A comparison, unless something listed above changed"
        )
    for name, ours, theirs in (("base", base, head), ("head", head, base)):
        only = sorted(set(ours.batches) - set(theirs.batches))
        if ours.outputs is None and ours.runtime.name != "onnxruntime":
            said.append(f"whether the outputs of {name} were compared with the CPU's isn't in its file, which is older")
        said += [f"{name}: {warning}" for warning in unsteadiness(ours)]
        if only:
            said.append(f"measured in {name} only, so not compared: batch {', '.join(map(str, only))}")
    return tuple(said)


def _unlike_builds(base: Runs, head: Runs) -> list[str]:
    if base.builds is not None and head.builds is not None:
        return _different({"engine built for": base.builds.target}, {"engine built for": head.builds.target})
    if base.builds is None and head.builds is None:
        return []
    one, several = ("base", "head") if base.builds is None else ("head", "base")
    return [
        f"{several} is several builds of an engine and {one} a single one: measure both with --rebuilds, or neither"
    ]


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
        # A machine that also runs untimed is a warmer one.
        "seconds of energy": settings.energy_seconds,
    }


def _software(runs: Runs) -> _Facts:
    return {
        "model": runs.model,
        "runtime version": runs.runtime.version,
        "package that calls CUDA": runs.runtime.cuda_api,
        **_builder(runs),
        "GPU driver": runs.environment.gpu_driver,
        "operating system": runs.environment.os,
        "Python": runs.environment.python,
    }


def _placement(environment: Environment) -> _Facts:
    return {
        "cores that the process may use": environment.allowed_cpus,
        "GPU persistence mode": environment.gpu_persistence,
    }


def _builder(runs: Runs) -> _Facts:
    builds = runs.builds
    return {
        "builder version": None if builds is None else builds.version,
        "engine options": None if builds is None else ", ".join(builds.options),
        "sparse kernels allowed": None if builds is None else builds.sparse,
    }


def _different(base: _Facts, head: _Facts) -> list[str]:
    return [
        f"{name}: {_spoken(value)} in base, {_spoken(head[name])} in head"
        for name, value in base.items()
        if value != head[name]
    ]


def _different_where_known(base: _Facts, head: _Facts) -> list[str]:
    known = [name for name, value in base.items() if value is not None and head[name] is not None]
    return _different({name: base[name] for name in known}, head)


def _spoken(value: object) -> str:
    return "unknown or none" if value is None else str(value)
