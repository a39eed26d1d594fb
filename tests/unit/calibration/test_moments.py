"""Moments in one pass against numpy on all rows at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
import tiny_models
import torch

from gpusq_deploy.calibration.data import ArrayFile
from gpusq_deploy.calibration.moments import ChannelMoments, ChannelMomentSums
from gpusq_deploy.calibration.needs import Needs
from gpusq_deploy.calibration.observe import Observing, observe
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend.checkpoint.tensors import array_from_tensor

Array = npt.NDArray[Any]
TEXT = "g (float[B,3,2,6] input) => (float[B,3,2,6] y) { [one] a = Mul(input, two) [other] y = Add(a, two) }"


def source(values: Array) -> ArrayFile:
    return ArrayFile(name="rows.npy", values=values)


def collect(
    values: Array, *, text: str = TEXT, covariance_of: tuple[str, ...] = ("a", "y"), workers: int = 1
) -> dict[str, ChannelMoments]:
    model = tiny_models.graph(text, two=np.full(1, 2, np.float32))
    return observed(model, source(values), {name: name in covariance_of for name in ("a", "y")}, workers=workers)


def observed(
    model: ir.Model, data: ArrayFile, moments: dict[str, bool], *, workers: int = 1
) -> dict[str, ChannelMoments]:
    return dict(observe(model, Needs(moments=moments), data, how=Observing(workers=workers)).moments)


def require_moments(found: ChannelMoments, rows: Array, *, rtol: float = 1e-5) -> None:
    """`rows` [n, K] in float64."""
    mean = rows.mean(axis=0)
    covariance = (rows - mean).T @ (rows - mean) / len(rows)
    np.testing.assert_allclose(found.low, rows.min(axis=0), rtol=rtol)
    np.testing.assert_allclose(found.high, rows.max(axis=0), rtol=rtol)
    np.testing.assert_allclose(found.mean, mean, rtol=rtol, atol=rtol * np.abs(rows).max())
    np.testing.assert_allclose(found.variance, rows.var(axis=0), rtol=10 * rtol)
    assert found.covariance is not None
    size = float(np.abs(covariance).max())
    np.testing.assert_allclose(found.covariance, covariance, rtol=10 * rtol, atol=10 * rtol * size)


@pytest.mark.parametrize("batch", ["B", "4", "1"])
def test_moments_are_those_of_all_rows(batch: str) -> None:
    """Ten samples: with the static batch of 4 the last group isn't full."""
    values = np.random.default_rng(0).standard_normal((10, 3, 2, 6)).astype(np.float32)
    found = collect(values, text=TEXT.replace("B,", f"{batch},"))
    rows = 2 * values.reshape(-1, 6).astype(np.float64)
    require_moments(found["a"], rows)
    require_moments(found["y"], rows + 2)


@pytest.mark.parametrize("batch", ["B", "4"])
def test_variances_need_no_second_moments(batch: str) -> None:
    """A static batch of 4, of which the last is filled up with samples that stand there twice."""
    random = np.random.default_rng(7)
    values = (100 + random.standard_normal((10, 3, 2, 6))).astype(np.float32)
    found = collect(values, text=TEXT.replace("B,", f"{batch},"), covariance_of=())
    rows = 2 * values.reshape(-1, 6).astype(np.float64)
    np.testing.assert_allclose(found["a"].variance, rows.var(axis=0), rtol=1e-4)
    assert found["a"].covariance is None


def test_a_mean_far_larger_than_the_variance_does_not_drown_it() -> None:
    """Means of 1e4 and deviations of a hundredth: raw float32 sums would lose all of it."""
    random = np.random.default_rng(1)
    values = (1e4 * np.arange(1, 7) + 0.05 * random.standard_normal((30, 3, 2, 6))).astype(np.float32)
    # The graph doubles exactly, so that the values' own rounding is the same on both sides.
    require_moments(collect(values)["a"], 2 * values.reshape(-1, 6).astype(np.float64), rtol=1e-6)


def test_a_first_sample_unlike_the_others_does_no_harm() -> None:
    values = np.random.default_rng(2).standard_normal((20, 3, 2, 6)).astype(np.float32)
    values[:4] += 500
    require_moments(collect(values)["a"], 2 * values.reshape(-1, 6).astype(np.float64))


def test_second_moments_are_kept_only_where_they_are_wanted() -> None:
    found = collect(np.ones((2, 3, 2, 6), np.float32), covariance_of=("y",))
    assert found["a"].covariance is None
    assert found["y"].covariance is not None
    assert not found["y"].covariance.any()


def test_the_moments_do_not_depend_on_the_number_of_workers() -> None:
    values = np.random.default_rng(5).standard_normal((9, 3, 2, 6)).astype(np.float32)
    one, three = collect(values), collect(values, workers=3)
    for name in ("a", "y"):
        for field in ("low", "high", "mean", "variance", "covariance"):
            np.testing.assert_array_equal(getattr(one[name], field), getattr(three[name], field))


def test_rows_beyond_those_that_wait_are_added_once() -> None:
    """More rows than are held back, in uneven parts."""
    rows = np.random.default_rng(6).standard_normal((3000, 5)).astype(np.float32)
    sums = ChannelMomentSums(rows[:7], squares=True)
    for start in range(0, 3000, 700):
        sums.add(rows[start : start + 700])
    require_moments(sums.moments(), rows.astype(np.float64))


def test_channel_moments_are_refused_where_several_processes_share_the_data() -> None:
    model = tiny_models.graph(TEXT, two=np.full(1, 2, np.float32))
    with pytest.raises(ValueError, match="single process"):
        observe(model, Needs(moments={"a": False}), source(np.ones((2, 3, 2, 6), np.float32)), how=Observing(world=2))


def test_an_activation_that_is_not_finite_is_named() -> None:
    values = np.ones((5, 3, 2, 6), np.float32)
    values[4, 2, 1, 5] = -1
    text = TEXT.replace("[one] a = Mul(input, two)", "[one] a = Sqrt(input)")
    with pytest.raises(GpusqError, match="NaN or infinity") as caught:
        collect(values, text=text)
    assert caught.value.place == "tensor a"


@pytest.mark.slow
@pytest.mark.parametrize("static", [False, True])
def test_moments_are_what_torch_hooks_see(static: bool) -> None:
    exported, images = tiny_models.exported_vit(static=static), tiny_models.images(11)
    seen: list[Array] = []
    module: Any = exported.checkpoint.module
    layer = module.get_submodule("blocks.0.mlp.fc2")

    def see(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        seen.append(array_from_tensor(inputs[0]))

    handle = layer.register_forward_pre_hook(see)
    with torch.no_grad():
        module(torch.from_numpy(images))
    handle.remove()
    found = observed(exported.model, source(images), {"gelu": True})["gelu"]
    rows = seen[0].reshape(-1, seen[0].shape[-1]).astype(np.float64)
    np.testing.assert_allclose(found.high, rows.max(axis=0), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found.mean, rows.mean(axis=0), rtol=1e-3, atol=1e-4)
    assert found.covariance is not None
    np.testing.assert_allclose(found.covariance, np.cov(rows.T, bias=True), rtol=1e-3, atol=1e-4)
