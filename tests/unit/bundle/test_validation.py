"""What gpusq-validate finds in checkpoints, models and bundles, each fault planted."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import bundles
import msgspec
import numpy as np
import pytest
import tiny_models
import torch
from commands import run_main

from gpusq_deploy.artifacts.arch import ArchSpec
from gpusq_deploy.artifacts.base import read_value
from gpusq_deploy.artifacts.bundle_layout import MANIFEST, MODEL, PLAN
from gpusq_deploy.artifacts.manifest import Manifest
from gpusq_deploy.artifacts.plan import QuantPlan
from gpusq_deploy.artifacts.sparsity import SparsityRecord
from gpusq_deploy.bundle.files import read_bundle, write_value
from gpusq_deploy.bundle.report.sparse_chain import explain_layers
from gpusq_deploy.bundle.validation import validate
from gpusq_deploy.cli.validate import main as command
from gpusq_deploy.engines.targets import find_target
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend.checkpoint.load import save_checkpoint
from gpusq_deploy.frontend.checkpoint.preprocessing import preprocessing_of
from gpusq_deploy.frontend.checkpoint.tensors import array_from_tensor
from gpusq_deploy.graph.files import save_model
from gpusq_deploy.numerics.two_four import magnitude_mask

SPARSE = ("blocks.0.attn.qkv", "blocks.0.attn.proj", "blocks.0.mlp.fc1", "blocks.0.mlp.fc2")


def pruned() -> torch.nn.Module:
    """The tiny ViT with the layers that the default recipe expects to be 2:4 made so."""
    module = tiny_models.vit()
    with torch.no_grad():
        for name in SPARSE:
            weight = module.get_submodule(name).get_parameter("weight")
            weight.mul_(torch.from_numpy(magnitude_mask(array_from_tensor(weight.detach()))))
    return module


def write(path: Path, module: torch.nn.Module) -> Path:
    torch.save(module.state_dict(), path)
    return path


@pytest.mark.parametrize("arch", [False, True])
def test_a_sparse_checkpoint_has_no_findings(tmp_path: Path, arch: bool) -> None:
    result = validate(write(tmp_path / "m.pt", pruned()), arch=tiny_models.vit_spec() if arch else None)
    assert (result.kind, result.findings) == ("checkpoint", ())
    assert {layer.layer for layer in result.sparsity.layers if layer.expected} == set(SPARSE)


def test_a_dense_checkpoint_has_one_finding_for_each_layer(tmp_path: Path) -> None:
    result = validate(write(tmp_path / "m.pt", tiny_models.vit()))
    assert [(finding.rule, finding.place) for finding in result.findings] == [("not-2:4", name) for name in SPARSE]
    assert all("gpusq-compress" in finding.hint for finding in result.findings)
    assert not any("half of it is zero" in finding.what for finding in result.findings)


def test_a_model_that_nobody_pruned_lost_no_mask_and_is_told_in_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "m.pt", tiny_models.vit(depth=3))
    assert {layer.diagnosis for layer in validate(path).sparsity.layers if layer.expected} == {"dense"}
    done = run_main(command, path)
    (line,) = [line for line in done.out.splitlines() if line.startswith("not-2:4: ")]
    assert "12 layers (blocks.0.attn.qkv, blocks.0.attn.proj, blocks.0.mlp.fc1 and 9 more): under 10 % of" in line
    assert "mask" not in done.out
    assert len(run_main(command, path, "--json").json()["findings"]) == 12


def test_a_mask_is_lost_where_the_other_layers_kept_theirs(tmp_path: Path) -> None:
    module = pruned()
    weight = module.get_submodule("blocks.0.mlp.fc1").get_parameter("weight")
    with torch.no_grad():
        weight.normal_()
    (finding,) = validate(write(tmp_path / "m.pt", module)).findings
    assert finding.place == "blocks.0.mlp.fc1"
    assert "its mask was not applied" in finding.what


def test_a_dense_bundle_hears_of_no_lost_mask(tmp_path: Path) -> None:
    path = bundles.write(tmp_path / "bundle", sparse=False)
    result = validate(path)
    assert (result.sparsity_asked, result.findings) == (False, ())
    assert [layer.diagnosis for layer in result.sparsity.layers] == ["dense"]
    bundle = read_bundle(path)
    recorded = [msgspec.structs.replace(layer, diagnosis="mask lost") for layer in bundle.manifest.sparsity.layers]
    for layers in (bundle.manifest.sparsity.layers, recorded):
        (found,) = explain_layers(layers, find_target("a100"), decisions=bundle.plan.layers)
        assert (found.diagnosis, found.hint) == ("dense", "")
        assert found.chain[0].evidence.endswith("dense: 2:4 was not asked for")
        assert found.chain[0].mend == ""


def test_a_bundles_layer_that_its_graph_lacks_is_found(tmp_path: Path) -> None:
    path = bundles.write(tmp_path / "bundle")
    manifest = read_value(path / MANIFEST, Manifest)
    (layer,) = manifest.sparsity.layers
    gone = msgspec.structs.replace(layer, layer="gone")
    sparsity = msgspec.structs.replace(manifest.sparsity, layers=(layer, gone))
    write_value(path, MANIFEST, msgspec.structs.replace(manifest, sparsity=sparsity))
    assert validate(path).findings == ()
    write_value(path, PLAN, msgspec.structs.replace(read_value(path / PLAN, QuantPlan), sparse_asked=True))
    assert [(found.rule, found.place) for found in validate(path).findings if found.rule != "digest"] == [
        ("not-read", "gone")
    ]


UNREAD = {
    "experts.w1": (4, 16, 16),
    "encoder.conv.weight": (8, 8, 3),
    "volume.weight": (8, 8, 2, 4, 4),
    "rnn.weight_ih_l0": (16, 16),
    "visual.proj": (16, 16),
    "dense.kernel": (16, 16),
}


@pytest.mark.parametrize("name", UNREAD)
def test_tensors_of_a_checkpoint_that_nobody_read_are_found(tmp_path: Path, name: str) -> None:
    path = tmp_path / "m.pt"
    torch.save({**pruned().state_dict(), name: torch.ones(UNREAD[name])}, path)
    (finding,) = validate(path).findings
    assert (finding.rule, finding.place) == ("not-read", name)
    assert f"{torch.ones(UNREAD[name]).numel():,} parameters, " in finding.what
    assert "--arch" in finding.hint
    torch.save({name: torch.ones(UNREAD[name])}, path)
    (finding,) = validate(path).findings
    assert "100.0% of the file's" in finding.what


@pytest.mark.parametrize(
    "tensor", ["pos_embed", "cls_token", "rel_pos.relative_position_bias_table", "attn.rel_pos_h", "norm.running_mean"]
)
def test_tables_and_tokens_of_a_checkpoint_are_no_weights(tmp_path: Path, tensor: str) -> None:
    path = tmp_path / "m.pt"
    torch.save({**pruned().state_dict(), tensor: torch.ones(1, 17, 64)}, path)
    assert validate(path).findings == ()


def test_a_checkpoint_without_weights_is_found(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.save({"scale": torch.ones(8), "pos_embed": torch.ones(1, 4, 8)}, path)
    (finding,) = validate(path).findings
    assert (finding.rule, finding.what) == ("not-read", "the file has no weight that was checked")


class _Mixed(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(8, 16)
        self.rnn = torch.nn.LSTM(16, 16)
        self.fc = torch.nn.Linear(16, 16)


def test_with_an_architecture_its_tables_are_known_and_recurrent_weights_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = _Mixed()
    torch.nn.init.zeros_(module.fc.weight)
    path = tmp_path / "m.pt"
    torch.save(module.state_dict(), path)
    holder = types.ModuleType("mixed_models")
    holder.__dict__["mixed"] = _Mixed
    monkeypatch.setitem(sys.modules, "mixed_models", holder)
    (finding,) = validate(path, arch=ArchSpec(source="factory", name="mixed_models:mixed", arguments={})).findings
    assert (finding.rule, finding.place) == ("not-read", "rnn.weight_ih_l0, rnn.weight_hh_l0")


def test_one_group_that_was_touched_is_located(tmp_path: Path) -> None:
    module = pruned()
    weight = module.get_submodule("blocks.0.mlp.fc2").get_parameter("weight")
    with torch.no_grad():
        weight[17, 40:44] = 0.5
    (finding,) = validate(write(tmp_path / "m.pt", module)).findings
    assert finding.place == "blocks.0.mlp.fc2"
    assert "1 of 4096 groups" in finding.what
    assert "row 17, columns 40 to 43: [0.5, 0.5, 0.5, 0.5]" in finding.what


def test_pruning_along_the_wrong_axis_is_recognised(tmp_path: Path) -> None:
    module = pruned()
    weight = module.get_submodule("blocks.0.attn.proj").get_parameter("weight")
    with torch.no_grad():
        weight.copy_(weight.T.clone())
    (finding,) = validate(write(tmp_path / "m.pt", module)).findings
    assert "wrong axis" in finding.what


@pytest.mark.parametrize("named", [SPARSE[:1], (*SPARSE, "head")])
def test_the_record_of_a_checkpoint_beats_the_recipe(tmp_path: Path, named: tuple[str, ...]) -> None:
    path, module, spec = tmp_path / "m.pt", pruned(), tiny_models.vit_spec()
    record = SparsityRecord(method="magnitude", layers=named)
    save_checkpoint(path, module, arch=spec, preprocessing=preprocessing_of(spec, module), sparsity=record)
    result = validate(path)
    assert {layer.layer for layer in result.sparsity.layers if layer.expected} == set(named)
    assert [finding.place for finding in result.findings] == (["head"] if "head" in named else [])


def test_a_good_model_and_a_good_bundle_have_no_findings(tmp_path: Path) -> None:
    save_model(bundles.model().after, tmp_path / "m.onnx")
    assert (validate(tmp_path / "m.onnx").kind, validate(tmp_path / "m.onnx").findings) == ("ONNX model", ())
    result = validate(bundles.write(tmp_path / "bundle"))
    assert (result.kind, result.findings, result.sparsity_asked) == ("bundle", (), False)


def test_a_dense_model_is_found(tmp_path: Path) -> None:
    save_model(bundles.model(sparse=False, k=32).after, tmp_path / "m.onnx")
    assert [finding.rule for finding in validate(tmp_path / "m.onnx").findings] == ["not-2:4"]


def test_a_model_with_broken_q_dq_is_found(tmp_path: Path) -> None:
    model = bundles.model().after.clone()
    scale = model.graph.initializers["fc1_weight_scale"]
    model.graph.initializers["fc1_weight_scale"].const_value = tiny_models.tensor(
        np.zeros(scale.shape.numpy() if scale.shape else (), np.float32), "fc1_weight_scale"
    )
    save_model(model, tmp_path / "m.onnx")
    (finding,) = validate(tmp_path / "m.onnx").findings
    assert (finding.rule, finding.place) == ("graph-invariant", "node fc1_weight_dq")


def test_a_bundle_with_a_damaged_file_is_found(tmp_path: Path) -> None:
    out = bundles.write(tmp_path / "bundle")
    (out / "engines" / "orin.plan").write_bytes(b"another engine")
    (out / PLAN).write_bytes((out / PLAN).read_bytes() + b"\n")
    findings = validate(out).findings
    assert [finding.rule for finding in findings] == ["digest", "digest"]
    assert ["orin.plan" in findings[0].what, "plan.json" in findings[1].what] == [True, True]


def test_a_bundle_whose_model_was_replaced_is_found(tmp_path: Path) -> None:
    out = bundles.write(tmp_path / "bundle")
    save_model(bundles.model(sparse=False).after, out / MODEL)
    assert [finding.rule for finding in validate(out).findings] == ["digest"]


def test_weights_that_are_not_read_are_findings_of_a_bundle_as_of_its_model(tmp_path: Path) -> None:
    out = bundles.write(tmp_path / "bundle")
    text = "g (float[N,8,4,4] x) => (float[N,4,5,5] y) { [up] y = ConvTranspose(x, w) }"
    save_model(tiny_models.graph(text, w=np.ones((8, 4, 2, 2), np.float32)), out / MODEL)
    of_model = validate(out / MODEL)
    of_bundle = validate(out)
    assert [finding.rule for finding in of_model.findings] == ["not-read"]
    assert [finding for finding in of_bundle.findings if finding.place == "up"] == [*of_model.findings]
    assert of_bundle.remarks == ()


def test_a_bundle_without_its_model_is_refused(tmp_path: Path) -> None:
    out = bundles.write(tmp_path / "bundle")
    (out / MODEL).unlink()
    with pytest.raises(GpusqError, match="no such file"):
        validate(out)


@pytest.mark.parametrize("name", ["none.pt", "none.onnx", "none"])
def test_what_is_not_there_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(GpusqError, match="no such file"):
        validate(tmp_path / name)
    with pytest.raises(GpusqError, match="not a bundle"):
        validate(tmp_path)


def test_a_record_that_fits_no_layer_is_refused(tmp_path: Path) -> None:
    path, module, spec = tmp_path / "m.pt", pruned(), tiny_models.vit_spec()
    record = SparsityRecord(method="magnitude", layers=("blocks.0.attn.qkv", "encoder.0.fc"))
    save_checkpoint(path, module, arch=spec, preprocessing=preprocessing_of(spec, module), sparsity=record)
    with pytest.raises(GpusqError, match=r"layers that the model doesn't have: encoder\.0\.fc"):
        validate(path)


@pytest.mark.parametrize("arch", [(), ("--arch", "timm:vit_tiny_patch16_224")])
def test_a_state_dict_that_is_not_taken_is_told(tmp_path: Path, arch: tuple[str, ...]) -> None:
    path, state = tmp_path / "m.pt", pruned().state_dict()
    torch.save({"model": state, "ema": tiny_models.vit().state_dict(), "epoch": 3}, path)
    if arch:
        arch += tuple(word for key, value in tiny_models.ARGUMENTS.items() for word in ("--arch-arg", f"{key}={value}"))
    done = run_main(command, path, *arch, "--json")
    assert done.code == 0, done.err
    told = "state dict under 'model'; not taken, though it is there: ema (--state-dict NAME takes it)"
    assert done.err == f"m.pt: {told}\n"
    assert json.loads(done.out)["remarks"] == [told]


@pytest.mark.parametrize("how", ["guessed", "named", "describes itself"])
def test_flipped_bits_of_a_weight_are_refused_not_called_clean(tmp_path: Path, how: str) -> None:
    path, module, spec = tmp_path / "m.pt", pruned(), tiny_models.vit_spec()
    if how == "describes itself":
        save_checkpoint(path, module, arch=spec, preprocessing=preprocessing_of(spec, module))
    else:
        write(path, module)
    arch = spec if how == "named" else None
    assert validate(path, arch=arch).findings == ()
    data = bytearray(path.read_bytes())
    # A mantissa's lowest byte: the weight stays a number, and what is zero stays zero.
    weight = module.get_submodule("blocks.0.mlp.fc1").get_parameter("weight").detach()
    place = data.index(array_from_tensor(weight).tobytes())
    column = int(torch.nonzero(weight[0])[0, 0])
    data[place + 4 * column] ^= 0x11
    path.write_bytes(data)
    with pytest.raises(GpusqError, match=r"1 of \d+ entries differ from their checksums") as caught:
        validate(path, arch=arch)
    assert "/data/" in str(caught.value.place)
    assert run_main(command, path).code == GpusqError.exit_code


@pytest.mark.parametrize("option", ["--arch", "--arch-arg", "--state-dict", "--recipe"])
def test_options_that_would_change_nothing_are_usage_errors(tmp_path: Path, option: str) -> None:
    model, bundle = tmp_path / "m.onnx", bundles.write(tmp_path / "bundle")
    save_model(bundles.model().after, model)
    for path in (bundle, model):
        done = run_main(command, path, option, "static_wi8_ai8")
        assert (done.code == 2) == (path == bundle or option != "--recipe"), done.err
        assert (f"{option} changes nothing here" in done.err) == (done.code == 2)
