"""Where the samples of an output stand; the first output stays the first."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from gpusq_deploy.graph.batch_axes import sample_axes

MODEL = """<ir_version: 10, opset_import: ["" : 20]>
g (float[batch,3] x) => (float[folded,3] windows, float[batch,3] plain, float[2,2] table) {
  windows = Identity(x)
  plain = Identity(x)
  table = Identity(x)
}"""


def test_the_outputs_keep_the_order_of_the_graph() -> None:
    axes = sample_axes(ir.from_onnx_text(MODEL).graph)
    rows = np.arange(12, dtype=np.float32).reshape(4, 3)
    answers = {"windows": np.repeat(rows, 2, axis=0), "plain": rows, "table": np.ones((2, 2), np.float32)}
    moved = {"windows": np.roll(answers["windows"], -2, axis=0), "plain": np.roll(rows, -1, axis=0)}
    rolled = {**answers, **moved}
    found = axes.found(answers, rolled, 4)
    assert list(found.known) == ["windows", "plain", "table"]
    assert found.known["table"] is None
    assert found.by_sample(answers, 4)["windows"].shape[0] == 4
