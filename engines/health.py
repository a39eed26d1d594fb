"""What of engines works on this machine: real calls, each in its own process, for native code may crash or hang."""

from __future__ import annotations

import shutil
import subprocess
import sys

from gpusq_deploy.artifacts import Value
from gpusq_deploy.engines.api import TRAITS, BackendName
from gpusq_deploy.text import one_line

_SECONDS = 60

# Each prints one line and exits with 0 where it works.
_BUILDER = """
import importlib, sys
trt = importlib.import_module(sys.argv[1])
logger = trt.Logger(trt.Logger.ERROR)
builder = trt.Builder(logger)
assert builder is not None, "no builder was made"
network = builder.create_network(0)
assert network is not None, "no network was made"
print(trt.__version__)
"""
_GPU = """
from gpusq_deploy.engines.gpu import Gpu, find_gpu
found = find_gpu()
if not isinstance(found, Gpu):
    print(found.reason)
    raise SystemExit(3)
import ctypes
version = ctypes.c_int(0)
ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
cuda = f"{version.value // 1000}.{version.value % 1000 // 10}"
print(f"{found.name}, compute capability {found.compute_capability}, a driver for CUDA {cuda}")
"""
_RUNTIME = """
import sys
from gpusq_deploy.engines.backend_choice import why_not
reason = why_not(sys.argv[1])
print(reason or "installed, and a GPU answers")
raise SystemExit(3 if reason else 0)
"""
_ORT = """
import numpy as np, onnx_ir as ir, onnxruntime as ort
graph = ir.from_onnx_text('<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (float[2] y) { y = Add(x, x) }')
data = ir.to_proto(graph).SerializeToString()
session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
(got,) = session.run(None, {"x": np.ones(2, np.float32)})
assert got.tolist() == [2.0, 2.0], f"1 + 1 is {got[0]}"
print(ort.__version__)
"""


class HealthCheck(Value):
    """One thing that was tried: whether it works, and what it said."""

    name: str
    works: bool
    said: str


def check_builder(name: BackendName) -> HealthCheck:
    """Whether TensorRT's builder can be made: its library is loaded, and its network too."""
    return _tried(f"builder {name}", _BUILDER, TRAITS[name].module)


def check_gpu() -> HealthCheck:
    """Whether a GPU answers through the driver."""
    return _tried("GPU", _GPU)


def check_engines(name: BackendName) -> HealthCheck:
    """Whether engines of a backend can be run."""
    return _tried(f"engines of {name}", _RUNTIME, name)


def check_onnxruntime() -> HealthCheck:
    """Whether ONNX Runtime runs a graph on the CPU."""
    return _tried("ONNX Runtime", _ORT)


def check_nvidia_smi() -> HealthCheck:
    """The driver's own report; it says clocks and power, which the driver's library doesn't."""
    name = "nvidia-smi"
    if shutil.which(name) is None:
        return HealthCheck(name=name, works=False, said="nvidia-smi is not installed")
    return _run(name, [name, "--query-gpu=name,driver_version", "--format=csv,noheader"])


def _tried(name: str, script: str, *arguments: str) -> HealthCheck:
    return _run(name, [sys.executable, "-c", script, *arguments])


def _run(name: str, words: list[str]) -> HealthCheck:
    try:
        done = subprocess.run(
            words, capture_output=True, encoding="utf-8", errors="replace", check=False, timeout=_SECONDS
        )
    except subprocess.TimeoutExpired:
        return HealthCheck(name=name, works=False, said=f"no answer within {_SECONDS} seconds")
    except OSError as error:
        return HealthCheck(name=name, works=False, said=one_line(error))
    if done.returncode < 0:
        return HealthCheck(name=name, works=False, said=f"crashed with signal {-done.returncode}")
    lines = (done.stdout if done.returncode in {0, 3} else done.stderr).strip().splitlines()
    return HealthCheck(
        name=name, works=done.returncode == 0, said=lines[-1] if lines else f"exit code {done.returncode}"
    )
