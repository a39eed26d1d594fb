"""Budgets for a change from one bundle to another: every one holds and fails where it should, and unknown fails."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import bundles
import msgspec
import pytest
from commands import run_main

from gpusq_deploy.artifacts.expectations import ChangeBudgets
from gpusq_deploy.artifacts.receipt import BuiltEngine, BuiltLayer, EngineTotals, TaskAccuracy, Verification
from gpusq_deploy.benchmarks.bundles.comparison import BundleComparison, compare_bundles
from gpusq_deploy.benchmarks.bundles.writers import junit_from_bundles, markdown_from_bundles
from gpusq_deploy.bundle.files import Bundle, read_bundle
from gpusq_deploy.bundle.report.expectations import load_budgets
from gpusq_deploy.cli.compare import main
from gpusq_deploy.errors import GpusqError

LAYERS = tuple(
    BuiltLayer(
        layer=name,
        node=name,
        asked="int8",
        precision="int8",
        engine_layers=(),
        sparse_asked=True,
        sparse_weights_valid=True,
        sparse_executed="yes",
        reason="r",
    )
    for name in ("fc1", "fc2", "head")
)
ENGINE = BuiltEngine(
    target="a100",
    backend="tensorrt-rtx",
    backend_version="1",
    source="s",
    gpus="A100",
    compute_capability="8.0",
    engine_file="p",
    engine_bytes=100,
    engine_digest="d",
    build_seconds=1.0,
    executed=False,
    totals=EngineTotals(kernels=10, gemms={"int8": 3}, attention_fused=2),
    layers=LAYERS,
    engine_layers=(),
)
PROOF = Verification(images=9, held_out=True, sqnr_db=30.0, cosine=1.0, top1_agreement=0.9, note="n")
ACCURACY = TaskAccuracy(data="val", measure="top-1", images=50, given=0.8, built=0.78, low=-0.1, high=0.1)

Changes = dict[str, Any]


def lost(index: int, **changes: Any) -> tuple[BuiltLayer, ...]:
    return tuple(
        msgspec.structs.replace(layer, **changes) if place == index else layer for place, layer in enumerate(LAYERS)
    )


@pytest.fixture
def base(tmp_path: Path) -> Bundle:
    return bundle_with(read_bundle(bundles.write(tmp_path / "base")))


def bundle_with(bundle: Bundle, *, engine: Changes | None = None, **receipt: Any) -> Bundle:
    built = msgspec.structs.replace(ENGINE, **(engine or {}))
    whole = {"engines": (built,), "verification": PROOF, "accuracy": ACCURACY, **receipt}
    return replace(bundle, receipt=msgspec.structs.replace(bundle.receipt, **whole))


def budgets(text: str) -> ChangeBudgets:
    return msgspec.toml.decode('schema = "gpusq.expect-change/1"\n' + text, type=ChangeBudgets)


def verdict(base: Bundle, head: Bundle, text: str) -> BundleComparison:
    found = compare_bundles(base, head, budgets(text))
    assert found.exit_code == int(found.verdict == "over budget")
    return found


WHOLE: list[tuple[str, str, Changes]] = [
    ('sqnr_drop = "<= 2"', 'sqnr_drop = "<= 1"', {"verification": msgspec.structs.replace(PROOF, sqnr_db=28.5)}),
    (
        'agreement_drop = "<= 3"',
        'agreement_drop = "<= 1"',
        {"verification": msgspec.structs.replace(PROOF, top1_agreement=0.88)},
    ),
    (
        'accuracy_drop = "<= 1"',
        'accuracy_drop = "<= 0.5"',
        {"accuracy": msgspec.structs.replace(ACCURACY, built=0.77)},
    ),
]
ENGINES: list[tuple[str, str, Changes]] = [
    ('kernels_more = "<= 2"', 'kernels_more = "<= 1"', {"totals": msgspec.structs.replace(ENGINE.totals, kernels=12)}),
    (
        'attention_lost = "<= 1"',
        'attention_lost = "= 0"',
        {"totals": msgspec.structs.replace(ENGINE.totals, attention_fused=1)},
    ),
    ('type_lost = "<= 1"', 'type_lost = "= 0"', {"layers": lost(2, precision="fp16")}),
    ('type_lost = "= 0"\nallow = ["h*"]', 'type_lost = "= 0"\nallow = ["fc*"]', {"layers": lost(2, precision=None)}),
    ('sparse_lost = "<= 1"', 'sparse_lost = "= 0"', {"layers": lost(0, sparse_executed="no")}),
    ('sparse_lost = "<= 1"', 'sparse_lost = "= 0"', {"layers": lost(0, sparse_weights_valid=False)}),
    ('engine_growth = "<= 10"', 'engine_growth = "<= 9"', {"engine_bytes": 110}),
]


@pytest.mark.parametrize(("wide", "narrow", "changes"), WHOLE)
def test_a_bundles_budget_holds_up_to_its_bound(base: Bundle, wide: str, narrow: str, changes: Changes) -> None:
    head = bundle_with(base, **changes)
    assert verdict(base, head, wide).verdict == "within budget"
    assert verdict(base, head, narrow).verdict == "over budget"
    # What got better is within any budget that allows less.
    assert verdict(head, base, narrow).verdict == "within budget"


@pytest.mark.parametrize(("wide", "narrow", "changes"), ENGINES)
@pytest.mark.parametrize("name", ["*", "a100"])
def test_an_engines_budget_holds_up_to_its_bound(
    base: Bundle, name: str, wide: str, narrow: str, changes: Changes
) -> None:
    head, table = bundle_with(base, engine=changes), f'[engine."{name}"]\n'
    assert verdict(base, head, table + wide).verdict == "within budget"
    found = verdict(base, head, table + narrow)
    assert (found.verdict, [check.held for check in found.checks or ()]) == ("over budget", [False])


def test_projections_that_were_merged_keep_their_type(base: Bundle) -> None:
    merged = msgspec.structs.replace(LAYERS[0], layer="fc1+fc2")
    head = bundle_with(base, engine={"layers": (merged, LAYERS[2])})
    for ours, theirs in ((base, head), (head, base)):
        assert verdict(ours, theirs, '[engine."*"]\ntype_lost = "= 0"').verdict == "within budget"


def test_kernels_are_not_compared_without_the_graph(base: Bundle) -> None:
    head = replace(base, path=base.path / "gone")
    found = compare_bundles(base, head)
    assert (found.verdict, found.kernels) == ("same", ())
    assert found.remarks[0].startswith("head: model.onnx can't be read: no such file")


def test_a_failure_names_the_layers(base: Bundle) -> None:
    head = bundle_with(base, engine={"layers": lost(1, precision="fp16")})
    found = verdict(base, head, '[engine."*"]\ntype_lost = "= 0"')
    assert found.text().splitlines()[-2:] == ["FAILED  a100: type_lost = 0: 1 (fc2)", "over budget: 0 of 1 budget"]


def test_budgets_decide_instead_of_the_rules(base: Bundle) -> None:
    head = bundle_with(base, engine={"layers": lost(1, precision="fp16")})
    assert compare_bundles(base, head).verdict == "worse"
    assert verdict(base, head, 'sqnr_drop = "<= 1"').verdict == "within budget"


def test_preprocessing_may_be_forbidden_to_change(base: Bundle) -> None:
    other = msgspec.structs.replace(base.manifest.preprocessing, mean=(0.5,))
    head = replace(base, manifest=msgspec.structs.replace(base.manifest, preprocessing=other))
    checks = verdict(base, head, 'preprocessing = "same"').checks or ()
    assert [(check.held, check.got) for check in checks] == [(False, "mean changed")]
    assert verdict(base, head, 'preprocessing = "any"').verdict == "within budget"


UNKNOWN: list[tuple[str, Changes]] = [
    ('sqnr_drop = "<= 1"', {"verification": None}),
    ('sqnr_drop = "<= 1"', {"verification": msgspec.structs.replace(PROOF, synthetic=True)}),
    ('accuracy_drop = "<= 1"', {"accuracy": None}),
    ('accuracy_drop = "<= 1"', {"accuracy": msgspec.structs.replace(ACCURACY, data="other")}),
    ('[engine."*"]\nbytes_growth = "<= 5"', {}),
    ('[engine."*"]\npredicted_growth = "<= 5"', {}),
    ("[engine.orin]\nkernels_more = '<= 5'", {}),
    ("[engine.'*']\nkernels_more = '<= 5'", {"engines": ()}),
]


@pytest.mark.parametrize(("text", "changes"), UNKNOWN)
def test_what_is_unknown_never_passes(base: Bundle, text: str, changes: Changes) -> None:
    assert verdict(base, bundle_with(base, **changes), text).verdict == "over budget"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no budget is given"),
        ('sqnr_drop = "much"', "is not a bound"),
        ("[engine.'*']\nallow = ['x']", "allows and forbids nothing"),
        ("[engine.nope]\nkernels_more = '<= 1'", "nope"),
        ("sqnr_dorp = '<= 1'", "sqnr_dorp"),
    ],
)
def test_a_bad_file_is_refused_with_its_place(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "budgets.toml"
    file.write_text('schema = "gpusq.expect-change/1"\n' + text)
    with pytest.raises(GpusqError) as caught:
        load_budgets(file)
    assert said in str(caught.value.what) + str(caught.value.place)


def test_markdown_and_junit_say_the_same(base: Bundle) -> None:
    head = bundle_with(base, engine={"layers": lost(1, precision="fp16")})
    found = verdict(base, head, 'sqnr_drop = "<= 1"\n[engine."*"]\ntype_lost = "= 0"')
    text = markdown_from_bundles(found, base="a|b", head="c`d")
    assert text.startswith("### Bundles: over budget: 1 of 2 budgets\n\n`a|b` to `c'd`.")
    assert "| a100: type\\_lost | = 0 | 1 (fc2) | FAILED |" in text
    (suite,) = ElementTree.fromstring(junit_from_bundles(found, head="two\nlines\x00"))
    assert {name: suite.get(name) for name in ("tests", "failures", "errors")} == {
        "tests": "2",
        "failures": "1",
        "errors": "0",
    }
    assert [case.find("failure") is not None for case in suite] == [False, True]
    assert {case.get("classname") for case in suite} == {"two lines?"}
    (suite,) = ElementTree.fromstring(junit_from_bundles(compare_bundles(base, head), head="h"))
    assert suite.get("failures") == "1"
    other = compare_bundles(base, bundle_with(base, engine={"target": "orin"}))
    (suite,) = ElementTree.fromstring(junit_from_bundles(other, head="h"))
    assert (other.exit_code, suite.get("errors")) == (4, "1")


def test_the_command_takes_budgets_and_writes_for_ci(tmp_path: Path) -> None:
    base, head = bundles.write(tmp_path / "a.gpusq"), bundles.write(tmp_path / "b.gpusq", sparse=False)
    file, summary, junit = (tmp_path / name for name in ("budgets.toml", "summary.md", "junit.xml"))
    file.write_text('schema = "gpusq.expect-change/1"\nsize_growth = "<= 5"\npreprocessing = "same"\n')
    done = run_main(main, base, head, "--expect", file, "--summary", summary, "--junit", junit, "-q")
    assert (done.code, done.out) == (0, "within budget: 2 of 2 budgets\n"), done.err
    assert summary.read_text().startswith("### Bundles: within budget")
    assert ElementTree.parse(junit).getroot()[0].get("tests") == "2"
    file.write_text('schema = "gpusq.expect-change/1"\nsqnr_drop = "<= 1"\n')
    done = run_main(main, base, head, "--expect", file, "--json")
    assert (done.code, done.json()["checks"][0]["got"]) == (1, "unknown")
    junit.write_text("mine")
    assert run_main(main, base, head, "--junit", junit).code == 5
    assert run_main(main, tmp_path / "a.json", tmp_path / "b.json", "--expect", file).code == 2
    assert run_main(main, base, base, "-q").out == "same: 0 worse, 0 better, 0 other, 0 groups of kernels\n"
