"""Weights that torch itself prunes, normalises or parametrises, in files that torch makes here.

Reference: the module that wrote the file, run on the same images.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import producers
import pytest
import torch
from torch.nn.utils import parametrizations, parametrize, prune

from gpusq_deploy.artifacts.arch import ArchSpec
from gpusq_deploy.bundle.validation import validate
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend.checkpoint.load import Checkpoint, load_checkpoint
from gpusq_deploy.frontend.checkpoint.tensors import array_from_tensor
from gpusq_deploy.numerics.two_four import magnitude_mask

QKV = "blocks.0.attn.qkv"
FC1 = "blocks.0.mlp.fc1"


def two_in_four(weight: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(magnitude_mask(array_from_tensor(weight.detach())))


def same_answers(path: Path, module: torch.nn.Module) -> Checkpoint:
    """The file, loaded, after a comparison of its answers with the module's."""
    loaded = load_checkpoint(path, arch=producers.SPEC)
    with torch.no_grad():
        torch.testing.assert_close(loaded.module(producers.images()), module.eval()(producers.images()))
    return loaded


def test_prune_s_masks_are_applied_and_a_24_one_is_recorded(tmp_path: Path) -> None:
    module = producers.model()
    qkv, fc1 = module.get_submodule(QKV), module.get_submodule(FC1)
    untyped: Any = prune  # its functions have no types
    untyped.custom_from_mask(qkv, "weight", two_in_four(qkv.get_parameter("weight")))
    untyped.random_unstructured(qkv, "bias", 0.5)
    untyped.l1_unstructured(fc1, "weight", 0.5)
    untyped.ln_structured(module.get_submodule("patch_embed.proj"), "weight", 0.5, n=2, dim=0)
    torch.save(module.state_dict(), tmp_path / "m.pt")
    loaded = same_answers(tmp_path / "m.pt", module)
    assert loaded.sparsity is not None
    assert (loaded.sparsity.method, loaded.sparsity.layers) == ("torch.nn.utils.prune", (QKV,))
    (said,) = [remark for remark in loaded.remarks if "not recorded" in remark]
    assert all(name in said for name in (f"{QKV}.bias", FC1, "patch_embed.proj"))
    layers = {layer.layer: layer for layer in validate(tmp_path / "m.pt").sparsity.layers}
    assert layers[QKV].expected
    assert layers[FC1].zero_fraction == 0.5


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.bfloat16, torch.float16, torch.int64])
@pytest.mark.parametrize("prefix", ["", "module.", "model.", "_orig_mod."])
def test_masks_of_any_type_and_under_any_prefix(tmp_path: Path, dtype: torch.dtype, prefix: str) -> None:
    state = dict(producers.model().state_dict())
    mask = two_in_four(state[f"{QKV}.weight"])
    state[f"{QKV}.weight_orig"] = state.pop(f"{QKV}.weight")
    state[f"{QKV}.weight_mask"] = mask.to(dtype)
    torch.save({"state_dict": {f"{prefix}{name}": tensor for name, tensor in state.items()}}, tmp_path / "m.pt")
    loaded = load_checkpoint(tmp_path / "m.pt", arch=producers.SPEC)
    assert torch.equal(loaded.module.state_dict()[f"{QKV}.weight"], state[f"{QKV}.weight_orig"] * mask)
    assert loaded.sparsity is not None
    assert loaded.sparsity.layers == (QKV,)


def test_a_mask_beside_its_weight_is_applied(tmp_path: Path) -> None:
    state = dict(producers.model().state_dict())
    mask = two_in_four(state[f"{QKV}.weight"])
    torch.save({**state, f"{QKV}.weight_mask": mask}, tmp_path / "m.pt")
    loaded = load_checkpoint(tmp_path / "m.pt", arch=producers.SPEC)
    assert torch.equal(loaded.module.state_dict()[f"{QKV}.weight"], state[f"{QKV}.weight"] * mask)


def test_a_layer_that_can_t_be_24_is_masked_and_told(tmp_path: Path) -> None:
    """A lookup table multiplies nothing: the record that a command checks names Linear and Conv2d layers alone."""
    state = {"a.weight_orig": torch.ones(8, 8), "a.weight_mask": two_in_four(torch.rand(8, 8))}
    (tmp_path / "tables_of_this_test.py").write_text(
        "import torch\n\n\ndef make():\n    return torch.nn.Sequential(torch.nn.Embedding(8, 8))\n"
    )
    torch.save({name.replace("a.", "0."): tensor for name, tensor in state.items()}, tmp_path / "m.pt")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        spec = ArchSpec(source="factory", name="tables_of_this_test:make", arguments={})
        found = importlib.import_module("gpusq_deploy.frontend.checkpoint.load").stored_weights(
            tmp_path / "m.pt", arch=spec
        )
    assert found.sparsity is None
    assert torch.equal(found.state["0.weight"], state["a.weight_mask"].float())
    assert [remark for remark in found.remarks if "no Linear or Conv2d" in remark]


@pytest.mark.parametrize("new", [False, True])
@pytest.mark.parametrize("dim", [0, 1, None])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_weight_norm_is_computed(tmp_path: Path, new: bool, dim: int | None) -> None:
    apply: Any = parametrizations.weight_norm if new else torch.nn.utils.weight_norm
    module = producers.model()
    for name in (QKV, "patch_embed.proj"):
        layer: Any = apply(module.get_submodule(name), dim=dim)
        with torch.no_grad():
            next(tensor for key, tensor in layer.named_parameters() if key.endswith(("_g", "original0"))).mul_(1.5)
    torch.save(module.state_dict(), tmp_path / "m.pt")
    loaded = same_answers(tmp_path / "m.pt", module)
    assert [remark for remark in loaded.remarks if "torch weight_norm: 2 weights" in remark]
    assert {QKV, "patch_embed.proj"} <= {layer.layer for layer in validate(tmp_path / "m.pt").sparsity.layers}


class Masked(torch.nn.Module):
    """A parametrisation as scripts write it."""

    mask: torch.Tensor

    def __init__(self, mask: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * self.mask


def test_a_parametrisation_that_is_a_mask_is_applied(tmp_path: Path) -> None:
    module = producers.model()
    layer = module.get_submodule(QKV)
    parametrize.register_parametrization(layer, "weight", Masked(two_in_four(layer.get_parameter("weight"))))
    torch.save(module.state_dict(), tmp_path / "m.pt")
    loaded = same_answers(tmp_path / "m.pt", module)
    assert loaded.sparsity is not None
    assert loaded.sparsity.layers == (QKV,)


@pytest.mark.filterwarnings("ignore")  # torch about its own deprecations
def test_torch_ao_pruning_needs_its_sparsifier_s_masks(tmp_path: Path) -> None:
    pruning: Any = importlib.import_module("torch.ao.pruning")
    module = producers.model()
    sparsifier = pruning.WeightNormSparsifier(sparsity_level=1.0, sparse_block_shape=(1, 4), zeros_per_block=2)
    sparsifier.prepare(module, [{"tensor_fqn": f"{QKV}.weight"}])
    sparsifier.step()
    torch.save(module.state_dict(), tmp_path / "alone.pt")
    with pytest.raises(GpusqError, match="parametrised") as caught:
        load_checkpoint(tmp_path / "alone.pt", arch=producers.SPEC)
    assert "squash_mask" in str(caught.value.hint)
    masks = {name: {"mask": kept["mask"]} for name, kept in sparsifier.state_dict()["state"].items()}
    torch.save({"model": module.state_dict(), "sparsifier": {"state": masks, "groups": []}}, tmp_path / "both.pt")
    loaded = same_answers(tmp_path / "both.pt", module)
    assert loaded.sparsity is not None
    assert (loaded.sparsity.method, loaded.sparsity.layers) == ("torch.ao.pruning", (QKV,))
    torch.save({"model": module.state_dict(), "sparsifier": sparsifier.state_dict()}, tmp_path / "whole.pt")
    with pytest.raises(GpusqError, match="defaultdict") as caught:
        load_checkpoint(tmp_path / "whole.pt", arch=producers.SPEC)
    assert "squash_mask" in str(caught.value.hint)


def spectral_old(layer: torch.nn.Module) -> None:
    untyped: Any = torch.nn.utils.spectral_norm
    untyped(layer)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (spectral_old, "spectral_norm"),
        (parametrizations.spectral_norm, "spectral_norm"),
        (parametrizations.orthogonal, "parametrised"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*spectral_norm.*:FutureWarning")
def test_what_only_the_module_can_compute_is_refused(
    tmp_path: Path, change: Callable[[torch.nn.Module], object], words: str
) -> None:
    module = producers.model()
    change(module.get_submodule(QKV))
    torch.save(module.state_dict(), tmp_path / "m.pt")
    with pytest.raises(GpusqError, match=words) as caught:
        load_checkpoint(tmp_path / "m.pt", arch=producers.SPEC)
    assert "remove_" in str(caught.value.hint)
    assert [finding.rule for finding in validate(tmp_path / "m.pt").findings] == ["not-read"]


FACTORY = """
import torch
from torch.nn.utils import parametrizations, parametrize, prune


def normed():
    layer = parametrizations.weight_norm(torch.nn.Linear(32, 8))
    return torch.nn.Sequential(layer)


class Scaled(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.ones(8, 1))

    def forward(self, weight):
        return weight * self.factor


def scaled():
    layer = torch.nn.Linear(32, 8)
    parametrize.register_parametrization(layer, "weight", Scaled())
    return torch.nn.Sequential(layer)


def pruned():
    layer = torch.nn.Linear(32, 8)
    prune.identity(layer, "weight")
    return torch.nn.Sequential(layer)
"""


@pytest.mark.parametrize("name", ["normed", "scaled", "pruned"])
@pytest.mark.parametrize("prefix", ["", "model."])
def test_an_architecture_keeps_names_that_are_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, prefix: str
) -> None:
    (tmp_path / "own_names_of_this_test.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(str(tmp_path))
    own: Any = importlib.import_module("own_names_of_this_test")
    module: torch.nn.Module = getattr(own, name)()
    torch.save({f"{prefix}{key}": tensor for key, tensor in module.state_dict().items()}, tmp_path / "m.pt")
    spec = ArchSpec(source="factory", name=f"own_names_of_this_test:{name}", arguments={})
    found = importlib.import_module("gpusq_deploy.frontend.checkpoint.load").stored_weights(
        tmp_path / "m.pt", arch=spec
    )
    assert list(found.state) == list(module.state_dict())
    assert all(torch.equal(found.state[key], tensor) for key, tensor in module.state_dict().items())


@pytest.mark.filterwarnings("ignore")  # torch about its own deprecations
@pytest.mark.parametrize("fx", [False, True])
def test_qat_s_weights_are_read_and_its_quantisers_told(tmp_path: Path, fx: bool) -> None:
    module = producers.model()
    prepared = _prepared(copy.deepcopy(module), fx=fx)
    prepared(producers.images())
    torch.save(prepared.state_dict(), tmp_path / "m.pt")
    loaded = same_answers(tmp_path / "m.pt", module)
    assert [remark for remark in loaded.remarks if remark.startswith("torch.ao.quantization: not used")]
    account = validate(tmp_path / "m.pt").account
    assert account is not None
    assert account.producers == ("torch.ao.quantization",)
    assert len(account.unused) == 1


def _prepared(module: torch.nn.Module, *, fx: bool) -> Any:
    quantization: Any = importlib.import_module("torch.ao.quantization")
    if not fx:
        untyped: Any = module.train()
        untyped.qconfig = quantization.get_default_qat_qconfig("fbgemm")
        return quantization.prepare_qat(untyped)
    converters: Any = importlib.import_module("torch.ao.quantization.quantize_fx")
    # timm's attention asks for shapes in ways that tracing can't follow: the MLP is enough.
    whole: Any = module
    mapping = quantization.get_default_qat_qconfig_mapping("fbgemm")
    whole.blocks[0].mlp = converters.prepare_qat_fx(whole.blocks[0].mlp.train(), mapping, (torch.rand(1, 5, 16),))
    return whole


@pytest.mark.filterwarnings("ignore")  # torch about its own deprecations
def test_converted_weights_are_refused_by_name(tmp_path: Path) -> None:
    quantization: Any = importlib.import_module("torch.ao.quantization")
    torch.save(quantization.quantize_dynamic(producers.model()).state_dict(), tmp_path / "m.pt")
    with pytest.raises(GpusqError, match=r"torch\.ao\.quantization\.convert") as caught:
        load_checkpoint(tmp_path / "m.pt", arch=producers.SPEC)
    assert "before" in str(caught.value.hint)
    assert [finding.rule for finding in validate(tmp_path / "m.pt").findings] == ["not-read"]
