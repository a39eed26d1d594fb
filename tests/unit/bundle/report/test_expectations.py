"""A receipt held against a file of expectations."""

from __future__ import annotations

import json
from pathlib import Path

import bundles
import msgspec
import pytest
from commands import run_main

from gpusq_deploy.artifacts.expectations import Check
from gpusq_deploy.artifacts.plan import LayerDecision, QuantPlan
from gpusq_deploy.artifacts.receipt import (
    BuiltEngine,
    BuiltLayer,
    EngineTotals,
    Receipt,
    SkippedTarget,
    Verification,
    YesNoUnknown,
)
from gpusq_deploy.bundle.report.expectations import check_receipt, load_expectations
from gpusq_deploy.cli.inspect import main as inspect
from gpusq_deploy.errors import GpusqError

HEAD = 'schema = "gpusq.expect/1"\n'


def decision(layer: str, macs: int) -> LayerDecision:
    return LayerDecision(
        layer=layer,
        node=layer,
        kind="linear",
        n=64,
        k=64,
        macs=macs,
        precision="int8",
        precision_reason="r",
        sparse=True,
        sparse_reason="r",
    )


def layer(name: str, *, int8: bool = True, sparse: YesNoUnknown = "unknown", valid: bool = True) -> BuiltLayer:
    return BuiltLayer(
        layer=name,
        node=name,
        asked="int8",
        precision="int8" if int8 else "fp16",
        engine_layers=(name,),
        sparse_asked=True,
        sparse_weights_valid=valid,
        sparse_executed=sparse,
        reason="r",
    )


PLAN = QuantPlan(
    recipe="r", float_type="fp16", sparse_asked=True, layers=(decision("b.fc1", 300), decision("b.fc2", 100))
)
ENGINE = BuiltEngine(
    target="rtx40",
    backend="tensorrt-rtx",
    backend_version="1.7",
    source="test",
    gpus="a GPU",
    compute_capability="8.9",
    engine_file="p",
    engine_bytes=1,
    engine_digest="sha256:0",
    build_seconds=1.0,
    executed=False,
    totals=EngineTotals(kernels=20, gemms={"int8": 1, "fp16": 1}, attention_fused=2),
    layers=(layer("b.fc1", sparse="yes"), layer("b.fc2", int8=False, valid=False)),
    engine_layers=(),
)
RECEIPT = Receipt(
    model_digest="sha256:0",
    verification=Verification(images=1, held_out=True, sqnr_db=28.5, cosine=1.0, top1_agreement=None, note="n"),
    engines=(ENGINE,),
    skipped=(SkippedTarget(target="orin", reason="no Orin here", command="c"),),
)


def checks(tmp_path: Path, text: str, receipt: Receipt = RECEIPT) -> list[Check]:
    path = tmp_path / "expected.toml"
    path.write_text(HEAD + text)
    return list(check_receipt(load_expectations(path), receipt, PLAN))


def only(found: list[Check]) -> Check:
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize(
    ("line", "held"),
    [
        ('kernels = "<= 20"', True),
        ('kernels = "< 20"', False),
        ('kernels = ">20"', False),
        ('attention_fused = "= 2"', True),
        ('attention_fused = "= 3"', False),
        ('gemms = { int8 = ">= 1" }', True),
        ('gemms = { int8 = ">= 2" }', False),
        ('gemms = { fp32 = "= 0" }', True),
        ('gemms = { fp16 = "= 0" }', False),
        ('int8_flops = ">= 0.75"', True),
        ('int8_flops = "> 0.75"', False),
    ],
)
def test_bounds(tmp_path: Path, line: str, held: bool) -> None:
    # "sm89" is another name of rtx40.
    for name in ("rtx40", "sm89", '"*"'):
        check = only(checks(tmp_path, f"[engine.{name}]\n{line}"))
        assert (check.engine, check.held) == ("rtx40", held)


@pytest.mark.parametrize(
    ("line", "held", "got"),
    [
        ('match = "b.fc1"\nprecision = "int8"', True, "all 1 layers"),
        ('match = "b.*"\nprecision = "int8"', False, "1 of 2 are not: b.fc2 is fp16"),
        ('match = "b.*"\nweights = "2:4"', False, "1 of 2 are not: b.fc2 is dense"),
        ('match = "*2"\nweights = "dense"', True, "all 1 layers"),
        ('match = "*1"\nsparse = "yes"', True, "all 1 layers"),
        ('match = "*2"\nsparse = "yes"', False, "1 of 1 are not: b.fc2 is unknown"),
        ('match = "misspelt"\nsparse = "yes"', False, "no layer has such a name"),
    ],
)
def test_layers(tmp_path: Path, line: str, held: bool, got: str) -> None:
    check = only(checks(tmp_path, f"[[engine.rtx40.layer]]\n{line}"))
    assert (check.held, check.got) == (held, got)


@pytest.mark.parametrize(("bound", "held"), [(">= 28.5", True), (">= 28.6", False)])
def test_the_verification_is_bounded(tmp_path: Path, bound: str, held: bool) -> None:
    found = checks(tmp_path, f'sqnr_db = "{bound}"\n[engine.rtx40]\nkernels = "> 0"')
    assert [check.held for check in found] == [held, True]


def test_a_constant_output_holds_no_bound(tmp_path: Path) -> None:
    assert RECEIPT.verification is not None
    constant = msgspec.structs.replace(RECEIPT.verification, sqnr_db=300.0, images=3, constant=True)
    receipt = msgspec.structs.replace(RECEIPT, verification=constant)
    first, _ = checks(tmp_path, 'sqnr_db = ">= 20"\n[engine.rtx40]\nkernels = "> 0"', receipt)
    assert not first.held
    assert "the same output for all 3 samples" in first.got


def test_what_isnt_known_fails(tmp_path: Path) -> None:
    unverified = msgspec.structs.replace(RECEIPT, verification=None)
    first, second = checks(tmp_path, 'sqnr_db = ">= 0"\n[engine.orin]\nkernels = "> 0"', unverified)
    assert (first.held, first.got) == (False, "unknown")
    assert (second.held, second.got) == (False, "not built (no Orin here)")
    bare = msgspec.structs.replace(RECEIPT, engines=(), skipped=())
    assert not only(checks(tmp_path, '[engine."*"]\nkernels = "> 0"', bare)).held


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[engine.rtx40]\nkernel = '= 1'", "kernel"),
        ("[engine.rtx40]\nkernels = 125", r"Expected `str \| null`, got `int` - at `\$.engine"),
        ("[engine.rtx40]\nkernels = 'about 125'", "not a bound"),
        ("[engine.rtx40]\ngemms = { int7 = '= 0' }", "int7"),
        ("[engine.rtx40]\n", "expects nothing"),
        ("[[engine.rtx40.layer]]\nmatch = '*'", "expects nothing"),
        ("[engine]\n", "no engine is named"),
        ("sqnr_db = 'high'\n[engine.rtx40]\nkernels = '= 1'", "not a bound"),
        ("[engine.rtx41]\nkernels = '= 1'", "unknown target 'rtx41'"),
        ("[engine.", "not TOML"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, text: str, match: str) -> None:
    with pytest.raises(GpusqError, match=match):
        checks(tmp_path, text)


def test_the_command_exits_with_1_where_something_fails(tmp_path: Path) -> None:
    bundle = bundles.write(tmp_path / "b.gpusq")
    expected = tmp_path / "e.toml"
    expected.write_text(HEAD + "[engine.a100]\nkernels = '<= 1'\n")
    done = run_main(inspect, bundle, "--expect", expected)
    assert done.code == 1
    assert "FAILED a100: engine built: not built" in done.out
    as_json = run_main(inspect, bundle, "--expect", expected, "--json")
    assert as_json.code == 1
    assert json.loads(as_json.out)["held"] is False
    usage = run_main(inspect, bundle, "--expect", expected, "--layer", "fc")
    assert usage.code == 2


def test_the_command_exits_with_0_where_all_holds(tmp_path: Path) -> None:
    path = bundles.write(tmp_path / "b.gpusq")
    receipt = msgspec.json.decode((path / "receipt.json").read_bytes(), type=Receipt)
    (path / "receipt.json").write_bytes(msgspec.json.encode(msgspec.structs.replace(receipt, engines=(ENGINE,))))
    expected = tmp_path / "e.toml"
    expected.write_text(HEAD + "[engine.'*']\nkernels = '= 20'\n")
    done = run_main(inspect, path, "--expect", expected)
    assert (done.code, done.out.splitlines()[-1]) == (0, "1 of 1 expectations hold")


def test_what_a_profiler_saw_is_the_strongest_evidence(tmp_path: Path) -> None:
    path = bundles.write(tmp_path / "b.gpusq")
    receipt = msgspec.json.decode((path / "receipt.json").read_bytes(), type=Receipt)
    unsure = msgspec.structs.replace(ENGINE, layers=(layer("b.fc1"), layer("b.fc2", sparse="no", valid=False)))
    (path / "receipt.json").write_bytes(msgspec.json.encode(msgspec.structs.replace(receipt, engines=(unsure,))))
    expected, kernels = tmp_path / "e.toml", tmp_path / "kernels"
    expected.write_text(HEAD + "[[engine.rtx40.layer]]\nmatch = 'b.fc1'\nsparse = 'yes'\n")
    assert run_main(inspect, path, "--expect", expected).code == 1
    kernels.write_text("sm89_xmma_sparse_gemm_i8i8_sptensor16x8x64\nsoftmax\n" * 3)
    seen = ("--kernels", kernels, "--inferences", "3")
    assert run_main(inspect, path, "--expect", expected, *seen).code == 0
    (read,) = json.loads(run_main(inspect, path, "--json", *seen, "--target", "rtx40").out)["receipt"]["engines"]
    assert "the profiler, in kernels" in read["source"]
    assert run_main(inspect, path, "--expect", expected).code == 1
    wrong = run_main(inspect, path, *seen, "--target", "a100")
    assert (wrong.code, "0 fit" in wrong.err) == (5, True)
    assert run_main(inspect, path, "--inferences", "3").code == 2
