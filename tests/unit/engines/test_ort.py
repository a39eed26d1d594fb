from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
from numpy.typing import NDArray

from gpusq_deploy.engines import fp16_codes, ort
from gpusq_deploy.engines.ort import cpu_name, open_onnx
from gpusq_deploy.engines.session import TensorSpec, check_feeds
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph.files import save_model

ModelMaker = Callable[..., Path]

FLOAT = """g (float[B,64] x) => (float[B,64] y, int64[2] shape) {
  two = Constant<value = float {2}>()
  y = Mul(x, two)
  shape = Shape(x)
}"""


def test_a_model_runs(make_model: ModelMaker) -> None:
    session = open_onnx(make_model(FLOAT), threads=1)
    assert session.inputs == (TensorSpec(name="x", shape=(-1, 64), dtype="float32"),)
    assert [spec.name for spec in session.outputs] == ["y", "shape"]
    assert session.runtime == "onnxruntime"
    assert session.runtime_version
    feeds = {"x": np.ones((3, 64), np.float32)}
    found = session.run(feeds)
    np.testing.assert_array_equal(found["y"], 2 * feeds["x"])
    np.testing.assert_array_equal(found["shape"], [3, 64])
    take = session.timer(feeds)
    assert all(0 < take() < 10_000 for _ in range(2))


def test_the_graph_can_run_as_written(make_model: ModelMaker) -> None:
    feeds = {"x": np.ones((1, 64), np.float16)}
    path = make_model("int8")
    plain, fused = (open_onnx(path, optimize=optimize).run(feeds)["y"] for optimize in (False, True))
    np.testing.assert_allclose(plain, fused, rtol=0.02, atol=0.02)


LONG_PRODUCT = """g (float[N,1,64] x) => (float[N,64] y) {
  h = Reshape(x, shape)
  q = QuantizeLinear(h, one, zero)
  d = DequantizeLinear(q, one, zero)
  wd = DequantizeLinear(w, one, zero)
  y = MatMul(d, wd)
}"""


def test_integer_products_of_the_largest_codes_do_not_saturate(tmp_path: Path) -> None:
    """Shifted to uint8, 255 · 127 · 2 is beyond 16 bits, in which the default kernel of a CPU without VNNI adds."""
    whole = tiny_models.graph(
        LONG_PRODUCT,
        shape=np.array([-1, 64]),
        one=np.array(1, np.float32),
        zero=np.array(0, np.int8),
        w=np.full((64, 64), 127, np.int8),
    )
    save_model(whole, tmp_path / "m.onnx")
    found = open_onnx(tmp_path / "m.onnx").run({"x": np.full((3, 1, 64), 127, np.float32)})["y"]
    np.testing.assert_array_equal(found, np.full((3, 64), 64 * 127 * 127, np.float32))


CODES = """g (float16[N] x) => (int8[N] y) {
  y = QuantizeLinear(x, s, z)
}"""


@pytest.mark.parametrize("fault", ["as installed", "cuts off"])
@pytest.mark.parametrize("optimize", [False, True])
def test_codes_of_fp16_values_are_rounded_by_every_version(
    make_model: ModelMaker, monkeypatch: pytest.MonkeyPatch, fault: str, *, optimize: bool
) -> None:
    """Against numpy; ONNX Runtime before 1.30 alone cuts them off. The scale lies in a file beside the model."""
    if fault == "cuts off":
        monkeypatch.setattr(ort, "_FP16_CODES_ROUNDED_SINCE", (1000,))
    path = make_model(CODES, external_data="weights.bin", size_threshold_bytes=0)
    values = np.arange(-128, 129, dtype=np.float16) / np.float16(100)
    codes = open_onnx(path, optimize=optimize).run({"x": values})["y"]
    np.testing.assert_array_equal(codes, np.rint(values.astype(np.float32) / np.float32(np.float16(0.02))))


@pytest.mark.parametrize(
    ("version", "cut_off"),
    [("1.22.0", True), ("1.29.1", True), ("1.30.0", False), ("1.32.0.dev2", False), ("2.0", False)],
)
def test_versions_that_cut_codes_off(version: str, *, cut_off: bool) -> None:
    assert ort.is_cut_off(version) == cut_off


def test_what_quantises_no_fp16_is_loaded_as_it_is(make_model: ModelMaker) -> None:
    assert fp16_codes.quantised_in_float32(make_model("fp16")) is None
    assert fp16_codes.quantised_in_float32(make_model("weight_only")) is None
    assert fp16_codes.quantised_in_float32(make_model("int8")) is not None


def test_a_closed_session_is_not_used(make_model: ModelMaker) -> None:
    session = open_onnx(make_model(FLOAT))
    session.close()
    session.close()
    with pytest.raises(ValueError, match="closed"):
        session.run({"x": np.ones((3, 64), np.float32)})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(GpusqError, match="no such model"):
        open_onnx(tmp_path / "none.onnx")


def test_a_bad_model_gives_onnxruntimes_sentence(tmp_path: Path) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(GpusqError, match=r"can't load the model: .*rotobuf") as caught:
        open_onnx(path)
    assert caught.value.place == str(path)


def test_missing_external_data_is_told(make_model: ModelMaker) -> None:
    path = make_model("fp16", external_data="weights.bin", size_threshold_bytes=0)
    (path.parent / "weights.bin").unlink()
    with pytest.raises(GpusqError, match=r"can't load the model: .*weights\.bin"):
        open_onnx(path)


def test_an_odd_input_type_is_refused(make_model: ModelMaker) -> None:
    with pytest.raises(GpusqError, match=r"'x' is a tensor\(string\)"):
        open_onnx(make_model("g (string[B] x) => (string[B] y) { y = Identity(x) }"))


def test_a_failure_while_running_is_told(make_model: ModelMaker) -> None:
    session = open_onnx(
        make_model(
            "g (float[B,C] x) => (float[M,64] y) { to = Constant<value = int64[2] {-1, 64}>() y = Reshape(x, to) }"
        )
    )
    with pytest.raises(GpusqError, match="failed to run the model"):
        session.run({"x": np.ones((1, 63), np.float32)})


def test_every_wrong_feed_is_named() -> None:
    inputs = (
        TensorSpec(name="a", shape=(-1, 3), dtype="float32"),
        TensorSpec(name="b", shape=(2,), dtype="int8"),
        TensorSpec(name="c", shape=(2,), dtype="int8"),
    )
    feeds: dict[str, NDArray[Any]] = {"a": np.ones((1, 4), np.float32), "b": np.ones(2, np.float32), "d": np.ones(1)}
    with pytest.raises(GpusqError) as caught:
        check_feeds(inputs, feeds, place="m")
    assert caught.value.what == (
        "the feeds don't fit the model: 'd' is not an input; 'a' is float32[1, 4], not float32[-1, 3]; "
        "'b' is float32[2], not int8[2]; 'c' is missing"
    )


def test_the_cpu_has_a_name() -> None:
    assert cpu_name()


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    code = (
        "import sys, gpusq_deploy.engines.backend_choice, gpusq_deploy.engines.builder,"
        "gpusq_deploy.engines.cuda_session, gpusq_deploy.engines.ort, gpusq_deploy.bundle.receipt\n"
        "print(sorted({'torch', 'tensorrt', 'tensorrt_rtx', 'cuda', 'pycuda', 'onnxruntime'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.strip() == "[]"
