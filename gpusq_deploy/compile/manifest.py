"""Make the manifest: what a bundle holds and how it came to be."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from typing import NamedTuple

import onnx_ir as ir

from gpusq_deploy.artifacts import (
    BuildOptionsRecord,
    Manifest,
    ModelSource,
    QuantizedPrecision,
    Recipe,
    SparsityReport,
)
from gpusq_deploy.compile.request import BuildRequest
from gpusq_deploy.engines import ENGINES, LIBRARIES, PACKAGE, installed_versions
from gpusq_deploy.errors import GpusqError, printable
from gpusq_deploy.frontend import Checkpoint
from gpusq_deploy.graph import value_name


class BuildFacts(NamedTuple):
    """What a build found.

    `sparsity` is the 2:4 state of the built graph's weights; `export_difference` the largest relative difference of the
    float graph from the model as it was given; `synthetic` says that ranges come from random data.
    """

    sparsity: SparsityReport
    export_difference: float
    synthetic: bool


def make_manifest(
    request: BuildRequest, recipe: Recipe, checkpoint: Checkpoint, built: ir.Model, found: BuildFacts
) -> Manifest:
    """Everything but the files, which are listed when the last of them is written.

    Args:
        request: The command's options.
        recipe: The one that the plan follows.
        checkpoint: The model that was compiled.
        built: The Q/DQ graph.
        found: What else the build found.
    """
    made = "exported" if checkpoint.given is None else "converted"
    return Manifest(
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        versions=installed_versions((PACKAGE, *LIBRARIES, *ENGINES)),
        source=ModelSource(
            file=checkpoint.file, digest=checkpoint.digest, format=checkpoint.format, arch=checkpoint.arch
        ),
        preprocessing=checkpoint.preprocessing,
        recipe=recipe.name,
        options=_options(request, recipe, checkpoint),
        batch=request.batch,
        opset=built.opset_imports.get("", request.opset),
        inputs=_shapes(built.graph.inputs),
        outputs=_shapes(built.graph.outputs),
        synthetic_calibration=found.synthetic,
        sparsity=found.sparsity,
        files=(),
        engine=request.engine.portable,
        notes=(
            f"the {made} float graph agrees with {checkpoint.runner} to {found.export_difference:.3g} "
            "(relative, largest element)",
            *checkpoint.remarks,
        ),
    )


def _options(request: BuildRequest, recipe: Recipe, checkpoint: Checkpoint) -> BuildOptionsRecord:
    made: frozenset[QuantizedPrecision] = recipe.precisions if request.quantize else frozenset()
    return BuildOptionsRecord(
        int8="int8" in made,
        fp8="fp8" in made,
        int4="int4" in made,
        sparse=request.sparse,
        float_type=request.float_type,
        calib=printable(request.calib) if request.calib else None,
        recorded_ranges=bool(checkpoint.ranges),
        ranges=None if request.ranges is None else str(request.ranges),
        recalibrate=request.recalibrate,
        allow_pickle=request.allow_pickle,
        calibrator=request.usual_calibrator,
        pack=request.pack,
        prune=request.prune,
        permute=request.permute,
        sparse_outputs=None if request.sparse_outputs is None else request.sparse_outputs.least_db,
        rewrites=request.rewrites,
        min_sqnr=request.min_sqnr,
        min_agreement=request.min_agreement,
        eval_data=None if request.evaluation is None else printable(request.evaluation.data),
        max_drop=None if request.evaluation is None else request.evaluation.max_drop,
        targets=tuple(target.name for target in request.targets),
    )


def _shapes(values: Iterable[ir.Value]) -> dict[str, tuple[int, ...]]:
    """Shapes by name; a dynamic dimension is -1."""
    shapes: dict[str, tuple[int, ...]] = {}
    for value in values:
        if value.shape is None:
            raise GpusqError("the graph's border has no shape", place=f"tensor {value_name(value)}")
        shapes[value_name(value)] = tuple(size if isinstance(size, int) else -1 for size in value.shape)
    return shapes
