"""What of an ONNX file isn't looked at is a finding: every kind of operator that carries weights, and their share."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from commands import run_main
from onnx import numpy_helper

from gpusq_deploy.bundle.validation import Validation, validate
from gpusq_deploy.cli.validate import main as command
from gpusq_deploy.numerics.two_four import magnitude_mask

Arrays = dict[str, Any]
# Our stubs have what the package itself calls, and nothing of these.
ort: Any = importlib.import_module("onnxruntime")
quantization: Any = importlib.import_module("onnxruntime.quantization")


def matrix(n: int = 8, k: int = 8, dtype: Any = np.float32) -> Any:
    """A 2:4 weight [K, N]."""
    values = np.random.default_rng(0).uniform(1, 2, (n, k)).astype(np.float32)
    return np.where(magnitude_mask(values), values, np.float32(0)).T.astype(dtype)


def write(path: Path, text: str, **constants: Any) -> Path:
    """A model whose domains are all imported, with every constant as an initializer."""
    domains = '"" : 20, "com.microsoft" : 1, "local" : 1, "custom" : 1'
    proto = onnx.parser.parse_model(f"<ir_version: 10, opset_import: [{domains}]>\n{text}")
    for name, value in constants.items():
        proto.graph.initializer.append(numpy_helper.from_array(value, name))
    path.write_bytes(proto.SerializeToString())
    return path


def checked(path: Path, text: str, **constants: Any) -> Validation:
    return validate(write(path / "m.onnx", text, **constants))


def unread(found: Validation) -> list[str]:
    return [finding.what for finding in found.findings if finding.rule == "not-read"]


def body(nodes: str, *, inputs: str = "float[N,8] x") -> str:
    return f"g ({inputs}) => (float[N,8] y) {{ {nodes} }}"


class _Data:
    def __init__(self) -> None:
        self._left: Iterator[Arrays] = iter([{"x": np.ones((2, 8), np.float32)}])

    def get_next(self) -> Arrays | None:
        return next(self._left, None)


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """Two products, as a float model has them."""
    text = body("a = MatMul(x, w1) r = Relu(a) y = Gemm(r, w2, b)")
    return write(tmp_path / "plain.onnx", text, w1=matrix(), w2=matrix(), b=np.ones(8, np.float32))


def test_what_is_read_and_clean_has_no_findings(plain: Path) -> None:
    found = validate(plain)
    assert (found.findings, found.remarks, len(found.sparsity.layers)) == ((), (), 2)


def test_dynamic_quantisation_of_onnx_runtime_is_found(plain: Path, tmp_path: Path) -> None:
    quantization.quantize_dynamic(plain, tmp_path / "dynamic.onnx")
    assert any("of MatMulInteger" in what for what in unread(validate(tmp_path / "dynamic.onnx")))


def test_the_qoperator_format_of_onnx_runtime_is_found(plain: Path, tmp_path: Path) -> None:
    quantization.quantize_static(plain, tmp_path / "q.onnx", _Data(), quant_format=quantization.QuantFormat.QOperator)
    told = unread(validate(tmp_path / "q.onnx"))
    assert {"QLinearMatMul", "com.microsoft.QGemm"} == {what.split()[3] for what in told}


def test_fused_products_of_onnx_runtime_are_found(tmp_path: Path) -> None:
    text = body("t = Transpose<perm = [1, 0]>(x) a = MatMul(t, w1) y = Relu(a)", inputs="float[8,8] x")
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.log_severity_level = 3
    source = write(tmp_path / "m.onnx", text.replace("float[N,8] y", "float[8,8] y"), w1=matrix())
    ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    (what,) = unread(validate(tmp_path / "fused.onnx"))
    assert what == "1 weight of com.microsoft.FusedMatMul is not checked: 64 parameters, 100.0% of the file's"


OPERATORS = {
    "com.microsoft.FusedMatMul": "y = com.microsoft.FusedMatMul<transB = 1>(x, w)",
    "com.microsoft.FusedGemm": 'y = com.microsoft.FusedGemm<activation = "Relu">(x, w, b)',
    "com.microsoft.Attention": "y = com.microsoft.Attention<num_heads = 2>(x, w, b)",
    "com.microsoft.MatMulNBits": "y = com.microsoft.MatMulNBits<K = 8, N = 8, bits = 4, block_size = 16>(x, w, b)",
    "custom.Linear": "y = custom.Linear(x, w, b)",
    "Einsum": 'y = Einsum<equation = "nk,km->nm">(x, w)',
    "MatMulInteger": "q, s, z = DynamicQuantizeLinear(x) i = MatMulInteger(q, w8, z) y = Cast<to = 1>(i)",
    "MatMul (weight behind Mul)": "v = Mul(w, m) y = MatMul(x, v)",
    "MatMul (weight behind Concat)": "v = Concat<axis = 1>(h, h) y = MatMul(x, v)",
    "MatMul (weight behind Reshape)": "d = Shape(w) v = Reshape(w, d) y = MatMul(x, v)",
}


@pytest.mark.parametrize("operator", OPERATORS)
def test_every_operator_that_carries_weights_is_named(tmp_path: Path, operator: str) -> None:
    nodes = OPERATORS[operator]
    values = {"w": matrix(), "b": np.ones(8, np.float32), "w8": matrix(dtype=np.int8), "m": matrix(), "h": matrix(4)}
    used = {name: value for name, value in values.items() if f"{name})" in nodes or f"{name}," in nodes}
    (what,) = unread(checked(tmp_path, body(nodes), **used))
    assert f"of {operator} " in what


@pytest.mark.parametrize(("kind", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_recurrent_layers_are_found(tmp_path: Path, kind: str, gates: int) -> None:
    text = f"g (float[T,N,8] x) => (float[T,1,N,8] y) {{ y, h = {kind}<hidden_size = 8>(x, w, r, b) }}"
    weight = np.ones((1, 8 * gates, 8), np.float32)
    (what,) = unread(checked(tmp_path, text, w=weight, r=weight, b=np.ones((1, 16 * gates), np.float32)))
    share = 128 * gates / (128 * gates + 16 * gates)
    assert what == f"2 weights of {kind} are not checked: {128 * gates} parameters, {share:.1%} of the file's"


def test_convolutions_of_other_kinds_are_found(tmp_path: Path) -> None:
    text = "g (float[N,8,4,4] x) => (float[N,8,5,5] y) { y = ConvTranspose(x, w) }"
    (what,) = unread(checked(tmp_path, text, w=np.ones((8, 8, 2, 2), np.float32)))
    assert "1 weight of ConvTranspose is not checked: 256 parameters, 100.0% of the file's" in what


@pytest.mark.parametrize("held", ["within", "without"])
def test_weights_of_the_bodies_of_if_are_found(tmp_path: Path, held: str) -> None:
    made = "float[8,8] w = {" + ",".join(["1"] * 64) + "}"
    stored = f"<{made}> " if held == "within" else ""
    then, other = (f"{name} () => (float[N,8] {out}) {stored}{{ {out} = MatMul(x, w) }}" for name, out in ("ta", "eb"))
    text = body(f"y = If (c) <then_branch = {then}, else_branch = {other}>", inputs="float[N,8] x, bool c")
    told = unread(checked(tmp_path, text, **({"w": matrix()} if held == "without" else {})))
    assert told
    assert all("of MatMul in the body of If " in what for what in told)


def test_functions_are_inlined_and_their_weights_read(tmp_path: Path) -> None:
    text = body("y = local.linear(x, w)", inputs="float[N,32] x") + '\n<domain: "local", opset_import: ["" : 20]>\n'
    found = checked(tmp_path, text + "linear (a, b) => (c) { c = MatMul(a, b) }", w=np.ones((32, 8), np.float32))
    assert unread(found) == []
    assert len(found.sparsity.layers) == 1
    assert [finding.rule for finding in found.findings] == ["not-2:4"]


def test_quantised_constant_nodes_and_moved_weights_are_read(tmp_path: Path) -> None:
    numbers = ",".join(str(number) for number in matrix().reshape(-1))
    nodes = f"""k = Constant<value = float[8,8] {{{numbers}}}>()
      [q] q = QuantizeLinear(k, s, z) [d] d = DequantizeLinear(q, s, z) [t] t = Transpose<perm = [1, 0]>(d)
      [i] i = Identity(t) [u] u = Transpose<perm = [1, 0]>(i) [v] v = Cast<to = 1>(u)
      [xq] xq = QuantizeLinear(x, s, z) [xd] xd = DequantizeLinear(xq, s, z) [y] y = MatMul(xd, v)"""
    found = checked(tmp_path, body(nodes), s=np.array(0.1, np.float32), z=np.array(0, np.int8))
    assert unread(found) == []
    assert [layer.diagnosis for layer in found.sparsity.layers] == ["valid"]


def test_tables_norms_and_positions_are_no_weights(tmp_path: Path) -> None:
    nodes = """e = Gather(table, ids) s = Add(e, positions) n = LayerNormalization(s, g, g)
      k = Mul(n, scales) m = MatMul(k, w) y = com.microsoft.SkipLayerNormalization(m, m, g, g)"""
    text = body(nodes, inputs="int64[N] ids")
    tables = {name: np.ones((8, 8), np.float32) for name in ("table", "positions", "scales")}
    found = checked(tmp_path, text, w=matrix(), g=np.ones(8, np.float32), **tables)
    assert found.findings == ()


@pytest.mark.parametrize(("others", "small"), [(8, False), (512, True)])
def test_a_stack_in_a_product_is_a_finding_unless_it_is_small(tmp_path: Path, others: int, small: bool) -> None:
    """Learned queries: a product of activations for which the constant is no weight."""
    text = """g (float[N,4,8,16] k, float[N,K] x) => (float[N,4,2,16] y, float[N,K] z) {
      [q] y = MatMul(queries, k) [fc] z = MatMul(x, w) }"""
    arrays = {"queries": np.ones((1, 4, 2, 8), np.float32), "w": matrix(others, others)}
    found = checked(tmp_path, text, **arrays)
    told = found.remarks if small else unread(found)
    (what,) = told
    assert what.startswith("1 weight of MatMul (not a matrix) is not checked: 64 parameters, ")
    assert bool(found.findings) != small


def test_a_model_without_weights_is_told_so_and_holds(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", body("y = Relu(x)"))
    done = run_main(command, path)
    assert done.code == 0
    assert "m.onnx: the model has no stored weight of a GEMM or convolution: there was none to check" in done.err


def test_the_command_names_operators_nodes_and_share(tmp_path: Path) -> None:
    nodes = "[one] a = MatMul(x, w) [two] y = com.microsoft.FusedMatMul(a, v)"
    done = run_main(command, write(tmp_path / "m.onnx", body(nodes), w=matrix(), v=matrix()))
    assert done.code == 1
    line = next(line for line in done.out.splitlines() if line.startswith("not-read: "))
    share = "64 parameters, 50.0% of the file's"
    assert line.startswith(f"not-read: two: 1 weight of com.microsoft.FusedMatMul is not checked: {share}; try: ")
