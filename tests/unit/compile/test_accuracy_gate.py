"""What a build asks of its verification."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bundles
import msgspec
import numpy as np
import pytest
import tiny_models

from gpusq_deploy.artifacts.manifest import BatchRange
from gpusq_deploy.artifacts.receipt import Drift, ExpectedOutput, ProducerComparison, TaskAccuracy, Verification
from gpusq_deploy.compile.accuracy_gate import (
    failed_place,
    producer_shortfalls,
    require_checkable,
    shortfalls,
    task_shortfalls,
)
from gpusq_deploy.compile.request import BuildRequest
from gpusq_deploy.errors import GpusqError

FOUND = Verification(images=4, held_out=True, sqnr_db=24.996, cosine=0.99, top1_agreement=0.75, note="")
CLASSES = tiny_models.graph("g (float[N,4] x) => (float[N,4] y) { y = Mul(x, c) }", c=np.array(2, np.float32))
TOKENS = tiny_models.graph("g (float[N,3,4] x) => (float[N,3,4] y) { y = Mul(x, c) }", c=np.array(2, np.float32))


def request(out: Path = Path("m.gpusq"), **asked: Any) -> BuildRequest:
    return BuildRequest(
        model=Path("m.pt"),
        arch=None,
        quantize=True,
        sparse=False,
        float_type="fp16",
        recipe=None,
        calib="photos",
        targets=(),
        batch=BatchRange(minimum=1, optimum=1, maximum=1),
        opset=20,
        out=out,
        force=False,
        **asked,
    )


@pytest.mark.parametrize(
    ("asked", "missed"),
    [
        ({}, 0),
        ({"min_sqnr": 24.996}, 0),
        ({"min_sqnr": 25.0}, 1),
        ({"min_agreement": 0.75}, 0),
        ({"min_agreement": 0.76}, 1),
        ({"min_sqnr": 25.0, "min_agreement": 0.76}, 2),
    ],
)
def test_what_is_below_its_limit_is_said_and_the_limit_itself_is_enough(asked: dict[str, Any], missed: int) -> None:
    said = shortfalls(FOUND, request(**asked))
    assert len(said) == missed
    assert all("is below --min-" in each for each in said)


def test_a_narrow_shortfall_does_not_read_as_if_the_limit_were_reached() -> None:
    """Two decimals would make 25.00 of it."""
    (said,) = shortfalls(FOUND, request(min_sqnr=25.0))
    assert said == "SQNR 24.996 dB is below --min-sqnr 25"


@pytest.mark.parametrize(
    ("asked", "options"),
    [
        ({"min_sqnr": 20.0}, "--min-sqnr can't"),
        ({"min_agreement": 0.5}, "--min-agreement can't"),
        ({"min_sqnr": 20.0, "min_agreement": 0.5}, "--min-sqnr and --min-agreement can't"),
    ],
)
def test_a_constant_output_reaches_no_limit(asked: dict[str, Any], options: str) -> None:
    """Equal to the last bit, and so it is with any weights before the head."""
    perfect = msgspec.structs.replace(FOUND, sqnr_db=300.0, top1_agreement=1.0, constant=True)
    (said,) = shortfalls(perfect, request(**asked))
    assert "the same output for all 4 samples" in said
    assert options in said
    assert shortfalls(perfect, request()) == ()
    assert shortfalls(msgspec.structs.replace(perfect, constant=False), request(**asked)) == ()


@pytest.mark.parametrize("limit", [{"min_sqnr": 20.0}, {"min_agreement": 0.9}])
def test_a_limit_on_what_was_not_measured_is_missed(limit: dict[str, Any]) -> None:
    unmeasured = msgspec.structs.replace(FOUND, sqnr_db=None, top1_agreement=None)
    (missed,) = shortfalls(unmeasured, request(**limit))
    assert "can't be judged" in missed


def test_agreement_needs_classes_and_is_refused_before_any_work() -> None:
    require_checkable(request(min_agreement=0.9), CLASSES)
    require_checkable(request(min_sqnr=9), TOKENS)
    with pytest.raises(GpusqError, match="no top-1") as caught:
        require_checkable(request(min_agreement=0.9), TOKENS)
    assert "--min-sqnr" in str(caught.value.hint)


INTEGERS = tiny_models.graph("g (float[N,3,4] x) => (int64[N,3] y) { y = ArgMax<axis = 2, keepdims = 0>(x) }")
BOTH = tiny_models.graph(
    "g (float[N,3,4] x) => (int64[N,3] y, float[N,3,4] z) { y = ArgMax<axis = 2, keepdims = 0>(x)  z = Relu(x) }"
)


def test_integers_can_be_asked_to_agree_and_have_no_decibels() -> None:
    require_checkable(request(min_agreement=0.9), INTEGERS)
    require_checkable(request(min_agreement=0.9, min_sqnr=20), BOTH)
    with pytest.raises(GpusqError, match="every output is of integers or booleans") as caught:
        require_checkable(request(min_sqnr=9), INTEGERS)
    assert "--min-agreement" in str(caught.value.hint)


def test_integers_never_enter_the_limit_in_decibels() -> None:
    boxes = Drift(module="", tensor="boxes", sqnr_db=70.0, median_sqnr_db=70.0, cosine=1.0)
    found = msgspec.structs.replace(FOUND, sqnr_db=None, cosine=None, top1_agreement=0.8, others=(boxes,))
    assert shortfalls(found, request(min_sqnr=60.0, min_agreement=0.8)) == ()
    assert shortfalls(found, request(min_agreement=0.9)) == (
        "the share of equal values, 0.8, is below --min-agreement 0.9",
    )


def test_a_further_output_that_is_constant_is_in_no_limit() -> None:
    """Noise on a mask that no sample changes says nothing of the model, and nobody can mend it with a recipe."""
    mask = Drift(module="", tensor="mask", sqnr_db=-20.0, median_sqnr_db=-20.0, cosine=0.0)
    found = msgspec.structs.replace(FOUND, others=(mask,), constant_others=("mask",))
    assert shortfalls(found, request(min_sqnr=20.0)) == ()
    assert len(shortfalls(msgspec.structs.replace(found, constant_others=()), request(min_sqnr=20.0))) == 1
    (said,) = shortfalls(msgspec.structs.replace(found, sqnr_db=None), request(min_sqnr=20.0))
    assert "can't be judged" in said


def test_the_evidence_replaces_earlier_evidence_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "m.gpusq"
    failed = failed_place(out)
    assert failed == tmp_path / "m.gpusq.failed"
    failed.mkdir()
    require_checkable(request(out), CLASSES)
    with pytest.raises(GpusqError, match="is not a bundle"):
        require_checkable(request(out, min_sqnr=1), CLASSES)
    failed.rmdir()
    bundle = bundles.write(failed)
    with pytest.raises(GpusqError, match="this bundle isn't one"):
        require_checkable(request(out, min_sqnr=1), CLASSES)
    receipt = msgspec.json.decode((bundle / "receipt.json").read_bytes())
    receipt["shortfalls"] = ["SQNR 3 dB is below --min-sqnr 9"]
    (bundle / "receipt.json").write_bytes(msgspec.json.encode(receipt))
    require_checkable(request(out, min_sqnr=1), CLASSES)


def compared(**changes: Any) -> ProducerComparison:
    """Of a file `expected.npz`, one output."""
    output = ExpectedOutput(tensor="y", sqnr_db=changes.pop("sqnr_db", None), equal=changes.pop("equal", None))
    return ProducerComparison(source="expected.npz", images=4, outputs=(output,), **changes)


@pytest.mark.parametrize(
    ("found", "limits", "words"),
    [
        (compared(sqnr_db=50.0, top1_agreement=1.0), {"min_sqnr": 45.0, "min_agreement": 0.9}, ""),
        (compared(sqnr_db=40.0), {"min_sqnr": 45.0}, "SQNR 40 dB of y to expected.npz is below"),
        (compared(equal=0.2), {"min_agreement": 0.9}, "agreement 0.2 with expected.npz is below"),
        (compared(equal=1.0), {"min_sqnr": 45.0}, "--min-sqnr can't be judged"),
        (compared(sqnr_db=50.0), {"min_agreement": 0.9}, "--min-agreement can't be judged"),
    ],
)
def test_limits_on_a_producer_s_outputs(found: ProducerComparison, limits: dict[str, Any], words: str) -> None:
    missed = producer_shortfalls([found], request(expect_outputs=Path("expected.npz"), **limits))
    assert (words in "; ".join(missed)) if words else missed == ()


@pytest.mark.parametrize(("built", "most", "missed"), [(0.79, 1.0, 0), (0.789, 1.0, 1), (0.9, 0.0, 0), (0.1, None, 0)])
def test_a_drop_of_the_tasks_measure_may_be_as_large_as_allowed(built: float, most: float | None, missed: int) -> None:
    found = TaskAccuracy(
        data="val", measure="top-1", images=100, given=0.8, built=built, low=-0.2, high=0.1, max_drop=most
    )
    said = task_shortfalls(found)
    assert len(said) == missed
    assert all(
        "top-1 is 1.1 points below the given model's, 0.8, on 100 images: more than --max-drop 1" in s for s in said
    )
    assert task_shortfalls(None) == ()
