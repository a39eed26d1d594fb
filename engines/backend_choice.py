"""Which runtime runs a model here, and why."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal, get_args

from gpusq_deploy.artifacts import SkippedTarget, Value
from gpusq_deploy.engines.api import TRAITS, BackendName, find_api
from gpusq_deploy.engines.cuda_api import find_cuda
from gpusq_deploy.engines.gpu import NoGpu, find_gpu
from gpusq_deploy.engines.session import SharedSession
from gpusq_deploy.engines.targets import Target, skipped_target
from gpusq_deploy.errors import GpusqError

RuntimeName = Literal["tensorrt", "tensorrt-rtx", "onnxruntime"]
RuntimeRequest = Literal["auto", "tensorrt", "tensorrt-rtx", "onnxruntime"]

_NO_ENGINE = "there is no engine, only an ONNX model"


class RuntimeChoice(Value):
    """The runtime that will be used, and why that one, as a sentence to print."""

    name: RuntimeName
    reason: str


def choose_runtime(requested: str, *, engines: Collection[BackendName]) -> RuntimeChoice:
    """Pick the runtime: what was asked for, or the fastest that can run here.

    `auto` takes tensorrt, then tensorrt-rtx, where an engine exists, the package is installed and a GPU
    answers; else ONNX Runtime on the CPU. Every runtime that was passed over is named with its reason.

    Args:
        requested: A runtime's name or `auto`.
        engines: Whose engines there are: nobody else can run them. Empty where there is only an ONNX model.

    Raises:
        GpusqError: An unknown name, or the runtime asked for can't run here.
    """
    if requested not in get_args(RuntimeRequest):
        raise GpusqError(
            f"unknown runtime {requested!r}", place="--runtime", hint=f"one of: {', '.join(get_args(RuntimeRequest))}"
        )
    if requested == "onnxruntime":
        return RuntimeChoice(name="onnxruntime", reason="asked for")
    refusals: list[str] = []
    for name in TRAITS:
        refusal = _no_fitting_engine(name, engines) or why_not(name)
        if requested == name:
            return _insist(name, refusal)
        if refusal is None and requested == "auto":
            return RuntimeChoice(name=name, reason="; ".join([*refusals, f"{name} is installed and a GPU answers"]))
        refusals.append(f"not {name}: {refusal}")
    return RuntimeChoice(name="onnxruntime", reason="; ".join(refusals) if engines else _NO_ENGINE)


def why_not(name: BackendName) -> str | None:
    """Why engines of this backend can't be run here; None where they can."""
    api = find_api(name)
    if isinstance(api, str):
        return api
    gpu = find_gpu()
    if isinstance(gpu, NoGpu):
        return gpu.reason
    cuda = find_cuda()
    return cuda if isinstance(cuda, str) else None


class BackendChoice(Value):
    """The backend that builds a target's engine here, and why that one, as a sentence to print."""

    name: BackendName
    reason: str


def choose_backend(target: Target, *, bundle: str, options: Sequence[str] = ()) -> BackendChoice | SkippedTarget:
    """Pick who builds the engine of a target here, or say why nobody can.

    On the target's own GPU, tensorrt is the first choice; elsewhere a backend that builds ahead of time.

    Args:
        target: The GPU to build for.
        bundle: The bundle's path, for the command that makes the engine on the device.
        options: What that command must say besides, as `--engine-option` takes it.
    """
    refusals: list[str] = []
    for name in (*target.on_device, *target.ahead_of_time):
        ahead = name in target.ahead_of_time
        refusal = _why_not_build(name, target, ahead=ahead)
        if refusal is None:
            where = "builds ahead of time, without the GPU" if ahead else "is installed, and the target's GPU answers"
            return BackendChoice(name=name, reason="; ".join([*refusals, f"{name} {where}"]))
        refusals.append(f"not {name}: {refusal}")
    if not target.ahead_of_time:
        refusals.append(f"no backend builds for {target.name} ahead of time")
    return skipped_target(target, bundle=bundle, reasons=refusals, options=options)


def _why_not_build(name: BackendName, target: Target, *, ahead: bool) -> str | None:
    api = find_api(name)
    if ahead:
        return api if isinstance(api, str) else None
    only = f"it builds for {target.name} only on the device itself"
    gpu = find_gpu()
    if isinstance(gpu, NoGpu):
        return f"{only}, and here {gpu.reason}"
    if gpu.compute_capability != target.compute_capability:
        wanted = target.compute_capability
        return f"{only} (compute capability {wanted}), and this is a {gpu.name} ({gpu.compute_capability})"
    return api if isinstance(api, str) else None


def open_session(
    path: Path,
    runtime: RuntimeName,
    *,
    weights: Path | None = None,
    cuda_graph: bool = False,
    host_code: bool = False,
) -> SharedSession:
    """Load a model on one runtime: an ONNX file on onnxruntime, an engine on the two others.

    Args:
        path: The file.
        runtime: Who runs it.
        weights: The ONNX model that an engine without weights takes them from.
        cuda_graph: Whether inferences are launched as a captured CUDA graph.
        host_code: Whether an engine may bring a runtime of its own; see `EngineOptions.version_compatible`.

    Raises:
        GpusqError: The file doesn't fit the runtime or can't be loaded; or onnxruntime was to use CUDA graphs.
    """
    if runtime == "onnxruntime":
        if cuda_graph:
            raise GpusqError(
                "onnxruntime runs on the CPU here and has no CUDA graphs", place="--cuda-graph", hint="leave it out"
            )
        from gpusq_deploy.engines.ort import open_onnx

        return open_onnx(path)
    from gpusq_deploy.engines.cuda_session import open_engine

    return open_engine(path, runtime, weights=weights, cuda_graph=cuda_graph, host_code=host_code)


def _no_fitting_engine(name: BackendName, engines: Collection[BackendName]) -> str | None:
    if name in engines:
        return None
    return f"there are engines of {', '.join(engines)} only" if engines else _NO_ENGINE


def _insist(name: BackendName, refusal: str | None) -> RuntimeChoice:
    if refusal is not None:
        raise GpusqError(
            f"{name} can't run the model here: {refusal}",
            place=f"--runtime {name}",
            hint="use --runtime onnxruntime to run the ONNX model on the CPU, or run this on the target device",
        )
    return RuntimeChoice(name=name, reason="asked for; installed, and a GPU answers")
