"""Two bundles compared without timing: each kind of change, judged by the documented rule."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import bundles
import msgspec
import pytest
from commands import run_main

from gpusq_deploy.artifacts.build_options import BuildOptionsRecord
from gpusq_deploy.artifacts.bundle_layout import MODEL
from gpusq_deploy.artifacts.receipt import BuiltEngine, BuiltLayer, EngineTotals, Verification
from gpusq_deploy.benchmarks.bundles.comparison import compare_bundles
from gpusq_deploy.bundle.files import Bundle, read_bundle
from gpusq_deploy.cli.compare import main
from gpusq_deploy.graph.files import save_model

LAYER = BuiltLayer(
    layer="fc",
    node="fc",
    asked="int8",
    precision="int8",
    engine_layers=(),
    sparse_asked=True,
    sparse_weights_valid=True,
    sparse_executed="yes",
    reason="r",
)
ENGINE = BuiltEngine(
    target="a100",
    backend="tensorrt-rtx",
    backend_version="1",
    source="s",
    gpus="A100",
    compute_capability="8.0",
    engine_file="p",
    engine_bytes=10,
    engine_digest="d",
    build_seconds=1.0,
    executed=False,
    totals=EngineTotals(kernels=10, gemms={"int8": 2, "fp16": 1}, attention_fused=2),
    layers=(LAYER,),
    engine_layers=(),
)
PROOF = Verification(images=9, held_out=True, sqnr_db=30.0, cosine=1.0, top1_agreement=None, note="n")


@pytest.fixture
def base(tmp_path: Path) -> Bundle:
    return with_receipt(read_bundle(bundles.write(tmp_path / "base")), engines=(ENGINE,), verification=PROOF)


def with_receipt(bundle: Bundle, **changes: Any) -> Bundle:
    return replace(bundle, receipt=msgspec.structs.replace(bundle.receipt, **changes))


def with_engine(bundle: Bundle, **changes: Any) -> Bundle:
    return with_receipt(bundle, engines=(msgspec.structs.replace(ENGINE, **changes),))


def with_layer(bundle: Bundle, **changes: Any) -> Bundle:
    (layer,) = bundle.plan.layers
    return replace(
        bundle, plan=msgspec.structs.replace(bundle.plan, layers=(msgspec.structs.replace(layer, **changes),))
    )


def judged(base: Bundle, head: Bundle) -> list[str]:
    return [change.text() for change in compare_bundles(base, head).changes]


def test_a_bundle_is_the_same_as_itself(base: Bundle) -> None:
    found = compare_bundles(base, base)
    assert (found.verdict, found.exit_code, found.changes, found.text()) == ("same", 0, (), "same")


TOTALS: list[tuple[dict[str, Any], str]] = [
    ({"kernels": 12}, "kernels 10 -> 12"),
    ({"attention_fused": 1}, "fused attentions 2 -> 1"),
]


@pytest.mark.parametrize(("changes", "said"), TOTALS)
def test_totals_are_worse_one_way_and_better_the_other(base: Bundle, changes: dict[str, Any], said: str) -> None:
    head = with_engine(base, totals=msgspec.structs.replace(ENGINE.totals, **changes))
    assert judged(base, head) == [f"worse   engine a100: {said}"]
    assert compare_bundles(base, head).exit_code == 1
    (back,) = compare_bundles(head, base).changes
    assert back.judgement == "better"
    assert compare_bundles(head, base).exit_code == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"precision": "fp16"}, "built int8 -> fp16 in 1 layer (fc)"),
        ({"sparse_executed": "no"}, "sparse kernel yes -> no in 1 layer (fc)"),
    ],
)
def test_what_a_layer_lost_in_the_engine_is_worse(base: Bundle, change: dict[str, Any], said: str) -> None:
    head = with_engine(base, layers=(msgspec.structs.replace(LAYER, **change),))
    assert judged(base, head) == [f"worse   engine a100: {said}"]


def test_what_the_plan_no_longer_asks_is_worse(base: Bundle) -> None:
    assert judged(base, with_layer(base, precision="fp16")) == ["worse   asked int8 -> fp16 in 1 layer (fc1)"]
    asked = with_layer(base, sparse=True)
    assert judged(asked, with_layer(base, sparse=False)) == ["worse   asked 2:4 -> dense in 1 layer (fc1)"]


@pytest.mark.parametrize(("decibels", "judgement"), [(28.9, "worse"), (29.1, "other"), (31.1, "better")])
def test_sqnr_counts_beyond_a_decibel(base: Bundle, decibels: float, judgement: str) -> None:
    head = with_receipt(base, verification=msgspec.structs.replace(PROOF, sqnr_db=decibels))
    assert judged(base, head) == [f"{judgement:<6}  SQNR 30.0 dB -> {decibels:.1f} dB"]
    assert judged(base, with_receipt(base, verification=None)) == ["other   SQNR 30.0 dB -> unknown"]


def test_merged_gemms_are_listed_and_not_judged(base: Bundle) -> None:
    head = with_engine(base, totals=msgspec.structs.replace(ENGINE.totals, gemms={"int8": 1, "fp16": 1}))
    assert judged(base, head) == ["other   engine a100: int8 GEMMs 2 -> 1"]


def test_options_and_preprocessing_are_listed_and_not_judged(base: Bundle) -> None:
    other = msgspec.structs.replace(base.manifest.preprocessing, mean=(0.5,))
    manifest = msgspec.structs.replace(base.manifest, preprocessing=other, options=BuildOptionsRecord(int8=True))
    found = compare_bundles(base, replace(base, manifest=manifest))
    assert [(change.judgement, change.what) for change in found.changes] == [
        ("other", "preprocessing mean"),
        ("other", "option int8"),
    ]
    assert (found.verdict, found.exit_code) == ("changed", 0)


def test_another_architecture_or_no_shared_target_is_not_comparable(base: Bundle, tmp_path: Path) -> None:
    (other := tmp_path / "other").mkdir()
    arch = msgspec.structs.replace(base.manifest.source.arch, name="vit_small_patch16_224")
    source = msgspec.structs.replace(base.manifest.source, arch=arch)
    model = replace(base, manifest=msgspec.structs.replace(base.manifest, source=source))
    # One architecture by another name, as an ONNX file of it has: its layers tell.
    assert [change.what for change in compare_bundles(base, model).changes] == ["architecture"]
    save_model(bundles.model(k=16).after, other / MODEL)
    model = replace(model, path=other)
    for head, said in ((model, "architecture: "), (with_engine(base, target="orin"), "no shared target: a100 in base")):
        found = compare_bundles(base, head)
        assert (found.verdict, found.exit_code, found.changes) == ("not comparable", 4, ())
        assert found.reasons[0].startswith(said)


def test_the_command_compares_two_bundles(tmp_path: Path) -> None:
    base, head = bundles.write(tmp_path / "a.gpusq"), bundles.write(tmp_path / "b.gpusq", sparse=False)
    same = run_main(main, base, base)
    assert (same.code, same.out) == (0, "same\n")
    assert f"gpusq-bench {base} --json base.json" in same.err
    done = run_main(main, base, head, "--json")
    assert done.code == 0
    assert {change["what"] for change in done.json()["changes"]} == {"model.onnx"}
    assert run_main(main, base, head, "--max-regression", "3%").code == 2
