"""Channel weights against a loop over the weight, and ranges of weighted layers against raw activations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny_models

from gpusq_deploy.calibration.output_error_weights import column_weights
from gpusq_deploy.graph.layers import weighted_layers

FULL = 2**20


def by_hand(norms: Any) -> list[int]:
    largest = max(norms)
    return [round(norm / largest * FULL) for norm in norms]


def random(*shape: int) -> Any:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def weights_of(text: str, **constants: Any) -> Any:
    model = tiny_models.graph(text, **constants)
    return column_weights(model, weighted_layers(model))


def test_a_matmul_weighs_its_rows() -> None:
    w = random(4, 5)
    found = weights_of("g (float[B,3,4] input) => (float[B,3,5] y) { [fc] y = MatMul(input, w) }", w=w)
    norms = [sum(float(w[k, n]) ** 2 for n in range(5)) for k in range(4)]
    assert found.tolist() == by_hand(norms)


def test_a_transposed_gemm_weighs_its_columns() -> None:
    w = random(5, 4)
    found = weights_of("g (float[B,4] input) => (float[B,5] y) { [fc] y = Gemm<transB=1>(input, w) }", w=w)
    norms = [sum(float(w[n, k]) ** 2 for n in range(5)) for k in range(4)]
    assert found.tolist() == by_hand(norms)


def test_layers_of_one_tensor_add_up() -> None:
    a, b = random(4, 5), random(4, 2) * 3
    text = """g (float[B,3,4] input) => (float[B,3,5] y, float[B,3,2] z) {
      [q] y = MatMul(input, a) [k] z = MatMul(input, b)
    }"""
    norms = [float((a[k] ** 2).sum() + (b[k] ** 2).sum()) for k in range(4)]
    assert weights_of(text, a=a, b=b).tolist() == pytest.approx(by_hand(norms), abs=1)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_weighs_its_input_channels(groups: int) -> None:
    w = random(4, 6 // groups, 2, 2)
    text = f"""g (float[B,6,8,8] input) => (float[B,4,4,4] y) {{
      [conv] y = Conv<kernel_shape=[2,2], strides=[2,2], group={groups}>(input, w)
    }}"""
    norms = [0.0] * 6
    for out in range(4):
        first = out // (4 // groups) * (6 // groups)
        for channel in range(6 // groups):
            norms[first + channel] += float((w[out, channel].astype(np.float64) ** 2).sum())
    found = weights_of(text, w=w)
    assert found.shape == (6, 1, 1)
    assert found.ravel().tolist() == by_hand(norms)


def test_weights_that_are_all_zero_weigh_every_channel_alike() -> None:
    text = "g (float[B,3,4] input) => (float[B,3,5] y) { [fc] y = MatMul(input, w) }"
    assert weights_of(text, w=np.zeros((4, 5), np.float32)).tolist() == [1] * 4
