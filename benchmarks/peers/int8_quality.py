"""INT8 of one real model by us and by others: what it keeps on photographs nobody has seen, its time and its memory.

    python benchmarks/peers/int8_quality.py dino.pt --arch timm:vit_small_patch14_dinov2.lvd142m \
        --arch-arg img_size=224 --arch-arg num_classes=0 --arch-arg global_pool= \
        --peer-python PYTHON --json benchmarks/results/int8_quality.json

Photographs are those of at least 300 px that scikit-image and scikit-learn bundle, grey ones too, less drawings and
the second of a stereo pair. A seed deals them into halves: 16 crops of the one to calibrate on, 64 of the other
to judge by. Everybody gets the same float32 ONNX file and the same 16 crops, each in its own process, and writes an
ONNX file, which ONNX Runtime runs with its rewrites off. SQNR is over all output tokens of all 64; the median over
images stands beside it. Seconds are those of the quantiser's own call, from reading the file to writing it; peak memory
is the whole process's. INT8 rows of ours leave the rest in float32, as the others do.

`--peer-python` is an interpreter with nncf, onnxruntime, modelopt. `--timed N` runs the default and the mixed recipe
and NNCF N times in turn, on the first seed, and nothing else: for an idle machine.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from gpusq_deploy.quantize.smooth_and_range import QuantRequest

from gpusq_deploy.artifacts.arch import Preprocessing
from gpusq_deploy.artifacts.manifest import BatchRange
from gpusq_deploy.artifacts.recipe import Recipe, load_recipe
from gpusq_deploy.benchmarks.peers.photographs import crops, photographs
from gpusq_deploy.calibration.calibrator_choice import calibrators_for
from gpusq_deploy.calibration.data import ArrayFile
from gpusq_deploy.calibration.ranges import CalibrationInputs, ModelFacts
from gpusq_deploy.engines.ort import open_onnx
from gpusq_deploy.graph.files import load_model, save_model
from gpusq_deploy.graph.layers import weighted_layers
from gpusq_deploy.graph.passes.base import run_passes
from gpusq_deploy.graph.passes.quantize import Quantize
from gpusq_deploy.numerics.error import error_sums
from gpusq_deploy.progress import Reporter
from gpusq_deploy.quantize.fp16_overflow import Fp16Overflow
from gpusq_deploy.quantize.mixed_precision import decide
from gpusq_deploy.quantize.planning import PlanRequest, layers_to_quantize
from gpusq_deploy.quantize.prepare import plan_inputs
from gpusq_deploy.sparsity.graph_check import graph_sparsity

_LEFT_OUT = ("color.png", "logo.png", "motorcycle_right.png", "phantom.png")
_CALIBRATE, _UNSEEN, _BATCH = 16, 64, 4
_DYNAMIC = BatchRange(minimum=1, optimum=8, maximum=32)
_DEFAULT = "static_wi8_ai8"
# Of the default recipe's Linear rule: what each row changes.
_WITHOUT: Mapping[str, Mapping[str, Any]] = {
    "without smoothing": {"smooth": False},
    "without headroom": {"headroom": 0.0},
    "without second-order rounding": {"rounding": "nearest"},
    "without bias correction": {"correct_bias": False},
}
_MIXED = "mixed_wi8_ai8"
_BY_RUNS = f"{_MIXED}, measured at the output"
_OURS = (_DEFAULT, _MIXED, _BY_RUNS, "fused_wi8_ai8", *_WITHOUT, "plain_wi8_ai8")
_NNCF = "NNCF, transformer preset"
_PEERS: Mapping[str, str] = {
    _NNCF: """
import nncf, onnx
def run():
    data = nncf.Dataset([{"input": image[None]} for image in images])
    onnx.save(nncf.quantize(onnx.load(source), data, model_type=nncf.ModelType.TRANSFORMER,
                            preset=nncf.QuantizationPreset.PERFORMANCE, subset_size=len(images)), target)
    return nncf.__version__
""",
    **{
        f"ONNX Runtime, {method}": f"""
import onnxruntime
from onnxruntime import quantization as q
class Reader(q.CalibrationDataReader):
    def __init__(self):
        self.parts = iter([{{"input": image[None]}} for image in images])
    def get_next(self):
        return next(self.parts, None)
def run():
    q.quantize_static(source, target, Reader(), quant_format=q.QuantFormat.QDQ, per_channel=True,
                      op_types_to_quantize=["Conv", "Gemm", "MatMul"], activation_type=q.QuantType.QInt8,
                      weight_type=q.QuantType.QInt8, calibrate_method=q.CalibrationMethod.{method},
                      extra_options={{"ActivationSymmetric": True, "WeightSymmetric": True}})
    return onnxruntime.__version__
"""
        for method in ("MinMax", "Percentile", "Entropy")
    },
    "ModelOpt": """
import modelopt
from modelopt.onnx.quantization import quantize
def run():
    quantize(source, quantize_mode="int8", calibration_data={"input": images}, calibration_eps=["cpu"],
             high_precision_dtype="fp32", output_path=target)
    return modelopt.__version__
""",
}
_PEAK = """
def peak_mb():
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024
"""
_PEER_FRAME = """
import json, sys, time
from pathlib import Path
import numpy as np
folder = Path(sys.argv[1])
source, target = str(folder / "float.onnx"), str(folder / "built.onnx")
images = np.load(folder / "images.npy")
{peak}
{body}
start = time.perf_counter()
version = run()
(folder / "made.json").write_text(json.dumps({{
    "seconds": time.perf_counter() - start, "version": version,
    "peak_mb": peak_mb()}}))
"""

Row = dict[str, Any]
Images = npt.NDArray[np.float32]


def main() -> None:
    """Every row is printed, and kept, as soon as it is there."""
    options = _options()
    if options.ours is not None:
        quantise_ours(Path(options.model), options.ours)
        return
    results: dict[str, Any] = {"what": "SQNR of INT8 graphs on photographs that calibration has not seen", "rows": []}
    if options.rows != "*" and options.json is not None and options.json.exists():
        results = json.loads(options.json.read_text("utf-8"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        preprocessing = export(options, folder)
        for row in _rows(options, folder, preprocessing):
            _put(results["rows"], row)
            print(json.dumps(row), flush=True)
            if options.json is not None:
                options.json.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    _print_ratios(results["rows"])


def _put(rows: list[Row], row: Row) -> None:
    """In place of the row of that name and seed, where there is one; timed rows have several."""
    same = [index for index, other in enumerate(rows) if (other["row"], other["seed"]) == (row["row"], row["seed"])]
    if same and "run" not in row:
        rows[same[0]] = row
    else:
        rows.append(row)


def _rows(options: argparse.Namespace, folder: Path, preprocessing: Preprocessing) -> Iterator[Row]:
    known: list[str] = [*_OURS, *(() if options.peer_python is None else tuple(_PEERS))]
    names = [name for name in known if fnmatch.fnmatchcase(name, options.rows)]
    if options.timed:
        names = [_DEFAULT, _MIXED, _NNCF] * options.timed
    for seed in range(1 if options.timed else options.seeds):
        calibrate, unseen = (crops(half, preprocessing, count, least=0.5) for half, count in halves(seed))
        np.save(folder / "images.npy", calibrate)
        wanted = answers(folder / "float.onnx", unseen)
        for run, name in enumerate(names):
            made = make(name, folder, options.peer_python)
            judged = quality(wanted, answers(folder / "built.onnx", unseen))
            yield {"row": name, "seed": seed, **({"run": run} if options.timed else {}), **made, **judged}


def export(options: argparse.Namespace, folder: Path) -> Preprocessing:
    """The float graph, in the form that all of ours start from; torch stays in this process."""
    from gpusq_deploy.frontend.checkpoint.architecture import arch_from_text
    from gpusq_deploy.frontend.checkpoint.load import load_checkpoint
    from gpusq_deploy.frontend.export.onnx_export import export_float_model
    from gpusq_deploy.graph.passes.pipelines import CANONICAL

    arch = None if options.arch is None else arch_from_text(options.arch, options.arch_arg)
    checkpoint = load_checkpoint(Path(options.model), arch=arch)
    save_model(run_passes(export_float_model(checkpoint, batch=_DYNAMIC), CANONICAL), folder / "float.onnx")
    return checkpoint.preprocessing


def halves(seed: int) -> tuple[tuple[list[Path], int], tuple[list[Path], int]]:
    """Photographs to calibrate on and to judge by, and how many crops of each."""
    large = photographs(_LEFT_OUT)
    order = [large[int(index)] for index in np.random.default_rng(seed).permutation(len(large))]
    middle = len(order) // 2
    return (order[:middle], _CALIBRATE), (order[middle:], _UNSEEN)


def make(name: str, folder: Path, peer_python: Path | None) -> Row:
    """Quantise in a process of its own: seconds, version, peak memory in MB."""
    (folder / "built.onnx").unlink(missing_ok=True)
    if name in _PEERS:
        command = [str(peer_python), "-c", _PEER_FRAME.format(peak=_PEAK, body=_PEERS[name]), str(folder)]
    else:
        command = [sys.executable, __file__, str(folder), "--ours", name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr}")
    made: Row = json.loads((folder / "made.json").read_text("utf-8"))
    return made


def quantise_ours(folder: Path, name: str) -> None:
    """Ours, in this process: the library from an ONNX file to an ONNX file, without torch."""
    images = np.load(folder / "images.npy")
    start = time.perf_counter()
    recipe, model = _recipe(name), load_model(folder / "float.onnx")
    layers = weighted_layers(model)
    source = ArrayFile(name="images", values=images)
    data = CalibrationInputs(calibrate=source, verify=source, held_out=False, real=True)
    wanted = layers_to_quantize(layers, recipe)
    how = QuantRequest(layers=wanted, recipe=recipe, calibrators=calibrators_for(wanted, recipe), float_type="fp32")
    quiet = Reporter(say=_ignore, progress=_ignore)
    prepared = plan_inputs(model, layers, how, data, ModelFacts(file="float.onnx"), quiet)
    report = graph_sparsity(prepared.model, source="", recipe=recipe)
    asked = PlanRequest(recipe=recipe, quantize=True, sparse=False, float_type="fp32")
    plan, rounded = decide(prepared, asked, report, Fp16Overflow(), data, quiet)
    save_model(run_passes(prepared.model, [Quantize(plan, rounded)]), folder / "built.onnx")
    linear = [layer for layer in plan.layers if layer.kind == "linear"]
    made = {
        "seconds": time.perf_counter() - start,
        "peak_mb": _peak_mb(),
        "int8_flops": sum(x.macs for x in linear if x.precision == "int8") / sum(x.macs for x in linear),
        "torch_loaded": "torch" in sys.modules,
    }
    (folder / "made.json").write_text(json.dumps(made), "utf-8")


def _peak_mb() -> float:
    """Of this process. Not getrusage's: that counts the parent's too, which a new process shares for a moment."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def _recipe(name: str) -> Recipe:
    if name == _BY_RUNS:
        recipe = load_recipe(Path(_MIXED))
        assert recipe.mixed is not None, "it is the mixed one"
        return msgspec.structs.replace(recipe, mixed=msgspec.structs.replace(recipe.mixed, measure="output"))
    if name not in _WITHOUT:
        return load_recipe(Path(name))
    default = load_recipe(None)
    changed = tuple(
        msgspec.structs.replace(rule, **_WITHOUT[name]) if rule.kind == "linear" and rule.match == "*" else rule
        for rule in default.rules
    )
    return msgspec.structs.replace(default, rules=changed)


def answers(path: Path, images: Images) -> npt.NDArray[Any]:
    """The first output for all images."""
    with closing(open_onnx(path, optimize=False)) as session:
        parts = [
            next(iter(session.run({"input": images[at : at + _BATCH]}).values()))
            for at in range(0, len(images), _BATCH)
        ]
    return np.concatenate(parts)


def quality(wanted: npt.NDArray[Any], got: npt.NDArray[Any]) -> Row:
    """Decibels over everything, the median over images, and the worst image."""
    sums = error_sums(wanted, got)
    return {
        "sqnr_db": sums.sqnr_db(),
        "median_db": sums.median_sqnr_db(),
        "worst_db": float(10 * np.log10((sums.signal / sums.noise).min())),
    }


def _print_ratios(rows: list[Row]) -> None:
    first = {
        name: [row for row in rows if (row["row"], row["seed"]) == (name, 0)] for name in (_DEFAULT, _MIXED, _NNCF)
    }
    seconds = {name: statistics.median(row["seconds"] for row in part) for name, part in first.items() if part}
    peaks = {name: max(row["peak_mb"] for row in part) for name, part in first.items() if part}
    for name in (_DEFAULT, _MIXED) if _NNCF in seconds else ():
        if name in seconds:
            print(f"medians of {len(first[name])}: {name} takes {seconds[name] / seconds[_NNCF]:.2f} of NNCF's time,")
            print(f"and {peaks[name]:.0f} MB at its peak, {peaks[name] / peaks[_NNCF]:.2f} of NNCF's")


def _ignore(*_said: object) -> None:
    """Results go to stdout alone."""


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Quantise one model with ours and with other tools, and judge.")
    parser.add_argument("model", help="a checkpoint")
    parser.add_argument("--arch")
    parser.add_argument("--arch-arg", action="append", default=[])
    parser.add_argument("--peer-python", type=Path, help="an interpreter with the peers; none: no peers")
    parser.add_argument("--seeds", type=int, default=3, help="ways to deal the photographs into halves")
    parser.add_argument("--timed", type=int, default=0, help="only time, this many times in turn")
    parser.add_argument(
        "--rows", default="*", help="shell pattern on the rows' names; --json keeps its other rows then"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--ours", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
