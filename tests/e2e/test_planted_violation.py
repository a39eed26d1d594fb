"""An INT8 model with one non-zero too many, in one group of one layer: gpusq-validate says where it stands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import planning
import pytest
import tiny_models
from commands import run_main

from gpusq_deploy.cli.validate import main as validate
from gpusq_deploy.graph.files import save_model
from gpusq_deploy.graph.layers import weighted_layers
from gpusq_deploy.graph.passes.base import run_passes
from gpusq_deploy.graph.passes.cast_to_float_type import CastToFloatType
from gpusq_deploy.graph.values import array_of
from gpusq_deploy.numerics.two_four import magnitude_mask

LAYERS, SIZE = 4, 64


def int8_chain(path: Path, *, planted: tuple[int, int, int] | None) -> Path:
    """Four 2:4 products in INT8, FP16 between them. `planted`: layer, row and column of a code that becomes 1."""
    random = np.random.default_rng(0)
    rows = {f"w{index}": random.standard_normal((SIZE, SIZE), dtype=np.float32) for index in range(LAYERS)}
    # MatMul keeps K x N: the groups run down the columns.
    weights = {name: np.where(magnitude_mask(value), value, np.float32(0)).T.copy() for name, value in rows.items()}
    steps = " ".join(f"[fc{index}] x{index + 1} = MatMul(x{index}, w{index})" for index in range(LAYERS))
    text = f"g (float[B,{SIZE}] x0) => (float[B,{SIZE}] x{LAYERS}) {{ {steps} }}"
    ranges = planning.table({f"x{index}": 4.0 for index in range(LAYERS)})
    built = planning.quantized(tiny_models.graph(text, **weights), ranges, float_type="fp16").after
    built = run_passes(built, [CastToFloatType("fp16")])
    if planted is not None:
        layer, row, column = planted
        value = built.graph.initializers[weighted_layers(built)[layer].weight]
        codes = array_of(value).copy()
        assert codes.dtype == np.int8
        assert codes[column, row] == 0
        codes[column, row] = 1
        value.const_value = tiny_models.tensor(codes, str(value.name))
    save_model(built, path)
    return path


def zero_of(path: Path, layer: int, row: int) -> int:
    """A column whose code is zero though its group is full."""
    import onnx_ir as ir

    model = ir.load(path)
    codes = array_of(model.graph.initializers[weighted_layers(model)[layer].weight]).T
    full = [group for group in range(SIZE // 4) if np.count_nonzero(codes[row, 4 * group : 4 * group + 4]) == 2]
    group = full[len(full) // 2]
    return 4 * group + int(np.flatnonzero(codes[row, 4 * group : 4 * group + 4] == 0)[-1])


@pytest.mark.parametrize(("layer", "row"), [(0, 0), (2, 37), (3, SIZE - 1)])
def test_one_planted_code_is_caught_and_located(tmp_path: Path, layer: int, row: int) -> None:
    good = int8_chain(tmp_path / "good.onnx", planted=None)
    done = run_main(validate, good, "--json")
    assert (done.code, done.json()["findings"]) == (0, []), done.err
    column = zero_of(good, layer, row)
    bad = int8_chain(tmp_path / "bad.onnx", planted=(layer, row, column))

    done = run_main(validate, bad, "--json", "--target", "orin")
    assert done.code == 1
    (finding,) = done.json()["findings"]
    start = column // 4 * 4
    assert (finding["rule"], finding["place"]) == ("not-2:4", f"fc{layer}")
    assert f"row {row}, columns {start} to {start + 3}: [" in finding["what"]
    states = {state["layer"]: state for state in done.json()["sparsity"]["layers"]}
    assert [name for name, state in states.items() if state["violations"]] == [f"fc{layer}"]
    state = states[f"fc{layer}"]
    assert (state["violations"], state["places"], state["diagnosis"]) == (1, [[row, column // 4]], "damaged")
    assert (state["dtype"], state["worst"]["value"]) == ("int8", 1.0)
    chains = {entry["layer"]: [step["answer"] for step in entry["chain"]] for entry in done.json()["explained"]}
    assert chains.pop(f"fc{layer}") == ["no", "no", "unknown", "unknown"]
    assert set(map(tuple, chains.values())) == {("yes", "yes", "unknown", "unknown")}

    table = run_main(validate, bad)
    assert table.code == 1
    assert f"row {row}, columns {start} to {start + 3}" in table.out
