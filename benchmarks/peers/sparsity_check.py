"""Time the 2:4 check beside `polygraphy inspect sparsity`, on one file, in one run.

    python benchmarks/peers/sparsity_check.py [--megabytes 671] [--repeats 5] [--peer-repeats 1] [--json FILE]

A chain of MatMul nodes with random 2:4 float32 weights is written to a temporary folder. Both tools are run on it as
whole commands, ours before and after each run of theirs, all pinned to one core; each run's wall time and peak resident
memory is kept. Theirs takes minutes on 671 MB. A smaller file shows whether memory grows with the model, and so do two
checkpoints that describe themselves, ViTs of 13 and 2 blocks of 1024 channels. At the end, the kernel's throughput by
type and order of storage, on one core, best and median of its repeats.

Linux only: it pins to a core and reads a child's peak memory from wait4.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import msgspec
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from gpusq_deploy.benchmarks.environment import read_environment
from gpusq_deploy.graph import save_model
from gpusq_deploy.numerics import census

# A child starts out with its parent's peak memory (Linux keeps it across exec), so the parent has to be a small one.
_LAUNCHER = """
import os, sys, time
start = time.perf_counter()
output = (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)
child = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=[output])
status, usage = os.wait4(child, 0)[1:]
print(time.perf_counter() - start, usage.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""
# Elsewhere, so that this process stays small.
_CHECKPOINT = """
import sys
from pathlib import Path
import torch
from gpusq_deploy.artifacts import load_recipe
from gpusq_deploy.frontend.checkpoint.architecture import arch_from_text, module_from_arch
from gpusq_deploy.frontend.checkpoint.load import save_checkpoint
from gpusq_deploy.frontend.checkpoint.preprocessing import preprocessing_of
from gpusq_deploy.sparsity.pruning.magnitude import apply_masks, magnitude_masks, prunable_layers
arch = arch_from_text("timm:vit_small_patch16_224", ["embed_dim=1024", "num_heads=16", f"depth={sys.argv[2]}"])
module = module_from_arch(arch)
apply_masks(module, magnitude_masks(module, prunable_layers(module, load_recipe(None)).pruned))
save_checkpoint(Path(sys.argv[1]), module, arch=arch, preprocessing=preprocessing_of(arch, module))
"""
_WIDTH = 1024
_KERNEL_SIDE = 4096
_OURS = (str(Path(sys.executable).with_name("gpusq-validate")),)


def main() -> None:
    """Measure, print, and keep the raw samples."""
    options = _options()
    core = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    results: dict[str, Any] = {"core": core, "environment": msgspec.to_builtins(read_environment())}
    with tempfile.TemporaryDirectory() as folder:
        large, small = Path(folder) / "large.onnx", Path(folder) / "small.onnx"
        write_model(large, options.megabytes * 1_000_000)
        write_model(small, options.megabytes * 1_000_000 // 7)
        deep, flat = Path(folder) / "deep.pt", Path(folder) / "flat.pt"
        for path, depth in ((deep, 13), (flat, 2)):
            subprocess.run([sys.executable, "-c", _CHECKPOINT, str(path), str(depth)], check=True)
        results["commands"] = {
            **_commands(large, small, options),
            "ours_checkpoint": _repeated(deep, options),
            "ours_small_checkpoint": _repeated(flat, options),
        }
    results["kernel"] = kernel_table(options.repeats)
    _print(results)
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=2) + "\n", "utf-8")


def write_model(path: Path, size: int) -> None:
    """A chain of products, each with a 2:4 float32 weight, `size` bytes in all or a little less."""
    random = np.random.default_rng(0)
    value = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["batch", _WIDTH]))
    first, nodes, weights = value, list[ir.Node](), list[ir.Value]()
    for index in range(max(1, size // (4 * _WIDTH * 4 * _WIDTH))):
        k, n = (_WIDTH, 4 * _WIDTH) if index % 2 == 0 else (4 * _WIDTH, _WIDTH)
        array = random.standard_normal((k, n), dtype=np.float32)
        array.reshape(k // 4, 4, n)[:, random.permutation(4)[:2]] = 0
        tensor = ir.tensor(array, name=f"weight{index}")
        weights.append(ir.Value(name=tensor.name, type=value.type, shape=ir.Shape((k, n)), const_value=tensor))
        nodes.append(ir.node("MatMul", [value, weights[-1]], name=f"fc{index}"))
        value = nodes[-1].outputs[0]
        value.name, value.type, value.shape = f"y{index}", first.type, ir.Shape(["batch", n])
    graph = ir.Graph([first], [value], nodes=nodes, initializers=weights, opset_imports={"": 20}, name="chain")
    save_model(ir.Model(graph, ir_version=10), path)


def run(command: list[str]) -> dict[str, float]:
    """Wall seconds and peak resident megabytes of a command, which must succeed."""
    launched = [sys.executable, "-I", "-S", "-c", _LAUNCHER, *command]
    done = subprocess.run(launched, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    seconds, kilobytes = done.stdout.split()
    return {"seconds": float(seconds), "peak_megabytes": int(kilobytes) * 1024 / 1e6}


def kernel_table(repeats: int) -> list[dict[str, Any]]:
    """Seconds of the check on a 2:4 matrix of 4096 x 4096, by type and order, as samples."""
    random = np.random.default_rng(0)
    table: list[dict[str, Any]] = []
    for dtype in (np.float32, np.float16, ml_dtypes.bfloat16, np.int8):
        values = random.integers(1, 100, (_KERNEL_SIDE, _KERNEL_SIDE))
        values.reshape(-1, 4)[:, :2] = 0
        rows = values.astype(dtype)
        for order, matrix in (("rows [N, K]", rows), ("columns [K, N]", np.ascontiguousarray(rows.T).T)):
            samples = [_seconds(matrix) for _ in range(4 * repeats + 1)][1:]
            entry = {"dtype": rows.dtype.name, "order": order, "bytes": rows.nbytes, "seconds": samples}
            table.append(entry)
    return table


def _seconds(matrix: npt.NDArray[Any]) -> float:
    start = time.perf_counter()
    if census(matrix).violations:
        raise AssertionError("the matrix is 2:4")
    return time.perf_counter() - start


def _repeated(file: Path, options: argparse.Namespace) -> list[dict[str, float]]:
    file.read_bytes()  # every run finds the file in the page cache
    return [run([*_OURS, str(file)]) for _ in range(options.repeats)]


def _commands(large: Path, small: Path, options: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    peer = [str(Path(sys.executable).with_name("polygraphy")), "inspect", "sparsity"]
    samples: dict[str, list[dict[str, float]]] = {"ours": [], "peer": [], "ours_small": []}

    def check() -> None:
        samples["ours"] += _repeated(large, options)

    check()
    for _ in range(options.peer_repeats):
        samples["peer"].append(run([*peer, str(large)]))
        check()
    samples["ours_small"] += _repeated(small, options)
    return samples


def _print(results: dict[str, Any]) -> None:
    commands: dict[str, list[dict[str, float]]] = results["commands"]
    for name, samples in commands.items():
        if not samples:
            continue
        seconds, memory = ([sample[key] for sample in samples] for key in ("seconds", "peak_megabytes"))
        print(
            f"{name}: median {statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f}, "
            f"{len(samples)} runs), peak {max(memory):.0f} MB"
        )
    if commands["peer"]:
        print(f"ratio of medians, wall time: {_ratio(commands, 'seconds'):.1f}")
        print(f"ratio of medians, peak memory: {_ratio(commands, 'peak_megabytes'):.1f}")
    for entry in results["kernel"]:
        best, middle = (entry["bytes"] / choose(entry["seconds"]) / 1e9 for choose in _CHOICES)
        print(f"{entry['dtype']:9} {entry['order']:15} {best:.1f} GB/s best, {middle:.1f} median")


def _ratio(commands: dict[str, list[dict[str, float]]], key: str) -> float:
    theirs, ours = (statistics.median(sample[key] for sample in commands[name]) for name in ("peer", "ours"))
    return theirs / ours


_CHOICES: tuple[Callable[[list[float]], float], ...] = (min, statistics.median)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time the 2:4 check beside polygraphy's.")
    parser.add_argument("--megabytes", type=int, default=671)
    parser.add_argument("--repeats", type=int, default=5, help="runs of ours before, and after each run of theirs")
    parser.add_argument("--peer-repeats", type=int, default=1, help="each takes minutes; 0 leaves the peer out")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
