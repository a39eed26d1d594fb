"""What is warned about after a build, and what isn't."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from gpusq_deploy.artifacts.receipt import Agreement, Drift, PruningLoss, Receipt, Verification
from gpusq_deploy.bundle.report.warnings import (
    compared_text,
    figures_text,
    noisiest_text,
    outputs_text,
    pruning_doubts,
    receipt_doubts,
    verification_warnings,
)


def drift(module: str, decibels: float, *, tensor: str = "t") -> Drift:
    return Drift(module=module, tensor=tensor, sqnr_db=decibels, median_sqnr_db=decibels, cosine=0.5)


FOUND = Verification(images=8, held_out=True, sqnr_db=25.0, cosine=0.99, top1_agreement=0.875, note="")
LOST = PruningLoss(
    images=8,
    held_out=True,
    sqnr_db=2.0,
    median_sqnr_db=2.0,
    cosine=0.4,
    top1_agreement=0.125,
    constant=False,
    synthetic=False,
    note="",
)


@pytest.mark.parametrize(
    ("changes", "warned"),
    [
        ({}, False),
        ({"sqnr_db": 10.0, "top1_agreement": 0.5}, False),  # the level itself is enough
        ({"sqnr_db": 9.9}, True),
        ({"sqnr_db": 9.9, "top1_agreement": None}, True),
        ({"top1_agreement": 0.49}, True),
        ({"sqnr_db": -4.8, "top1_agreement": 0.0, "synthetic": True}, False),  # of noise nothing is known
        ({"others": (drift("", 3.0, tensor="boxes"),)}, True),
        ({"others": (drift("", 30.0, tensor="boxes"),)}, False),
        ({"sqnr_db": None, "cosine": None}, False),
        ({"sqnr_db": None, "cosine": None, "top1_agreement": 0.4}, True),
        ({"agreements": (Agreement(tensor="order", share=0.1),)}, False),  # of sorted indices, few keep their places
    ],
)
def test_figures_are_warned_about_below_a_level_on_real_samples(changes: dict[str, Any], warned: bool) -> None:
    assert bool(verification_warnings(msgspec.structs.replace(FOUND, **changes))) == warned


def test_a_warning_has_the_figures_and_where_the_noise_comes_from() -> None:
    blocks = (drift("blocks.0", 20.0), drift("blocks.1", 3.0), drift("blocks.2", 3.5))
    hopeless = msgspec.structs.replace(
        FOUND, images=32, sqnr_db=-4.8, top1_agreement=0.0, blocks=blocks, others=(drift("", 1.5, tensor="boxes"),)
    )
    (said,) = verification_warnings(hopeless)
    parts = (
        "the built model is far from the float model",
        "SQNR -4.8 dB, top-1 0.0%",
        "boxes 1.5 dB",
        "on 32 samples",
        "most noise: blocks.1 (3.0 dB), blocks.0 (20.0 dB); a recipe can keep it float",
    )
    assert [part for part in parts if part not in said] == []
    (pruned,) = verification_warnings(msgspec.structs.replace(hopeless, reference="pruned float"))
    assert "far from the pruned float model" in pruned
    assert max(len(said), len(pruned)) <= 191  # a warning is two lines of 100


def test_a_constant_output_is_not_judged_by_its_figures() -> None:
    (said,) = verification_warnings(msgspec.structs.replace(FOUND, sqnr_db=-300.0, top1_agreement=0.0, constant=True))
    assert "proves nothing" in said


@pytest.mark.parametrize(
    ("changes", "warned"),
    [
        ({}, True),
        ({"sqnr_db": 12.0}, True),
        ({"sqnr_db": 12.0, "top1_agreement": 0.9}, False),
        ({"synthetic": True}, False),
        ({"constant": True}, False),
    ],
)
def test_what_pruning_alone_ruins_is_warned_about(changes: dict[str, Any], warned: bool) -> None:
    said = pruning_doubts(msgspec.structs.replace(LOST, **changes))
    assert bool(said) == warned
    assert all("pruning alone" in each and "gpusq-compress" in each for each in said)


def test_the_method_that_was_used_is_not_the_remedy() -> None:
    (unknown,) = pruning_doubts(LOST)
    (magnitude,) = pruning_doubts(msgspec.structs.replace(LOST, method="magnitude"))
    (best,) = pruning_doubts(msgspec.structs.replace(LOST, method="second-order"))
    assert all("--prune second-order" in said for said in (unknown, magnitude))
    assert "gpusq-compress" in best
    assert "--prune" not in best


def test_a_receipt_has_the_doubts_of_both() -> None:
    weak = msgspec.structs.replace(FOUND, sqnr_db=1.0)
    whole = Receipt(model_digest="", verification=weak, engines=(), pruning=LOST)
    assert receipt_doubts(whole) == (*pruning_doubts(LOST), *verification_warnings(weak))
    assert receipt_doubts(Receipt(model_digest="", verification=None, engines=())) == ()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"images": 32, "median_sqnr_db": 26.04},
            "SQNR 25.0 dB (median 26.0), top-1 87.5%",
        ),
        (
            {"lowest_sqnr_db": 19.6, "highest_sqnr_db": 31.2},
            "SQNR 25 dB (20 to 31), top-1 7 of 8",
        ),
        (
            {"images": 1, "sqnr_db": 47.31, "top1_agreement": None},
            "SQNR 47 dB (one sample proves little)",
        ),
        ({"sqnr_db": None, "cosine": None}, "87.5% of the values equal"),
        ({"constant": True}, "no figures: the output is the same for all samples"),
        (
            {"sqnr_db": None, "cosine": None, "top1_agreement": None, "rounding": ("y",)},
            "no figures: the output is of rounding errors",
        ),
        ({"synthetic": True}, "not measured: random samples prove nothing about real inputs"),
    ],
)
def test_figures_are_as_exact_as_the_samples_are_many(changes: dict[str, Any], said: str) -> None:
    assert figures_text(msgspec.structs.replace(FOUND, **changes)) == said


def test_a_comparison_says_with_what_and_on_which_samples_once() -> None:
    said = compared_text(FOUND)
    assert said == "SQNR 25 dB, top-1 7 of 8, against the float model, on 8 held-out samples"
    assert compared_text(FOUND, calibrated=False).endswith(", on 8 samples")
    seen = msgspec.structs.replace(FOUND, held_out=False, images=1, reference="pruned float")
    assert compared_text(seen).endswith("against the pruned float model, on 1 calibration sample")
    assert compared_text(LOST).endswith("against the dense model, on 8 held-out samples")
    assert "sample" not in compared_text(msgspec.structs.replace(LOST, synthetic=True)).replace("random samples", "")


def test_every_output_is_told_in_its_own_measure_and_of_random_samples_nothing() -> None:
    several = msgspec.structs.replace(
        FOUND,
        images=16,
        others=(drift("", 31.25, tensor="boxes"),),
        agreements=(Agreement(tensor="mask", share=0.981),),
    )
    assert outputs_text(several).endswith("top-1 87.5%; boxes 31.2 dB; mask 98.1% equal")
    random = msgspec.structs.replace(several, synthetic=True, blocks=(drift("blocks.0", 3.0),))
    assert "dB" not in outputs_text(random)
    assert (noisiest_text(random), verification_warnings(random)) == ("", ())
