"""Files that aren't checkpoints, damaged ones, and hostile ones: always a GpusqError, never anything run."""

from __future__ import annotations

import argparse
import collections
import errno
import os
import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import tiny_models
import torch

from gpusq_deploy.artifacts.arch import ArchSpec
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend.checkpoint.adapters.registry import reading_of
from gpusq_deploy.frontend.checkpoint.files import read_checkpoint_file, state_dict_in, state_dicts_in
from gpusq_deploy.frontend.checkpoint.load import load_checkpoint, save_checkpoint, stored_weights
from gpusq_deploy.frontend.checkpoint.weights import weights_in_file

Refused = Callable[..., GpusqError]
State = dict[str, torch.Tensor]

SMALL: State = {"fc.weight": torch.arange(12.0).reshape(3, 4), "fc.bias": torch.ones(3), "steps": torch.tensor(7)}


class Touch:
    """Unpickling this creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


def same(got: State, expected: State) -> bool:
    return list(got) == list(expected) and all(torch.equal(got[name], expected[name]) for name in expected)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_text_file_is_refused(tmp_path: Path, refused: Refused, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_text("<html>404 not found</html>\n")
    assert "not a" in refused(path).what


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_an_empty_file_is_refused(tmp_path: Path, refused: Refused, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    path.touch()
    assert refused(path).what == "the file is empty"


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_folder_is_refused(tmp_path: Path, refused: Refused, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    path.mkdir()
    assert refused(path).what == "not a file, and no weights in the folder"


@pytest.mark.parametrize("name", ["none.pt", "none.safetensors", "x" * 300, "a\0b"])
def test_a_file_that_is_not_there_is_refused(tmp_path: Path, refused: Refused, name: str) -> None:
    assert refused(tmp_path / name).what == "no such file or folder"


def test_a_dangling_link_is_refused(tmp_path: Path, refused: Refused) -> None:
    path = tmp_path / "model.pt"
    path.symlink_to(tmp_path / "gone.pt")
    refused(path)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_file_that_may_not_be_read_is_refused(
    tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    path = tmp_path / f"model{suffix}"
    torch.save(SMALL, path)

    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", forbidden)
    assert "Permission denied" in refused(path).what


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("part", [0.02, 0.3, 0.6, 0.9, 0.999])
def test_a_truncated_file_is_refused(tmp_path: Path, refused: Refused, state: State, legacy: bool, part: float) -> None:
    path = tmp_path / "model.pt"
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    refused(path)


def test_a_truncated_safetensors_is_refused(tmp_path: Path, refused: Refused, state: State) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(state, path)
    data = path.read_bytes()
    for length in (1, 7, 8, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        assert "damaged" in refused(path).what


def test_a_zip_of_something_else_is_refused(tmp_path: Path, refused: Refused) -> None:
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "not a PyTorch file" in refused(path).what


@pytest.mark.parametrize("how", ["pickle", "legacy", "zip"])
def test_code_in_a_file_is_not_run(tmp_path: Path, refused: Refused, how: str) -> None:
    path, trace = tmp_path / "model.pt", tmp_path / "executed"
    content = {"weight": torch.ones(2), "extra": Touch(trace)}
    if how == "pickle":
        path.write_bytes(pickle.dumps({"extra": Touch(trace)}, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "zip")
    error = refused(path)
    assert not trace.exists()
    assert "would run code" in error.what
    assert "mkdir" in error.what


def test_the_code_in_that_file_would_have_run(tmp_path: Path) -> None:
    """The test above can fail: the same bytes do create the folder when they are trusted."""
    path, trace = tmp_path / "model.pt", tmp_path / "executed"
    torch.save({"extra": Touch(trace)}, path)
    torch.load(path, weights_only=False)
    assert trace.exists()


def test_a_pickled_module_is_refused_with_advice(tmp_path: Path, refused: Refused) -> None:
    path = tmp_path / "model.pt"
    torch.save(torch.nn.Linear(2, 2), path)
    error = refused(path)
    assert "torch.nn.modules.linear.Linear" in error.what
    assert "state_dict()" in str(error.hint)


@pytest.mark.parametrize(
    ("content", "found"),
    [(torch.ones(3), "a Tensor"), ([torch.ones(3)], "a list"), (7, "an int"), (None, "a NoneType"), ("text", "a str")],
)
def test_what_is_no_dictionary_is_refused(tmp_path: Path, refused: Refused, content: object, found: str) -> None:
    path = tmp_path / "model.pt"
    torch.save(content, path)
    assert f"holds {found}" in refused(path).what


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({}, "nothing"),
        ({"epoch": 3}, "'epoch'"),
        ({"model": {}}, "nothing"),
        ({"model": {"weight": [1.0]}}, "'weight'"),
        ({"fc.weight": torch.ones(2), "epoch": 3}, "'epoch'"),
        ({0: torch.ones(2)}, "0"),
        ({("a", 1): torch.ones(2)}, "('a', 1)"),
        ({"format": torch.ones(3), "x": 1}, "'x'"),
    ],
)
def test_a_dictionary_without_named_tensors_is_refused(
    tmp_path: Path, refused: Refused, content: dict[Any, Any], named: str
) -> None:
    path = tmp_path / "model.pt"
    torch.save(content, path)
    error = refused(path)
    assert "no state dict in the file" in error.what
    assert named in error.what


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "model_state_dict", "model_ema", "state_dict_ema"])
@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module.module."]
)
def test_the_layouts_of_training_tools_are_read(tmp_path: Path, wrapper: str, prefix: str) -> None:
    inner = collections.OrderedDict((prefix + name, tensor) for name, tensor in SMALL.items())
    path = tmp_path / "model.pt"
    torch.save({wrapper: inner, "epoch": 3, "optimizer": {"state": {0: torch.ones(2)}}}, path)
    got, layout = state_dict_in(read_checkpoint_file(path), place=str(path))
    assert same(got, SMALL)
    assert wrapper in layout


def test_wrappers_names_count_for_nothing_wherever_they_stand_unless_two_tensors_would_have_one() -> None:
    """The rule of the module `wrappers`, also where there is no architecture to compare with."""
    mixed = {"module.a": torch.ones(1), "b._fsdp_wrapped_module.c": torch.ones(1)}
    assert list(state_dict_in(mixed, place="here")[0]) == ["a", "b.c"]
    twice = {"module.a": torch.ones(1), "a": torch.zeros(1)}
    assert list(state_dict_in(twice, place="here")[0]) == ["module.a", "a"]


def test_a_module_that_is_called_model_is_not_a_wrapper() -> None:
    assert list(state_dict_in({"model": torch.ones(1)}, place="here")[0]) == ["model"]


@pytest.mark.parametrize("legacy", [False, True])
def test_good_files_give_the_tensors_that_were_saved(tmp_path: Path, legacy: bool) -> None:
    path = tmp_path / "model.pt"
    torch.save(SMALL, path, _use_new_zipfile_serialization=not legacy)
    assert same(dict(read_checkpoint_file(path)), SMALL)


def test_good_safetensors_give_the_tensors_that_were_saved(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(SMALL, path)
    got = dict(read_checkpoint_file(path))
    assert same({name: got[name] for name in SMALL}, SMALL)


def test_weights_on_another_device_land_on_the_cpu(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(SMALL, path)
    content: Any = read_checkpoint_file(path)
    assert content["fc.weight"].device == torch.device("cpu")


def write_small(path: Path, kind: str) -> bytes:
    if kind == "safetensors":
        safetensors.torch.save_file(SMALL, path)
    else:
        torch.save(SMALL, path, _use_new_zipfile_serialization=kind == "zip")
    return path.read_bytes()


def damage(data: bytes, dice: random.Random) -> bytes:
    """Cut it short, flip some bytes, drop a piece, or repeat one; the start is hit more often than the rest."""
    damaged = bytearray(data)
    kind = dice.randrange(4)
    place = dice.randrange(dice.choice((64, 512, len(data))) % len(data) + 1)
    if kind == 0:
        return bytes(damaged[:place])
    if kind == 1:
        for _ in range(dice.randrange(1, 6)):
            damaged[dice.randrange(len(damaged))] = dice.randrange(256)
        damaged[place % len(damaged)] ^= 1 << dice.randrange(8)
        return bytes(damaged)
    piece = bytes(damaged[place : place + dice.randrange(1, 40)])
    damaged[place : place + len(piece)] = b"" if kind == 2 else piece * 2
    return bytes(damaged)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch and zipfile warn about what they find; users see it, and it is true
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_random_damage_is_refused_or_harmless(tmp_path: Path, kind: str, spec: ArchSpec) -> None:
    dice = random.Random(11)
    path = tmp_path / ("model.safetensors" if kind == "safetensors" else "model.pt")
    data = write_small(path, kind)
    refusals: list[GpusqError] = []
    for _ in range(400):
        path.write_bytes(damage(data, dice))
        try:
            state_dict_in(read_checkpoint_file(path), place=str(path))
        except GpusqError as error:
            refusals.append(error)
        with pytest.raises(GpusqError):
            load_checkpoint(path, arch=spec)
    assert len(refusals) > 100
    assert all(str(path) in str(error.place) and error.hint for error in refusals)


def test_a_zip_that_claims_to_span_disks_is_refused(tmp_path: Path, refused: Refused) -> None:
    path = tmp_path / "model.pt"
    data = bytearray(write_small(path, "zip"))
    data[data.rindex(b"PK\x06\x07") + 16] = 2
    path.write_bytes(data)
    refused(path)


def test_a_global_without_a_name_is_refused(tmp_path: Path, refused: Refused) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(b"\x80\x02c\n\n.")
    refused(path)


def test_an_archive_that_would_grow_is_refused_before_it_does(tmp_path: Path, refused: Refused) -> None:
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/data.pkl", b"\x80\x02}.")
        archive.writestr("model/data/0", bytes(50_000_000))
    assert path.stat().st_size < 100_000
    assert "would grow to 50,0" in refused(path).what


def test_a_few_bytes_that_claim_to_be_many_weights_are_refused(tmp_path: Path, refused: Refused, state: State) -> None:
    path = tmp_path / "model.pt"
    torch.save({**state, "norm.weight": torch.zeros(1).expand(10**12)}, path)
    error = refused(path)
    assert "norm.weight is [1000000000000], expected [64]" in error.what
    assert "of that shape the file has" in error.what


def test_of_several_state_dicts_the_own_weights_are_taken_and_the_averages_by_name() -> None:
    averages = {name: tensor + 1 for name, tensor in SMALL.items()}
    content: dict[str, Any] = {"epoch": 3, "model_ema": averages, "model": SMALL, "optimizer": {"state": {}}}
    assert state_dicts_in(content) == ("model_ema", "model")
    assert same(state_dict_in(content, place="here")[0], SMALL)
    got, layout = state_dict_in(content, place="here", key="model_ema")
    assert same(got, averages)
    assert layout == "state dict under 'model_ema'"
    with pytest.raises(GpusqError, match="no state dict under 'optimizer'") as caught:
        state_dict_in(content, place="here", key="optimizer")
    assert caught.value.hint == "--state-dict model_ema or model"


@pytest.mark.parametrize(
    ("content", "where"),
    [
        ({"model": {"state_dict": SMALL}}, "model.state_dict"),
        ({"state_dict": {"model": {"state_dict": SMALL}}, "epoch": 3}, "state_dict.model.state_dict"),
        ({"model": {"model_ema": SMALL, "args": {"lr": 0.1}}}, "model.model_ema"),
    ],
)
def test_wrappers_within_wrappers_are_opened_and_can_be_named(content: dict[str, Any], where: str) -> None:
    got, layout = state_dict_in(content, place="here")
    assert (same(got, SMALL), layout) == (True, f"state dict under {where!r}")
    got, layout = state_dict_in(content, place="here", key=where)
    assert (same(got, SMALL), layout) == (True, f"state dict under {where!r}")


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ({"ema": SMALL, "epoch": 3}, "ema"),
        ({"net": SMALL}, "net"),
        ({"model": {"encoder": SMALL, "note": "x"}}, "model.encoder"),
        ({"run": {"best": {"weights": SMALL}}}, "run.best.weights"),
    ],
)
def test_a_state_dict_under_another_name_is_refused_with_the_option_that_takes_it(
    content: dict[str, Any], key: str
) -> None:
    for asked in (None, "other", key.partition(".")[0] if "." in key else "other"):
        with pytest.raises(GpusqError, match="no state dict") as caught:
            state_dict_in(content, place="here", key=asked)
        assert caught.value.hint == f"--state-dict {key}"
    assert same(state_dict_in(content, place="here", key=key)[0], SMALL)


def test_what_an_optimiser_keeps_for_each_weight_is_not_listed() -> None:
    kept = {"state": {"fc.weight": {"exp_avg": torch.ones(3)}, 0: {"exp_avg": torch.ones(3)}}}
    assert state_dicts_in({"model": SMALL, "optimizer": kept}) == ("model",)
    assert reading_of({"model": SMALL, "optimizer": kept}, place="here").remarks == ()


def test_where_there_is_nothing_to_choose_no_option_is_proposed() -> None:
    for content, hint in ((SMALL, "leave out --state-dict"), ({"epoch": 3}, "save the weights alone")):
        with pytest.raises(GpusqError, match="no state dict under 'x'") as caught:
            state_dict_in(content, place="here", key="x")
        assert hint in str(caught.value.hint)


def test_a_mapping_that_holds_itself_is_refused(tmp_path: Path, refused: Refused) -> None:
    content: dict[str, Any] = {}
    content["model"] = content
    path = tmp_path / "model.pt"
    torch.save(content, path)
    assert "no state dict in the file" in refused(path).what


@pytest.mark.filterwarnings(
    "ignore:.*torch.jit.*:DeprecationWarning"
)  # torch's own advice; users still have such files
def test_a_torchscript_archive_is_called_one(tmp_path: Path, refused: Refused) -> None:
    path = tmp_path / "model.pt"
    scripted: Any = torch.jit.script(torch.nn.Linear(4, 3))
    scripted.save(str(path))
    error = refused(path)
    assert "TorchScript archive" in error.what
    assert "torch.jit.load('model.pt').state_dict()" in str(error.hint)


def test_what_is_not_taken_is_told() -> None:
    content = {"model": SMALL, "model_ema": SMALL}
    assert reading_of(content, place="here").remarks == (
        "state dict under 'model'; not taken, though it is there: model_ema (--state-dict NAME takes it)",
    )
    assert "not taken, though it is there: model " in reading_of(content, place="here", key="model_ema").remarks[0]
    assert reading_of({"model": SMALL}, place="here").remarks == ()


def test_the_options_of_a_training_script_are_no_code(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"state_dict": SMALL, "args": argparse.Namespace(lr=0.1, model="vit"), "epoch": 3}, path)
    got, layout = state_dict_in(read_checkpoint_file(path), place=str(path))
    assert (same(got, SMALL), layout) == (True, "state dict under 'state_dict'")


def test_code_inside_the_options_of_a_training_script_is_not_run(tmp_path: Path, refused: Refused) -> None:
    path, trace = tmp_path / "model.pt", tmp_path / "executed"
    torch.save({"state_dict": SMALL, "args": argparse.Namespace(hook=Touch(trace))}, path)
    assert "would run code" in refused(path).what
    assert not trace.exists()


def test_the_weights_of_an_averaged_model_are_read_without_its_count(tmp_path: Path) -> None:
    class Inner(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = torch.nn.Linear(4, 3)

    inner = Inner()
    content = torch.optim.swa_utils.AveragedModel(inner).state_dict()
    reading = reading_of(content, place="here")
    assert same(dict(reading.state), dict(inner.state_dict()))
    assert reading.layout == "state dict, averaged"
    assert "n_averaged" in reading.remarks[0]
    compiled = reading_of({f"_orig_mod.{name}": tensor for name, tensor in content.items()}, place="here")
    assert (same(dict(compiled.state), dict(inner.state_dict())), compiled.layout) == (True, reading.layout)
    # A model's own tensor of that name stays.
    assert same(
        state_dict_in({**SMALL, "n_averaged": torch.ones(1)}, place="here")[0], {**SMALL, "n_averaged": torch.ones(1)}
    )


def test_a_torch_file_that_was_cut_short_is_told_from_one_of_another_kind(tmp_path: Path, refused: Refused) -> None:
    whole, cut = tmp_path / "whole.pt", tmp_path / "cut.pt"
    torch.save(SMALL, whole)
    cut.write_bytes(whole.read_bytes()[:-40])
    assert "cut short" in refused(cut).what


@pytest.mark.parametrize("file", ["own.pt", "program.pt2"])
def test_a_file_with_one_state_dict_leaves_no_choice(tmp_path: Path, file: str) -> None:
    path = tmp_path / file
    if file == "own.pt":
        plain = load_checkpoint(tiny_models.write_vit(tmp_path / "w.pt"), arch=tiny_models.vit_spec())
        save_checkpoint(path, plain.module, arch=plain.arch, preprocessing=plain.preprocessing)
    else:
        path.write_bytes((Path(__file__).resolve().parents[3] / "fixtures" / "pt2e_x86.pt2").read_bytes())
    for arch in (None, tiny_models.vit_spec()):
        for read in (load_checkpoint, stored_weights):
            with pytest.raises(GpusqError, match="holds one state dict") as caught:
                read(path, arch=arch, state_dict="model_ema")
            assert caught.value.place == str(path)
    with pytest.raises(GpusqError, match="holds one state dict"):
        weights_in_file(path, None, state_dict="model_ema")
