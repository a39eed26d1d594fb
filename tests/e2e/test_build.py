"""gpusq-build on a tiny sparse ViT: what the bundle holds, and that it is true."""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from commands import Finished, run_main
from exact_sessions import exact_session
from numpy_scalars import scalars_in

from gpusq_deploy.artifacts.base import json_from_value
from gpusq_deploy.bundle.files import read_bundle
from gpusq_deploy.calibration.data import Batches, open_source
from gpusq_deploy.cli.build import main as build
from gpusq_deploy.cli.inspect import main as inspect
from gpusq_deploy.cli.validate import main as validate
from gpusq_deploy.frontend.checkpoint.load import load_checkpoint

pytestmark = pytest.mark.slow


def files_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_the_bundle_holds_what_the_contract_names(bundle: Path) -> None:
    assert files_below(bundle) == [
        "calibration.json",
        "engines/a100.plan",
        "manifest.json",
        "model.onnx",
        "plan.json",
        "receipt.json",
        "report.html",
    ]


def test_stdout_is_one_json_object_and_progress_goes_to_stderr(built: tuple[Path, Finished]) -> None:
    path, done = built
    result = done.json()
    assert result["bundle"] == str(path)
    assert result["int8_layers"] == result["layers"] == 10
    assert result["sparse_layers"] == 8
    assert "calibrating" in done.err
    assert (result["verification"]["reference"], result["pruning"]) == ("float", None)


def test_every_digest_in_the_manifest_is_the_file_s(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert {entry["path"] for entry in manifest["files"]} == set(files_below(bundle)) - {"manifest.json"}
    for entry in manifest["files"]:
        content = (bundle / entry["path"]).read_bytes()
        assert entry["digest"] == "sha256:" + hashlib.sha256(content).hexdigest()
        assert entry["size"] == len(content)


def test_every_file_is_the_same_whether_its_numbers_are_python_s_or_numpy_s(bundle: Path) -> None:
    whole = read_bundle(bundle)
    for value in (whole.manifest, whole.plan, whole.receipt):
        assert json_from_value(scalars_in(value)) == json_from_value(value)


def test_the_engine_runs_every_layer_in_int8_and_says_what_it_cannot_know(bundle: Path) -> None:
    (engine,) = read_bundle(bundle).receipt.engines
    assert engine.target == "a100"
    assert engine.totals.gemms == {"int8": 10}
    assert engine.totals.attention_fused == 2
    assert not engine.executed
    assert {layer.precision for layer in engine.layers} == {"int8"}
    sparse = [layer for layer in engine.layers if layer.sparse_asked]
    assert {layer.sparse_executed for layer in sparse} == {"unknown"}
    assert all("GPU" in layer.reason for layer in sparse)


def test_a_target_that_can_not_be_built_here_gets_its_reason_and_its_command(bundle: Path) -> None:
    (skipped,) = read_bundle(bundle).receipt.skipped
    assert skipped.target == "orin"
    assert "only on the device itself" in skipped.reason
    assert skipped.command == "gpusq-build sparse.gpusq --target orin"


def test_by_the_plain_recipe_int8_weights_are_the_rounded_checkpoint_and_two_in_four(
    tmp_path: Path, sparse: Path
) -> None:
    bundle = tmp_path / "plain.gpusq"
    plain = ("--recipe", "plain_wi8_ai8", "--calib", "random", "--target", "orin")
    done = run_main(build, sparse, "--int8", "--sparse", *plain, "--out", bundle)
    assert done.code == 0, done.err
    weights = load_checkpoint(sparse).module.state_dict()
    constants = {name: value.const_value for name, value in ir.load(bundle / "model.onnx").graph.initializers.items()}
    for decision in read_bundle(bundle).plan.layers:
        codes = np.asarray(constants[f"{decision.node}_weight_int8"])
        scale = np.asarray(constants[f"{decision.node}_weight_scale"]).astype(np.float32)
        weight = np.asarray(weights[f"{decision.layer}.weight"])
        if decision.kind == "linear" and decision.weight is not None and decision.weight.axis == 1:
            codes = codes.T
        by_hand = np.rint(weight / scale.reshape(-1, *[1] * (weight.ndim - 1)))
        assert np.array_equal(codes, np.clip(by_hand, -127, 127))
        if decision.sparse:
            assert (np.count_nonzero(codes.reshape(len(codes), -1, 4), axis=2) <= 2).all()


def test_by_the_default_recipe_the_weights_are_still_two_in_four(bundle: Path) -> None:
    constants = {name: value.const_value for name, value in ir.load(bundle / "model.onnx").graph.initializers.items()}
    sparse = [decision for decision in read_bundle(bundle).plan.layers if decision.sparse]
    assert sparse
    for decision in sparse:
        codes = np.asarray(constants[f"{decision.node}_weight_int8"])
        if decision.weight is not None and decision.weight.axis == 1:
            codes = codes.T
        assert (np.count_nonzero(codes.reshape(len(codes), -1, 4), axis=2) <= 2).all()


def test_the_graph_answers_as_torch_does(bundle: Path, sparse: Path, photos: Path) -> None:
    checkpoint = load_checkpoint(sparse)
    (batch,) = Batches(source=open_source(str(photos), checkpoint.preprocessing), size=24)
    session = exact_session(bundle / "model.onnx")
    got = np.asarray(session.run(["output"], {"input": batch})[0])
    with torch.no_grad():
        reference = np.asarray(checkpoint.module(torch.from_numpy(batch)))
    noise = 10 * np.log10((reference**2).sum() / ((reference - got) ** 2).sum())
    assert noise > 25
    recorded = read_bundle(bundle).receipt.verification
    assert recorded is not None
    assert recorded.held_out
    assert recorded.sqnr_db is not None
    assert abs(recorded.sqnr_db - noise) < 6


def test_nothing_but_the_border_is_float32(bundle: Path) -> None:
    graph = ir.load(bundle / "model.onnx").graph
    border = {value.name for value in (*graph.inputs, *graph.outputs)}
    assert all(value.dtype == ir.DataType.FLOAT for value in (*graph.inputs, *graph.outputs))
    inner = [value for node in graph for value in node.outputs if value.name not in border]
    assert [value.name for value in (*inner, *graph.initializers.values()) if value.dtype == ir.DataType.FLOAT] == []


def test_a_second_build_makes_the_same_model_byte_for_byte(
    bundle: Path, sparse: Path, photos: Path, tmp_path: Path
) -> None:
    again = tmp_path / "again"
    done = run_main(build, sparse, "--int8", "--sparse", "--calib", photos, "--target", "a100", "--out", again)
    assert done.code == 0, done.err
    assert (again / "model.onnx").read_bytes() == (bundle / "model.onnx").read_bytes()
    assert (again / "plan.json").read_bytes() == (bundle / "plan.json").read_bytes()


@pytest.mark.parametrize("float_type", ["--fp16", "--bf16", "--fp32"])
def test_a_float_build_needs_no_calibration(dense: Path, tmp_path: Path, float_type: str) -> None:
    done = run_main(build, dense, float_type, "--target", "a100", "--batch", "4", "--out", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    result = done.json()
    assert result["int8_layers"] == 0
    assert result["engines"][0]["gemms"].keys() == {float_type.removeprefix("--")}
    assert not (tmp_path / "out" / "calibration.json").exists()
    assert (result["verification"] is None) == (float_type == "--bf16")


def test_int8_with_a_bf16_remainder_builds(dense: Path, tmp_path: Path) -> None:
    done = run_main(build, dense, "--int8", "--bf16", "--calib", "random", "--out", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    result = done.json()
    assert result["synthetic_calibration"] is True
    assert result["engines"][0]["gemms"] == {"int8": 10}


def test_random_calibration_is_said_loudly(dense: Path, tmp_path: Path) -> None:
    done = run_main(build, dense, "--int8", "--calib", "random", "--out", tmp_path / "out")
    assert done.code == 0, done.err
    assert "random data" in done.out
    assert read_bundle(tmp_path / "out").manifest.synthetic_calibration


FACTORY = '''
import torch

class Model(torch.nn.Module):
    """One Linear called twice, and attention whose projections are used functionally."""

    gpusq_preprocessing = dict(channels=3, height=32, width=32, mean=[0.5] * 3, std=[0.5] * 3)

    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Conv2d(3, 64, 8, 8)
        self.fc = torch.nn.Linear(64, 64)
        self.attention = torch.nn.MultiheadAttention(64, 2, batch_first=True)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = self.fc(self.fc(x))
        return self.attention(x, x, x, need_weights=False)[0].mean(1)
'''


def test_a_factory_with_a_shared_and_a_functional_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "user_models.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(tmp_path)
    model = tmp_path / "model.pt"
    torch.manual_seed(0)
    torch.save(importlib.import_module("user_models").Model().state_dict(), model)
    options = ("--arch", "user_models:Model", "--int8", "--calib", "random", "--json")
    done = run_main(build, model, *options, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    names = [layer.layer.partition("/")[0] for layer in read_bundle(tmp_path / "out").plan.layers]
    assert names == ["embed", "fc", "fc", "attention.in_proj", "attention.out_proj"]
    assert done.json()["engines"][0]["gemms"] == {"int8": 5}


def test_a_further_engine_is_built_from_the_bundle_alone(bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.gpusq"
    shutil.copytree(bundle, copy)
    done = run_main(build, copy, "--target", "rtx40", "--json")
    assert done.code == 0, done.err
    assert [engine["target"] for engine in done.json()["engines"]] == ["a100", "rtx40"]
    assert (copy / "engines/a100.plan").read_bytes() == (bundle / "engines/a100.plan").read_bytes()
    assert (copy / "engines/rtx40.plan").exists()
    assert run_main(validate, copy).code == 0


def test_a_bundle_takes_no_other_options(bundle: Path) -> None:
    done = run_main(build, bundle, "--batch", "4", "--target", "rtx40")
    assert done.code == 2
    assert "only --target, --engine-option and --unpack apply to it, not --batch" in done.err


def test_validate_finds_nothing_in_the_bundle_and_something_in_a_damaged_one(bundle: Path, tmp_path: Path) -> None:
    assert run_main(validate, bundle).code == 0
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    plan = copy / "engines/a100.plan"
    plan.write_bytes(plan.read_bytes()[:-1] + b"\x00\x01")
    done = run_main(validate, copy, "--json")
    assert done.code == 1
    (finding,) = done.json()["findings"]
    assert finding["rule"] == "digest"
    assert "engines/a100.plan" in finding["what"]


def test_inspect_explains_one_layer(bundle: Path) -> None:
    done = run_main(inspect, bundle, "--layer", "blocks.0.mlp.fc1", "--json")
    assert done.code == 0
    (decision,) = done.json()["plan"]["layers"]
    assert decision["precision"] == "int8"
    assert decision["activation"]["origin"].startswith("amax over")
    (engine,) = done.json()["receipt"]["engines"]
    (layer,) = engine["layers"]
    assert layer["engine_layers"]


def test_the_totals_of_inspect_are_those_of_its_table(bundle: Path) -> None:
    """Sparse kernels that write FP16 on an A100 are unknown, and no layer is asked less for that."""
    shown = run_main(inspect, bundle).out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines() if line.startswith("│")]
    headings = ("valid", "eligible", "asked", "sparse")
    columns = {heading: [row[3 + place] for row in rows[:10]] for place, heading in enumerate(headings)}
    assert "unknown" in columns["eligible"]
    lines = shown.splitlines()
    first = lines.index("2:4, of 10 layers:") + 1
    for column in lines[first : first + 4]:
        heading, _, said = column.strip().partition(": ")
        counts = {answer: int(count) for answer, count in re.findall(r"(yes|no|unknown) (\d+)", said)}
        assert counts["yes"] == columns[heading].count("yes")
        assert sum(counts.values()) == 10
        assert all(columns[heading].count(answer) == count for answer, count in counts.items())
    assert "dense by intent: recipe static_wi8_ai8: classifier heads" in shown
    assert "leave the layer dense" not in shown
    told = run_main(inspect, bundle, "--layer", "head").out
    assert "dense by intent" in told
    assert "2:4, then" not in told
    assert "try:" not in told


def test_a_prediction_stands_under_the_target_that_it_was_made_for(bundle: Path, tmp_path: Path) -> None:
    both = tmp_path / "both.gpusq"
    shutil.copytree(bundle, both)
    assert run_main(build, both, "--target", "rtx40").code == 0
    shown = run_main(inspect, both, "--layer", "blocks.0.mlp.fc1").out
    first, second = (" ".join(part.split()) for part in shown.split("blocks.0.mlp.fc1 on ")[1:])
    assert first.startswith("a100")
    assert "INT8 or not a100: INT8 is predicted" in first
    assert second.startswith("rtx40")
    assert "INT8 or not unknown for rtx40: the graphs were compared for a100 alone" in second
    assert "INT8 is predicted" not in second


def test_kernels_are_said_with_the_batch_that_they_were_built_for(bundle: Path) -> None:
    receipt = read_bundle(bundle).receipt
    shown = " ".join(run_main(inspect, bundle).out.split())
    assert f"{receipt.engines[0].totals.kernels} kernels for batch 1:8:32" in shown
    assert receipt.cost is not None
    assert receipt.cost.built is not None
    assert f"INT8 cost: built for batch 8 alone, {receipt.cost.built.kernels} kernels" in shown


def test_inspect_suggests_near_names(bundle: Path) -> None:
    done = run_main(inspect, bundle, "--layer", "blocks.0.mlp.fc9")
    assert done.code == 5
    assert "blocks.0.mlp.fc1" in done.err


def test_a_killed_build_leaves_the_old_bundle_whole(sparse: Path, photos: Path, bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model.gpusq"
    shutil.copytree(bundle, copy)
    arguments = ["build", str(sparse), "--int8", "--calib", str(photos), "--force", "--out", str(copy)]
    process = subprocess.Popen(
        [sys.executable, "-m", "gpusq_deploy", *arguments], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "calibrating" in line:
            break
    time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    rest = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 130, rest
    assert "Traceback" not in rest
    assert [path.name for path in tmp_path.iterdir()] == ["model.gpusq"]
    assert run_main(validate, copy).code == 0
