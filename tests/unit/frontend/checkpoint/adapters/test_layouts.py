"""Layouts whose producers can't run here, made by hand after their sources; and everything that can be wrong with them.

pytorch-quantization isn't on PyPI any more, apex ASP and torch's packed 2:4 tensors need CUDA to be made.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import producers
import pytest
import torch
from torch.sparse import SparseSemiStructuredTensorCUSPARSELT, SparseSemiStructuredTensorCUTLASS

from gpusq_deploy.artifacts.arch import ArchSpec
from gpusq_deploy.bundle.validation import validate
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend.checkpoint.adapters.registry import reading_of
from gpusq_deploy.frontend.checkpoint.files import read_checkpoint_file
from gpusq_deploy.frontend.checkpoint.load import Checkpoint, load_checkpoint, stored_weights
from gpusq_deploy.frontend.checkpoint.tensors import array_from_tensor

State = dict[str, torch.Tensor]
Load = Callable[[State], Checkpoint]
QKV = "blocks.0.attn.qkv"


@pytest.fixture
def state() -> State:
    return {name: tensor.clone() for name, tensor in producers.model().state_dict().items()}


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def loaded(state: State) -> Checkpoint:
        torch.save(state, tmp_path / "model.pt")
        return load_checkpoint(tmp_path / "model.pt", arch=producers.SPEC)

    return loaded


@pytest.mark.parametrize("private", ["", "_"])
def test_an_input_range_is_read_under_both_names(state: State, load: Load, private: str) -> None:
    state[f"{QKV}.{private}input_quantizer._amax"] = torch.tensor(2.5)
    loaded = load(state)
    assert loaded.ranges == {QKV: 2.5}
    assert ("pytorch-quantization" in loaded.origins[QKV]) == bool(private)


def test_a_learned_range_beats_the_one_that_learning_started_from(state: State, load: Load) -> None:
    state[f"{QKV}._input_quantizer._amax"] = torch.tensor(9.0)
    state[f"{QKV}._input_quantizer.clip.clip_value_min"] = torch.tensor(-1.5)
    state[f"{QKV}._input_quantizer.clip.clip_value_max"] = torch.tensor(1.25)
    assert load(state).ranges == {QKV: 1.5}


def test_weights_beyond_a_narrower_recorded_range_saturate_in_the_build_alone(state: State, load: Load) -> None:
    """The float model that a build is compared with is what lies in the file: clipping must show."""
    weight = array_from_tensor(state[f"{QKV}.weight"]).copy()
    amax = np.abs(weight).max(axis=1) * np.where(np.arange(len(weight)) == 3, 0.5, 1).astype(np.float32)
    state[f"{QKV}.input_quantizer._amax"] = torch.tensor(2.5)
    state[f"{QKV}.weight_quantizer._amax"] = torch.from_numpy(amax[:, None])
    loaded = load(state)
    beyond = int((np.abs(weight[3]) > amax[3] * 1.001).sum())
    assert beyond
    np.testing.assert_array_equal(array_from_tensor(loaded.module.state_dict()[f"{QKV}.weight"]), weight)
    np.testing.assert_array_equal(array_from_tensor(loaded.quantizers.grids[QKV].amax), amax)
    assert [remark for remark in loaded.remarks if f"{beyond} weights lie outside" in remark]


def test_a_wider_range_of_a_weight_is_its_grid(state: State, load: Load) -> None:
    state[f"{QKV}.input_quantizer._amax"] = torch.tensor(2.5)
    state[f"{QKV}.weight_quantizer._amax"] = torch.tensor(50.0)
    loaded = load(state)
    assert torch.equal(loaded.module.state_dict()[f"{QKV}.weight"], state[f"{QKV}.weight"])
    assert bool((loaded.quantizers.grids[QKV].amax == 50.0).all())
    assert [remark for remark in loaded.remarks if "wider" in remark and QKV in remark]


def test_weights_that_alone_are_quantised_are_what_their_producer_multiplied_by(state: State, load: Load) -> None:
    weight = state[f"{QKV}.weight"]
    state[f"{QKV}.weight_quantizer._amax"] = torch.tensor(0.5)
    loaded = load(state)
    expected = torch.fake_quantize_per_tensor_affine(weight, 0.5 / 127, 0, -128, 127)
    torch.testing.assert_close(loaded.module.state_dict()[f"{QKV}.weight"], expected, rtol=0, atol=1e-7)
    assert "alone" in loaded.quantizers.floats[QKV]


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("input_quantizer._amax", torch.tensor([1.0, 2.0]), "per tensor"),
        ("input_quantizer._amax", torch.tensor(float("nan")), "not finite"),
        ("input_quantizer._amax", torch.tensor(-1.0), "negative"),
        ("input_quantizer._amax", torch.empty(0), "0 values"),
        ("weight_quantizer._amax", torch.ones(7), "7 values"),
        ("weight_quantizer._amax", torch.tensor(0.0), "is 0"),
    ],
)
def test_a_range_that_makes_no_sense_is_kept_as_a_problem(
    state: State, load: Load, key: str, value: torch.Tensor, words: str
) -> None:
    """It stops a build where its layer is to be quantised: see `known_ranges`."""
    state[f"{QKV}.input_quantizer._amax"] = torch.tensor(2.5)
    state[f"{QKV}.{key}"] = value
    found = load(state).quantizers.problems[QKV]
    assert words in found.what
    assert key in found.place
    assert found.hint


def test_a_range_along_the_input_channels_leaves_its_layer_float(state: State, load: Load) -> None:
    weight = state[f"{QKV}.weight"]
    state[f"{QKV}.input_quantizer._amax"] = torch.tensor(2.5)
    state[f"{QKV}.weight_quantizer._amax"] = weight.abs().amax(0, keepdim=True)
    assert "axis 1" in load(state).quantizers.floats[QKV]


def test_an_affine_input_gets_the_larger_end(state: State, load: Load) -> None:
    state[f"{QKV}.input_quantizer._amax"] = torch.tensor(2.5)
    state[f"{QKV}.input_quantizer._bias_value"] = torch.tensor([-1.5, 0.5])
    loaded = load(state)
    assert loaded.ranges[QKV] == max(abs(-1.5 - 2.5), abs(0.5 + 2.5))
    assert [remark for remark in loaded.remarks if "_bias_value" in remark and QKV in remark]


def test_factors_before_an_input_go_into_the_weights_where_nobody_multiplies(state: State, load: Load) -> None:
    weight = state[f"{QKV}.weight"]
    factor = torch.linspace(0.5, 2, weight.shape[1])
    state[f"{QKV}.input_quantizer._amax"] = torch.tensor(2.5)
    state[f"{QKV}.input_quantizer._pre_quant_scale"] = factor
    loaded = load(state)
    assert torch.equal(loaded.module.state_dict()[f"{QKV}.weight"], weight * factor)
    assert QKV not in loaded.ranges
    assert [remark for remark in loaded.remarks if "multiplied into the weights" in remark]


def test_ranges_of_a_module_without_a_weight_are_told(state: State, load: Load) -> None:
    state["blocks.7.weight_quantizer._amax"] = torch.ones(1)
    loaded = load(state)
    assert [remark for remark in loaded.remarks if "without weights" in remark and "blocks.7" in remark]


def test_other_quantisers_are_told(state: State, load: Load) -> None:
    state[f"{QKV}.output_quantizer._amax"] = torch.tensor(3.0)
    loaded = load(state)
    assert dict(loaded.ranges) == {}
    assert [remark for remark in loaded.remarks if f"{QKV}.output_quantizer._amax" in remark]


def two_in_four(weight: torch.Tensor) -> torch.Tensor:
    """A mask that keeps the two largest of four, by sorting each group."""
    mask = torch.zeros(weight.numel(), dtype=torch.bool)
    flat = array_from_tensor(weight.abs().flatten())
    for start in range(0, len(flat), 4):
        mask[torch.from_numpy(start + np.argsort(-flat[start : start + 4])[:2])] = True
    return mask.reshape(weight.shape)


def test_asp_masks_are_applied_and_recorded(state: State, load: Load) -> None:
    mask = two_in_four(state[f"{QKV}.weight"])
    state[f"{QKV}.__weight_mma_mask"] = mask
    state[f"{QKV}.__weight_mma_pruned_p"] = torch.zeros_like(state[f"{QKV}.weight"])
    state["head.__weight_mma_mask"] = torch.ones_like(state["head.weight"], dtype=torch.bool)
    loaded = load(state)
    got = loaded.module.state_dict()[f"{QKV}.weight"]
    assert torch.equal(got, torch.where(mask, state[f"{QKV}.weight"], torch.tensor(0.0)))
    assert loaded.sparsity is not None
    assert (loaded.sparsity.method, loaded.sparsity.layers) == ("apex ASP", (QKV,))
    assert [remark for remark in loaded.remarks if "had yet to be applied" in remark and QKV in remark]
    assert [remark for remark in loaded.remarks if "prune nothing" in remark and "head" in remark]


def test_masks_that_were_applied_already_are_no_news(state: State, load: Load) -> None:
    mask = two_in_four(state[f"{QKV}.weight"])
    state[f"{QKV}.weight"] *= mask
    state[f"{QKV}.__weight_mma_mask"] = mask
    assert load(state).remarks == ()


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (torch.ones(48, 8).bool(), r"mask of \[48, 8\]"),
        (torch.full((48, 16), 0.5), "other values"),
    ],
)
def test_a_mask_that_makes_no_sense_is_refused(state: State, load: Load, mask: torch.Tensor, words: str) -> None:
    state[f"{QKV}.__weight_mma_mask"] = mask
    with pytest.raises(GpusqError, match=words):
        load(state)


@pytest.mark.parametrize("name", [QKV, "patch_embed.proj"])
def test_a_mask_that_isn_t_24_is_applied_and_not_recorded(state: State, load: Load, name: str) -> None:
    """Three channels make no group of four: no mask of a patch embedding can be 2:4."""
    weight = state[f"{name}.weight"]
    mask = torch.ones_like(weight, dtype=torch.bool)
    mask[:, :3] = False
    state[f"{name}.__weight_mma_mask"] = mask
    loaded = load(state)
    assert torch.equal(loaded.module.state_dict()[f"{name}.weight"], weight * mask)
    assert loaded.sparsity is None
    assert [remark for remark in loaded.remarks if "aren't 2:4" in remark and name in remark]


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("prefix", ["", "model."])
def test_asp_masks_of_an_attention_are_those_of_its_projections(tmp_path: Path, separate: bool, prefix: str) -> None:
    """apex can't be installed here; its names are `__{parameter}_mma_mask`, of `named_parameters(recurse=False)`."""
    torch.manual_seed(0)
    kdim, vdim = (24, 40) if separate else (32, 32)
    module = torch.nn.Sequential(torch.nn.MultiheadAttention(32, 2, kdim=kdim, vdim=vdim))
    names = ("q_proj", "k_proj", "v_proj") if separate else ("in_proj",)
    state = dict(module.state_dict())
    for name in names:
        mask = two_in_four(state[f"0.{name}_weight"])
        state[f"0.__{name}_weight_mma_mask"] = mask.clone()
        state[f"0.__{name}_weight_mma_pruned_p"] = state[f"0.{name}_weight"] * ~mask
    torch.save({f"{prefix}{name}": tensor for name, tensor in state.items()}, tmp_path / "m.pt")
    result = validate(tmp_path / "m.pt")
    assert {layer.layer for layer in result.sparsity.layers if layer.expected} == {
        f"{prefix}0.{name}" for name in names
    }
    assert {layer.diagnosis for layer in result.sparsity.layers if layer.expected} == {"valid"}
    assert result.findings == ()


def test_the_record_of_an_attention_has_the_architecture_s_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "attention_of_this_test.py").write_text(
        "import torch\n\n\ndef make():\n    return torch.nn.Sequential(torch.nn.MultiheadAttention(32, 2))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    state = dict(torch.nn.Sequential(torch.nn.MultiheadAttention(32, 2)).state_dict())
    state["0.__in_proj_weight_mma_mask"] = two_in_four(state["0.in_proj_weight"])
    torch.save({f"net.{name}": tensor for name, tensor in state.items()}, tmp_path / "m.pt")
    spec = ArchSpec(source="factory", name="attention_of_this_test:make", arguments={})
    record = stored_weights(tmp_path / "m.pt", arch=spec).sparsity
    assert record is not None
    assert record.layers == ("0.in_proj",)


def test_both_names_of_one_tensor_see_asp_s_mask() -> None:
    weight = torch.rand(8, 8)
    mask = two_in_four(weight)
    reading = reading_of({"a.weight": weight, "b.weight": weight, "a.__weight_mma_mask": mask}, place="here")
    assert torch.equal(reading.state["a.weight"], weight * mask)
    assert torch.equal(reading.state["b.weight"], weight * mask)


def packed(weight: torch.Tensor, device: str = "cpu") -> torch.Tensor:
    """As torch packs on CUDA; its conversion runs anywhere, its `from_dense` insists on CUDA."""
    conversions: Any = torch.sparse.semi_structured
    values, meta = conversions.sparse_semi_structured_from_dense_cutlass(weight)
    kind: Any = SparseSemiStructuredTensorCUTLASS
    result: Any = torch.Tensor._make_wrapper_subclass(
        kind, weight.shape, dtype=weight.dtype, device=torch.device(device)
    )
    result.packed, result.meta, result.packed_t, result.meta_t = values, meta, None, None
    result.compressed_swizzled_bitmask, result.fuse_transpose_cusparselt, result.alg_id_cusparselt = None, False, 0
    tensor: torch.Tensor = result
    return tensor


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_packed_weights_are_unpacked_to_what_was_packed(tmp_path: Path, device: str) -> None:
    state = wide_state()
    weight = state["weight"] * two_in_four(state["weight"])
    torch.save({"fc.weight": packed(weight, device)}, tmp_path / "model.pt")
    reading = reading_of(read_checkpoint_file(tmp_path / "model.pt"), place="model.pt")
    assert type(reading.state["fc.weight"]) is torch.Tensor
    assert torch.equal(reading.state["fc.weight"], weight)
    assert reading.sparsity is not None
    assert reading.sparsity.layers == ("fc",)


def wide_state() -> State:
    torch.manual_seed(2)
    return {"weight": torch.randn(64, 256, dtype=torch.float16)}


def test_cusparselt_is_refused_with_a_way_out(tmp_path: Path) -> None:
    kind: Any = SparseSemiStructuredTensorCUSPARSELT
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value = kind(torch.Size([64, 256]), torch.zeros(64, 144).half(), None, None, None, None)
    torch.save({"fc.weight": value}, tmp_path / "model.pt")
    with pytest.raises(GpusqError, match="cuSPARSELt") as caught:
        load_checkpoint(tmp_path / "model.pt", arch=producers.SPEC)
    assert "to_dense()" in str(caught.value.hint)
