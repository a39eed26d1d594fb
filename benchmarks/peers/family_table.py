"""What every family of models becomes: exported, compared with torch, compiled by TensorRT-RTX in FP16 and in INT8.

    python benchmarks/peers/family_table.py --json benchmarks/results/family_table.json --table docs/families.md

Full sizes, seeded random weights, static batch; recipe plain_wi8_ai8 with ranges of one batch of noise; engines for the
A100, compiled and not run. Each family has a process of its own, and its row is kept as soon as it is there: a run that
was stopped goes on where it was. `--only NAME` runs one family, again if it has a row.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from gpusq_deploy.artifacts import BatchRange, EngineTotals, QuantPlan, Recipe, load_recipe
from gpusq_deploy.benchmarks.peers.family_models import FAMILIES, Family, random_checkpoint
from gpusq_deploy.benchmarks.peers.family_rows import Row, options_parser, run_families
from gpusq_deploy.bundle import built_layers
from gpusq_deploy.calibration import ArrayFile
from gpusq_deploy.calibration.observe import collect_ranges
from gpusq_deploy.engines import BuildSettings, build_engine, find_target, open_onnx, totals
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend import Checkpoint, array_from_tensor, example_input, export_float_model, reference_outputs
from gpusq_deploy.graph import (
    CANONICAL,
    CastToFloatType,
    Quantize,
    find_attentions,
    run_passes,
    save_model,
    weighted_layers,
)
from gpusq_deploy.quantize import MergedGraph, PlanRequest, layers_to_quantize, make_plan, merge_qkv
from gpusq_deploy.sparsity import graph_sparsity

_BEGIN, _END = "<!-- families: made by benchmarks/peers/family_table.py -->", "<!-- families: end -->"


def main() -> None:
    """Run what has no row yet, and write the table."""
    parser = options_parser(__doc__)
    parser.add_argument("--table", type=Path)
    options = parser.parse_args()
    what = "seeded random weights; static batch; FP16 remainder; recipe plain_wi8_ai8; engines for a100, not run"
    rows = run_families(__file__, options, what, _measure)
    if options.table:
        _write_table(options.table, rows)


def _measure(family: Family, row: Row) -> None:
    checkpoint = random_checkpoint(family)
    row["parameters"] = sum(parameter.numel() for parameter in checkpoint.module.parameters())
    batch = BatchRange(minimum=family.batch, optimum=family.batch, maximum=family.batch)
    start = time.perf_counter()
    recipe = load_recipe(Path("plain_wi8_ai8"))
    model = run_passes(export_float_model(checkpoint, batch=batch), CANONICAL)
    packed = merge_qkv(model, graph_sparsity(model, source="", recipe=recipe), recipe, None)
    model = packed.model
    row["export_seconds"] = round(time.perf_counter() - start, 1)
    attentions = len(find_attentions(model))
    row["attentions"] = attentions
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        save_model(model, path)
        row["max_relative_error"] = _difference(checkpoint, path, family.batch)
        plan = _plan(checkpoint, packed, recipe, family.batch)
        checkpoint.module.to("meta")  # its weights aren't needed any more
        save_model(run_passes(model, [CastToFloatType("fp16")]), path)
        found, row["fp16_build_seconds"], _ = _built(path, batch, plan)
        row["fp16_kernels"], row["fp16_attention_fused"] = found.kernels, found.attention_fused
        row["fp16_kernels_per_block"] = round(found.kernels / attentions, 1) if attentions else None
        save_model(run_passes(model, [Quantize(plan), CastToFloatType("fp16")]), path)
        found, row["int8_build_seconds"], row["linear_flops_int8"] = _built(path, batch, plan)
        row["int8_kernels"], row["int8_attention_fused"] = found.kernels, found.attention_fused
        row["gemms"] = dict(found.gemms)


def _difference(checkpoint: Checkpoint, path: Path, batch: int) -> float:
    """Largest difference from torch over every output, each relative to its largest value."""
    feed = array_from_tensor(example_input(checkpoint, batch))
    session = open_onnx(path)
    answers = list(session.run({session.inputs[0].name: feed}).values())
    session.close()
    pairs = zip(reference_outputs(checkpoint, feed), answers, strict=True)
    found = [float(np.max(np.abs(ref - got)) / np.max(np.abs(ref))) for ref, got in pairs]
    if not np.isfinite(found).all():  # which max() may pass over
        raise GpusqError("the graph or torch answers values that aren't finite", place=str(checkpoint.arch))
    return max(found)


def _plan(checkpoint: Checkpoint, packed: MergedGraph, recipe: Recipe, batch: int) -> QuantPlan:
    model, layers = packed.model, weighted_layers(packed.model)
    noise = ArrayFile(name="noise", values=array_from_tensor(example_input(checkpoint, batch)))
    table = collect_ranges(model, layers_to_quantize(layers, recipe), noise, open_model=open_onnx)
    asked = PlanRequest(recipe=recipe, quantize=True, sparse=False, float_type="fp16")
    return make_plan(layers, asked, table=table, sparsity=packed.stored)


def _built(path: Path, batch: BatchRange, plan: QuantPlan) -> tuple[EngineTotals, float, float | None]:
    """Totals, seconds, and the share of the Linear layers' multiply-accumulates in INT8 kernels; None without any."""
    build = build_engine(path, find_target("a100"), BuildSettings(batch=batch))
    became = {layer.node: layer.precision for layer in built_layers(plan, build.layers)}
    linear = [layer for layer in plan.layers if layer.kind == "linear"]
    int8 = sum(layer.macs for layer in linear if became[layer.node] == "int8")
    share = int8 / sum(layer.macs for layer in linear) if linear else None
    return totals(build.layers), round(build.seconds, 1), share


def _write_table(path: Path, rows: Mapping[str, Row]) -> None:
    lines = [
        "| family | exports | error | Linear FLOPs INT8 | attention fused | kernels per block | kernels | build |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [_line(rows[family.name]) for family in FAMILIES if family.name in rows]
    text = path.read_text() if path.exists() else ""
    before, after = text.partition(_BEGIN)[0], text.partition(_END)[2]
    path.write_text("\n".join([before + _BEGIN, "", *lines, "", _END + (after or "\n")]))


def _line(row: Row) -> str:
    if "failed" in row:
        return f"| {row['family']} | {row['failed'].splitlines()[0]} | | | | | | |"
    blocks = "" if row["fp16_kernels_per_block"] is None else f"{row['fp16_kernels_per_block']:.1f}"
    share = row["linear_flops_int8"]
    return (
        f"| {row['family']} | yes | {row['max_relative_error']:.0e} "
        f"| {'no Linear' if share is None else f'{100 * share:.1f} %'} "
        f"| {row['fp16_attention_fused']} of {row['attentions']} | {blocks} "
        f"| {row['fp16_kernels']}, INT8 {row['int8_kernels']} | {row['int8_build_seconds']:.1f} s |"
    )


if __name__ == "__main__":
    main()
