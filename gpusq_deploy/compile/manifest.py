"""Make the manifest: what a bundle holds and how it came to be."""

from __future__ import annotations

import datetime
from collections.abc import Iterable

import onnx_ir as ir

from gpusq_deploy.artifacts import Manifest, ModelSource, SparsityReport, load_recipe
from gpusq_deploy.compile.request import BuildRequest
from gpusq_deploy.engines import ENGINES, LIBRARIES, PACKAGE, installed_versions
from gpusq_deploy.errors import GpusqError, printable
from gpusq_deploy.frontend import Checkpoint
from gpusq_deploy.graph import value_name


def make_manifest(
    request: BuildRequest,
    checkpoint: Checkpoint,
    built: ir.Model,
    *,
    sparsity: SparsityReport,
    export_difference: float,
    synthetic: bool,
) -> Manifest:
    """Everything but the files, which are listed when the last of them is written.

    Args:
        request: The command's options.
        checkpoint: The model that was compiled.
        built: The Q/DQ graph.
        sparsity: The 2:4 state of its weights.
        export_difference: Largest relative difference of the float graph from torch.
        synthetic: Whether the ranges come from random data.
    """
    return Manifest(
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        versions=installed_versions((PACKAGE, *LIBRARIES, *ENGINES)),
        source=ModelSource(
            file=checkpoint.file, digest=checkpoint.digest, format=checkpoint.format, arch=checkpoint.arch
        ),
        preprocessing=checkpoint.preprocessing,
        recipe=load_recipe(request.recipe).name,
        options=_options(request, checkpoint),
        batch=request.batch,
        opset=request.opset,
        inputs=_shapes(built.graph.inputs),
        outputs=_shapes(built.graph.outputs),
        synthetic_calibration=synthetic,
        sparsity=sparsity,
        files=(),
        engine=request.engine.portable,
        notes=(
            f"the exported float graph agrees with torch to {export_difference:.3g} (relative, largest element)",
            *checkpoint.remarks,
        ),
    )


def _options(request: BuildRequest, checkpoint: Checkpoint) -> dict[str, str]:
    precisions = load_recipe(request.recipe).precisions
    return {
        "int8": str(request.quantize and "int8" in precisions).lower(),
        "fp8": str(request.quantize and "fp8" in precisions).lower(),
        "int4": str(request.quantize and "int4" in precisions).lower(),
        "sparse": str(request.sparse).lower(),
        "remainder": request.float_type,
        "calib": _calibrated_on(request, checkpoint),
        "ranges": str(request.ranges or "none"),
        "recalibrate": str(request.recalibrate).lower(),
        "allow_pickle": str(request.allow_pickle).lower(),
        "calibrator": str(request.usual_calibrator),
        "pack": str(request.pack).lower(),
        "prune": request.prune or "none",
        "permute": str(request.permute).lower(),
        "sparse_outputs": "float"
        if request.sparse_outputs is None
        else f"int8 where predicted to keep {request.sparse_outputs.least_db:g} dB",
        "rewrites": request.rewrites,
        "min_sqnr": "none" if request.min_sqnr is None else f"{request.min_sqnr:g}",
        "min_agreement": "none" if request.min_agreement is None else f"{request.min_agreement:g}",
        "targets": ",".join(target.name for target in request.targets) or "none",
    }


def _calibrated_on(request: BuildRequest, checkpoint: Checkpoint) -> str:
    if not checkpoint.ranges:
        return printable(request.calib or "none")
    rest = f"; of layers that it records none of, {printable(request.calib)}" if request.calib else ""
    return f"recorded in the checkpoint{rest}"


def _shapes(values: Iterable[ir.Value]) -> dict[str, tuple[int, ...]]:
    """Shapes by name; a dynamic dimension is -1."""
    shapes: dict[str, tuple[int, ...]] = {}
    for value in values:
        if value.shape is None:
            raise GpusqError("the graph's border has no shape", place=f"tensor {value_name(value)}")
        shapes[value_name(value)] = tuple(size if isinstance(size, int) else -1 for size in value.shape)
    return shapes
