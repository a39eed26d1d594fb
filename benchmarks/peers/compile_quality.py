"""What TensorRT-RTX compiles our graphs to, and other tools' INT8 graphs of the same exported models.

    python benchmarks/peers/compile_quality.py --dinov2 dino.pt --calib photos/calib --unseen photos/unseen \
        --peer-python PYTHON --json benchmarks/results/compile_quality.json --markdown -

Every model is exported once, float32, opset 20, static batch 8, and built for SM80 with strong typing, without a GPU:
nothing is timed. Kernels are layers of the builder's list less `signal` and `wait`. Rows, each from that one export:

    FP16 as exported    every float32 tensor to FP16, nothing else
    FP16 ours           our passes, no Q/DQ
    INT8 ours           the default recipe
    INT8 ours, fused    fused_wi8_ai8: a tenth of the Linear layers' FLOPs left float where INT8 costs kernels
    INT8 ours, Linears  the same with convolutions and the patch embedding in FP16
    ModelOpt            quantised by it in `--peer-python`'s process, all defaults (FP16 for the rest)
    NNCF                the same, symmetric preset and transformer scheme; the rest stays float32
    ONNX Runtime        the same, symmetric, weights per channel, products and convolutions alone (with all operators
                        TensorRT-RTX 1.7.1 fails on an internal check); the rest stays float32
    ..., cast to FP16   their graph with our cast of what they leave in float32

`--dinov2` is a checkpoint of timm's vit_small_patch14_dinov2.lvd142m at 224 px: the SQNR of its graphs is measured on
`--unseen`, by ONNX Runtime. Other models have random weights with a fixed seed, and calibrate on noise: what is fused
depends on shapes and types. New rows replace those that the JSON file holds for the same model and graph.
"""

from __future__ import annotations

import argparse
import fnmatch
import functools
import json
import logging
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import onnx_ir as ir
import torch
from gpusq_deploy.quantize.smooth_and_range import QuantRequest

from gpusq_deploy.artifacts.manifest import BatchRange
from gpusq_deploy.artifacts.receipt import EngineLayer
from gpusq_deploy.artifacts.recipe import Recipe, load_recipe
from gpusq_deploy.calibration.calibrator_choice import calibrators_for
from gpusq_deploy.calibration.data import DataSource, Selection, open_source
from gpusq_deploy.calibration.ranges import CalibrationInputs
from gpusq_deploy.compile.inputs import facts_of
from gpusq_deploy.engines.builder import EngineBuild, build_engine
from gpusq_deploy.engines.configure import BuildSettings
from gpusq_deploy.engines.cost import graph_cost
from gpusq_deploy.engines.layer_classes import classify, totals
from gpusq_deploy.engines.ort import open_onnx
from gpusq_deploy.engines.targets import find_target
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend.checkpoint.architecture import arch_from_text, module_from_arch
from gpusq_deploy.frontend.checkpoint.load import Checkpoint, load_checkpoint
from gpusq_deploy.frontend.export.onnx_export import export_float_model
from gpusq_deploy.graph.blocks import blocks_of_nodes
from gpusq_deploy.graph.files import load_model, save_model
from gpusq_deploy.graph.layers import weighted_layers
from gpusq_deploy.graph.passes.base import Pass, run_passes
from gpusq_deploy.graph.passes.cast_to_float_type import CastToFloatType
from gpusq_deploy.graph.passes.pipelines import CANONICAL
from gpusq_deploy.graph.passes.quantize import Quantize
from gpusq_deploy.numerics.error import sqnr_db
from gpusq_deploy.progress import Reporter
from gpusq_deploy.quantize.fp16_overflow import Fp16Overflow
from gpusq_deploy.quantize.mixed_precision import decide
from gpusq_deploy.quantize.planning import PlanRequest, layers_to_quantize
from gpusq_deploy.quantize.prepare import plan_inputs
from gpusq_deploy.quantize.qkv_merge import merge_qkv
from gpusq_deploy.sparsity.graph_check import graph_sparsity

_BATCH = BatchRange(minimum=8, optimum=8, maximum=8)
_TARGET = "a100"
_DINOV2 = "DINOv2 ViT-S"
_MODELS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    _DINOV2: (
        "timm:vit_small_patch14_dinov2.lvd142m",
        ("img_size=224", "num_classes=0", "global_pool="),
    ),
    "DeiT-S": ("timm:deit_small_patch16_224", ()),
    "Swin-T": ("timm:swin_tiny_patch4_window7_224", ()),
    "Swin-B-384": ("timm:swin_base_patch4_window12_384", ()),
    "ViT-L": ("timm:vit_large_patch16_224", ()),
    "DETR": ("factories:detr", ()),
    "UPerNet": ("factories:upernet", ()),
}
_OURS = ("FP16 as exported", "FP16 ours", "INT8 ours", "INT8 ours, Linears", "INT8 ours, fused")
_CAST = ", cast to FP16"
_LEAVE_FLOAT32 = ("NNCF", "ONNX Runtime")
_PEERS: Mapping[str, str] = {
    "ModelOpt": """
import modelopt
from modelopt.onnx.quantization import quantize
quantize(source, quantize_mode="int8", calibration_data={name: images}, calibration_eps=["cpu"],
         high_precision_dtype="fp16", output_path=target)
version = modelopt.__version__
""",
    "NNCF": """
import nncf, onnx
# Its statistics are those of a batch; of one image each where quality is judged.
parts = [np.repeat(image[None], batch, axis=0) for image in images] if len(images) > batch else [images]
data = nncf.Dataset(parts, lambda part: {name: part})
onnx.save(nncf.quantize(onnx.load(source), data, preset=nncf.QuantizationPreset.PERFORMANCE,
                        model_type=nncf.ModelType.TRANSFORMER), target)
version = nncf.__version__
""",
    "ONNX Runtime": """
import onnxruntime
from onnxruntime import quantization as q
class Reader(q.CalibrationDataReader):
    def __init__(self):
        self.parts = iter([{name: images[i : i + batch]} for i in range(0, len(images), batch)])
    def get_next(self):
        return next(self.parts, None)
prepared = source + ".prepared.onnx"
q.quant_pre_process(source, prepared, skip_optimization=True, skip_symbolic_shape=True)
q.quantize_static(prepared, target, Reader(), quant_format=q.QuantFormat.QDQ, per_channel=True,
                  op_types_to_quantize=["Conv", "Gemm", "MatMul"],
                  activation_type=q.QuantType.QInt8, weight_type=q.QuantType.QInt8,
                  extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False})
version = onnxruntime.__version__
""",
}
_PEER_FRAME = """
import json, sys
from pathlib import Path
import numpy as np
folder, batch = Path(sys.argv[1]), int(sys.argv[2])
source, target, name = str(folder / "float.onnx"), str(folder / "peer.onnx"), "input"
images = np.load(folder / "images.npy")
{body}
(folder / "peer.json").write_text(json.dumps(version))
"""

Row = dict[str, Any]


class Subject(NamedTuple):
    """One model: its export, images to calibrate on, and images to judge by where its weights are real."""

    name: str
    checkpoint: Checkpoint
    exported: ir.Model
    calibrate: DataSource
    unseen: DataSource | None


class Graph(NamedTuple):
    """A graph to compile, and who made it."""

    name: str
    model: ir.Model
    version: str = ""


def main() -> None:
    """Each model in turn; its rows are printed, and kept, as soon as they are there."""
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)
    options = _options()
    kept: list[Row] = []
    if options.json is not None and options.json.exists():
        kept = json.loads(options.json.read_text("utf-8"))["rows"]
    for name in options.models or _MODELS:
        for row in _rows_of(_subject(name, options), options.peer_python, options.graphs):
            kept = [old for old in kept if (old["model"], old["graph"]) != (name, row["graph"])] + [row]
            if options.json is not None:
                content = {"what": _what(), "rows": kept}
                options.json.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    if options.markdown:
        print(markdown(kept))


def markdown(rows: list[Row]) -> str:
    """The rows as a table."""
    order, graphs = [*_MODELS], [*_OURS, *(name for peer in _PEERS for name in (peer, f"{peer}{_CAST}"))]
    lines = [
        "| model | graph | kernels | per block | fused attentions | GEMMs: INT8 / FP16 / FP32 | MB moved | SQNR |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: (order.index(row["model"]), graphs.index(row["graph"]))):
        start = f"| {row['model']} | {row['graph']} |"
        if "failed" in row:
            lines.append(f"{start} not built: {row['failed']} | | | | | |")
            continue
        gemms = " / ".join(str(row["gemms"].get(kind, 0)) for kind in ("int8", "fp16", "fp32"))
        quality = f"{row['sqnr_db']:.1f} dB" if row.get("sqnr_db") is not None else ""
        lines.append(
            f"{start} {row['kernels']} | {_spread(row['per_block'])} | {row['attention_fused']} | {gemms} "
            f"| {row['megabytes_moved']:.0f} | {quality} |"
        )
    return "\n".join(lines)


def _rows_of(subject: Subject, peer_python: Path | None, pattern: str) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        for name, make in _graphs(subject, Path(folder), peer_python):
            if not fnmatch.fnmatchcase(name, pattern):
                continue
            row: Row = {"model": subject.name, "graph": name}
            try:
                made = make()
                row |= {"version": made.version} if made.version else {}
                row |= _compiled(subject, made.model, Path(folder))
            except GpusqError as error:
                row["failed"] = error.what.splitlines()[0][:200]
            print(json.dumps(row), flush=True)
            yield row


def _graphs(subject: Subject, folder: Path, peer_python: Path | None) -> Iterator[tuple[str, Callable[[], Graph]]]:
    cast = CastToFloatType("fp16")
    yield "FP16 as exported", lambda: Graph("", run_passes(subject.exported, [cast]))
    canonical = _packed(subject, run_passes(subject.exported, CANONICAL))
    yield "FP16 ours", lambda: Graph("", run_passes(canonical, [cast]))
    recipe = load_recipe(None)
    yield "INT8 ours", lambda: Graph("", run_passes(*_quantised(subject, canonical, recipe)))
    yield "INT8 ours, Linears", lambda: Graph("", run_passes(*_quantised(subject, canonical, _linears(recipe))))
    fused = load_recipe(Path("fused_wi8_ai8"))
    yield "INT8 ours, fused", lambda: Graph("", run_passes(*_quantised(subject, canonical, fused)))
    if peer_python is None:
        return
    for peer in _PEERS:
        yield peer, functools.partial(_peer_graph, subject, peer, folder, peer_python)
        theirs = folder / "peer.onnx"
        if theirs.exists() and peer in _LEAVE_FLOAT32:
            yield f"{peer}{_CAST}", functools.partial(_cast_graph, theirs)
        theirs.unlink(missing_ok=True)


def _cast_graph(path: Path) -> Graph:
    return Graph("", run_passes(load_model(path), [CastToFloatType("fp16")]))


def _packed(subject: Subject, canonical: ir.Model) -> ir.Model:
    """With projections packed, as gpusq-build packs them."""
    recipe = load_recipe(None)
    report = graph_sparsity(canonical, source=subject.checkpoint.file, recipe=recipe)
    return merge_qkv(canonical, report, recipe, None).model


def _quantised(subject: Subject, canonical: ir.Model, recipe: Recipe) -> tuple[ir.Model, list[Pass]]:
    """The smoothed graph, and the passes that quantise it."""
    layers, checkpoint = weighted_layers(canonical), subject.checkpoint
    wanted = layers_to_quantize(layers, recipe)
    how = QuantRequest(layers=wanted, recipe=recipe, calibrators=calibrators_for(wanted, recipe), float_type="fp16")
    data = CalibrationInputs(calibrate=subject.calibrate, verify=subject.calibrate, held_out=False, real=True)
    reporter = Reporter(say=_ignore, progress=_ignore)
    prepared = plan_inputs(canonical, layers, how, data, facts_of(checkpoint), reporter)
    report = graph_sparsity(canonical, source=checkpoint.file, recipe=recipe)
    asked = PlanRequest(recipe=recipe, quantize=True, sparse=False, float_type="fp16")
    plan, rounded = decide(prepared, asked, report, Fp16Overflow(), data, reporter)
    return prepared.model, [Quantize(plan, rounded), CastToFloatType("fp16")]


def _linears(recipe: Recipe) -> Recipe:
    rules = tuple(
        msgspec.structs.replace(rule, precision="float") if rule.kind == "patch_embed" else rule
        for rule in recipe.rules
    )
    return msgspec.structs.replace(recipe, rules=rules)


def _peer_graph(subject: Subject, peer: str, folder: Path, python: Path) -> Graph:
    save_model(subject.exported, folder / "float.onnx")
    count = _BATCH.optimum * (1 if subject.unseen is None else 2)
    np.save(folder / "images.npy", np.stack([subject.calibrate.sample(index) for index in range(count)]))
    script = _PEER_FRAME.replace("{body}", _PEERS[peer])
    done = subprocess.run(
        [str(python), "-c", script, str(folder), str(_BATCH.optimum)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if "Error" in line]
        raise GpusqError(f"{peer} failed: {said[-1] if said else f'exit status {done.returncode}'}")
    return Graph(peer, load_model(folder / "peer.onnx"), json.loads((folder / "peer.json").read_text("utf-8")))


def _compiled(subject: Subject, model: ir.Model, folder: Path) -> Row:
    path = folder / "compiled.onnx"
    save_model(model, path)
    build = build_engine(path, find_target(_TARGET), BuildSettings(batch=_BATCH))
    counted = totals(build.layers)
    blocks = {**blocks_of_nodes(model), **blocks_of_nodes(subject.exported)}
    return {
        "kernels": counted.kernels,
        "attention_fused": counted.attention_fused,
        "attention_int8": sum(tuple(classify(layer)) == ("attention", "int8") for layer in build.layers),
        "gemms": counted.gemms,
        "per_block": _per_block(build, blocks),
        "megabytes_moved": graph_cost(build.layers, batch=_BATCH.optimum).bytes_moved / 1e6,
        "builder": f"{build.backend} {build.version}",
        **({"sqnr_db": _quality(subject, path)} if subject.unseen is not None else {}),
    }


def _per_block(build: EngineBuild, blocks: Mapping[str, str]) -> dict[str, int]:
    """Kernels of each block: those most of whose ONNX nodes are its own; of equally many, the later block."""
    counts = dict.fromkeys(dict.fromkeys(block for block in blocks.values() if block), 0)
    last = ""
    for layer in build.layers:
        if classify(layer).role == "sync":
            continue
        last = _block_of(layer, blocks) or last
        if last:
            counts[last] += 1
    return counts


def _block_of(layer: EngineLayer, blocks: Mapping[str, str]) -> str:
    named = [blocks[node] for node in layer.onnx_nodes if blocks.get(node)]
    return max(reversed(named), key=named.count, default="")


def _quality(subject: Subject, path: Path) -> float | None:
    """SQNR of the first output against torch's, over all unseen images as one."""
    assert subject.unseen is not None, "asked for only where there are unseen images"
    size = _BATCH.optimum
    images = np.stack([subject.unseen.sample(index) for index in range(len(subject.unseen) // size * size)])
    with closing(open_onnx(path)) as session:
        parts = [
            next(iter(session.run({"input": images[at : at + size]}).values())) for at in range(0, len(images), size)
        ]
    with torch.no_grad():
        wanted = [
            subject.checkpoint.module(torch.from_numpy(images[at : at + size])) for at in range(0, len(images), size)
        ]
    return sqnr_db(np.asarray(torch.cat(wanted), np.float32), np.concatenate(parts))


def _subject(name: str, options: argparse.Namespace) -> Subject:
    arch = arch_from_text(*_MODELS[name])
    calib = unseen = None
    with tempfile.TemporaryDirectory() as folder:
        if name == _DINOV2 and options.dinov2 is not None:
            path = options.dinov2
            calib, unseen = options.calib, options.unseen
        else:
            torch.manual_seed(0)
            path = Path(folder) / "random.pt"
            torch.save(module_from_arch(arch).state_dict(), path)
        checkpoint = load_checkpoint(path, arch=arch)
    size = checkpoint.preprocessing
    noise = Selection(source=open_source("random", size), indices=range(_BATCH.optimum))
    return Subject(
        name=name,
        checkpoint=checkpoint,
        exported=export_float_model(checkpoint, batch=_BATCH),
        calibrate=open_source(calib, size) if calib else noise,
        unseen=None if unseen is None else open_source(unseen, size),
    )


def _spread(per_block: Mapping[str, int]) -> str:
    counts = sorted(per_block.values())
    if not counts:
        return ""
    middle = statistics.median_low(counts)
    return str(middle) if counts[0] == counts[-1] else f"{middle} ({counts[0]} to {counts[-1]})"


def _what() -> str:
    return f"static batch {_BATCH.optimum}, built for {_TARGET} without a GPU; nothing was timed"


def _ignore(*_said: object) -> None:
    """Results go to stdout alone."""


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(_MODELS)}; default: all")
    parser.add_argument("--dinov2", type=Path, help="checkpoint with DINOv2's own weights; else random ones")
    parser.add_argument("--calib", default="random", help="for --dinov2")
    parser.add_argument("--unseen", help="for --dinov2: photographs to judge by")
    parser.add_argument(
        "--peer-python", type=Path, help="an interpreter with modelopt, nncf, onnxruntime; none: no peers"
    )
    parser.add_argument("--graphs", default="*", help="shell pattern on the graph's name")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", action="store_true", help="print the table of all rows at the end")
    asked = parser.parse_args()
    unknown = [name for name in asked.models if name not in _MODELS]
    if unknown:
        sys.exit(f"unknown: {', '.join(unknown)}; known: {', '.join(_MODELS)}")
    return asked


if __name__ == "__main__":
    main()
