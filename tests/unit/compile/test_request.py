"""What contradicts itself in a request is refused where it is made, whoever makes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gpusq_deploy.artifacts.calibration import Calibrator
from gpusq_deploy.artifacts.manifest import BatchRange
from gpusq_deploy.artifacts.recipe import INT4_RECIPE, load_recipe
from gpusq_deploy.compile.request import BuildRequest, RequestError
from gpusq_deploy.compile.target_checks import expressible_recipe
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.quantize.sites import Int8OutputRequest

AMAX, WISH = Calibrator(name="amax"), Int8OutputRequest(least_db=30)
RANGES = Path("ranges.json")


def request(**asked: Any) -> BuildRequest:
    plain: dict[str, Any] = {
        "model": Path("m.pt"),
        "arch": None,
        "quantize": False,
        "sparse": False,
        "float_type": "fp16",
        "recipe": None,
        "calib": None,
        "targets": (),
        "batch": BatchRange(minimum=1, optimum=1, maximum=1),
        "opset": 20,
        "out": Path("m.gpusq"),
        "force": False,
    }
    return BuildRequest(**{**plain, **asked})


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        # The ranges would be those of the dense model.
        ({"quantize": True, "sparse": True, "prune": "magnitude", "ranges": RANGES}, "--prune changes the weights"),
        # Nobody would have checked it, and the build would have passed.
        ({"quantize": True, "calib": "p", "float_type": "bf16", "min_sqnr": 30.0}, "can't be checked with --bf16"),
        ({"expect_outputs": Path("e.npz"), "float_type": "bf16"}, "--expect-outputs can't be checked with --bf16"),
        ({"keep_grid": False}, "--no-keep-grid needs --int8"),
        ({"quantize": True, "calib": "p", "min_sqnr": float("nan")}, "--min-sqnr is a number"),
        ({"quantize": True, "calib": "p", "min_agreement": 97.0}, "from 0 to 1"),
        ({"quantize": True, "calib": "random", "min_sqnr": 30.0}, "measured on real samples"),
        ({"recipe": Path("r.toml")}, "--recipe needs"),
        ({"dump_passes": Path("m.gpusq/passes")}, "can't lie in the bundle"),
        ({"ranges": RANGES}, "need --int8 or --fp8"),
        ({"calibrator": AMAX, "calib": "p"}, "need --int8 or --fp8"),
        ({"quantize": True, "calibrator": AMAX, "ranges": RANGES}, "changes nothing about --ranges"),
        ({"quantize": True, "calibrator": AMAX}, "--calibrator needs --calib"),
        ({"quantize": True, "recalibrate": True}, "--recalibrate needs --calib"),
        ({"permute": True}, "--permute needs --prune"),
        ({"prune": "magnitude"}, "--prune needs --sparse"),
        ({"sparse": True, "prune": "second-order", "calib": "random"}, "learns from data"),
        ({"quantize": True, "sparse_outputs": WISH, "calib": "p"}, "--sparse-outputs needs"),
        ({"quantize": True, "pack": True}, "--pack needs"),
    ],
)
def test_contradictions_are_mistakes_in_the_command(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said) as caught:
        request(**asked)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("asked", [{"pack": True}, {"sparse_outputs": WISH}, {"ranges": RANGES}, {"calibrator": AMAX}])
def test_int8s_options_need_a_recipe_that_makes_int8(asked: dict[str, Any]) -> None:
    wished = request(quantize=True, sparse=True, calib="p", recipe=load_recipe(Path(INT4_RECIPE)), opset=21, **asked)
    with pytest.raises(RequestError):
        expressible_recipe(wished)


def test_a_producers_outputs_are_samples_enough_for_a_limit() -> None:
    assert request(quantize=True, expect_outputs=Path("e.npz"), min_sqnr=45.0).min_sqnr == 45.0


def test_what_agrees_is_a_request() -> None:
    wished = request(
        quantize=True,
        sparse=True,
        calib="p",
        prune="second-order",
        permute=True,
        pack=True,
        min_sqnr=30.0,
        calibrator=AMAX,
    )
    assert expressible_recipe(wished).name == "static_wi8_ai8"
    assert request(quantize=True).usual_calibrator == AMAX


def test_the_opset_must_have_the_recipes_types() -> None:
    with pytest.raises(GpusqError, match="opset 21 on, not in 20"):
        expressible_recipe(request(quantize=True, recipe=load_recipe(Path(INT4_RECIPE))))
