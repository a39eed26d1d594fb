"""Times of kernels from profilers' files: exact by layer, by order of launch, by a name of its own; else not at all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from gpusq_deploy.artifacts.receipt import EngineLayer, EngineTensor
from gpusq_deploy.engines.kernel_times import measured_kernels, read_kernel_times
from gpusq_deploy.errors import GpusqError

# Columns as Nsight Systems 2025 and 2026 write them; older ones lack GreenCtx.
TRACE = (
    "Start (ns),Duration (ns),CorrId,GrdX,GrdY,GrdZ,BlkX,BlkY,BlkZ,Reg/Trd,StcSMem (MB),DymSMem (MB),Bytes (MB),"
    "Throughput (MB/s),SrcMemKd,DstMemKd,Device,Ctx,GreenCtx,Strm,Name"
)
SUM = "Time (%),Total Time (ns),Instances,Avg (ns),Med (ns),Min (ns),Max (ns),StdDev (ns),Name"
NOTICE = (
    "\nNOTICE: Existing SQLite export found: trace.sqlite\n\nProcessing [trace.sqlite] with [cuda_gpu_trace.py]... \n"
)
COPY = "[CUDA memcpy Host-to-Device]"


def kernel(name: str, tactic: str, *, kind: str = "gemm") -> EngineLayer:
    tensors = (EngineTensor(name="x", shape=(1, 64), dtype="Half"),)
    return EngineLayer(
        name=name, kind=kind, inputs=tensors, constants=(), outputs=tensors, tactic=tactic, onnx_nodes=(name,)
    )


KERNELS = (
    kernel("norm", "__myl_Norm_0x1", kind="kgen"),
    kernel("fc1", "__myelin_CASK_STUB"),
    kernel("signal", "", kind="signal"),
    kernel("fc2", "sm80_xmma_gemm_f16"),
    kernel("fc3", "sm80_xmma_gemm_f16"),
)
NAMES = (
    "__myl_Norm_0x1",
    "cutlass_gemm",
    "sm80_xmma_gemm_f16_execute_kernel__5x",
    "sm80_xmma_gemm_f16_execute_kernel__5x",
)


def trace(folder: Path, launches: Sequence[tuple[str, int]]) -> Path:
    """A trace whose rows stand in no order: their start gives it."""
    rows = [
        f'{1000 * place},{time},{place},64,1,1,128,1,1,96,0.000,0.049,,,,,NVIDIA A100 (0),1,,7,"{name}"'
        for place, (name, time) in enumerate(launches)
    ]
    file = folder / "trace.csv"
    file.write_text("\n".join([NOTICE, TRACE, *reversed(rows)]))
    return file


def times(file: Path, inferences: int = 1, layers: Sequence[EngineLayer] = KERNELS) -> tuple[dict[str, float], str]:
    seen = read_kernel_times(file, inferences)
    assert seen is not None
    found = measured_kernels(layers, seen)
    return found.times, found.unknown


def test_layers_of_trtexec_are_exact(tmp_path: Path) -> None:
    """As sampleReporting.cpp of NVIDIA/TensorRT writes it: the count, then the layers; older ones have no median."""
    file = tmp_path / "profile.json"
    entry = {"timeMs": 4.0, "averageMs": 0.040, "medianMs": 0.039, "percentage": 50}
    older = {"timeMs": 2.0, "averageMs": 0.020, "percentage": 50}
    file.write_text(json.dumps([{"count": 100}, {"name": "fc1", **entry}, {"name": "fc3", **older}]))
    found, unknown = times(file)
    assert found == {"fc1": pytest.approx(39.0), "fc3": pytest.approx(20.0)}
    assert unknown.startswith("2 of 4 kernels: ")


def test_launches_in_order_tell_layers_apart_that_share_a_kernel(tmp_path: Path) -> None:
    launches = [
        (COPY, 9),
        *(((name, 1000 * (place + 1) + 10 * turn)) for turn in range(3) for place, name in enumerate(NAMES)),
    ]
    found, unknown = times(trace(tmp_path, launches), 3)
    assert found == {"norm": 1.01, "fc1": 2.01, "fc2": 3.01, "fc3": 4.01}
    assert unknown == ""


@pytest.mark.parametrize(
    "launches",
    [
        # One more than the engine's kernels.
        [*((name, 1000) for name in NAMES), ("split_k_reduce", 500)],
        # Another order: not this engine's.
        [(name, 1000) for name in reversed(NAMES)],
    ],
)
def test_without_the_order_only_a_kernel_of_one_layer_has_a_time(
    tmp_path: Path, launches: list[tuple[str, int]]
) -> None:
    found, unknown = times(trace(tmp_path, launches))
    assert found == {"norm": 1.0}
    assert unknown.startswith("3 of 4 kernels: ")


def test_a_sequence_that_changes_has_no_order(tmp_path: Path) -> None:
    launches = [(name, 1000) for name in (*NAMES, NAMES[0], NAMES[2], NAMES[1], NAMES[3])]
    assert times(trace(tmp_path, launches), 2)[0] == {"norm": 1.0}


def test_sums_tell_only_kernels_that_are_launched_once_in_each_inference(tmp_path: Path) -> None:
    file = tmp_path / "sum.csv"
    rows = [
        f'10.0,{4000 * count},{count},4000.0,4000.0,1,2,0.1,"{name}"'
        for name, count in zip(NAMES, (4, 4, 8), strict=False)
    ]
    file.write_text("\n".join([SUM, *rows]))
    found, unknown = times(file, 4)
    assert found == {"norm": pytest.approx(4.0)}
    assert unknown.startswith("3 of 4 kernels: ")


def test_names_alone_have_no_times(tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    for names in ("__myl_Norm_0x1\n", "[CUDA memcpy Host-to-Device]\n__myl_Norm_0x1\n"):
        file.write_text(names)
        assert read_kernel_times(file, 1) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[", "not a profile that trtexec"),
        ('[{"name": 3}]', "not a profile that trtexec"),
        ('[{"count": 100}]', "no layer with a time"),
        (f"{TRACE}\n1,x,,,,,,,,,,,,,,,,,,,k", "no number"),
        (f"{TRACE}\n1", "no number"),
    ],
)
def test_a_damaged_profile_is_refused(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "profile"
    file.write_text(text)
    if text.endswith("\n1"):
        # A row that is cut short names no kernel.
        assert read_kernel_times(file, 1) is None
        return
    with pytest.raises(GpusqError, match=said):
        read_kernel_times(file, 1)
    with pytest.raises(GpusqError, match="cannot read the profile"):
        read_kernel_times(tmp_path / "none", 1)
