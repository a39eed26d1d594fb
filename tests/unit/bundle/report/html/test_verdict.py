"""The verdict, card by card."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pages
import pytest

from gpusq_deploy.artifacts.build_options import BuildOptionsRecord
from gpusq_deploy.artifacts.receipt import CostEstimate, GraphCost, TaskAccuracy, YesNoUnknown
from gpusq_deploy.bundle.files import Bundle
from gpusq_deploy.bundle.report.html.values import Card
from gpusq_deploy.bundle.report.html.verdict import tasks, verdict, verdict_cards
from gpusq_deploy.bundle.report.layer_rows import explained_engine


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return pages.bundle(tmp_path)


def found(bundle: Bundle, latency: str = "") -> dict[str, Card]:
    return {card.title: card for card in verdict_cards(bundle, latency)}


def cost(*, kernels: int, moved: int) -> CostEstimate:
    built = GraphCost(batch=1, kernels=kernels, bytes_moved=moved, flops={})
    other = GraphCost(batch=1, kernels=10, bytes_moved=100, flops={})
    return CostEstimate(target="a100", built=built, unquantised=other, note="predicted")


def limited(bundle: Bundle) -> Bundle:
    return replace(bundle, manifest=msgspec.structs.replace(bundle.manifest, options=BuildOptionsRecord(min_sqnr=20.0)))


@pytest.mark.parametrize(
    ("ran", "standing", "word"), [("yes", "good", "yes"), ("no", "bad", "no"), ("unknown", "open", "not known")]
)
def test_sparse_is_what_the_kernels_are(tmp_path: Path, ran: YesNoUnknown, standing: str, word: str) -> None:
    card = found(pages.bundle(tmp_path, ran=ran))["2:4 sparse"]
    assert (card.standing, card.word) == (standing, word)
    assert card.text == f"5 of 5 layers with 2:4 weights; sparse kernel: {ran} 5"


def test_one_dense_kernel_is_partly(bundle: Bundle) -> None:
    layers = [pages.built_layer(name, ran="no" if name == "stem" else "yes") for name in pages.LAYERS]
    card = found(pages.changed(bundle, engines=(pages.engine(layers),)))["2:4 sparse"]
    assert (card.standing, card.word) == ("bad", "partly")


def test_an_engine_without_the_asked_layers_proves_nothing(bundle: Bundle) -> None:
    assert found(pages.changed(bundle, engines=(pages.engine([]),)))["2:4 sparse"][1:3] == ("open", "not known")


def test_what_was_not_asked_is_neither_good_nor_bad(bundle: Bundle) -> None:
    layers = tuple(pages.decision(name, precision="fp16", sparse=False) for name in pages.LAYERS)
    plan = msgspec.structs.replace(bundle.plan, layers=layers, sparse_asked=False)
    cards_of = found(replace(bundle, plan=plan))
    assert (cards_of["INT8"].standing, cards_of["2:4 sparse"].standing) == ("none", "none")


def test_accuracy_is_proven_by_a_limit_alone(bundle: Bundle) -> None:
    assert (found(bundle)["Accuracy"].standing, found(bundle)["Accuracy"].word) == ("open", "31.5 dB")
    assert found(limited(bundle))["Accuracy"].standing == "good"
    refused = pages.changed(limited(bundle), shortfalls=("SQNR 31.5 dB is below 40",))
    assert found(refused)["Accuracy"].standing == "bad"
    weak = msgspec.structs.replace(pages.VERIFICATION, sqnr_db=4.0)
    assert found(pages.changed(limited(bundle), verification=weak))["Accuracy"].word == "doubtful"
    unseen = msgspec.structs.replace(pages.VERIFICATION, synthetic=True)
    assert found(pages.changed(limited(bundle), verification=unseen))["Accuracy"][1:3] == ("open", "not measured")
    assert found(pages.changed(limited(bundle), verification=None))["Accuracy"][1:3] == ("open", "not measured")
    noise = replace(bundle, manifest=msgspec.structs.replace(bundle.manifest, synthetic_calibration=True))
    assert found(noise)["Accuracy"].word == "random data"


def test_the_task_s_own_measure_comes_before_decibels(bundle: Bundle) -> None:
    task = TaskAccuracy(data="val", measure="top-1", images=500, given=0.81, built=0.806, low=-0.01, high=0.002)
    card = found(pages.changed(bundle, accuracy=task))["Accuracy"]
    assert (card.standing, card.word) == ("open", "top-1 80.60%")
    assert card.text.startswith(
        "top-1 80.60%, the given model 81.00%: -0.40 points [-1.00, +0.20] on 500 images of val"
    )


def test_speed_is_good_only_where_an_engine_was_measured(bundle: Bundle) -> None:
    assert found(bundle)["Speed"].word == "not measured"
    assert found(pages.changed(bundle, cost=cost(kernels=9, moved=90)))["Speed"][1:3] == ("open", "predicted to pay")
    assert found(pages.changed(bundle, cost=cost(kernels=11, moved=110)))["Speed"][1:3] == ("bad", "may not pay")
    assert found(bundle, "2.0 ms at batch 1")["Speed"][1:4] == ("good", "measured", "2.0 ms at batch 1")


def test_the_verdict_is_the_worst_of_them(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "sparse").mkdir()
    proven = limited(pages.bundle(tmp_path / "sparse", ran="yes"))
    assert verdict(tuple(found(proven, "2.0 ms").values())) == (
        "good",
        "Proven: INT8 (yes), 2:4 sparse (yes), Accuracy (31.5 dB), Speed (measured).",
    )
    assert verdict(tuple(found(bundle).values()))[0] == "open"
    refused = pages.changed(bundle, shortfalls=("too low",))
    standing, said = verdict(tuple(found(refused).values()))
    assert standing == "bad"
    assert said.startswith("Look at this first: Accuracy (refused). Not proven yet: 2:4 sparse (not known), Speed")


def test_tasks_name_the_layers_and_the_remedy(bundle: Bundle) -> None:
    explained = [(engine, explained_engine(bundle, engine)) for engine in bundle.receipt.engines]
    said = dict(tasks(bundle, verdict_cards(bundle), explained))
    (about,) = [what for what in said if what.startswith("2:4 on a100")]
    assert "5 layers (stem, blocks.0.fc1, blocks.0.fc2 and 2 more)" in about
    assert said[about]
    assert "Speed: not measured" in said
