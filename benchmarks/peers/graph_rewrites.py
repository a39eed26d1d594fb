"""What each graph rewrite for speed gives every family of models, in kernels and bytes, by TensorRT-RTX's compiler.

    python benchmarks/peers/graph_rewrites.py --json benchmarks/results/graph_rewrites.json

Full sizes, seeded random weights, static batch. The float graph is compiled in FP16 for the A100 with all rewrites that
find something to do, and without each; nothing is run. A rewrite that is left out stays out while the next are tried.
Each family has a process of its own, and its row is kept as soon as it is there: a run that was stopped goes on where
it was. `--only NAME` runs one family, again if it has a row.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import onnx_ir as ir

from gpusq_deploy.artifacts import BatchRange, GraphCost, load_recipe
from gpusq_deploy.benchmarks.peers.family_models import Family, random_checkpoint
from gpusq_deploy.benchmarks.peers.family_rows import Row, options_parser, run_families
from gpusq_deploy.benchmarks.peers.quantizer import ignore
from gpusq_deploy.compile import CostProbe, RewriteSelection, select_rewrites
from gpusq_deploy.engines import find_target
from gpusq_deploy.frontend import export_float_model
from gpusq_deploy.graph import FASTER, SIMPLE, MergeQkv, Pass, run_passes
from gpusq_deploy.quantize import merge_qkv
from gpusq_deploy.sparsity import graph_sparsity

_WHAT = (
    "seeded random weights; static batch; FP16; compiled by tensorrt-rtx for a100, not run; a rewrite's costs are the "
    "graph's with it and without it; where a note says pack-projections, merge-qkv had that name"
)


def main() -> None:
    """Run what has no row yet."""
    run_families(__file__, options_parser(__doc__).parse_args(), _WHAT, _measure)


def _measure(family: Family, row: Row) -> None:
    start = time.perf_counter()
    batch = BatchRange(minimum=family.batch, optimum=family.batch, maximum=family.batch)
    simple = run_passes(export_float_model(random_checkpoint(family), batch=batch), SIMPLE)
    probe = CostProbe(target=find_target("a100"), batch=family.batch, float_type="fp16")
    costs: list[GraphCost | None] = []

    def measured(form: ir.Model) -> GraphCost:
        costs.append(None)  # what stays where the form can't be compiled
        costs[-1] = cost = probe.measure(form)
        return cost

    rewrites = (*FASTER, *_merging(simple))
    selection = select_rewrites(simple, rewrites, measured, ignore)
    row["seconds"] = round(time.perf_counter() - start, 1)
    row["rewrites"] = _gains(rewrites, selection, costs)
    row["notes"] = selection.notes


def _merging(simple: ir.Model) -> tuple[Pass, ...]:
    """The merge of projections that gpusq-build makes by the default recipe, behind the other rewrites."""
    model, recipe = run_passes(simple, FASTER), load_recipe(None)
    merged = merge_qkv(model, graph_sparsity(model, source="", recipe=recipe), recipe, None)
    return (MergeQkv(merged.chosen),) if merged.chosen else ()


def _gains(rewrites: Sequence[Pass], selection: RewriteSelection, costs: Sequence[GraphCost | None]) -> list[Row]:
    """Costs with and without each rewrite that was tried; `costs` are of the graph with all, then without each."""
    if not selection.compared:
        return []
    tried = [step for step in rewrites if step in (*selection.kept, *selection.left_out)]
    best, gains = costs[0], list[Row]()
    for step, without in zip(tried, costs[1:], strict=True):
        kept = step in selection.kept
        gains.append({"name": step.name, "kept": kept, "with": _cost(best), "without": _cost(without)})
        best = best if kept else without
    return gains


def _cost(cost: GraphCost | None) -> Row | None:
    if cost is None:
        return None
    return {"kernels": cost.kernels, "megabytes_moved": round(cost.bytes_moved / 1e6, 1)}


if __name__ == "__main__":
    main()
