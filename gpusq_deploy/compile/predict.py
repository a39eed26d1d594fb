"""How long a model takes on GPUs that aren't here: its layer lists with and without Q/DQ, and their data sheets."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from gpusq_deploy.artifacts import MODEL, QuantPlan, Runs, digest_of_file, read_value
from gpusq_deploy.bundle import Bundle, read_bundle, require_whole
from gpusq_deploy.engines import (
    Adjustment,
    Device,
    Fitted,
    Prediction,
    Variant,
    Work,
    adjustment,
    find_target,
    layers_apart,
    load_fitted,
    parts_of_works,
    predict,
    with_sparse,
    work_of,
)
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend import is_bundle
from gpusq_deploy.graph import load_model, save_model, scratch_folder, static_batch, weighted_layers, without_qdq
from gpusq_deploy.progress import Reporter
from gpusq_deploy.text import listed

# TensorRT-RTX fuses alike for SM 8.0 to 12.0; it knows neither Orin nor Hopper.
_COMPILED_FOR = "a100"
_QUANTISED = frozenset({"QuantizeLinear", "DequantizeLinear"})
_FLOATS: tuple[tuple[ir.DataType, Variant], ...] = ((ir.DataType.FLOAT16, "fp16"), (ir.DataType.BFLOAT16, "bf16"))


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictRequest:
    """What is to be predicted.

    Attributes:
        path: A bundle, or an ONNX model.
        devices: The GPUs.
        batch: The batch size; None takes the bundle's optimum, or the graph's own, or 1.
        calibrate: Runs of this bundle's engine on the one device.
    """

    path: Path
    devices: tuple[Device, ...]
    batch: int | None = None
    calibrate: Path | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Subject:
    model: Path
    graph: ir.Model
    bundle: Bundle | None
    batch: int

    @property
    def quantised(self) -> bool:
        return any(node.op_type in _QUANTISED for node in self.graph.graph)


def predict_times(request: PredictRequest, reporter: Reporter) -> Prediction:
    """Predict; nothing is timed, and no GPU is needed: tensorrt-rtx compiles the model with and without Q/DQ.

    Raises:
        GpusqError: It isn't a bundle or a model, its types have no prediction, it can't be compiled, or the runs aren't
            of this bundle's engine on a GPU.
    """
    subject, fitted = _subject(request), load_fitted()
    runs = None if request.calibrate is None else _own_runs(request.calibrate, subject)
    reporter.say(f"compiling the model to count its kernels (tensorrt-rtx, batch {subject.batch}, no GPU)")
    forms = _forms(subject, subject.batch)
    seen, calibration = (None, None) if runs is None else _calibrated(runs, request, subject, forms, fitted)
    return Prediction(
        model=request.path.name,
        batch=subject.batch,
        devices=tuple(
            predict(forms, device, fitted, batch=subject.batch, seen=seen, calibration=calibration)
            for device in request.devices
        ),
        note=(
            f"predicted, not measured: kernels as tensorrt-rtx fuses them for {_COMPILED_FOR}, rates of data sheets, "
            f"constants fitted to {fitted.points} published measurements"
        ),
        errors={
            "fp16": fitted.fp16,
            "int8": fitted.int8,
            "int8_over_fp16": fitted.int8_over_fp16,
            "calibrated": fitted.calibrated,
            "calibrated_other": fitted.calibrated_other,
        },
    )


def _subject(request: PredictRequest) -> _Subject:
    bundle = None
    path = request.path
    if is_bundle(path):
        bundle = read_bundle(path)
        require_whole(bundle)
        _require_types(bundle.plan, path)
        path = path / MODEL
    graph = load_model(path)
    own = bundle.manifest.batch.optimum if bundle is not None else static_batch(graph.graph) or 1
    return _Subject(model=path, graph=graph, bundle=bundle, batch=request.batch or own)


def _require_types(plan: QuantPlan, place: Path) -> None:
    others = {layer.precision for layer in plan.layers} & {"fp8", "int4"}
    if plan.float_type == "fp32":
        others |= {"fp32"}
    if others:
        raise _not_fitted(sorted(others), place)


def _not_fitted(types: Sequence[str], place: Path) -> GpusqError:
    return GpusqError(
        f"a time in {listed(types).upper()} can't be predicted",
        place=str(place),
        hint="only models of FP16 or BF16 with INT8 can: nothing was published to fit others to",
    )


def _forms(subject: _Subject, batch: int) -> dict[Variant, Sequence[Work]]:
    """The kernels of each form: without Q/DQ, as it is, and that with 2:4 weights."""
    kind = _float_type(subject)
    target = find_target(_COMPILED_FOR)
    with scratch_folder() as folder:
        models = [subject.model]
        if subject.quantised:
            twin = Path(folder) / MODEL
            save_model(without_qdq(subject.graph), twin)
            models.append(twin)
        with layers_apart(models, target, batch) as layers:
            built, *other = (work_of(found) for found in layers())
    forms: dict[Variant, Sequence[Work]] = {kind: other[0], "int8": built} if other else {kind: built}
    nodes = _sparse_nodes(subject)
    if nodes:
        forms["2:4"] = with_sparse(built, nodes)
    return forms


def _float_type(subject: _Subject) -> Variant:
    if subject.bundle is not None:
        return "bf16" if subject.bundle.plan.float_type == "bf16" else "fp16"
    kinds = {value.dtype for value in subject.graph.graph.initializers.values()}
    for kind, name in _FLOATS:
        if kind in kinds:
            return name
    raise _not_fitted(["fp32"], subject.model)


def _sparse_nodes(subject: _Subject) -> frozenset[str]:
    """Products that run 2:4: those that the plan has so, else all whose sizes sparse kernels take without padding."""
    if subject.bundle is not None and (
        asked := frozenset(layer.node for layer in subject.bundle.plan.layers if layer.sparse)
    ):
        return asked
    sizes = find_target(_COMPILED_FOR).alignments
    return frozenset(
        layer.node
        for layer in weighted_layers(subject.graph)
        if layer.k % sizes.sparse_int8_k == 0 and layer.n % sizes.sparse_int8_n == 0
    )


def _own_runs(path: Path, subject: _Subject) -> Runs:
    runs = read_value(path, Runs)
    if runs.environment.gpu is None or runs.runtime.name == "onnxruntime":
        raise GpusqError("these runs were made without a GPU", place=str(path), hint="run gpusq-bench on the device")
    known = [digest_of_file(subject.model)]
    if subject.bundle is not None:
        known += [engine.engine_digest for engine in subject.bundle.receipt.engines]
    if runs.model_digest not in known:
        raise GpusqError(
            f"these runs are of another model: {runs.model} {runs.model_digest}",
            place=str(path),
            hint="give what gpusq-bench --json wrote of this bundle on the device",
        )
    return runs


def _calibrated(
    runs: Runs, request: PredictRequest, subject: _Subject, forms: dict[Variant, Sequence[Work]], fitted: Fitted
) -> tuple[Adjustment, str]:
    """What the run at the batch size nearest to the asked one corrects, and the run in words."""
    (device,) = request.devices
    batch = min(runs.batches, key=lambda size: abs(math.log(size / subject.batch)))
    form = forms if batch == subject.batch else _forms(subject, batch)
    works = form.get("int8") or next(iter(form.values()))
    measured = statistics.median(sample for series in runs.of_batch(batch) for sample in series.samples_ms)
    words = f"{runs.environment.gpu}, {runs.runtime.name} {runs.runtime.version}, batch {batch}: {measured:.3g} ms"
    return adjustment(parts_of_works(Counter(works), device, fitted.constants), measured), words
