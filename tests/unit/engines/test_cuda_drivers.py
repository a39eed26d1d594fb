"""cuda-bindings itself, and CUDA graphs, against a pretended driver in C: arguments, ownership and errors."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from gpusq_deploy.engines.cuda_api import cuda_failed, find_cuda, open_cuda
from gpusq_deploy.engines.gpu import Gpu, NoGpu, find_gpu
from gpusq_deploy.errors import GpusqError

SOURCE = Path(__file__).parents[2] / "support" / "fake_cuda.c"

# An engine whose inference copies its input to its output on the device, by the driver's own function.
SESSION = """
    import ctypes, types
    from pathlib import Path
    import numpy as np
    from gpusq_deploy.engines.cuda_api import open_cuda
    from gpusq_deploy.engines.cuda_graph import find_graph_driver
    from gpusq_deploy.engines.cuda_session import CudaParts, CudaSession
    from gpusq_deploy.errors import GpusqError

    library = ctypes.CDLL("libcuda.so.1")
    Named = types.SimpleNamespace

    class Execution:
        addresses = {}
        def set_input_shape(self, name, shape): self.shape = shape; return True
        def get_tensor_shape(self, name): return self.shape
        def set_tensor_address(self, name, address): self.addresses[name] = address; return True
        def execute_async_v3(self, stream):
            x, y = (ctypes.c_void_p(self.addresses[name]) for name in "xy")
            size = ctypes.c_size_t(int(np.prod(self.shape)) * 4)
            return library.cuMemcpyDtoDAsync_v2(y, x, size, ctypes.c_void_p(stream)) == 0

    class Engine:
        num_io_tensors, num_optimization_profiles, streamable_weights_size = 2, 1, 0
        def create_execution_context(self): return Execution()
        def get_tensor_name(self, index): return "xy"[index]
        def get_tensor_mode(self, name): return Named(name="INPUT" if name == "x" else "OUTPUT")
        def get_tensor_dtype(self, name): return Named(name="FLOAT")
        def get_tensor_shape(self, name): return (-1, 4)
        def get_tensor_profile_shape(self, name, profile): return [(1, 4), (4, 4), (1 << 20, 4)]

    class Runtime:
        def __init__(self, logger): pass
        def deserialize_cuda_engine(self, plan): return Engine()

    api = Named(__version__="1", ILogger=object, Runtime=Runtime)
    def opened(graphs):
        cuda = open_cuda(["cuda-bindings"], place="p")
        parts = CudaParts(engine_bytes=b"", api=api, cuda=cuda, backend="tensorrt", path=Path("p"), graphs=graphs)
        return CudaSession(parts)

    sessions = [opened(None), opened(find_graph_driver())]
    for session in sessions:
        assert (session.device, session.cuda_api.split()[0]) == ("Fake GPU", "cuda-bindings")
        for batch in (1, 8, 1):
            x = np.random.default_rng(batch).normal(size=(batch, 4)).astype(np.float32)
            np.testing.assert_array_equal(session.run({"x": x})["y"], x)
            assert session.timer({"x": x})() == 0.5
        try:
            session.run({"x": np.zeros((1 << 18, 4), np.float32)})
        except GpusqError as error:
            print(error)
        np.testing.assert_array_equal(session.run({"x": x})["y"], x)
    for session in sessions:
        session.close()
    counts = (ctypes.c_long * 8)()
    library.fakeCounts(counts)
    print("left", list(counts))
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a libcuda.so.1 that needs no GPU."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler is installed, which the pretended driver needs")
    folder = tmp_path_factory.mktemp("driver")
    library = folder / "libcuda.so.1"
    words = [compiler, "-shared", "-fPIC", "-o", str(library), str(SOURCE), "-Wl,-soname,libcuda.so.1", "-ldl"]
    subprocess.run(words, check=True)
    return folder


def told(driver: Path, program: str, **settings: str) -> str:
    pytest.importorskip("cuda.bindings", reason="cuda-bindings is not installed", exc_type=ImportError)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(driver), "PYTHONPATH": os.pathsep.join(sys.path), **settings}
    words = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_sessions_over_cuda_bindings_copy_launch_and_give_everything_back(driver: Path) -> None:
    said = told(driver, SESSION)
    # Both sessions ran out of memory once, and went on.
    assert said.count("CUDA failed: cuMemAlloc: CUDA_ERROR_OUT_OF_MEMORY (out of memory)") == 2
    assert said.count("take a smaller batch") == 2
    assert "left [0, 0, 0, 0, 0, 0, 0, 0]" in said


@pytest.mark.slow
def test_a_driver_that_is_older_than_the_package_is_told_with_both_versions(driver: Path) -> None:
    program = "from gpusq_deploy.engines.cuda_api import find_cuda; print(find_cuda(['cuda-bindings']))"
    said = told(driver, program, FAKE_CUDA_VERSION="11080")
    assert "is too new for this driver, which knows CUDA 11.8: pip install 'cuda-bindings<12'" in said


@pytest.mark.slow
def test_a_driver_without_a_gpu_gives_its_own_words(driver: Path) -> None:
    program = """
        from gpusq_deploy.engines.cuda_api import find_cuda
        from gpusq_deploy.engines.gpu import find_gpu
        print(find_gpu().reason)
        print(find_cuda(["cuda-bindings"]))
    """
    first, second = told(driver, program, FAKE_CUDA_DEVICES="0").splitlines()
    text = "no CUDA-capable device is detected"
    assert first == f"the NVIDIA driver refused to start (CUDA_ERROR_NO_DEVICE: {text})"
    assert second.endswith(f"can't start the driver: cuInit: CUDA_ERROR_NO_DEVICE ({text})")


def test_without_a_driver_it_is_a_sentence() -> None:
    if isinstance(find_gpu(), Gpu):
        pytest.skip("a GPU answers here")
    with pytest.raises(GpusqError, match="the engine can't run here: ") as caught:
        open_cuda(place="a100.plan")
    assert caught.value.place == "a100.plan"
    assert isinstance(find_cuda(["cuda-bindings"]), str)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cuda", "cuda.bindings", "cuda.bindings.driver", "pycuda"):
        monkeypatch.setitem(sys.modules, name, None)
    assert find_cuda() == "cuda-bindings is not installed; pycuda is not installed"
    api = importlib.import_module("gpusq_deploy.engines.cuda_api")
    monkeypatch.setattr(api, "find_gpu", lambda: Gpu("Orin", "8.7"))
    with pytest.raises(GpusqError, match="nothing can call the CUDA driver: cuda-bindings is not installed"):
        open_cuda(place="p")
    monkeypatch.setattr(api, "find_gpu", lambda: NoGpu("the driver sleeps"))
    with pytest.raises(GpusqError, match="the engine can't run here: the driver sleeps"):
        open_cuda(place="p")


@pytest.mark.parametrize(
    ("said", "hint"),
    [
        ("cuMemAlloc failed: out of memory", "smaller batch"),
        ("cuStreamSynchronize: CUDA_ERROR_ILLEGAL_ADDRESS (an illegal memory access was encountered)", "start again"),
        ("cuDeviceGet: CUDA_ERROR_INVALID_VALUE (invalid argument)", None),
    ],
)
def test_what_to_do_is_said_where_it_is_known(said: str, hint: str | None) -> None:
    error = cuda_failed(RuntimeError(said), place="p")
    assert error.what == f"CUDA failed: {said}"
    assert error.hint is None if hint is None else hint in str(error.hint)
