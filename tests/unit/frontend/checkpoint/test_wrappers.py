"""Whatever wrapped the model while it was trained, its weights are found; what lies beside it is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch

from gpusq_deploy.artifacts.arch import ArchSpec
from gpusq_deploy.bundle.validation import validate
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend.checkpoint.load import load_checkpoint
from gpusq_deploy.frontend.checkpoint.wrappers import own_weights

State = dict[str, torch.Tensor]

SMALL: State = {
    "blocks.0.fc.weight": torch.ones(2, 2),
    "blocks.0.fc.bias": torch.zeros(2),
    "head.weight": torch.full((3, 2), 2.0),
}


def under(prefix: str, state: State, add: float = 0.0) -> State:
    return {prefix + name: tensor + add if add else tensor for name, tensor in state.items()}


def own(state: State, **options: Any) -> tuple[State, tuple[str, ...]]:
    found = own_weights(SMALL, state, place="here", **options)
    return dict(found.state), found.remarks


WRAPPERS = ("model.", "module.", "_orig_mod.", "net.", "_forward_module.", "_fsdp_wrapped_module.")


@pytest.mark.parametrize("outer", ["", *WRAPPERS])
@pytest.mark.parametrize("inner", ["", *WRAPPERS])
def test_wrappers_are_taken_off_in_any_order(outer: str, inner: str) -> None:
    for prefix in (outer + inner, outer + inner + outer):
        assert own(under(prefix, SMALL)) == (SMALL, ())


def test_wrappers_of_parts_are_taken_off_too() -> None:
    """torch.compile of each block, and activation checkpointing inside FSDP."""
    inside = "_fsdp_wrapped_module._checkpoint_wrapped_module."
    for part in ("_orig_mod.", inside):
        compiled = {name.replace("blocks.0.", f"blocks.0.{part}"): tensor for name, tensor in SMALL.items()}
        assert own(under("model.", compiled)) == (SMALL, ())


def test_an_architecture_that_has_a_wrapper_keeps_its_names() -> None:
    for name in ("model.module.fc.weight", "_orig_mod.fc.weight", "module.weight"):
        for file in (name, name.replace("_orig_mod.", "").replace("module.", "")):
            assert list(own_weights([name], {file: torch.ones(1)}, place="here").state) == [name]


@pytest.mark.parametrize("prefix", ["student.", "backbone.", "teacher.backbone.", "ddp_model.module."])
def test_any_other_prefix_is_taken_where_the_whole_model_is_under_it(prefix: str) -> None:
    state, remarks = own(under(prefix, SMALL))
    assert (state, remarks) == (SMALL, (f"took 3 tensors under '{prefix.removesuffix('module.')}'",))


def test_what_lies_beside_the_model_is_counted_and_left_out() -> None:
    beside = {"criterion.weight": torch.ones(2), "val_acc.correct": torch.ones(1), "ema.head.weight": torch.ones(1)}
    state, remarks = own({**under("model.", SMALL), **beside})
    assert state == SMALL
    assert remarks == (
        "took 3 tensors under 'model.'; left out 3 tensors that the architecture lacks: "
        "criterion.weight, val_acc.correct, ema.head.weight",
    )
    # Without a prefix, by its name alone.
    state, remarks = own({**SMALL, **beside})
    assert (state, len(remarks)) == (SMALL, 1)


@pytest.mark.parametrize("prefix", ["", "model.", "student."])
def test_what_belongs_to_another_model_is_not_left_out(prefix: str) -> None:
    """A deeper one, or one with a neck: the caller refuses these."""
    more = {f"{prefix}blocks.1.fc.weight": torch.ones(2, 2), f"{prefix}neck.weight": torch.ones(2)}
    assert list(own({**under(prefix, SMALL), **more})[0]) == [*SMALL, "blocks.1.fc.weight", "neck.weight"]


def test_of_a_model_and_its_average_the_model_is_taken_and_the_other_told() -> None:
    for other in ("model_ema.module.", "teacher."):
        state, remarks = own({**under(other, SMALL, 1.0), **under("model._orig_mod.", SMALL)})
        assert torch.equal(state["head.weight"], SMALL["head.weight"])
        assert remarks[1] == (
            f"another whole model is there, and not taken: {other.partition('.')[0]} (--state-dict NAME takes it)"
        )


def test_two_models_are_refused_and_can_be_chosen(tmp_path: Path, spec: ArchSpec, state: State) -> None:
    path = tmp_path / "dino.pt"
    torch.save({"state_dict": {**under("student.module.", state), **under("teacher.", state, 1.0)}, "epoch": 3}, path)
    with pytest.raises(GpusqError, match="holds 2 whole models of the architecture: student, teacher") as caught:
        load_checkpoint(path, arch=spec)
    assert caught.value.hint == "choose one: --state-dict student or --state-dict teacher"
    for name, add in (("student", 0.0), ("teacher", 1.0), ("state_dict.teacher", 1.0)):
        loaded = load_checkpoint(path, arch=spec, state_dict=name).module.state_dict()
        assert torch.equal(loaded["head.weight"], state["head.weight"] + add)


def test_one_model_under_two_names_is_one(tmp_path: Path, spec: ArchSpec, state: State) -> None:
    """`self.net = model; self.compiled = torch.compile(model)`: both are saved."""
    path = tmp_path / "twice.ckpt"
    torch.save({"state_dict": {**under("net.", state), **under("compiled._orig_mod.", state)}}, path)
    loaded = load_checkpoint(path, arch=spec)
    assert torch.equal(loaded.module.state_dict()["head.weight"], state["head.weight"])


def test_weights_of_deepspeed_are_found(tmp_path: Path, spec: ArchSpec, state: State) -> None:
    path = tmp_path / "mp_rank_00_model_states.pt"
    torch.save({"module": under("_forward_module.", state), "buffer_names": [], "global_steps": 3}, path)
    loaded = load_checkpoint(path, arch=spec)
    assert torch.equal(loaded.module.state_dict()["head.weight"], state["head.weight"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's own, of torch.compile
def test_files_of_torchs_own_wrappers_load(tmp_path: Path, spec: ArchSpec) -> None:
    wraps: list[Callable[[torch.nn.Module], Any]] = [
        torch.compile,
        torch.nn.DataParallel,
        torch.optim.swa_utils.AveragedModel,
        lambda model: torch.compile(torch.nn.DataParallel(model)),
    ]
    for wrap in wraps:
        for inside in (False, True):
            module = tiny_models.vit()
            outer: Any = torch.nn.Module()
            outer.model, outer.criterion = wrap(module), torch.nn.Linear(2, 2)
            path = tmp_path / "model.pt"
            torch.save({"state_dict": (outer if inside else outer.model).state_dict()}, path)
            loaded = load_checkpoint(path, arch=spec)
            assert torch.equal(loaded.module.state_dict()["head.weight"], module.state_dict()["head.weight"])
            assert validate(path, arch=spec).kind == "checkpoint"
