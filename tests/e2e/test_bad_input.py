"""Bad input gets a sentence, exit 5, and leaves nothing behind."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import Finished, run_main

from gpusq_deploy.cli.build import main as build
from gpusq_deploy.cli.inspect import main as inspect
from gpusq_deploy.cli.validate import main as validate


@pytest.fixture
def place(tmp_path: Path) -> Path:
    folder = tmp_path / "place"
    folder.mkdir()
    return folder


def refused(done: Finished, place: Path, *words: str, left: tuple[str, ...] = ()) -> None:
    assert done.code == 5, done.err
    assert done.err.splitlines()[-1].startswith("  ")
    assert "Traceback" not in done.err
    assert done.out == ""
    for word in words:
        assert word in done.err
    assert sorted(path.name for path in place.iterdir()) == sorted(left)


def attempt(place: Path, model: Path, *options: object) -> Finished:
    return run_main(build, model, *options, "--out", place / "out")


def test_missing_file(place: Path) -> None:
    refused(attempt(place, place / "model.pt", "--fp16"), place, "no such file", "model.pt")


def test_text_named_pt(place: Path, tmp_path: Path) -> None:
    model = tmp_path / "notes.pt"
    model.write_text("these are my notes")
    refused(attempt(place, model, "--fp16"), place, "not a PyTorch file", "these are my")


class Bomb:
    """Unpickling it would create a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.target,)


def test_pickle_with_code_in_it_is_refused_and_not_run(place: Path, tmp_path: Path) -> None:
    model = tmp_path / "bomb.pt"
    torch.save({"weight": Bomb(tmp_path / "ran")}, model)
    refused(attempt(place, model, "--arch", "timm:vit_tiny_patch16_224"), place, "refused", "would run code")
    model.write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    refused(attempt(place, model, "--arch", "timm:vit_tiny_patch16_224"), place)
    assert not (tmp_path / "ran").exists()


def test_unknown_architecture_suggests_a_near_one(place: Path, dense: Path) -> None:
    done = attempt(place, dense, "--arch", "timm:vit_smal_patch16_224")
    refused(done, place)
    state = place.parent / "state.pt"
    torch.save(torch.load(dense, weights_only=True)["state_dict"], state)
    refused(attempt(place, state, "--arch", "timm:vit_smal_patch16_224"), place, "vit_small_patch16_224")


def test_weights_of_another_architecture(place: Path, dense: Path) -> None:
    state = place.parent / "state.pt"
    torch.save(torch.load(dense, weights_only=True)["state_dict"], state)
    done = attempt(place, state, "--arch", "timm:vit_tiny_patch16_224")
    refused(done, place, "don't fit", "pos_embed", "--arch-arg")


def test_a_state_dict_without_an_architecture(place: Path, dense: Path) -> None:
    state = place.parent / "state.pt"
    torch.save(torch.load(dense, weights_only=True)["state_dict"], state)
    refused(attempt(place, state), place, "--arch")


def test_weights_that_are_nan(place: Path, dense: Path, tmp_path: Path) -> None:
    content = torch.load(dense, weights_only=True)
    content["state_dict"]["blocks.1.mlp.fc1.weight"][3, 5] = float("nan")
    model = tmp_path / "nan.pt"
    torch.save(content, model)
    refused(attempt(place, model), place, "NaN", "blocks.1.mlp.fc1.weight")


def test_int8_without_ranges(place: Path, dense: Path) -> None:
    refused(attempt(place, dense, "--int8"), place, "ranges", "--calib FOLDER")


def test_empty_calibration_folder(place: Path, dense: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = attempt(place, dense, "--int8", "--calib", tmp_path / "empty")
    refused(done, place, "no images in the folder", "empty")


def test_calibration_array_of_the_wrong_shape(place: Path, dense: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((4, 3, 224, 224), np.float32))
    refused(attempt(place, dense, "--int8", "--calib", tmp_path / "a.npy"), place, "[4, 3, 224, 224]", "3, 32, 32")


def test_sparse_on_a_dense_model_names_layers_group_and_command(place: Path, dense: Path) -> None:
    done = attempt(place, dense, "--sparse", "--int8", "--calib", "random")
    refused(done, place, "8 of 8 layers", "blocks.0.attn.qkv", "row 0, columns 0 to 3", "gpusq-compress")


def test_an_output_that_exists_is_kept(place: Path, dense: Path) -> None:
    (place / "out").mkdir()
    (place / "out" / "thesis.txt").write_text("years of work")
    refused(attempt(place, dense), place, "exists already", "--force", left=("out",))
    refused(attempt(place, dense, "--force"), place, "not a bundle", left=("out",))
    assert (place / "out" / "thesis.txt").read_text() == "years of work"


def test_an_unknown_target_suggests_a_near_one(place: Path, dense: Path) -> None:
    refused(attempt(place, dense, "--target", "orinn"), place, "did you mean orin")


def test_an_opset_that_can_not_be(place: Path, dense: Path) -> None:
    refused(attempt(place, dense, "--opset", "11"), place, "opset 11", "19 to 23")


def test_a_recipe_with_an_unknown_key(place: Path, dense: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('schema = "gpusq.recipe/1"\nname = "mine"\ndescription = ""\nrule = []\nprecison = "int8"\n')
    refused(attempt(place, dense, "--int8", "--calib", "random", "--recipe", recipe), place, "precison")


@pytest.mark.parametrize("batch", ["0:1:2", "4:2:8", "a", "1:2", "-1", "²", "9" * 5000])
def test_a_batch_that_makes_no_sense_is_a_usage_error(place: Path, dense: Path, batch: str) -> None:
    done = attempt(place, dense, "--batch", batch)
    assert done.code == 2
    assert list(place.iterdir()) == []


@pytest.mark.parametrize(
    "options", [("--fp16", "--bf16"), ("--arch-arg", "img_size=32"), ("--recipe", "recipe.toml"), ("--nonsense",)]
)
def test_options_that_contradict_are_usage_errors(place: Path, dense: Path, options: tuple[str, ...]) -> None:
    assert attempt(place, dense, *options).code == 2
    assert list(place.iterdir()) == []


def test_inspect_and_validate_refuse_what_they_can_not_read(place: Path) -> None:
    refused(run_main(inspect, place), place, "not a bundle")
    refused(run_main(validate, place), place, "not a bundle")
    (place.parent / "broken.onnx").write_bytes(b"\x08\x01")
    refused(run_main(validate, place.parent / "broken.onnx"), place)
