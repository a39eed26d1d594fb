"""Where the channels of an attention's result come from: as torch exports it, by hand, and what is declined."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
import tiny_models

from gpusq_deploy.graph.attention import find_attentions
from gpusq_deploy.graph.passes.base import run_passes
from gpusq_deploy.graph.passes.pipelines import CANONICAL
from gpusq_deploy.graph.value_channels import ValueChannels, value_channels
from gpusq_deploy.graph.values import array_of

Array = npt.NDArray[Any]

# Two heads of four channels, three tokens; query, key and value are channels 0-7, 8-15 and 16-23 of one layer.
PACKED = """
g (float[B,3,8] x) => (float[B,3,5] y) {
  [qkv] product = MatMul(x, w)
  biased = Add(product, b)
  heads = Reshape(biased, five)
  turned = Transpose<perm = [2, 0, 3, 1, 4]>(heads)
  q, k, v = Split<axis = 0, num_outputs = 3>(turned)
  q1 = Squeeze(q, first)
  k1 = Squeeze(k, first)
  v1 = Squeeze(v, first)
  kt = Transpose<perm = [0, 1, 3, 2]>(k1)
  scores = MatMul(q1, kt)
  p = Softmax<axis = -1>(scores)
  [context] c = MatMul(p, v1)
  back = Transpose<perm = [0, 2, 1, 3]>(c)
  flat = Reshape(back, three)
  [proj] y = MatMul(flat, out)
}
"""


def packed(text: str = PACKED) -> ir.Model:
    random = np.random.default_rng(0)
    return tiny_models.graph(
        text,
        w=random.standard_normal((8, 24)).astype(np.float32),
        b=random.standard_normal(24).astype(np.float32),
        out=random.standard_normal((8, 5)).astype(np.float32),
        five=np.array([-1, 3, 3, 2, 4]),
        three=np.array([-1, 3, 8]),
        first=np.array([0]),
    )


def channels_of(model: ir.Model, reader: str = "proj") -> ValueChannels | str:
    node = next(node for node in model.graph if node.name == reader)
    assert node.inputs[0] is not None
    return value_channels(node.inputs[0], model.opset_imports.get("", 20))


def test_the_values_of_a_packed_layer_are_its_last_third() -> None:
    assert channels_of(packed()) == ValueChannels(writer="qkv", channels=tuple(range(16, 24)))


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        ("p = Softmax<axis = -1>(scores)", "p = Softmax<axis = 1>(scores)", "isn't the result of an attention"),
        ("p = Softmax<axis = -1>(scores)", "p = Relu(scores)", "isn't the result of an attention"),
        ("MatMul(p, v1)", "MatMul(p, k1)", "something else reads the attention's values too"),
        ("v1 = Squeeze(v, first)", "v0 = Squeeze(v, first) v1 = Relu(v0)", "don't come from a Linear layer"),
        # The heads' channels change places with the tokens: no channel of the result is one of the layer.
        ("[2, 0, 3, 1, 4]", "[2, 0, 1, 3, 4]", "aren't the same for all tokens"),
    ],
)
def test_what_only_looks_like_it_is_declined(before: str, after: str, reason: str) -> None:
    model = packed(PACKED.replace(before, after))
    answer = channels_of(model)
    assert isinstance(answer, str)
    assert reason in answer


def test_a_second_reader_of_the_result_on_its_way_is_declined() -> None:
    text = PACKED.replace("flat = Reshape(back, three)", "flat = Reshape(back, three)\n  other = Relu(back)")
    answer = channels_of(packed(text))
    assert isinstance(answer, str)
    assert "something else reads" in answer


@pytest.mark.slow
@pytest.mark.parametrize("static", [False, True])
def test_a_bias_of_the_values_reaches_the_result_as_it_is(*, static: bool) -> None:
    """Run for real: a constant added to each value channel's bias comes out of the attention at the channel it says."""
    for exported in (tiny_models.exported_vit(static=static).model, tiny_models.exported_swin(static=static)):
        model = run_passes(exported, CANONICAL)
        (attention, *_) = find_attentions(model)
        found = channels_of(model, attention.output)
        assert isinstance(found, ValueChannels)
        reader = next(node for node in model.graph if node.name == attention.output)
        assert reader.inputs[0] is not None
        model.graph.outputs.append(reader.inputs[0])
        shift = np.arange(1, len(found.channels) + 1, dtype=np.float32)
        size = 32
        feeds = {"input": np.random.default_rng(0).standard_normal((4, 3, size, size), dtype=np.float32)}
        before = list(tiny_models.run_model(model, feeds).values())[-1]
        add = next(iter(next(node for node in model.graph if node.name == found.writer).outputs[0].uses())).node
        index = next(index for index, value in enumerate(add.inputs) if value is not None and value.is_initializer())
        bias = add.inputs[index]
        assert bias is not None
        changed = array_of(bias).copy()
        changed[list(found.channels)] += shift
        constant = ir.Value(name="changed", const_value=ir.tensor(changed, name="changed"))
        model.graph.register_initializer(constant)
        add.replace_input_with(index, constant)
        after = list(tiny_models.run_model(model, feeds).values())[-1]
        np.testing.assert_allclose(after - before, np.broadcast_to(shift, after.shape), rtol=1e-3, atol=1e-3)
