"""Every way to hold a weight in a graph, in every type: the check sees its rows as a slow, obvious reading does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx.parser
import onnx_ir as ir
import pytest
import tiny_models

from gpusq_deploy.bundle.validation import validate
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph.files import save_model
from gpusq_deploy.graph.layers import weight_rows, weighted_layers
from gpusq_deploy.numerics.two_four import magnitude_mask

N, K = 8, 16
Array = npt.NDArray[Any]
TYPES = {
    "float": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "int8": np.dtype(np.int8),
}


class Form(NamedTuple):
    """Steps from `v` (what is stored, dequantised if need be) to `y`, how it is stored, and the constant `t`."""

    steps: str
    store: Callable[[Array], Array]
    numbers: tuple[int, ...]
    x: str
    y: str


def form(
    steps: str,
    store: Callable[[Array], Array],
    numbers: tuple[int, ...] = (),
    x: str = f"B,{K}",
    y: str = f"B,{N}",
) -> Form:
    return Form(steps, store, numbers, x, y)


PRODUCTS = {
    "MatMul": form("[fc] y = MatMul(x, v)", lambda w: w.T),
    "Gemm": form("[fc] y = Gemm(x, v)", lambda w: w.T),
    "Gemm, transB": form("[fc] y = Gemm<transB = 1>(x, v)", lambda w: w),
    "Transpose": form("[a] u = Transpose<perm = [1, 0]>(v) [fc] y = MatMul(x, u)", lambda w: w),
    "Transpose without perm": form("[a] u = Transpose(v) [fc] y = MatMul(x, u)", lambda w: w),
    "Transpose, transB": form("[a] u = Transpose(v) [fc] y = Gemm<transB = 1>(x, u)", lambda w: w.T),
    "Reshape": form("[a] u = Reshape(v, t) [fc] y = MatMul(x, u)", lambda w: w.T.reshape(2, K // 2, N), (K, -1)),
    "Reshape, Transpose": form(
        "[a] a = Reshape(v, t) [b] u = Transpose(a) [fc] y = MatMul(x, u)", lambda w: w.reshape(N, 4, 4), (0, -1)
    ),
    "Transpose, Reshape": form(
        "[a] a = Transpose<perm = [2, 0, 1]>(v) [b] u = Reshape(a, t) [fc] y = Gemm<transB = 1>(x, u)",
        lambda w: w.reshape(N, 4, 4).transpose(1, 2, 0),
        (N, K),
    ),
    "Squeeze": form("[a] u = Squeeze(v, t) [fc] y = Gemm<transB = 1>(x, u)", lambda w: w[:, None, :], (1,)),
    "Squeeze of all": form("[a] u = Squeeze(v) [fc] y = MatMul(x, u)", lambda w: w.T[None]),
    "Flatten": form("[a] u = Flatten(v) [fc] y = Gemm<transB = 1>(x, u)", lambda w: w.reshape(N, 2, -1)),
    "first operand": form("[fc] y = MatMul(v, x)", lambda w: w, x=f"{K},B", y=f"{N},B"),
    "first operand, Gemm": form("[fc] y = Gemm(v, x)", lambda w: w, x=f"{K},B", y=f"{N},B"),
    "first operand, transA": form("[fc] y = Gemm<transA = 1>(v, x)", lambda w: w.T, x=f"{K},B", y=f"{N},B"),
}
_CONV = "[fc] y = Conv<kernel_shape = [3, 2]>(x, u)"


def conv(steps: str, store: Callable[[Array], Array], numbers: tuple[int, ...] = ()) -> Form:
    return form(steps, store, numbers, x=f"B,{K},5,4", y=f"B,{N},3,3")


def kernels(rows: Array) -> Array:
    """[N, K, 3, 2] out of [N·3·2, K]."""
    return np.moveaxis(rows.reshape(N, 3, 2, K), -1, 1)


CONVS = {
    "Conv": conv(_CONV.replace("u)", "v)"), kernels),
    "Conv, kernels last": conv(
        f"[a] u = Transpose<perm = [3, 2, 0, 1]>(v) {_CONV}", lambda r: kernels(r).transpose(2, 3, 1, 0)
    ),
    "Conv, channels last": conv(
        f"[a] u = Transpose<perm = [0, 3, 1, 2]>(v) {_CONV}", lambda r: kernels(r).transpose(0, 2, 3, 1)
    ),
    "Conv, Reshape": conv(f"[a] u = Reshape(v, t) {_CONV}", lambda r: kernels(r).reshape(N, -1), (0, K, 3, -1)),
    "Conv, Unsqueeze": form(
        "[a] u = Unsqueeze(v, t) [fc] y = Conv<kernel_shape = [1, 1]>(x, u)",
        lambda r: r,
        (2, 3),
        x=f"B,{K},5,4",
        y=f"B,{N},5,4",
    ),
    "Conv of one axis": form(
        "[fc] y = Conv<kernel_shape = [3]>(x, v)",
        lambda r: np.moveaxis(r.reshape(N, 3, K), -1, 1),
        x=f"B,{K},5",
        y=f"B,{N},3",
    ),
}
ROWS = {"Conv": 6 * N, "Conv, kernels last": 6 * N, "Conv, channels last": 6 * N, "Conv, Reshape": 6 * N}


def rows_of(name: str, dtype: np.dtype[Any]) -> Array:
    """2:4 rows of whole numbers, which every type holds."""
    count = ROWS.get(name, 3 * N if name == "Conv of one axis" else N)
    values = np.random.default_rng(len(name)).integers(1, 9, (count, K))
    return np.where(magnitude_mask(values), values, 0).astype(dtype)


def written(path: Path, way: Form, rows: Array, kind: str) -> Path:
    """The form as a file; INT8 is dequantised first, and everything else passes a Cast to what it is."""
    stored = np.ascontiguousarray(way.store(rows))
    constants: dict[str, Array] = {"w": stored}
    if kind == "int8":
        first = "[dq] v = DequantizeLinear(w, s)"
        constants["s"] = np.array(0.5, np.float32)
    else:
        first = f"[cast] v = Cast<to = {({'float': 1, 'float16': 10, 'bfloat16': 16})[kind]}>(w)"
    if way.numbers:
        constants["t"] = np.array(way.numbers, np.int64)
    element = "float" if kind == "int8" else kind
    text = f"g ({element}[{way.x}] x) => ({element}[{way.y}] y) {{ {first} {way.steps} }}"
    save_model(tiny_models.graph(text, **constants), path)
    return path


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", [*PRODUCTS, *CONVS])
def test_the_planted_violation_is_found_where_it_stands(tmp_path: Path, name: str, kind: str) -> None:
    way, rows = (PRODUCTS | CONVS)[name], rows_of(name, TYPES[kind])
    (good,) = validate(written(tmp_path / "good.onnx", way, rows, kind)).sparsity.layers
    assert (good.valid, good.n, good.k, good.dtype) == (True, len(rows), K, TYPES[kind].name)
    assert good.zero_fraction == np.count_nonzero(rows == 0) / rows.size

    row, column = len(rows) - 2, int(np.flatnonzero(rows[-2] == 0)[3])
    rows[row, column] = 5
    (bad,) = validate(written(tmp_path / "bad.onnx", way, rows, kind)).sparsity.layers
    assert (bad.violations, bad.places) == (1, ((row, column // 4),))
    assert bad.worst is not None
    assert (bad.worst.row, bad.worst.index) == (row, column // 4)


def test_what_no_pass_rewrites_is_no_layer_of_a_plan(tmp_path: Path) -> None:
    seen = {name for name in (PRODUCTS | CONVS) if name not in {"Conv", "Conv of one axis"}}
    seen -= {"MatMul", "Gemm", "Gemm, transB", "Transpose", "Transpose without perm", "Transpose, transB"}
    for name in PRODUCTS | CONVS:
        model = _opened(tmp_path, name)
        assert bool(weighted_layers(model)) == (name not in seen), name
        (layer,) = weighted_layers(model, only_seen=True)
        assert layer.only_seen == (name in seen)
        np.testing.assert_array_equal(weight_rows(model, layer), rows_of(name, TYPES["float"]))


def _opened(folder: Path, name: str) -> ir.Model:
    return ir.load(written(folder / "model.onnx", (PRODUCTS | CONVS)[name], rows_of(name, TYPES["float"]), "float"))


@pytest.mark.parametrize("target", ["[3, 5]", "[0, 0, 0]"])
def test_a_weight_that_does_not_fit_its_reshape_is_an_error(target: str) -> None:
    numbers = np.array([int(part) for part in target.strip("[]").split(",")], np.int64)
    text = "g (float[B,16] x) => (float[B,8] y) { [a] v = Reshape(w, t) [fc] y = MatMul(x, v) }"
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]>\n{text}')
    constants: dict[str, Array] = {"w": np.ones((16, 8), np.float32), "t": numbers}
    for name, value in constants.items():
        proto.graph.initializer.append(ir.to_proto(ir.tensor(value, name=name)))
    with pytest.raises(GpusqError, match=r"can't pass this Reshape") as caught:
        weighted_layers(ir.from_proto(proto), only_seen=True)
    assert caught.value.place == "node a"
