"""ONNX Runtime on the CPU: the reference that every graph is checked against, and the default to run on."""

from __future__ import annotations

import mmap
import platform
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gpusq_deploy.engines.session import Session, SharedSession, TensorSpec, check_feeds
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.text import one_line

if TYPE_CHECKING:
    import onnxruntime

# ONNX Runtime's own names of tensor element types.
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(bfloat16)": "bfloat16",
    "tensor(double)": "float64",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}
_ONLY_ERRORS = 3
_FP16_CODES_ROUNDED_SINCE = (1, 30)


def open_onnx(path: Path, *, threads: int | None = None, optimize: bool = True, frugal: bool = False) -> SharedSession:
    """Load an ONNX model on ONNX Runtime's CPU provider.

    Args:
        path: The model; external data beside it is found.
        threads: Threads within one operator; None leaves the choice to ONNX Runtime.
        optimize: False switches off ONNX Runtime's own rewrites, so that the graph runs as it is written.
        frugal: For a graph that runs a few times, to be looked at: no copies of weights in its kernels' layout, and no
            arena, which costs some speed.

    Raises:
        GpusqError: The file can't be read, is no valid model, or holds an operator that ONNX Runtime lacks.
    """
    import onnxruntime as ort

    if not path.is_file():
        raise GpusqError("there is no such model file", place=str(path), hint="check its path")
    options = ort.SessionOptions()
    options.log_severity_level = _ONLY_ERRORS
    options.intra_op_num_threads = threads or 0
    if optimize and _runs_exact_products(path):
        options.add_session_config_entry("session.x64quantprecision", "1")
    if frugal:
        options.enable_cpu_mem_arena = False
        options.add_session_config_entry("session.disable_prepacking", "1")
    # Where the model isn't read from its file, see `_loaded`.
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(path.absolute().parent)
    )
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    try:
        raw = ort.InferenceSession(_loaded(path, ort.__version__), options, providers=["CPUExecutionProvider"])
    # ONNX Runtime's exceptions have no common base below Exception.
    except Exception as error:
        raise GpusqError(
            f"ONNX Runtime can't load the model: {one_line(error)}",
            place=str(path),
            hint="check the file with gpusq-validate; if it was copied, its external data file must lie beside it",
        ) from error
    return OrtSession(raw, path=path, version=ort.__version__)


class OrtSession:
    """A model on ONNX Runtime's CPU provider."""

    runtime: str = "onnxruntime"

    def __init__(self, raw: onnxruntime.InferenceSession, *, path: Path, version: str) -> None:
        self.runtime_version: str = version
        self.device: str = cpu_name()
        self._path = path
        self._raw: onnxruntime.InferenceSession | None = raw
        self._inputs = tuple(_spec(node, path) for node in raw.get_inputs())
        self._outputs = tuple(_spec(node, path) for node in raw.get_outputs())

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Inputs in the model's order."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Outputs in the model's order."""
        return self._outputs

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Infer once; see `Session.run`."""
        check_feeds(self._inputs, feeds, place=str(self._path))
        values = self._infer(feeds)
        return {spec.name: np.asarray(value) for spec, value in zip(self._outputs, values, strict=True)}

    def timer(self, feeds: Mapping[str, NDArray[Any]]) -> Callable[[], float]:
        """Wall-clock milliseconds of one inference; see `Session.timer`."""
        check_feeds(self._inputs, feeds, place=str(self._path))

        def take() -> float:
            start = time.perf_counter_ns()
            self._infer(feeds)
            return (time.perf_counter_ns() - start) / 1e6

        return take

    def another(self) -> Session:
        """See `SharedSession`: several threads may call one `InferenceSession`, whose pool of threads they share."""
        if self._raw is None:
            raise ValueError("the session is closed")
        return OrtSession(self._raw, path=self._path, version=self.runtime_version)

    def close(self) -> None:
        """Give back the model's memory."""
        self._raw = None

    def _infer(self, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        if self._raw is None:
            raise ValueError("the session is closed")
        try:
            return self._raw.run(None, dict(feeds))
        # ONNX Runtime's exceptions have no common base below Exception.
        except Exception as error:
            raise GpusqError(
                f"ONNX Runtime failed to run the model: {one_line(error)}",
                place=str(self._path),
                hint="check the file with gpusq-validate",
            ) from error


def _loaded(path: Path, version: str) -> str | bytes:
    """What ONNX Runtime is given: the file, or the graph without what this version computes wrongly."""
    if is_cut_off(version):
        from gpusq_deploy.engines.fp16_codes import quantised_in_float32

        with suppress(Exception):  # of a file that can't be read ONNX Runtime itself says why
            return quantised_in_float32(path) or str(path)
    return str(path)


def is_cut_off(version: str) -> bool:
    """Whether this version of ONNX Runtime has the fault that `fp16_codes` mends."""
    return tuple(int(part) for part in version.split(".")[:2]) < _FP16_CODES_ROUNDED_SINCE


def _runs_exact_products(path: Path) -> bool:
    """Whether a model can have INT8 products that don't saturate on a CPU without VNNI.

    ONNX Runtime's default kernel adds pairs of them in 16 bits there. Its exact one wants weights of uint8, and of a
    weight per channel without zero points it makes one that it refuses afterwards.
    """
    with suppress(Exception):  # of a file that can't be read ONNX Runtime itself says why
        if not _has_bytes(path, b"DequantizeLinear"):
            return True
        import onnx  # not onnx_ir: it brings sympy, half of what a worker process takes to start

        graph = onnx.load(path, load_external_data=False).graph
        nodes = [node for node in graph.node if node.op_type == "DequantizeLinear"]
        return all(len(node.input) > 2 and bool(node.input[2]) for node in nodes)
    return False


def _has_bytes(path: Path, sought: bytes) -> bool:
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(sought) >= 0


def cpu_name() -> str:
    """The processor's name as the kernel gives it, else as Python does."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine() or "CPU"


def _spec(node: onnxruntime.NodeArg, path: Path) -> TensorSpec:
    dtype = _DTYPES.get(node.type)
    if dtype is None:
        raise GpusqError(
            f"{node.name!r} is a {node.type}, which no runtime here can take or give",
            place=str(path),
            hint=f"give the model inputs and outputs of these types: {', '.join(_DTYPES.values())}",
        )
    # A named or unknown dimension is a string or None.
    shape = tuple(size if isinstance(size, int) else -1 for size in node.shape)
    return TensorSpec(name=node.name, shape=shape, dtype=dtype)
