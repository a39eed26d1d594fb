"""Passes by name, and what is kept of each run."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import tiny_models
from commands import run_main

import gpusq_deploy.graph.passes
from gpusq_deploy.cli.rewrite import main as rewrite
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph.passes.base import run_passes
from gpusq_deploy.graph.passes.clean import Clean
from gpusq_deploy.graph.passes.log import PassLog
from gpusq_deploy.graph.passes.merge_qkv import MergeQkv, find_projections
from gpusq_deploy.graph.passes.pipelines import CANONICAL, SIMPLE
from gpusq_deploy.graph.passes.registry import PASSES, PIPELINES, make_pass, pass_names

IDENTITY = "g (float[B,4] x) => (float[B,4] y) { [fc] h = MatMul(x, w) [i] k = Identity(h) [r] y = Relu(k) }"


def saved(folder: Path) -> Path:
    path = folder / "m.onnx"
    ir.save(tiny_models.graph(IDENTITY, w=np.ones((4, 4), np.float32)), path)
    return path


def test_every_pass_there_is_has_an_entry_under_its_own_name() -> None:
    (folder,) = gpusq_deploy.graph.passes.__path__
    written = {
        line.split('"')[1]
        for path in Path(folder).glob("*.py")
        for line in path.read_text("utf-8").splitlines()
        if line.startswith("    name: ClassVar[str] = ")
    }
    assert written == set(PASSES)
    assert {make_pass(name).name: name for name, entry in PASSES.items() if not entry.decided_by} == {
        name: name for name, entry in PASSES.items() if not entry.decided_by
    }
    for name, entry in PASSES.items():
        if entry.decided_by:
            with pytest.raises(GpusqError, match=f"pass {name} carries out decisions: it needs {entry.decided_by}"):
                make_pass(name)


def test_a_name_that_looks_alike_is_suggested() -> None:
    assert pass_names("simple") == PIPELINES["simple"] == tuple(step.name for step in SIMPLE)
    with pytest.raises(GpusqError) as caught:
        pass_names("fold-shape")
    assert str(caught.value.hint).startswith("did you mean fold-shapes? known passes: clean, ")


def test_listing_imports_nothing_heavy() -> None:
    script = (
        "import sys\n"
        "from gpusq_deploy.cli.rewrite import command\n"
        "command.main(['--list'], standalone_mode=False)\n"
        "assert not {'onnx_ir', 'onnx', 'numpy'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    listed = {line.split()[0] for line in done.stdout.splitlines()}
    assert listed == {*PASSES, *PIPELINES}
    assert "(in a build only: it needs a quantisation plan)" in done.stdout


@pytest.mark.slow
def test_the_command_does_what_the_passes_do(tmp_path: Path) -> None:
    raw, out = tiny_models.exported_vit().raw, tmp_path / "out.onnx"
    ir.save(raw, tmp_path / "m.onnx")
    done = run_main(rewrite, "simple,faster", tmp_path / "m.onnx", out)
    assert done.code == 0, done.err
    wanted = run_passes(raw, CANONICAL)
    image = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    got, expected = (tiny_models.run_model(model, {"input": image})["output"] for model in (ir.load(out), wanted))
    np.testing.assert_array_equal(got, expected)
    assert [line.split(":")[0] for line in done.out.splitlines()] == [step.name for step in CANONICAL]


def test_the_command_tells_what_changed_and_overwrites_nothing(tmp_path: Path) -> None:
    model, out = saved(tmp_path), tmp_path / "out.onnx"
    done = run_main(rewrite, "clean", model, out)
    assert done.out == "clean: 1 change, 3 -> 2 nodes (Identity -1)\n"
    assert [node.op_type for node in onnx.load(out).graph.node] == ["MatMul", "Relu"]
    again = run_main(rewrite, "clean", model, out)
    assert (again.code, "the output exists already" in again.err) == (5, True)
    assert run_main(rewrite, "clean", model, model, "--force").code == 5
    told = run_main(rewrite, "clean", out, out.with_name("2.onnx"), "--json").json()
    nodes = {"MatMul": 1, "Relu": 1}
    assert told["passes"] == [{"name": "clean", "changes": 0, "before": nodes, "after": nodes, "file": ""}]


def test_without_a_choice_all_projections_are_merged() -> None:
    weights = {name: np.ones((8, 8), np.float32) for name in ("wq", "wk", "wv")}
    constants: dict[str, tiny_models.Array] = {"heads": np.array([0, 0, 2, 4]), "bq": np.zeros(8, np.float32)}
    model = run_passes(tiny_models.graph(tiny_models.ATTENTION, **constants, **weights), [Clean()])
    chosen = find_projections(model)
    assert len(chosen) == 1
    either = [run_passes(model, [step]) for step in (MergeQkv(), MergeQkv(chosen))]
    first, second = (Counter(node.name for node in found.graph) for found in either)
    assert first == second


def test_graphs_are_written_without_large_weights(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "dump"
    model = tiny_models.graph(IDENTITY.replace("4", "64"), w=np.ones((64, 64), np.float32))
    log = PassLog(folder)
    run_passes(model, [Clean(), Clean()], after=log.after(model))
    assert sorted(path.name for path in folder.iterdir()) == ["01-clean.onnx", "02-clean.onnx", "passes.json"]
    index = json.loads((folder / "passes.json").read_text())
    assert index["schema"] == "gpusq-passes/1"
    assert [entry["changes"] for entry in index["passes"]] == [record.changes for record in log.records]
    assert index["passes"][0]["before"] == {"Identity": 1, "MatMul": 1, "Relu": 1}
    assert index["passes"][1]["before"] == index["passes"][0]["after"] == {"MatMul": 1, "Relu": 1}
    path = folder / index["passes"][0]["file"]
    assert path.stat().st_size < 64 * 64 * 4
    (weight,) = onnx.load(path, load_external_data=False).graph.initializer
    assert (list(weight.dims), weight.data_location) == ([64, 64], onnx.TensorProto.EXTERNAL)
    # The graph that is built on keeps its weights.
    assert all(value.const_value is not None for value in model.graph.initializers.values())


def test_a_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    with pytest.raises(GpusqError, match="isn't empty"):
        PassLog(tmp_path)
    with pytest.raises(GpusqError, match="cannot write graphs here"):
        PassLog(tmp_path / "m.onnx")
