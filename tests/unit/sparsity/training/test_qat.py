"""Fake quantisation in torch against NumPy's arithmetic, and against the Q/DQ graph that gpusq-build writes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from exact_sessions import exact_session

from gpusq_deploy.artifacts.calibration import AMAX, Calibrator
from gpusq_deploy.artifacts.recipe import load_recipe, recipe_from_toml
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend.checkpoint.load import load_checkpoint, save_checkpoint
from gpusq_deploy.frontend.checkpoint.tensors import array_from_tensor
from gpusq_deploy.numerics.error import sqnr_db
from gpusq_deploy.sparsity.training.qat import (
    fake_quantized,
    int8_layers,
    observed_scales,
    quantized_input,
    quantized_weight,
)

AMAX_OF: dict[str, Calibrator] = dict.fromkeys(("q", "k", "v"), AMAX)


class Shared(torch.nn.Module):
    """Three Linears of which two read one tensor, and one that is never run."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (torch.nn.Linear(32, 32) for _ in range(3))
        self.idle = torch.nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.v(self.q(x) * self.k(x)))


def test_inputs_are_rounded_as_quantizelinear_rounds_them() -> None:
    values = torch.tensor([-9.0, -1.28, -1.27, -0.005, 0.005, 0.015, 0.025, 0.7, 1.275, 9.0])
    got = quantized_input(values, torch.tensor(0.01))
    codes = np.clip(np.rint(array_from_tensor(values) / np.float32(0.01)), -128, 127)
    np.testing.assert_array_equal(array_from_tensor(got), (codes * np.float32(0.01)).astype(np.float32))


def test_weights_are_rounded_by_rows_and_a_row_of_zeros_stays_one() -> None:
    weight = torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    weight[2] = 0
    scale = np.abs(array_from_tensor(weight)).reshape(5, -1).max(axis=1) / np.float32(127)
    scale[2] = 1
    column = scale.reshape(5, 1, 1, 1)
    np.testing.assert_allclose(
        array_from_tensor(quantized_weight(weight)),
        np.rint(array_from_tensor(weight) / column) * column,
        rtol=1e-6,
        atol=0,
    )


def test_a_scale_learns_by_lsq() -> None:
    """The gradient of the equation in the paper: round(x/s) - x/s inside, the end outside, times 1/sqrt(n · 127)."""
    values = torch.tensor([0.012, -0.017, 5.0, -5.0])
    scale = torch.tensor(0.01, requires_grad=True)
    torch.autograd.backward(quantized_input(values, scale).sum())
    inside = sum(round(x / 0.01) - x / 0.01 for x in (0.012, -0.017))
    assert scale.grad is not None
    assert float(scale.grad) == pytest.approx((inside + 127 - 128) / math.sqrt(4 * 127), rel=1e-3)


def test_layers_that_read_one_tensor_share_its_scale() -> None:
    torch.manual_seed(0)
    module = Shared()
    x = torch.randn(4, 32)
    scales = observed_scales(module, AMAX_OF, [x, 3 * x])
    assert len(scales.parameters()) == 2
    assert scales.ranges()["q"] == scales.ranges()["k"] == pytest.approx(3 * float(x.abs().max()))
    assert scales.ranges()["v"] == pytest.approx(float((module.q(3 * x) * module.k(3 * x)).detach().abs().max()))
    with pytest.raises(GpusqError, match="isn't called") as caught:
        observed_scales(module, {"idle": AMAX}, [x])
    assert caught.value.place == "layer idle"
    with pytest.raises(GpusqError, match="reads nothing but zeros"):
        observed_scales(module, {"q": AMAX}, [0 * x])


def test_what_stays_float_says_why() -> None:
    module = torch.nn.ModuleDict(
        {"attn": torch.nn.MultiheadAttention(32, 2), "short": torch.nn.Linear(8, 8), "head": torch.nn.Linear(32, 4)}
    )
    chosen, kept = int8_layers(module, load_recipe(None))
    assert [*chosen] == ["head"]
    reasons = {entry.layer: entry.reason for entry in kept}
    inside = "nn.MultiheadAttention multiplies by its weight inside"
    assert reasons["attn.in_proj"] == reasons["attn.out_proj"] == inside
    assert "32" in reasons["short"]
    nothing = (
        'schema = "gpusq.recipe/1"\nname = "none"\ndescription = "x"\n[[rule]]\nprecision = "float"\nreason = "float"\n'
    )
    with pytest.raises(GpusqError, match="makes no layer INT8"):
        int8_layers(module, recipe_from_toml(nothing, place="x"))


def test_forward_is_the_module_s_own_again_afterwards() -> None:
    torch.manual_seed(0)
    module, x = Shared(), torch.randn(2, 32)
    plain = module(x)
    with fake_quantized(module, observed_scales(module, AMAX_OF, [x])):
        assert not torch.equal(module(x), plain)
    assert torch.equal(module(x), plain)
    assert "forward" not in vars(module.q)


@pytest.mark.slow
def test_the_built_graph_computes_what_was_trained(tmp_path: Path) -> None:
    from gpusq_deploy.api import build

    tiny_models.write_vit(tmp_path / "dense.pt")
    checkpoint = load_checkpoint(tmp_path / "dense.pt", arch=tiny_models.vit_spec())
    images = torch.randn(6, *checkpoint.preprocessing.sample_shape, generator=torch.Generator().manual_seed(0))
    layers = int8_layers(checkpoint.module, load_recipe(None))
    scales = observed_scales(checkpoint.module, layers.calibrators, [images])
    save_checkpoint(
        tmp_path / "qat.pt",
        checkpoint.module,
        arch=checkpoint.arch,
        preprocessing=checkpoint.preprocessing,
        ranges=scales.ranges(),
    )
    build(tmp_path / "qat.pt", out=tmp_path / "b", precision="int8", float_type="fp32", targets=())
    session = exact_session(tmp_path / "b" / "model.onnx")
    with fake_quantized(checkpoint.module, scales), torch.no_grad():
        trained = array_from_tensor(checkpoint.module(images))
    (built,) = session.run(None, {session.get_inputs()[0].name: array_from_tensor(images)})
    assert sqnr_db(trained, built) >= 60
    assert (trained.argmax(1) == built.argmax(1)).all()
    with torch.no_grad():
        assert sqnr_db(array_from_tensor(checkpoint.module(images)), trained) < 50
