"""The commands that build a bundle's engines without this package: trtexec's and Polygraphy's, with every flag.

Flags of trtexec are those that its parser has from 10.3 to 11.1 (samples/common/sampleOptions.cpp); what came between
is told. 11 took away --fp16, --best and their like, which a strongly typed network never needs.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from gpusq_deploy.artifacts import MODEL, BatchRange, EngineOptions
from gpusq_deploy.bundle.handover.model import HandedModel, Handover
from gpusq_deploy.bundle.handover.rendering import rendered

# A tensor's name that trtexec's lists take without quotes.
_PLAIN = re.compile(r"[\w./-]+")


class _Script(NamedTuple):
    """One build: `target` is empty for the bundle's own options."""

    target: str
    options: EngineOptions
    capability: str | None = None

    def name(self, tool: str) -> str:
        """Of its file."""
        return f"{tool}-{self.target}.sh" if self.target else f"{tool}.sh"


def trtexec_commands(model: HandedModel) -> Handover:
    """Shell scripts beside the model: `trtexec.sh`, `polygraphy.sh`, and those of engines that were built otherwise."""
    files: dict[str, bytes] = {}
    remarks: dict[str, None] = {}
    for script in _scripts(model):
        if script.capability is None:
            files[script.name("trtexec")] = trtexec_script(model, script.options)
            remarks.update(dict.fromkeys(_trtexec_remarks(script.options)))
        files[script.name("polygraphy")] = rendered(
            "polygraphy.sh",
            model=model,
            script=script,
            flags=list(polygraphy_flags(model, *script[1:])),
            inputs=polygraphy_shapes(model, model.batch.optimum),
            onnx=MODEL,
        )
        remarks.update(dict.fromkeys(_polygraphy_remarks(script.options)))
    said = (*model.doubts, *remarks)
    files["README.md"] = rendered("trtexec.md", model=model, scripts=sorted(files), remarks=said)
    copies = {file: file for file in model.model_files}
    return Handover(kind="trtexec", files=files, copies=copies, remarks=said)


def trtexec_script(model: HandedModel, options: EngineOptions) -> bytes:
    """A shell script that builds an engine with trtexec."""
    return rendered("trtexec.sh", model=model, flags=list(trtexec_flags(model, options)), onnx=MODEL)


def _scripts(model: HandedModel) -> Iterator[_Script]:
    """The bundle's own options first; then engines that need another command."""
    yield _Script("", model.options)
    for engine in model.engines:
        options = model.options_of(engine)
        if engine.backend == "tensorrt-rtx":
            yield _Script(engine.target, options, engine.compute_capability)
        elif options != model.options:
            yield _Script(engine.target, options)


def trtexec_flags(model: HandedModel, options: EngineOptions) -> Iterator[str]:
    """Every flag of a build, but for the files; as the shell reads them."""
    yield "--stronglyTyped"
    yield "--profilingVerbosity=detailed"
    if model.sparse:
        yield "--sparsity=enable"
    profiles = model.profiles(options)
    for index, profile in enumerate(profiles):
        if len(profiles) > 1:
            yield f"--profile={index}"
        for word, size in _sizes(profile).items():
            yield shlex.quote(f"--{word}Shapes={_trtexec_shapes(model, size)}")
    yield from _trtexec_limits(options)
    switches = {
        # STRIP_PLAN and REFIT, as our builder sets them; --stripWeights alone would be REFIT_IDENTICAL.
        "--stripAllWeights": options.strip,
        "--allowWeightStreaming": options.weight_streaming,
        "--versionCompatible": options.version_compatible,
    }
    yield from (flag for flag, asked in switches.items() if asked)


def _trtexec_limits(options: EngineOptions) -> Iterator[str]:
    pools = {"workspace": (options.workspace_mib, "M"), "tacticSharedMem": (options.shared_memory_kib, "K")}
    limits = ",".join(f"{pool}:{size}{unit}" for pool, (size, unit) in pools.items() if size is not None)
    if limits:
        yield f"--memPoolSize={limits}"
    if options.tactics is not None:
        yield f"--maxTactics={options.tactics}"
    if options.level is not None:
        yield f"--builderOptimizationLevel={options.level}"
    if options.hardware is not None:
        level = {"ampere-plus": "ampere+", "same-compute-capability": "sameComputeCapability"}[options.hardware]
        yield f"--hardwareCompatibilityLevel={level}"


def polygraphy_flags(model: HandedModel, options: EngineOptions, capability: str | None = None) -> Iterator[str]:
    """The same of `polygraphy convert`; `capability` is of a GPU that tensorrt-rtx builds for ahead of time."""
    yield "--strongly-typed"
    yield "--profiling-verbosity detailed"
    if capability is not None:
        yield f"--compute-capabilities {capability}"
    if model.sparse:
        yield "--sparse-weights"
    for profile in model.profiles(options):
        for word, size in _sizes(profile).items():
            yield f"--trt-{word}-shapes {polygraphy_shapes(model, size)}"
    pools = {"workspace": (options.workspace_mib, "M"), "tactic_shared_memory": (options.shared_memory_kib, "K")}
    limits = [f"{pool}:{size}{unit}" for pool, (size, unit) in pools.items() if size is not None]
    if limits:
        yield f"--pool-limit {' '.join(limits)}"
    if options.level is not None:
        yield f"--builder-optimization-level {options.level}"
    if options.hardware is not None:
        yield f"--hardware-compatibility-level {options.hardware.replace('-', '_')}"
    switches: Mapping[str, bool] = {
        "--strip-plan --refittable": options.strip,
        "--weight-streaming": options.weight_streaming,
        "--version-compatible": options.version_compatible,
    }
    yield from (flag for flag, asked in switches.items() if asked)


def polygraphy_shapes(model: HandedModel, size: int) -> str:
    """Of all inputs at a batch size, as the shell reads them."""
    shapes = ((spec.name, (size, *spec.shape[1:]) if model.dynamic else spec.shape) for spec in model.inputs)
    return " ".join(shlex.quote(f"{name}:[{','.join(map(str, shape))}]") for name, shape in shapes)


def _trtexec_shapes(model: HandedModel, size: int) -> str:
    names = (spec.name if _PLAIN.fullmatch(spec.name) else f"'{spec.name}'" for spec in model.inputs)
    shapes = ("x".join(map(str, (size, *spec.shape[1:]))) for spec in model.inputs)
    return ",".join(f"{name}:{shape}" for name, shape in zip(names, shapes, strict=True))


def _sizes(profile: BatchRange) -> dict[str, int]:
    return {"min": profile.minimum, "opt": profile.optimum, "max": profile.maximum}


def _trtexec_remarks(options: EngineOptions) -> Sequence[str]:
    said = {
        "trtexec has --maxTactics since TensorRT 10.4": options.tactics is not None,
        "trtexec has --hardwareCompatibilityLevel=sameComputeCapability since TensorRT 10.9": options.hardware
        == "same-compute-capability",
        "trtexec has no flag for capturable, an option of TensorRT-RTX alone": options.capturable,
    }
    return [sentence for sentence, applies in said.items() if applies]


def _polygraphy_remarks(options: EngineOptions) -> Sequence[str]:
    said = {
        f"Polygraphy has no flag for tactics={options.tactics}": options.tactics is not None,
        "Polygraphy has no flag for capturable": options.capturable,
    }
    return [sentence for sentence, applies in said.items() if applies]
