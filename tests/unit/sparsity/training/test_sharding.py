"""Fully sharded training against one process: the same curve and student, and each process holds its part alone."""

from __future__ import annotations

import copy
import errno
import os
import pickle
import signal
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from ranks import in_ranks, ranks_of
from tiny_families import FAMILIES, checkpoint
from tiny_training import EPOCHS, LAYERS, STEPS, assert_one_curve, options, trained
from torch import nn
from torch.distributed.checkpoint.metadata import BytesStorageMetadata
from torch.distributed.tensor import DTensor

from gpusq_deploy.errors import GpusqError
from gpusq_deploy.sparsity.parts import own_part
from gpusq_deploy.sparsity.training import sharded_keeper
from gpusq_deploy.sparsity.training.blocks import first_tensor
from gpusq_deploy.sparsity.training.distributed import process_group, ranks
from gpusq_deploy.sparsity.training.pair import Distilled
from gpusq_deploy.sparsity.training.resume import Every, ResumeFolder
from gpusq_deploy.sparsity.training.sharded_keeper import ShardedKeeper
from gpusq_deploy.sparsity.training.sharded_state import save_parts
from gpusq_deploy.sparsity.training.sharding import fully_sharded, require_shardable
from gpusq_deploy.sparsity.training.tasks.classification import Classification


def bytes_held(value: Any, *, part: bool) -> int:
    """Of the float tensors in a state: of this process's parts, or of all of them."""
    if isinstance(value, torch.Tensor):
        held = own_part(value) if part else value
        return held.numel() * held.element_size() if held.ndim else 0
    if isinstance(value, Mapping):
        entries = cast("Mapping[object, Any]", value).values()
        return sum([bytes_held(entry, part=part) for entry in entries])
    return 0


class Watched(ShardedKeeper):
    """Keeps each step, weighs each state, and stops after one of them."""

    stop: int | None = None

    def __init__(self, folder: ResumeFolder) -> None:
        super().__init__(folder, "prune")
        self.shares: dict[str, float] = {}
        self.saved = 0

    def save(self, state: Mapping[str, Any]) -> None:
        for name in ("student", "best", "optimizer", "average"):
            whole = bytes_held(state[name], part=False)
            if whole:
                self.shares[name] = bytes_held(state[name], part=True) / whole
        super().save(state)
        self.saved += 1
        if self.saved == self.stop:
            raise KeyboardInterrupt


def folder_in(place: str, *, resume: bool) -> ResumeFolder:
    folder = ResumeFolder(Path(place) / "model.pt", {"model": "1"}, Every(steps=1), ranks())
    folder.begin(resume=resume)
    return folder


def run(
    place: str, *, resume: bool = False, stop: int | None = None, int8: bool = False, **asked: Any
) -> dict[str, Any]:
    """A sharded run whose state is kept in a folder."""
    with process_group(even_alone=True):
        keeper = Watched(folder_in(place, resume=resume))
        keeper.stop = stop
        return {**trained(options(fsdp=True, **asked), keeper, int8=int8), "shares": keeper.shares}


def in_processes(world: int, place: Path, **arguments: Any) -> list[dict[str, Any]]:
    return in_ranks(world, place, __file__, f"run({str(place)!r}, **{arguments!r})")


def assert_same_student(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    for name, value in wanted["student"].items():
        torch.testing.assert_close(found["student"][name], value, rtol=1e-4, atol=1e-5)
    for layer in LAYERS:
        weight = found["student"][f"{layer}.weight"]
        assert int((weight.reshape(-1, 4) != 0).sum(dim=1).max()) <= 2


@pytest.mark.slow
@pytest.mark.parametrize("asked", [{"ema": 0.8}, {"recompute": True, "optimizer": "sgd", "learning_rate": 1e-2}])
def test_two_sharded_processes_have_the_loss_curve_of_one_and_hold_half_each(
    tmp_path: Path, asked: dict[str, Any]
) -> None:
    alone = trained(options(**asked))
    first, second = in_processes(2, tmp_path, **asked)
    assert len(alone["curve"]) == EPOCHS * STEPS
    assert min(entry[4] for entry in alone["curve"]) > 0, "the feature term counts at each step"
    for found in (first, second):
        assert_one_curve(found, alone)
        assert_same_student(found, alone)
        assert found["blocks"] == pytest.approx(alone["blocks"], rel=1e-5)
        assert found["shares"].keys() == {"student", "best", "optimizer", *(["average"] if "ema" in asked else [])}
        # The parameter of three elements alone isn't cut in halves.
        assert list(found["shares"].values()) == pytest.approx([0.5] * len(found["shares"]), abs=0.01)
    assert all(torch.equal(value, second["student"][name]) for name, value in first["student"].items())


@pytest.mark.slow
def test_scales_of_int8_are_learned_from_all_shares_in_fp16_too(tmp_path: Path) -> None:
    """Not as near as 1e-5: a rounding that falls to the other side is a step of INT8, or of FP16."""
    for asked, near in (({}, 1e-2), ({"amp": "fp16"}, 2e-2)):
        alone = trained(options(**asked), int8=True)
        first, second = in_processes(2, tmp_path, int8=True, **asked)
        assert first["scale"] == second["scale"] != -3.0
        assert first["scale"] == pytest.approx(alone["scale"], rel=near)
        assert first["losses"] == pytest.approx(alone["losses"], rel=near)
        assert first["curve"][0] == pytest.approx(alone["curve"][0], rel=1e-3)


@pytest.mark.slow
def test_a_state_goes_on_in_another_number_of_processes(tmp_path: Path) -> None:
    """Two, then three, then one, then two again; a state of each, and no step twice."""
    alone = trained(options(ema=0.8))
    runs = [
        in_processes(2, tmp_path, ema=0.8, stop=3),
        in_processes(3, tmp_path, ema=0.8, stop=3, resume=True),
        [run(str(tmp_path), ema=0.8, stop=3, resume=True)],
        in_processes(2, tmp_path, ema=0.8, resume=True),
    ]
    curve = [entry for found in runs for entry in found[0]["curve"]]
    assert len(curve) == len(alone["curve"])
    # AdamW makes steps of rounding where a gradient is small.
    np.testing.assert_allclose(curve, alone["curve"], rtol=1e-4)
    for found in runs[-1]:
        assert_same_student(found, alone)
    assert runs[1][0]["shares"]["student"] == pytest.approx(1 / 3, abs=0.06), "rows are whole"


def killed(place: str, at: int) -> None:
    """A sharded run that goes on where there is a state, killed as its second one is written, at one of three moments:

    one process before its shards are, both before the shards count, and both before the older ones are removed.
    """
    keeper = Watched(folder_in(place, resume=True))
    write, patch = ResumeFolder.write, pytest.MonkeyPatch()

    def die(moment: int) -> None:
        if keeper.saved == 1 and moment == at:
            os.kill(os.getpid(), signal.SIGKILL)

    def saving(*arguments: Any) -> Any:
        if ranks().rank == 1:
            die(0)
        outline = save_parts(*arguments)
        die(1)
        return outline

    def writing(self: ResumeFolder, part: Any, content: Mapping[str, Any]) -> None:
        write(self, part, content)
        die(2)

    patch.setattr(sharded_keeper, "save_parts", saving)
    patch.setattr(ResumeFolder, "write", writing)
    trained(options(fsdp=True), keeper)


@pytest.mark.slow
def test_killed_at_any_moment_of_a_save_it_ends_the_same(tmp_path: Path) -> None:
    alone = trained(options())
    for moment in range(3):
        codes = [code for code, _ in ranks_of(2, tmp_path, __file__, f"killed({str(tmp_path)!r}, {moment})")]
        assert -signal.SIGKILL in codes
        assert 0 not in codes
    for found in in_processes(2, tmp_path, resume=True):
        assert len(found["curve"]) == len(alone["curve"]) - 4, "the last killed run kept its fourth step"
        assert_one_curve(found, alone)
        assert_same_student(found, alone)


class Planted:
    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self._path,))


def test_a_pickle_that_runs_something_is_refused(tmp_path: Path) -> None:
    run(str(tmp_path), stop=2)
    place, ran = tmp_path / "model.pt.resume", tmp_path / "ran"
    (metadata,) = place.glob("training.*/.metadata")
    whole = metadata.read_bytes()
    for content, words in (
        (pickle.dumps(Planted(ran)), r"it would run pathlib\.(_local\.)?Path\.touch|it would run builtins\.getattr"),
        (pickle.dumps(BytesStorageMetadata()), "it would run .*BytesStorageMetadata"),
        (pickle.dumps({"a": 1}), "holds a dict"),
        (whole[:-40], "the state can't be read"),
    ):
        metadata.write_bytes(content)
        with pytest.raises(GpusqError, match=words):
            run(str(tmp_path), resume=True)
    assert not ran.exists()
    (shards,) = metadata.parent.glob("*.distcp")
    metadata.write_bytes(whole)
    shards.write_bytes(shards.read_bytes()[:100])
    with pytest.raises(GpusqError, match="the state can't be read"):
        run(str(tmp_path), resume=True)


def test_a_full_disk_is_told_and_the_last_state_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone, place = trained(options()), str(tmp_path)
    save = torch.save

    def full(_content: Any, stream: Any) -> None:
        stream.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    run(place, stop=2)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(GpusqError, match="the state of the run can't be written: No space left on device"):
            run(place, resume=True)
    assert torch.save is save
    found = run(place, resume=True)
    assert len(found["curve"]) == len(alone["curve"]) - 2
    assert all(torch.equal(value, alone["student"][name]) for name, value in found["student"].items())


def test_a_single_number_cant_be_sharded() -> None:
    module = nn.Linear(2, 2)
    require_shardable(module)
    module.register_parameter("factor", nn.Parameter(torch.tensor(1.0)))
    with pytest.raises(GpusqError, match="factor is a single number, which has no axis to shard"):
        require_shardable(module)


def furthest(name: str) -> float:
    """Between a family's gradients, sharded and not: the largest difference, of the largest gradient."""
    found = checkpoint(name)
    torch.manual_seed(0)
    images = torch.randn(2, *found.preprocessing.sample_shape)
    trains = Distilled(student=copy.deepcopy(found.module), teacher=found.module, masks={}, task=Classification())
    whole = copy.deepcopy(found.module).requires_grad_(requires_grad=True)
    gradients: list[dict[str, torch.Tensor]] = []
    with fully_sharded(trains, ranks()) as sharded, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
        for module in (whole, sharded.student):
            answer = first_tensor(module(images))
            assert answer is not None
            torch.autograd.backward(answer.square().mean())
            named = {each: value.grad for each, value in module.named_parameters() if value.grad is not None}
            gradients.append({each: whole_of(grad) for each, grad in named.items()})
    wanted, got = gradients
    assert wanted.keys() == got.keys()
    largest = max(float(grad.abs().max()) for grad in wanted.values())
    return max(float((got[each] - grad).abs().max()) for each, grad in wanted.items()) / largest


def whole_of(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def all_families() -> dict[str, float]:
    return {name: furthest(name) for name in FAMILIES}


@pytest.mark.slow
def test_every_family_has_the_gradients_of_the_whole_model(tmp_path: Path) -> None:
    for found in in_ranks(2, tmp_path, __file__, "all_families()"):
        assert found == pytest.approx(dict.fromkeys(FAMILIES, 0.0), abs=1e-6)
