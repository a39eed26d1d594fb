"""Weights that don't belong to the architecture, and self-describing files."""

from __future__ import annotations

import errno
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import safetensors.torch
import tiny_models
import torch

from gpusq_deploy.artifacts.arch import ArchSpec
from gpusq_deploy.artifacts.base import digest_of_file
from gpusq_deploy.artifacts.sparsity import SparsityRecord
from gpusq_deploy.bundle.validation import validate
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend.checkpoint.architecture import arch_from_text
from gpusq_deploy.frontend.checkpoint.load import Checkpoint, load_checkpoint, save_checkpoint, stored_weights
from gpusq_deploy.frontend.checkpoint.preprocessing import preprocessing_of

Refused = Callable[..., GpusqError]
State = dict[str, torch.Tensor]
RECORD = SparsityRecord(method="magnitude", layers=("blocks.0.mlp.fc1",))


class Touch:
    """Unpickling this creates a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


def save(path: Path, **changes: Any) -> Path:
    """Write the tiny ViT as a self-describing checkpoint, then change fields of what was written."""
    module, spec = tiny_models.vit(), tiny_models.vit_spec()
    save_checkpoint(
        path, module, arch=spec, preprocessing=preprocessing_of(spec, module), sparsity=RECORD, ranges={"head": 1.5}
    )
    if changes:
        content = torch.load(path, weights_only=True)
        content.update(changes)
        torch.save({name: value for name, value in content.items() if value is not ...}, path)
    return path


def with_tensor(tmp_path: Path, state: State, name: str, tensor: torch.Tensor) -> Path:
    path = tmp_path / "model.pt"
    torch.save({**state, name: tensor}, path)
    return path


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_loaded_model_answers_as_the_one_that_was_saved(
    tmp_path: Path, state: State, spec: ArchSpec, suffix: str
) -> None:
    path = tmp_path / f"model{suffix}"
    if suffix == ".pt":
        torch.save(state, path)
    else:
        safetensors.torch.save_file(state, path)
    checkpoint = load_checkpoint(path, arch=spec)
    images = torch.from_numpy(tiny_models.images(2))
    with torch.no_grad():
        assert torch.equal(checkpoint.module(images), tiny_models.vit()(images))
    assert checkpoint.digest == digest_of_file(path)
    assert not checkpoint.module.training
    assert not any(parameter.requires_grad for parameter in checkpoint.module.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_float_type_become_float32(
    tmp_path: Path, state: State, spec: ArchSpec, dtype: torch.dtype
) -> None:
    path = tmp_path / "model.pt"
    torch.save({name: tensor.to(dtype) for name, tensor in state.items()}, path)
    module = load_checkpoint(path, arch=spec).module
    for name, tensor in module.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, state[name].to(dtype).float())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_not_finite_is_named(tmp_path: Path, state: State, refused: Refused, value: float) -> None:
    state["head.weight"][3, 5] = value
    error = refused(with_tensor(tmp_path, state, "head.weight", state["head.weight"]))
    assert "tensor head.weight" in str(error.place)
    assert error.what.startswith("1 of 4096 weights")


def test_a_float64_too_large_for_float32_is_named(tmp_path: Path, state: State, refused: Refused) -> None:
    wide = state["norm.weight"].double()
    wide[7] = 1e300
    error = refused(with_tensor(tmp_path, state, "norm.weight", wide))
    assert "tensor norm.weight" in str(error.place)
    assert "float32" in error.what


@pytest.mark.parametrize(
    "tensor",
    [
        torch.eye(64).to_sparse(),
        torch.empty(64, 64, device="meta"),
        torch.ones(64, 64, dtype=torch.int8),
        torch.ones(64, 64, dtype=torch.bool),
        torch.ones(64, 64, dtype=torch.complex64),
    ],
    ids=["sparse", "meta", "int8", "bool", "complex"],
)
@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")
def test_a_tensor_that_holds_no_float_weights_is_named(
    tmp_path: Path, state: State, refused: Refused, tensor: torch.Tensor
) -> None:
    error = refused(with_tensor(tmp_path, state, "head.weight", tensor))
    assert "head.weight" in f"{error.what} {error.place}"


def test_an_fp8_weight_is_read_as_float(tmp_path: Path, state: State, spec: ArchSpec) -> None:
    path = with_tensor(tmp_path, state, "norm.weight", torch.full((64,), 1.75).to(torch.float8_e4m3fn))
    loaded = load_checkpoint(path, arch=spec)
    assert torch.equal(loaded.module.state_dict()["norm.weight"], torch.full((64,), 1.75))
    assert [remark for remark in loaded.remarks if "FP8" in remark and "norm.weight" in remark]


def test_a_wrong_shape_is_named_with_both_shapes(tmp_path: Path, state: State, refused: Refused) -> None:
    error = refused(with_tensor(tmp_path, state, "head.weight", torch.ones(10, 64)))
    assert "head.weight is [10, 64], expected [64, 64]" in error.what
    assert "num_classes" in str(error.hint)


def test_a_missing_weight_is_named_with_the_nearest_of_the_file(tmp_path: Path, state: State, refused: Refused) -> None:
    path = tmp_path / "model.pt"
    state["blocks.0.mlp.fc_1.weight"] = state.pop("blocks.0.mlp.fc1.weight")
    torch.save(state, path)
    error = refused(path)
    assert "blocks.0.mlp.fc1.weight (the file has blocks.0.mlp.fc_1.weight" in error.what
    assert "1 not in the architecture: blocks.0.mlp.fc_1.weight" in error.what


def test_weights_of_a_deeper_model_are_refused(tmp_path: Path, refused: Refused) -> None:
    error = refused(tiny_models.write_vit(tmp_path / "model.pt", depth=2))
    assert "12 not in the architecture: blocks.1." in error.what


def test_a_state_dict_without_an_architecture_is_refused(tmp_path: Path, state: State) -> None:
    path = tmp_path / "model.pt"
    torch.save(state, path)
    with pytest.raises(GpusqError, match="doesn't say of which architecture") as caught:
        load_checkpoint(path)
    assert "--arch" in str(caught.value.hint)


def test_a_self_describing_checkpoint_comes_back_whole(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(save(tmp_path / "model.pt"))
    assert checkpoint.arch == tiny_models.vit_spec()
    assert checkpoint.sparsity == RECORD
    assert dict(checkpoint.ranges) == {"head": 1.5}
    assert checkpoint.preprocessing == preprocessing_of(tiny_models.vit_spec(), tiny_models.vit())
    for name, tensor in tiny_models.vit().state_dict().items():
        assert torch.equal(checkpoint.module.state_dict()[name], tensor)


def test_what_is_saved_loads_with_weights_only(tmp_path: Path) -> None:
    content = torch.load(save(tmp_path / "model.pt"), weights_only=True)
    assert content["format"] == "gpusq.checkpoint/1"
    assert msgspec.convert(content["sparsity"], SparsityRecord) == RECORD


def test_the_same_architecture_may_be_asked_for_and_another_may_not(tmp_path: Path, refused: Refused) -> None:
    path = save(tmp_path / "model.pt")
    load_checkpoint(path, arch=tiny_models.vit_spec())
    error = refused(path, tiny_models.vit_spec(depth=2))
    assert "depth=1" in error.what
    assert "depth=2" in error.what
    assert "leave out --arch" in str(error.hint)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"arch": ...}, "arch can't be read: it is missing"),
        ({"arch": {"source": "keras", "name": "x"}}, "arch can't be read"),
        ({"arch": {"source": "transformers", "name": "ViT"}}, "transformers"),
        ({"state_dict": ...}, "state_dict can't be read: it is missing"),
        ({"state_dict": {}}, "no state dict"),
        ({"state_dict": {"head.weight": 1}}, "no state dict"),
        ({"preprocessing": {"channels": 5}}, "preprocessing can't be read"),
        ({"sparsity": {"pattern": "1:4", "method": "x", "layers": []}}, "sparsity can't be read"),
        ({"ranges": {"head": "big"}}, "ranges can't be read"),
        ({"ranges": {"head": float("nan")}}, "recorded range is negative or not finite: nan"),
        ({"ranges": {"head": -1.0}}, "recorded range is negative or not finite: -1.0"),
        ({"ranges": {"head": float("inf")}}, "recorded range is negative or not finite: inf"),
    ],
)
def test_a_damaged_self_description_is_named(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    path = save(tmp_path / "model.pt", **change)
    with pytest.raises(GpusqError, match=named) as caught:
        load_checkpoint(path)
    assert caught.value.hint


def test_a_save_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "model.pt")
    before = path.read_bytes()

    def full(_: object, stream: Any) -> None:
        stream.write(b"half of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["model.pt"]


def test_a_save_that_is_interrupted_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: object, __: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path / "model.pt")
    assert not os.listdir(tmp_path)


def test_saving_makes_the_folder_and_does_not_change_the_module(tmp_path: Path) -> None:
    save(tmp_path / "a" / "b" / "model.pt")
    assert isinstance(load_checkpoint(tmp_path / "a" / "b" / "model.pt"), Checkpoint)


def test_a_file_alone_calls_no_factory(tmp_path: Path, refused: Refused) -> None:
    trace = tmp_path / "executed"
    path = save(
        tmp_path / "model.pt", arch={"source": "factory", "name": "os:mkdir", "arguments": {"path": str(trace)}}
    )
    for read in (load_checkpoint, stored_weights, validate):
        with pytest.raises(GpusqError, match="names a factory, os:mkdir, which is code") as caught:
            read(path)
        options = shlex.split(str(caught.value.hint).partition(": ")[2])
        assert options == ["--arch", "os:mkdir", "--arch-arg", f"path='{trace}'"]
    # Not with other arguments than the file's either.
    error = refused(path, ArchSpec(source="factory", name="os:mkdir"))
    assert "give what it says: --arch os:mkdir" in str(error.hint)
    assert not trace.exists()


def test_the_factory_of_a_file_is_called_for_who_names_it_too(tmp_path: Path) -> None:
    named: dict[str, Any] = {"source": "factory", "name": "tiny_models:vit", "arguments": {"depth": 1}}
    path = save(tmp_path / "model.pt", arch=named)
    with pytest.raises(GpusqError) as caught:
        load_checkpoint(path)
    options = shlex.split(str(caught.value.hint).partition(": ")[2])
    assert (options[0], options[2]) == ("--arch", "--arch-arg")
    assert load_checkpoint(path, arch=arch_from_text(options[1], options[3::2])).arch.arguments == {"depth": 1}


@pytest.mark.parametrize(
    ("name", "argument"), [("timm:vit_tiny_patch16_224", "checkpoint_path"), ("torchvision:vit_b_16", "weights")]
)
def test_a_file_has_no_library_open_another(tmp_path: Path, name: str, argument: str) -> None:
    trace, other = tmp_path / "executed", tmp_path / "other.pt"
    torch.save({"extra": Touch(trace)}, other)
    source, _, model = name.partition(":")
    arch = {"source": source, "name": model, "arguments": {argument: str(other)}}
    with pytest.raises(GpusqError, match=f"{argument} is about how {source} loads weights"):
        load_checkpoint(save(tmp_path / "model.pt", arch=arch))
    assert not trace.exists()


def test_the_name_that_lightning_gives_the_model_is_left_out(tmp_path: Path, state: State, spec: ArchSpec) -> None:
    path = tmp_path / "model.ckpt"
    mask = torch.tensor([1, 1, 0, 0]).repeat(256, 16)
    wrapped = {f"model.{name}": tensor for name, tensor in state.items()}
    torch.save({"state_dict": {**wrapped, "model.blocks.0.mlp.fc1.__weight_mma_mask": mask}}, path)
    loaded = load_checkpoint(path, arch=spec)
    assert torch.equal(loaded.module.state_dict()["head.weight"], state["head.weight"])
    assert loaded.sparsity is not None
    assert loaded.sparsity.layers == ("blocks.0.mlp.fc1",)
    assert {layer.layer for layer in validate(path, arch=spec).sparsity.layers if layer.expected} == {
        "blocks.0.mlp.fc1"
    }


class Wrapper(torch.nn.Module):
    """What people write: its names begin with `model.` too."""

    gpusq_preprocessing: Any = {"channels": 3, "height": 32, "width": 32, "mean": [0.5] * 3, "std": [0.5] * 3}  # noqa: RUF012 - users write a plain class attribute too

    def __init__(self) -> None:
        super().__init__()
        self.model = tiny_models.vit()

    def forward(self, x: torch.Tensor) -> Any:
        return self.model(x)


def test_names_that_differ_by_a_wrapper_are_told(
    tmp_path: Path, state: State, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, wrapped = tmp_path / "a.pt", tmp_path / "b.pt"
    torch.save({f"student.{name}": tensor for name, tensor in list(state.items())[1:]}, path)
    assert "begin with 'student.' in the file alone" in str(refused(path).hint)
    monkeypatch.setitem(sys.modules, "wrappers_of_this_test", SimpleNamespace(make=Wrapper))
    arch = ArchSpec(source="factory", name="wrappers_of_this_test:make")
    torch.save(dict(list(state.items())[1:]), path)
    assert "begin with 'model.' in the architecture alone" in str(refused(path, arch).hint)
    torch.save(state, path)
    assert "model.head.weight" in load_checkpoint(path, arch=arch).module.state_dict()
    torch.save({f"model.{name}": tensor for name, tensor in state.items()}, wrapped)
    assert "model.head.weight" in load_checkpoint(wrapped, arch=arch).module.state_dict()
