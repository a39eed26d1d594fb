"""Files that the producers' own libraries made (tests/support/producers.py), and what must come out of them."""

from __future__ import annotations

import importlib
import json
import pickle
import random
import zipfile
from pathlib import Path
from typing import Any

import producers
import pytest
import torch

from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend.checkpoint.load import load_checkpoint
from gpusq_deploy.frontend.checkpoint.weights import weights_in_file

FIXTURES = Path(__file__).resolve().parents[4] / "fixtures"


@pytest.fixture(scope="module")
def float_state() -> dict[str, torch.Tensor]:
    return dict(producers.model().state_dict())


def test_modelopt_ranges_are_those_that_modelopt_tells() -> None:
    told = json.loads((FIXTURES / "modelopt_int8.json").read_text())
    loaded = load_checkpoint(FIXTURES / "modelopt_int8.pt", arch=producers.SPEC)
    assert loaded.ranges == told
    assert set(loaded.origins.values()) == {"ModelOpt, input_quantizer._amax"}


def test_modelopt_weights_are_the_float_ones(float_state: dict[str, torch.Tensor]) -> None:
    state = load_checkpoint(FIXTURES / "modelopt_int8.pt", arch=producers.SPEC).module.state_dict()
    assert list(state) == list(float_state)
    assert all(torch.equal(state[name], float_state[name]) for name in float_state)


def test_modelopt_quantisers_that_are_disabled_are_told_and_not_used() -> None:
    loaded = load_checkpoint(FIXTURES / "modelopt_int8.pt", arch=producers.SPEC)
    assert "head" not in loaded.ranges
    assert loaded.quantizers.floats == {"head": "its quantisers are disabled"}
    assert [remark for remark in loaded.remarks if "disabled" in remark and "head" in remark]


@pytest.mark.parametrize("keep", [True, False])
def test_smoothquants_factors_are_multiplied_by_at_the_input_or_at_the_weight(keep: bool) -> None:
    """Reference: the factors cancel in floating point, so both answer what the model answered before."""
    loaded = load_checkpoint(FIXTURES / "modelopt_smoothquant.pt", arch=producers.SPEC, keep_factors=keep)
    expected = producers.answers(producers.model(), producers.images())
    torch.testing.assert_close(producers.answers(loaded.module, producers.images()), expected, rtol=1e-4, atol=1e-5)
    assert set(loaded.ranges) == ({"patch_embed.proj"} if not keep else {*loaded.quantizers.grids})


def trusted_program() -> Any:
    """Our own file, by torch's loader: the reference that unpickles."""
    importlib.import_module("torch.ao.quantization.fx._decomposed")  # registers the operators that the program holds
    return torch.export.load(FIXTURES / "pt2e_x86.pt2")


@pytest.mark.filterwarnings("ignore")  # torch's loader about itself
def test_pt2e_ranges_hold_exactly_what_the_quantisers_can_hold() -> None:
    """Reference: torch's own dequantize of the two end codes, for the quantiser in front of each layer."""
    loaded = load_checkpoint(FIXTURES / "pt2e_x86.pt2", arch=producers.SPEC)
    ends: dict[str, float] = {}
    for node in trusted_program().graph.nodes:
        if node.target in (torch.ops.aten.linear.default, torch.ops.aten.conv2d.default):
            layer = list(node.meta["nn_module_stack"].values())[-1][0]
            codes = torch.tensor([0, 255], dtype=torch.uint8)
            _, scale, zero, low, high, dtype = node.args[0].args
            real = torch.ops.quantized_decomposed.dequantize_per_tensor(codes, scale, zero, low, high, dtype)
            ends[layer] = float(real.abs().max())
    assert len(ends) == 6
    assert loaded.ranges == pytest.approx(ends, rel=1e-6)
    assert [remark for remark in loaded.remarks if "zero point" in remark]


@pytest.mark.filterwarnings("ignore")
def test_pt2e_weights_are_what_the_program_computes_with(float_state: dict[str, torch.Tensor]) -> None:
    state = load_checkpoint(FIXTURES / "pt2e_x86.pt2", arch=producers.SPEC).module.state_dict()
    program = trusted_program()
    compared = 0
    for node in program.graph.nodes:
        if node.target in (torch.ops.aten.linear.default, torch.ops.aten.conv2d.default):
            layer = list(node.meta["nn_module_stack"].values())[-1][0]
            named = program.graph_signature.inputs_to_buffers
            given = [program.state_dict[named[a.name]] if hasattr(a, "name") else a for a in node.args[1].args]
            expected = torch.ops.quantized_decomposed.dequantize_per_channel(*given)
            assert torch.equal(state[f"{layer}.weight"], expected)
            assert not torch.equal(expected, float_state[f"{layer}.weight"])
            compared += 1
    assert compared == 6
    assert torch.equal(state["norm.bias"], float_state["norm.bias"])


def test_a_plain_program_gives_its_weights_and_no_ranges(tmp_path: Path, float_state: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "float.pt2"
    torch.export.save(torch.export.export(producers.model(), (producers.images(),)), path)
    loaded = load_checkpoint(path, arch=producers.SPEC)
    state = loaded.module.state_dict()
    assert all(torch.equal(state[name], float_state[name]) for name in float_state)
    assert dict(loaded.ranges) == {}
    assert {weight.layer for weight in weights_in_file(path, None)[0]} >= {"blocks.0.attn.qkv", "head"}


class Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def repacked(source: Path, target: Path, **changes: bytes) -> Path:
    """The archive with some entries replaced, found by the end of their names."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.namelist():
            data = next((value for end, value in changes.items() if entry.endswith(end.replace("__", "/"))), None)
            new.writestr(entry, old.read(entry) if data is None else data)
    return target


def test_nothing_that_is_pickled_in_a_program_is_run(tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    bomb = pickle.dumps(Touch(trace))
    source = FIXTURES / "pt2e_x86.pt2"
    path = repacked(source, tmp_path / "inputs.pt2", **{"sample_inputs__model.pt": bomb})
    assert len(load_checkpoint(path, arch=producers.SPEC).ranges) == 6
    with zipfile.ZipFile(source) as archive:
        entry = next(name for name in archive.namelist() if name.endswith("model_weights_config.json"))
        config = json.loads(archive.read(entry))
    config["config"]["cls_token"]["use_pickle"] = True
    changes = {"model_weights_config.json": json.dumps(config).encode(), "weights__weight_0": bomb}
    with pytest.raises(GpusqError, match="pickled"):
        load_checkpoint(repacked(source, tmp_path / "weight.pt2", **changes), arch=producers.SPEC)
    assert not trace.exists()


def test_a_weight_that_claims_more_than_its_bytes_is_refused(tmp_path: Path) -> None:
    source = FIXTURES / "pt2e_x86.pt2"
    with zipfile.ZipFile(source) as archive:
        entry = next(name for name in archive.namelist() if name.endswith("model_weights_config.json"))
        config = json.loads(archive.read(entry))
    meta = config["config"]["cls_token"]["tensor_meta"]
    meta["sizes"][0]["as_int"], meta["strides"][0]["as_int"] = 10**12, 0
    path = repacked(source, tmp_path / "big.pt2", **{"model_weights_config.json": json.dumps(config).encode()})
    with pytest.raises(GpusqError, match="larger than its data"):
        load_checkpoint(path, arch=producers.SPEC)


def test_a_quantiser_of_another_kind_is_refused(tmp_path: Path) -> None:
    source = FIXTURES / "pt2e_x86.pt2"
    with zipfile.ZipFile(source) as archive:
        entry = next(name for name in archive.namelist() if name.endswith("models/model.json"))
        text = archive.read(entry).decode().replace("dequantize_per_tensor.default", "dequantize_affine.default")
    path = repacked(source, tmp_path / "affine.pt2", **{"models__model.json": text.encode()})
    with pytest.raises(GpusqError, match="unknown kind"):
        load_checkpoint(path, arch=producers.SPEC)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch and zipfile warn about what they find
@pytest.mark.parametrize("name", ["pt2e_x86.pt2", "modelopt_int8.pt"])
def test_random_damage_is_refused_or_harmless(tmp_path: Path, name: str) -> None:
    """Cut short, or some bytes changed: in the program's text, in the pickle, in the archive's index, anywhere."""
    dice = random.Random(3)
    data = (FIXTURES / name).read_bytes()
    path = tmp_path / name
    refusals: list[GpusqError] = []
    for _ in range(150):
        damaged = bytearray(data)
        for _ in range(dice.randrange(1, 30)):
            damaged[dice.randrange(len(data))] = dice.randrange(256)
        path.write_bytes(damaged[: dice.choice((len(data), len(data), dice.randrange(len(data))))])
        try:
            load_checkpoint(path, arch=producers.SPEC)
        except GpusqError as error:
            refusals.append(error)
    assert len(refusals) > 50
    assert all(error.place and error.hint for error in refusals)


@pytest.mark.slow
def test_modelopt_still_writes_such_files(tmp_path: Path) -> None:
    pytest.importorskip("modelopt", reason="nvidia-modelopt isn't installed: only the kept file is read")
    producers.make_modelopt(tmp_path)
    told = json.loads((tmp_path / "modelopt_int8.json").read_text())
    assert load_checkpoint(tmp_path / "modelopt_int8.pt", arch=producers.SPEC).ranges == told


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_torchao_still_writes_such_files(tmp_path: Path) -> None:
    pytest.importorskip("torchao", reason="torchao isn't installed: only the kept file is read")
    producers.make_pt2e(tmp_path)
    assert len(load_checkpoint(tmp_path / "pt2e_x86.pt2", arch=producers.SPEC).ranges) == 6
