"""From `SPEC` and `K=V` to a module, and what its input looks like."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch

from gpusq_deploy.artifacts.arch import ArchSpec
from gpusq_deploy.calibration.data import open_source
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend.checkpoint.architecture import arch_from_text, module_from_arch, skeleton_from_arch
from gpusq_deploy.frontend.checkpoint.preprocessing import preprocessing_of


class Custom(torch.nn.Module):
    gpusq_preprocessing: Any = {  # noqa: RUF012 - users write a plain class attribute too
        "channels": 1,
        "height": 8,
        "width": 4,
        "mean": [0.5],
        "std": [0.25],
    }

    def __init__(self, wide: int = 2) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(32, wide)


def broken() -> torch.nn.Module:
    raise LookupError("config.json isn't here")


@pytest.fixture(autouse=True)
def package(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A user's package: `their_models.vision`."""
    module: Any = types.ModuleType("their_models")
    module.custom, module.broken, module.number, module.text = Custom, broken, 7, lambda: "no module"
    monkeypatch.setitem(sys.modules, "their_models", module)
    return iter(())


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8", 8),
        ("-8", -8),
        ("0.5", 0.5),
        ("True", True),
        ("None", None),
        ("(32, 16)", [32, 16]),
        ("[32,16]", [32, 16]),
        ("'8'", "8"),
        ("token", "token"),
        ("", ""),
        ("a=b", "a=b"),
        ("1 2", "1 2"),
        ("__import__('os')", "__import__('os')"),
        ("\0", "\0"),
    ],
)
def test_argument_values_are_literals_or_text(text: str, value: object) -> None:
    got = arch_from_text("timm:x", [f"key={text}"]).arguments["key"]
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize("text", ["(" * 500, "-" * 100_000 + "1", "9" * 5000])
def test_argument_values_that_python_cannot_parse_are_text(text: str) -> None:
    assert arch_from_text("timm:x", [f"key={text}"]).arguments["key"] == text


@pytest.mark.parametrize("item", ["img_size", "=3", "1a=3", "a b=3", "", "img-size=3"])
def test_what_is_no_argument_is_refused(item: str) -> None:
    with pytest.raises(GpusqError, match="not an argument") as caught:
        arch_from_text("timm:x", [item])
    assert caught.value.place == "--arch-arg"


@pytest.mark.parametrize("text", ["{}", "{'a': 1}", "b'x'", "1j", "[1, [2]]", "['a']", "..."])
def test_argument_values_of_other_kinds_are_refused(text: str) -> None:
    with pytest.raises(GpusqError, match="unsupported value") as caught:
        arch_from_text("timm:x", [f"key={text}"])
    assert "key=" in str(caught.value.place)


@pytest.mark.parametrize("text", ["", "timm", "timm:", ":name", ":"])
def test_what_is_no_architecture_is_refused(text: str) -> None:
    with pytest.raises(GpusqError, match="not an architecture") as caught:
        arch_from_text(text)
    assert "timm:NAME" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("text", "near"),
    [("timm:vit_tiny_patch16_244", "vit_tiny_patch16_224"), ("torchvision:vit_b16", "vit_b_16")],
)
def test_a_near_miss_is_suggested(text: str, near: str) -> None:
    with pytest.raises(GpusqError, match="has no model called") as caught:
        module_from_arch(arch_from_text(text))
    assert near in str(caught.value.hint)


def test_a_name_near_nothing_is_refused_without_a_guess() -> None:
    with pytest.raises(GpusqError, match="has no model called") as caught:
        module_from_arch(arch_from_text("timm:qqqqqqqq"))
    assert "did you mean" not in str(caught.value.hint)


@pytest.mark.parametrize(
    "change",
    [
        {"embed_dim": 0},
        {"patch_size": 0},
        {"num_heads": 0},
        {"num_heads": 7},
        {"depth": -1},
        {"img_size": "abc"},
        {"nosuch": 1},
    ],
)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_arguments_that_the_model_refuses_are_named(change: dict[str, Any]) -> None:
    spec = tiny_models.vit_spec(**change)
    with pytest.raises(GpusqError, match="refuses its arguments") as caught:
        module_from_arch(spec)
    assert str(next(iter(change))) in str(caught.value.place)
    assert "--arch-arg" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("no_such_package.models:vit", "cannot import no_such_package"),
        ("their_models:nothing", "no callable 'nothing'"),
        ("their_models:number", "no callable 'number'"),
        ("their_models:text", "returned a str"),
        ("their_models:broken", "the factory fails: .*Error: .*config.json isn't here"),
        (".relative:vit", r"cannot import \.relative"),
        ("transformers:ViTModell", "no model class called 'ViTModell'"),
        ("transformers:BertModel", "takes no pixel_values"),
    ],
)
def test_a_factory_that_gives_no_module_is_refused(text: str, what: str) -> None:
    with pytest.raises(GpusqError, match=what) as caught:
        module_from_arch(arch_from_text(text))
    assert caught.value.place


def test_arguments_that_a_factory_does_not_take_are_told_from_its_own_failures() -> None:
    with pytest.raises(GpusqError, match=r"the factory refuses its arguments: .*'nosuch'") as caught:
        module_from_arch(arch_from_text("their_models:custom", ["nosuch=1"]))
    assert "it takes (wide" in str(caught.value.hint)
    with pytest.raises(GpusqError) as caught:
        module_from_arch(arch_from_text("their_models:broken"))
    assert "refuses" not in str(caught.value)


def test_a_module_that_fails_while_it_is_imported_is_called_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fails_when_imported.py").write_text("raise RuntimeError('no licence')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(GpusqError, match="importing fails_when_imported fails: RuntimeError: no licence"):
        module_from_arch(arch_from_text("fails_when_imported:model"))


def test_a_factory_gets_its_arguments_and_gives_a_float32_module_in_eval_mode() -> None:
    spec = arch_from_text("their_models:custom", ["wide=5"])
    module = module_from_arch(spec)
    assert isinstance(module, Custom)
    assert module.fc.out_features == 5
    assert not module.training
    assert str(spec) == "their_models:custom(wide=5)"


def test_a_module_declares_its_own_preprocessing() -> None:
    spec = arch_from_text("their_models:custom")
    got = preprocessing_of(spec, module_from_arch(spec))
    assert (got.channels, got.height, got.width, got.mean, got.std) == (1, 8, 4, (0.5,), (0.25,))


@pytest.mark.parametrize("declared", [7, {"channels": 3}, {"channels": 2}, [], {"mean": "grey"}])
def test_a_declaration_that_makes_no_sense_is_refused(declared: object) -> None:
    spec = arch_from_text("their_models:custom")
    module: Any = Custom()
    module.gpusq_preprocessing = declared
    with pytest.raises(GpusqError, match="not valid") as caught:
        preprocessing_of(spec, module)
    assert "gpusq_preprocessing" in str(caught.value.hint)


def test_a_module_without_a_declaration_is_refused() -> None:
    spec = arch_from_text("their_models:custom")
    with pytest.raises(GpusqError, match="declares no preprocessing"):
        preprocessing_of(spec, torch.nn.Linear(2, 2))


def test_a_whole_detector_of_torchvision_is_told_which_command_builds_it() -> None:
    spec = arch_from_text("torchvision:maskrcnn_resnet50_fpn")
    with pytest.raises(GpusqError, match="NMS in its middle") as caught:
        preprocessing_of(spec, skeleton_from_arch(spec))
    assert "gpusq-detector" in str(caught.value.hint)


@pytest.mark.parametrize(("channels", "mean"), [(3, (0.5, 0.5, 0.5)), (1, (0.5,))])
def test_a_timm_model_takes_the_size_and_channels_that_it_was_built_with(channels: int, mean: object) -> None:
    got = preprocessing_of(tiny_models.vit_spec(), tiny_models.vit(in_chans=channels))
    assert (got.channels, got.height, got.width, got.mean) == (channels, 32, 32, mean)


def test_a_later_embedding_says_nothing_about_the_image() -> None:
    """Visformer's patch_embed1 reads the 16 channels of its stem."""
    spec = arch_from_text("timm:visformer_tiny", ())
    assert preprocessing_of(spec, module_from_arch(spec)).channels == 3


def test_channels_that_no_image_has_are_for_arrays_alone(tmp_path: Path) -> None:
    got = preprocessing_of(tiny_models.vit_spec(), tiny_models.vit(in_chans=4))
    assert (got.channels, got.is_image) == (4, False)
    (tmp_path / "image.png").touch()
    with pytest.raises(GpusqError, match="no image has 4 channels") as caught:
        open_source(str(tmp_path), got)
    assert ".npy" in str(caught.value.hint)
    np.save(tmp_path / "samples.npy", np.zeros((2, 4, 32, 32), np.float32))
    assert open_source(str(tmp_path / "samples.npy"), got).sample(1).shape == (4, 32, 32)


def test_torchvision_declares_the_transforms_of_its_default_weights() -> None:
    got = preprocessing_of(ArchSpec(source="torchvision", name="vit_b_16"), torch.nn.Identity())
    assert (got.height, got.width, got.crop_fraction, got.interpolation) == (224, 224, 224 / 256, "bilinear")


@pytest.mark.parametrize("name", ["fcn_resnet50", "raft_small", "fasterrcnn_resnet50_fpn"])
def test_torchvision_models_of_other_tasks_are_refused(name: str) -> None:
    with pytest.raises(GpusqError, match="not an image classifier's"):
        preprocessing_of(ArchSpec(source="torchvision", name=name), torch.nn.Identity())


def test_torchvision_asks_for_no_weights_of_a_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.models

    asked: list[object] = []

    def get_state_dict(self: object, *_: object, **__: object) -> None:
        asked.append(self)
        raise OSError("no network")

    untyped: Any = torchvision.models
    monkeypatch.setattr(untyped.WeightsEnum, "get_state_dict", get_state_dict)
    with torch.device("meta"):
        for name in ("fcn_resnet50", "maskrcnn_resnet50_fpn", "ssdlite320_mobilenet_v3_large"):
            module_from_arch(arch_from_text(f"torchvision:{name}"))
    assert asked == []


@pytest.mark.parametrize(("name", "size"), [("vit_b_16", 384), ("vit_h_14", 224), ("vit_b_16", 224)])
def test_torchvisions_vits_are_fed_at_the_size_they_were_built_for(name: str, size: int) -> None:
    spec = arch_from_text(f"torchvision:{name}", [f"image_size={size}"])
    got = preprocessing_of(spec, skeleton_from_arch(spec))
    assert (got.height, got.width) == (size, size)
    assert 0 < got.crop_fraction <= 1
