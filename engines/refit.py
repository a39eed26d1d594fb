"""Give a plan without weights the weights of its model. Unverified: loading a plan needs a GPU, and none was at hand.

A plan that was built with `strip` holds no weights. Its sparse kernels skip half of each group of four whatever stands
there, so weights that aren't 2:4 where the plan's were would give wrong results or fail late: they are checked first.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gpusq_deploy.artifacts.sparsity import SparsityReport
from gpusq_deploy.engines.api import Api
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph.layers import graph_weights, weighted_layers
from gpusq_deploy.graph.mapped import map_model
from gpusq_deploy.recipe import load_recipe
from gpusq_deploy.sparsity import sparsity_report

if TYPE_CHECKING:
    import tensorrt as trt


def require_same_sparsity(model: Path, built: SparsityReport) -> None:
    """Refuse weights that aren't 2:4 where the plan was built from ones that were.

    Args:
        model: The ONNX model whose weights are to go into the plan.
        built: The 2:4 state of the weights that the plan was built from.

    Raises:
        GpusqError: A layer is missing, has another shape, or is no longer 2:4; all of them at once.
    """
    graph = map_model(model)
    weights = graph_weights(graph, weighted_layers(graph))
    report = sparsity_report(weights, source=model.name, recipe=load_recipe(None), record=None)
    now = {state.layer: state for state in report.layers}
    problems: list[str] = []
    for before in built.layers:
        state = now.get(before.layer)
        if state is None:
            problems.append(f"{before.layer} is missing")
        elif (state.n, state.k) != (before.n, before.k):
            problems.append(f"{before.layer} is {state.n} x {state.k}, not {before.n} x {before.k}")
        elif before.valid and not state.valid:
            problems.append(f"{before.layer} is no longer 2:4: {state.violations} of {state.groups} groups")
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise GpusqError(
            "these weights don't fit the plan: " + "; ".join(problems[:5]) + more,
            place=str(model),
            hint="build a new plan with gpusq-build; for 2:4 weights see gpusq-compress",
        )


def refit_engine(engine: trt.ICudaEngine, model: Path, api: Api, logger: trt.ILogger) -> None:
    """Put an ONNX model's weights into an engine, by the names that both keep.

    Raises:
        GpusqError: The engine can't be refitted, a weight is missing or unknown, or doesn't fit.
    """
    if not engine.refittable:
        raise GpusqError(
            "the plan holds no weights and can't take any",
            place=str(model),
            hint="build it again with --engine-option strip",
        )
    refitter = api.Refitter(engine, logger)
    parser = api.OnnxParserRefitter(refitter, logger)
    if not parser.refit_from_file(str(model)):
        said = "; ".join(parser.get_error(index).desc() for index in range(parser.num_errors))
        raise GpusqError(f"the model's weights don't fit the plan: {said or 'no reason was given'}", place=str(model))
    missing = refitter.get_missing_weights()
    if missing:
        raise GpusqError(
            f"the model lacks {len(missing)} weights of the plan: {', '.join(missing[:5])}", place=str(model)
        )
    if not refitter.refit_cuda_engine():
        raise GpusqError("the engine refused the model's weights", place=str(model))
