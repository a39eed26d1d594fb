"""`gpusq-build --prune`: a dense checkpoint becomes a sparse bundle that says so; what makes no sense is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from gpusq_deploy.cli.build import main as build
from gpusq_deploy.cli.inspect import main as inspect
from gpusq_deploy.cli.validate import main as validate
from gpusq_deploy.frontend.checkpoint.load import load_checkpoint, save_checkpoint
from gpusq_deploy.graph.values import array_of

from commands import Finished, run_main  # isort: skip

pytestmark = pytest.mark.slow

SECOND_ORDER = ("--int8", "--sparse", "--prune", "second-order")


@pytest.fixture(scope="module")
def pruning(dense: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Finished]:
    out = tmp_path_factory.mktemp("pruned") / "pruned.gpusq"
    return out, run_main(build, dense, *SECOND_ORDER, "--calib", photos, "--out", out, "--json")


def groups_kept(model: Path) -> dict[str, int]:
    """Of each INT8 weight [K, N] or [N, K], the most non-zeros in a group of four, along the better axis."""
    found: dict[str, int] = {}
    for name, value in ir.load(model).graph.initializers.items():
        array = array_of(value)
        if array.dtype == np.int8 and array.ndim == 2:
            most = (int((rows.reshape(-1, 4) != 0).sum(axis=1).max()) for rows in (array, array.T))
            found[name] = min(most)
    return found


def test_the_recipe_s_layers_become_sparse_and_the_head_stays_dense(pruning: tuple[Path, Finished]) -> None:
    path, done = pruning
    assert done.code == 0, done.err
    assert done.json()["sparse_layers"] == 8
    assert sorted(groups_kept(path / "model.onnx").values()) == [2] * 8 + [4]
    assert "kept dense by recipe static_wi8_ai8: patch_embed.proj, head" in done.err
    assert run_main(validate, path).code == 0


def test_the_manifest_tells_how_it_was_pruned(pruning: tuple[Path, Finished]) -> None:
    manifest = json.loads((pruning[0] / "manifest.json").read_text())
    assert manifest["options"]["prune"] == "second-order"
    # 24 photographs, four of them kept apart to verify on.
    assert "--prune: 8 layers made 2:4 by second-order, on 20 samples, without training" in manifest["notes"]
    states = {state["layer"]: state for state in manifest["sparsity"]["layers"]}
    assert states["blocks.0.attn.qkv"]["expected"]
    assert "gpusq-build --prune second-order" in states["blocks.0.attn.qkv"]["reason"]


def test_what_pruning_cost_stands_beside_what_int8_cost(pruning: tuple[Path, Finished]) -> None:
    """Four samples are kept apart: their dense answers by torch, the pruned float graph's by its own weights."""
    path, done = pruning
    result = done.json()
    assert result["verification"]["reference"] == "pruned float"
    loss = result["pruning"]
    assert (loss["images"], loss["held_out"]) == (4, True)
    # Half of the weights cost more than eight bits of each.
    assert loss["sqnr_db"] < result["verification"]["sqnr_db"]
    assert f"pruned: SQNR {loss['sqnr_db']:.0f} dB (" in done.err
    assert "against the dense model, on 4 held-out samples" in done.err
    assert f"compared: SQNR {result['verification']['sqnr_db']:.0f} dB (" in done.err
    assert "against the pruned float model, on 4 held-out samples" in done.err
    shown = run_main(inspect, path).out
    assert f"pruned: SQNR {loss['sqnr_db']:.0f} dB (" in shown
    assert f"compared: SQNR {result['verification']['sqnr_db']:.0f} dB (" in shown
    assert shown.count(", held out of calibration") == 2
    assert [text for text in result["warnings"] if "pruning alone" in text] or loss["sqnr_db"] >= 10


def test_magnitude_needs_no_data(dense: Path, tmp_path: Path) -> None:
    out = tmp_path / "pruned.gpusq"
    done = run_main(build, dense, "--sparse", "--prune", "magnitude", "--out", out, "--json")
    assert done.code == 0, done.err
    assert done.json()["sparse_layers"] == 8
    # It is measured, on noise, and noise is no reason to warn.
    assert done.json()["pruning"]["synthetic"]
    assert done.json()["warnings"] == []


def test_permuted_first_it_says_what_that_kept_and_that_the_function_stayed(dense: Path, tmp_path: Path) -> None:
    out = tmp_path / "pruned.gpusq"
    done = run_main(build, dense, "--sparse", "--prune", "magnitude", "--permute", "--out", out, "--json")
    assert done.code == 0, done.err
    assert done.json()["sparse_layers"] == 8
    (note,) = (note for note in json.loads((out / "manifest.json").read_text())["notes"] if "--permute" in note)
    before, after = (float(share) for share in re.findall(r"([\d.]+)%", note))
    assert 50 < before < after < 100
    assert run_main(validate, out).code == 0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--int8", "--prune", "magnitude", "--calib", "random"), "--prune needs --sparse"),
        (("--sparse", "--int8", "--prune", "magnitude", "--ranges", "found.json"), "--ranges of another model"),
        (("--sparse", "--permute"), "--permute needs --prune"),
        (("--sparse", "--prune", "activation"), "give real samples with --calib"),
        ((*SECOND_ORDER, "--calib", "random"), "give real samples with --calib"),
    ],
)
def test_options_that_contradict_it_are_refused(
    dense: Path, tmp_path: Path, options: tuple[str, ...], told: str
) -> None:
    done = run_main(build, dense, *options, "--out", tmp_path / "no.gpusq")
    assert done.code == 2
    assert told in " ".join(done.err.split())
    assert not (tmp_path / "no.gpusq").exists()


def test_a_checkpoint_that_is_sparse_already_is_refused(sparse: Path, photos: Path, tmp_path: Path) -> None:
    done = run_main(build, sparse, *SECOND_ORDER, "--calib", photos, "--out", tmp_path / "no.gpusq")
    assert done.code == 5
    assert "8 layers of the checkpoint pruned to 2:4 already: blocks.0.attn.qkv" in done.err
    assert "leave out --prune" in done.err
    assert not (tmp_path / "no.gpusq").exists()


def test_ranges_of_the_dense_model_are_not_used_for_the_pruned_one(dense: Path, tmp_path: Path) -> None:
    original, source = load_checkpoint(dense), tmp_path / "ranges.pt"
    save_checkpoint(
        source, original.module, arch=original.arch, preprocessing=original.preprocessing, ranges={"head": 3.0}
    )
    options = ("--int8", "--sparse", "--prune", "magnitude")
    done = run_main(build, source, *options, "--out", tmp_path / "no.gpusq")
    assert done.code == 5
    assert "the 1 activation ranges of the dense model no longer hold" in done.err
    assert "INT8 and FP8 need activation ranges" in done.err
