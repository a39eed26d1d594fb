"""A Triton model repository: config.pbtxt and the file that its backend loads.

The rules are those of Triton's model_configuration.md and of the two backends' sources:

1. With `max_batch_size` > 0 a tensor's shape is [-1] + `dims`, and the model must say so too; else `dims` is all of it.
2. Only then may requests be batched; a model with a smallest batch above 1 gets whole batches from its clients.
3. `dims` is never empty: what has one value for each sample is [1], reshaped to [].
4. A warm-up request has `batch_size` 1 to `max_batch_size`; 1 where the model doesn't batch.
5. The tensorrt backend links nvinfer alone: it loads engines of TensorRT, not those of TensorRT-RTX.
6. ONNX Runtime's TensorRT provider builds a strongly typed network where no precision flag is set, which
   `precision_mode` FP32 means; with Q/DQ and FP16 in the graph, any other would let it choose types.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gpusq_deploy.artifacts import BuiltEngine
from gpusq_deploy.bundle.handover.model import HandedModel, Handover
from gpusq_deploy.bundle.handover.rendering import rendered
from gpusq_deploy.engines import TensorSpec
from gpusq_deploy.errors import GpusqError

# numpy's names, and Triton's; what ONNX Runtime's backend lacks is told.
_TYPES = {
    "bool": "TYPE_BOOL",
    "uint8": "TYPE_UINT8",
    "int8": "TYPE_INT8",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
    "bfloat16": "TYPE_BF16",
}
_NOT_IN_ONNXRUNTIME = frozenset({"bfloat16"})
_NOT_IN_TENSORRT = frozenset({"float64"})
# How long the first request of a batch waits for others.
_QUEUE_DELAY = 500
_LABELS = "labels.txt"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Loaded:
    """What the server loads: engines by file, or the ONNX model where there are none."""

    engines: tuple[tuple[str, BuiltEngine], ...]
    cpu: bool
    remarks: tuple[str, ...]

    @property
    def platform(self) -> str:
        """Triton's name of the backend and its file."""
        return "tensorrt_plan" if self.engines else "onnxruntime_onnx"


def triton_repository(model: HandedModel, *, cpu: bool = False) -> Handover:
    """A model repository with one model of one version.

    Args:
        model: The model.
        cpu: Serve model.onnx on the CPU.

    Raises:
        GpusqError: A tensor's type that the backend doesn't take.
    """
    loaded = _loaded(model, cpu=cpu)
    _require_types(model, loaded)
    place = f"{model.name}/1"
    config = rendered("config.pbtxt", **_facts(model, loaded))
    files = {f"{model.name}/config.pbtxt": config}
    if model.labels:
        files[f"{model.name}/{_LABELS}"] = "".join(f"{label}\n" for label in model.labels).encode()
    if loaded.engines:
        copies = {f"{place}/{file}": engine.engine_file for file, engine in loaded.engines}
    else:
        copies = {f"{place}/{file}": file for file in model.model_files}
    remarks = (*model.doubts, *loaded.remarks, *_batch_remarks(model))
    files["README.md"] = rendered(
        "triton.md", model=model, loaded=loaded, remarks=remarks, opset=model.opset, spec=model.inputs[0]
    )
    return Handover(kind="triton", files=files, copies=copies, remarks=remarks)


def _loaded(model: HandedModel, *, cpu: bool) -> _Loaded:
    """Engines of TensorRT, one for each compute capability; without one, the ONNX model."""
    if cpu:
        return _Loaded(engines=(), cpu=True, remarks=())
    remarks: list[str] = []
    found: dict[str, BuiltEngine] = {}
    for engine in model.engines:
        why = _why_not(model, engine, found.get(engine.compute_capability))
        if why:
            remarks.append(f"{engine.engine_file} is left out: {why}")
            continue
        found[engine.compute_capability] = engine
        remarks.append(f"{engine.engine_file} needs a server with TensorRT {engine.backend_version}, which built it")
        if model.options_of(engine).version_compatible:
            remarks.append("start the server with --backend-config=tensorrt,version-compatible=true")
    if not found:
        remarks.append(
            "ONNX Runtime's TensorRT provider serves model.onnx, and builds its engine when the server starts; "
            "gpusq-build BUNDLE --target NAME on a machine with TensorRT and the GPU adds one to export"
        )
    engines = tuple((f"{engine.target}.plan", engine) for engine in found.values())
    return _Loaded(engines=engines, cpu=False, remarks=tuple(remarks))


def _why_not(model: HandedModel, engine: BuiltEngine, other: BuiltEngine | None) -> str:
    """Why the server can't load an engine; empty where it can."""
    if engine.backend != "tensorrt":
        return f"Triton's tensorrt backend loads no {engine.backend} engine"
    if model.options_of(engine).strip:
        return "Triton loads no engine without weights"
    if other is not None:
        return f"{other.engine_file} has its compute capability, {engine.compute_capability}, too"
    return ""


def _require_types(model: HandedModel, loaded: _Loaded) -> None:
    lacking = _NOT_IN_TENSORRT if loaded.engines else _NOT_IN_ONNXRUNTIME
    for spec in (*model.inputs, *model.outputs):
        if spec.dtype not in _TYPES or spec.dtype in lacking:
            raise GpusqError(
                f"{spec.name} is {spec.dtype}, which Triton's {loaded.platform} doesn't take",
                place=model.bundle,
                hint="export --to onnx and run it without Triton, or build with inputs and outputs of float32",
            )


def _facts(model: HandedModel, loaded: _Loaded) -> dict[str, Any]:
    most = _max_batch(model)
    return {
        "model": model,
        "loaded": loaded,
        "most": most,
        "inputs": [_tensor(spec, batched=bool(most), best=model.batch.optimum) for spec in model.inputs],
        "outputs": [_tensor(spec, batched=bool(most), best=model.batch.optimum) for spec in model.outputs],
        "labels": _LABELS if model.labels else "",
        "delay": _QUEUE_DELAY,
        "shapes": {} if loaded.engines or loaded.cpu else _provider_shapes(model),
        **_batching(model, loaded, most),
    }


def _batching(model: HandedModel, loaded: _Loaded, most: int) -> dict[str, Any]:
    """What the profiles say: sizes to wait for, the size of the warm-up, and the profiles that engines have."""
    all_options = [model.options_of(engine) for _, engine in loaded.engines] or [model.options]
    profiles = model.profiles(all_options[0])
    # An instance names profiles by number: those that every engine has.
    shared = min(len(model.profiles(options)) for options in all_options)
    sizes = {size for each in profiles for size in (each.optimum, each.maximum)} if most > 1 else set[int]()
    return {
        "preferred": sorted(size for size in sizes if 1 < size <= most),
        "warm": profiles[0].optimum if most else 1,
        "profiles": range(shared) if loaded.engines and shared > 1 else (),
    }


def _max_batch(model: HandedModel) -> int:
    """0 where Triton mustn't batch."""
    return model.batch.maximum if model.by_sample and model.batch.minimum == 1 else 0


def _tensor(spec: TensorSpec, *, batched: bool, best: int) -> dict[str, Any]:
    dims = list(spec.shape[1:] if batched else spec.shape)
    return {
        "name": spec.name,
        "type": _TYPES[spec.dtype],
        "dims": dims or [1],
        "reshaped": not dims,
        "warm": [best if size < 0 else size for size in dims] or [1],
    }


def _provider_shapes(model: HandedModel) -> dict[str, str]:
    """Shapes of the profile that the provider is to build, as it reads them: `input:1x3x224x224`."""
    if not model.dynamic:
        return {}
    sizes = {"min": model.batch.minimum, "opt": model.batch.optimum, "max": model.batch.maximum}
    return {
        key: ",".join(f"{spec.name}:{'x'.join(map(str, (size, *spec.shape[1:])))}" for spec in model.inputs)
        for key, size in sizes.items()
    }


def _batch_remarks(model: HandedModel) -> tuple[str, ...]:
    if _max_batch(model):
        return ()
    least, most = model.batch.minimum, model.batch.maximum
    if not model.dynamic:
        why = "the batch is fixed"
    elif model.by_sample:
        why = f"the smallest batch is {least}"
    else:
        why = "not every output has the samples in its first axis"
    count = str(most) if least == most else f"{least} to {most}"
    return (f"{why}: each request has {count} samples, and Triton puts none together",)
