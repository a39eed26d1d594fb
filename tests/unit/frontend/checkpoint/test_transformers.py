"""transformers' models by class name, and the folders that its save_pretrained writes."""

from __future__ import annotations

import importlib
import json
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import tiny_families
import torch
from commands import run_main

from gpusq_deploy.artifacts.arch import ArchSpec
from gpusq_deploy.bundle.validation import validate
from gpusq_deploy.cli.build import main as build
from gpusq_deploy.cli.validate import main as check
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend.checkpoint.architecture import arch_from_text, module_from_arch
from gpusq_deploy.frontend.checkpoint.load import load_checkpoint, save_checkpoint, stored_weights
from gpusq_deploy.frontend.checkpoint.preprocessing import preprocessing_of
from gpusq_deploy.frontend.checkpoint.pretrained_folder import is_saved_folder
from gpusq_deploy.frontend.checkpoint.weights import weights_in_file

VIT = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
PREPROCESSOR = {
    "do_normalize": True,
    "image_mean": [0.1, 0.2, 0.3],
    "image_std": [0.4, 0.5, 0.6],
    "resample": 3,
    "do_center_crop": True,
    "size": {"shortest_edge": 40},
    "crop_size": {"height": 32, "width": 32},
}


def saved(folder: Path, name: str = "ViTForImageClassification", **changes: Any) -> Any:
    """A folder as the library itself writes it, and the model."""
    import transformers

    library: Any = transformers
    kind = getattr(library, name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(kind.config_class(**{**VIT, **changes})).eval()
    library.utils.logging.set_verbosity_error()
    library.utils.logging.disable_progress_bar()
    model.save_pretrained(folder)
    return model


def pictures(size: int = 32) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, size, size), dtype=np.float32))


@pytest.mark.slow
@pytest.mark.parametrize("by_file", [False, True])
def test_a_saved_folder_describes_itself(tmp_path: Path, *, by_file: bool) -> None:
    model = saved(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    assert is_saved_folder(tmp_path)
    checkpoint = load_checkpoint(tmp_path / "model.safetensors" if by_file else tmp_path)
    assert (checkpoint.arch.source, checkpoint.arch.name) == ("transformers", "ViTForImageClassification")
    with torch.no_grad():
        torch.testing.assert_close(checkpoint.module(pictures()), model(pictures()).logits)
    found = checkpoint.preprocessing
    assert (found.mean, found.std, found.interpolation) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bicubic")
    assert (found.height, found.width, found.crop_fraction) == (32, 32, 0.8)
    assert found.origin == "preprocessor_config.json"


@pytest.mark.slow
def test_what_another_class_has_no_place_for_is_named(tmp_path: Path) -> None:
    saved(tmp_path)
    with pytest.raises(GpusqError, match=r"2 not in the architecture: classifier"):
        load_checkpoint(tmp_path, arch=arch_from_text("transformers:ViTModel"))


@pytest.mark.slow
def test_our_own_checkpoint_needs_neither_config_nor_folder(tmp_path: Path) -> None:
    model = saved(tmp_path / "saved")
    first = load_checkpoint(tmp_path / "saved")
    save_checkpoint(tmp_path / "own.pt", first.module, arch=first.arch, preprocessing=first.preprocessing)
    again = load_checkpoint(tmp_path / "own.pt")
    with torch.no_grad():
        torch.testing.assert_close(again.module(pictures()), model(pictures()).logits)


@pytest.mark.slow
def test_the_two_to_four_check_sees_its_layers(tmp_path: Path) -> None:
    saved(tmp_path)
    weights, record, *_ = weights_in_file(tmp_path, None)
    assert record is None
    assert "vit.layers.0.attention.q_proj" in {weight.layer for weight in weights}
    checked = validate(tmp_path)
    assert checked.kind == "checkpoint"
    assert "vit.layers.0.attention.q_proj" in {layer.layer for layer in checked.sparsity.layers}


def edited(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """The folder's tensors, changed; in a pickle, which holds every type."""
    state = safetensors.torch.load_file(folder / "model.safetensors")
    change(state)
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")


OLD = "vit.encoder.layer.0.attention.attention.query"
NEW = "vit.layers.0.attention.q_proj"


@pytest.mark.slow
def test_the_file_keeps_older_names(tmp_path: Path) -> None:
    """What the tests below rely on."""
    saved(tmp_path)
    assert f"{OLD}.weight" in safetensors.torch.load_file(tmp_path / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("extra", [{"num_hidden_layers": 1}, {}])
def test_layers_that_the_config_has_no_place_for_are_named(tmp_path: Path, extra: dict[str, int]) -> None:
    saved(tmp_path, num_hidden_layers=2)
    if extra:
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**config, **extra}))
    else:
        edited(tmp_path, lambda state: state.update({OLD.replace(".0.", ".7.") + ".weight": torch.ones(32, 32)}))
    for read in (load_checkpoint, stored_weights):
        with pytest.raises(GpusqError, match=rf"{16 if extra else 1} not in the architecture: vit.encoder.layer.[17]"):
            read(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64])
def test_what_is_no_float_weight_is_named_under_an_older_name_too(tmp_path: Path, dtype: torch.dtype) -> None:
    saved(tmp_path)
    edited(tmp_path, lambda state: state.update({f"{OLD}.weight": torch.ones(32, 32, dtype=dtype)}))
    with pytest.raises(GpusqError, match=rf"no float weights: {OLD}.weight \({dtype}"):
        load_checkpoint(tmp_path)


@pytest.mark.slow
def test_a_few_bytes_that_claim_to_be_many_weights_are_not_converted(tmp_path: Path) -> None:
    saved(tmp_path)
    claim = torch.zeros(1, dtype=torch.float16).expand(10**12)
    edited(tmp_path, lambda state: state.update({f"{OLD}.weight": claim}))
    with pytest.raises(GpusqError, match=rf"{OLD}.weight is \[1000000000000\], of which the file doesn't hold"):
        load_checkpoint(tmp_path)


@pytest.mark.slow
def test_a_tensor_that_is_there_under_both_names_is_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    edited(tmp_path, lambda state: state.update({f"{NEW}.weight": torch.ones(32, 32)}))
    with pytest.raises(GpusqError, match=f"under an older name too: {NEW}.weight|not in the architecture: {OLD}"):
        load_checkpoint(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_configs_type_rounds_nothing(tmp_path: Path, dtype: torch.dtype) -> None:
    model = saved(tmp_path, dtype="float16")
    edited(tmp_path, lambda state: state.update({name: tensor.to(dtype) for name, tensor in state.items()}))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "dtype": "float16"}))
    loaded = load_checkpoint(tmp_path).module.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded[name], tensor.to(dtype).float())
    assert {tensor.dtype for tensor in stored_weights(tmp_path).state.values()} == {dtype}


@pytest.mark.slow
def test_records_and_ranges_follow_the_weights_to_their_new_names(tmp_path: Path) -> None:
    saved(tmp_path)
    mask = torch.tensor([1, 1, 0, 0]).repeat(32, 8)

    def recorded(state: dict[str, torch.Tensor]) -> None:
        state[f"{OLD}.__weight_mma_mask"] = mask
        state[f"{OLD}.input_quantizer._amax"] = torch.tensor(3.0)

    edited(tmp_path, recorded)
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint.sparsity is not None
    assert (checkpoint.sparsity.layers, checkpoint.ranges) == ((NEW,), {NEW: 3.0})
    assert list(checkpoint.origins) == [NEW]
    checked = validate(tmp_path)
    assert {layer.layer: layer.valid for layer in checked.sparsity.layers if layer.expected} == {NEW: True}


@pytest.mark.slow
def test_tensors_of_another_shape_are_named(tmp_path: Path) -> None:
    saved(tmp_path)
    with pytest.raises(GpusqError, match=r"of another shape: .*\[2, 32\], expected \[7, 32\]"):
        load_checkpoint(
            tmp_path / "model.safetensors",
            arch=arch_from_text("transformers:ViTForImageClassification", ["num_labels=7"]),
        )


@pytest.mark.slow
def test_missing_tensors_are_named(tmp_path: Path) -> None:
    saved(tmp_path)
    path = tmp_path / "model.safetensors"
    state = safetensors.torch.load_file(path)
    del state["classifier.bias"]
    safetensors.torch.save_file(state, path)
    with pytest.raises(GpusqError, match=r"1 missing: classifier.bias"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("{", "not JSON"),
        ("[]", "holds a list"),
        ('{"model_type": "vit"}', "doesn't name one class"),
        ('{"model_type": "vit", "architectures": ["ViTModel", "ViTModel"]}', "doesn't name one class"),
        ('{"model_type": "vit", "architectures": ["ViTModel"]}', "no weights"),
    ],
)
def test_a_folder_that_is_no_model_is_refused(tmp_path: Path, content: str, what: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(GpusqError, match=what):
        load_checkpoint(tmp_path)


def test_weights_in_several_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "vit", "architectures": ["ViTModel"]}')
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(GpusqError, match="several files") as caught:
        load_checkpoint(tmp_path)
    assert "max_shard_size" in str(caught.value.hint)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "arguments", "what"),
    [
        ("transformers:ViTModel", ["hidden_sizes=32"], "has no 'hidden_sizes'"),
        ("transformers:ViTModel", ['config={"model_type": "swin"}'], "of a swin"),
        ("transformers:ViTModel", ["config=no-such.json"], "cannot read the file"),
        ("transformers:ViTModel", ["config={"], "not JSON"),
        ("transformers:ViTModel", ["hidden_act=none"], "refuses its arguments"),
        ("transformers:AutoModel", [], "no model class"),
    ],
)
def test_what_makes_no_model_is_refused(spec: str, arguments: list[str], what: str) -> None:
    with pytest.raises(GpusqError, match=what) as caught:
        module_from_arch(arch_from_text(spec, arguments))
    assert caught.value.place


@pytest.mark.slow
def test_arguments_go_before_the_config() -> None:
    spec = arch_from_text("transformers:ViTModel", [f"config={json.dumps(VIT)}", "image_size=16"])
    module = module_from_arch(spec)
    assert preprocessing_of(spec, module).height == 16
    with torch.no_grad():
        assert module(pictures(16)).shape == (2, 5, 32)


@pytest.mark.slow
def test_a_detector_answers_logits_and_boxes() -> None:
    checkpoint = tiny_families.checkpoint("detr")
    size = checkpoint.preprocessing
    assert (size.height, size.width) == (64, 96)
    with torch.no_grad():
        logits, boxes = checkpoint.module(torch.zeros(1, 3, 64, 96))
    assert logits.shape == (1, 10, 3) or logits.shape[:2] == (1, 10)
    assert boxes.shape == (1, 10, 4)


@pytest.mark.slow
def test_a_model_of_no_one_size_asks_for_it() -> None:
    spec = tiny_families.FAMILIES["detr"].spec
    bare = ArchSpec(source="transformers", name=spec.name, arguments={"config": spec.arguments["config"]})
    module = module_from_arch(bare)
    with pytest.raises(GpusqError, match="says one image size") as caught:
        preprocessing_of(bare, module)
    assert "input_size" in str(caught.value.hint)


@pytest.mark.slow
def test_nothing_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def lookup(host: object, *_: object, **__: object) -> None:
        asked.append(host)
        raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    monkeypatch.setattr(importlib.import_module("huggingface_hub.constants"), "HF_HUB_OFFLINE", False)
    with pytest.raises(GpusqError, match="refuses its arguments"):
        module_from_arch(
            ArchSpec(
                source="transformers",
                name="UperNetForSemanticSegmentation",
                arguments={"config": '{"backbone": "microsoft/swin-tiny-patch4-window7-224", "backbone_config": null}'},
            )
        )
    assert asked == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "change", "what"),
    [
        ("config.json", {"hidden_act": "gelu_neww"}, "refuses its arguments: KeyError"),
        ("config.json", {"hidden_size": "64"}, "refuses its arguments: .*hidden_size"),
        ("config.json", {"num_hidden_layers": None}, "refuses its arguments: .*num_hidden_layers"),
        ("config.json", {"hidden_size": -1}, "refuses its arguments"),
        ("config.json", {"dtype": "floaty"}, "refuses its arguments: .*floaty"),
        ("config.json", {"id2label": "x"}, "refuses its arguments"),
        ("config.json", {"quantization_config": {"quant_method": "bitsandbytes"}}, "weights are quantised"),
        ("preprocessor_config.json", {"image_mean": []}, "preprocessing isn't one of images"),
        ("preprocessor_config.json", {"image_mean": [float("nan")] * 3}, "preprocessing isn't one of images"),
        ("preprocessor_config.json", {"do_rescale": False}, "do_rescale"),
        ("preprocessor_config.json", {"rescale_factor": 1 / 127.5}, "rescale_factor 0.0078"),
        ("preprocessor_config.json", {"do_flip_channel_order": True}, "red, green, blue"),
        ("preprocessor_config.json", {"size": {"shortest_edge": 0}}, "preprocessing isn't one of images"),
    ],
)
def test_odd_configs_are_refused_with_a_sentence(tmp_path: Path, name: str, change: dict[str, Any], what: str) -> None:
    saved(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    content = json.loads((tmp_path / name).read_text())
    (tmp_path / name).write_text(json.dumps({**content, **change}))
    with pytest.raises(GpusqError, match=what) as caught:
        load_checkpoint(tmp_path)
    assert caught.value.hint


@pytest.mark.slow
@pytest.mark.parametrize("config", ["// comment\n{}", "[]", '{"model_type": "swin", "architectures": ["SwinModel"]}'])
def test_a_config_of_something_else_beside_a_file_is_left_alone(tmp_path: Path, config: str) -> None:
    saved(tmp_path / "saved")
    first = load_checkpoint(tmp_path / "saved")
    own, state = tmp_path / "own.pt", tmp_path / "state.pt"
    save_checkpoint(own, first.module, arch=first.arch, preprocessing=first.preprocessing)
    torch.save(first.module.state_dict(), state)
    (tmp_path / "config.json").write_text(config)
    assert load_checkpoint(own).arch == first.arch
    assert load_checkpoint(own, arch=first.arch).arch == first.arch
    assert load_checkpoint(state, arch=first.arch).arch == first.arch
    assert validate(own).kind == "checkpoint"
    if "swin" not in config:
        with pytest.raises(GpusqError, match="doesn't say of which architecture") as caught:
            load_checkpoint(state)
        assert "the config.json beside it names no class of transformers" in str(caught.value.hint)


@pytest.mark.slow
def test_every_command_knows_a_saved_folder(tmp_path: Path) -> None:
    folder, out = tmp_path / "saved", ("--opset", "11", "--out", tmp_path / "out")
    saved(folder)
    explained = run_main(check, folder, "--target", "a100", "--json")
    assert (explained.code, bool(explained.json()["explained"])) == (1, True), explained.err
    # Arguments go with the class that the config names.
    assert "built for 16 x 16, as asked" in run_main(build, folder, "--arch-arg", "image_size=16", *out).err
    for path, what in ((folder, "a file is repaired, not a folder"), (folder / "model.safetensors", "other names")):
        repaired = run_main(check, path, "--repair", tmp_path / "mended.safetensors")
        assert (repaired.code, what in repaired.err) == (5, True), repaired.err
    (folder / "config.json").unlink()
    with_arch = run_main(build, folder, "--arch", "transformers:ViTForImageClassification", *out)
    assert "don't fit" in with_arch.err
    (folder / "model.safetensors").unlink()
    nothing = run_main(build, folder, "--arch", "transformers:ViTModel", "--int8", *out)
    assert (nothing.code, "no folder of save_pretrained" in nothing.err) == (5, True), nothing.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["saved"]


@pytest.mark.slow
def test_what_was_assumed_and_left_out_is_told(tmp_path: Path) -> None:
    saved(tmp_path, "ViTModel")
    told = load_checkpoint(tmp_path).remarks
    assert [remark for remark in told if "defaults of transformers' ViTImageProcessor" in remark]
    assert "answers of the model that the graph leaves out: pooler_output" in told
    as_convnext = {"resample": 0, "do_center_crop": False, "crop_pct": 0.875, "size": {"shortest_edge": 32}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**PREPROCESSOR, **as_convnext}))
    found = load_checkpoint(tmp_path)
    assert found.preprocessing.crop_fraction == 0.875
    assert found.preprocessing.interpolation == "nearest"
    assert not [remark for remark in found.remarks if "defaults" in remark]


TINY = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "config", "processor"),
    [
        ("SiglipVisionModel", {"image_size": 32, "patch_size": 16}, "SiglipImageProcessor"),
        ("CLIPVisionModel", {"image_size": 32, "patch_size": 16}, "CLIPImageProcessor"),
        ("Dinov2WithRegistersModel", {"image_size": 28, "patch_size": 14}, "BitImageProcessor"),
    ],
)
def test_a_part_or_a_variant_has_the_defaults_of_its_family_with_a_warning(
    tmp_path: Path, name: str, config: dict[str, int], processor: str
) -> None:
    library: Any = importlib.import_module("transformers")
    kind: Any = getattr(library, name)
    kind(kind.config_class(**TINY, **config)).save_pretrained(tmp_path)
    checkpoint = load_checkpoint(tmp_path)
    defaults: Any = getattr(library, processor)()
    assert checkpoint.preprocessing.mean == pytest.approx(tuple(defaults.image_mean))
    assert (checkpoint.preprocessing.height, checkpoint.preprocessing.width) == (config["image_size"],) * 2
    warned = f"defaults of transformers' {processor}"
    assert [remark for remark in checkpoint.remarks if remark.startswith("WARNING") and warned in remark]


@dataclass
class Parts:
    """As a composite config of transformers, whose parts have the sizes."""

    vision_config: Any = None
    backbone_config: Any = None
    image_size: Any = None
    model_type: str = "depth_anything"


def size_of(config: Parts, preprocessor: dict[str, Any] | None, **arguments: Any) -> tuple[int, int]:
    module: Any = torch.nn.Module()
    module.config = config
    spec = ArchSpec(source="transformers", name="DepthAnythingForDepthEstimation", arguments=arguments)
    found = preprocessing_of(spec, module, preprocessor)
    return found.height, found.width


@pytest.mark.slow
def test_the_size_of_a_composite_model_is_that_of_its_parts() -> None:
    vision, backbone = Parts(image_size=64), Parts(image_size=[56, 42])
    stated = {**PREPROCESSOR, "do_center_crop": False, "size": {"height": 70, "width": 84}}
    assert size_of(Parts(vision_config=vision), None) == (64, 64)
    # A model may refuse any other than its vision part's.
    assert size_of(Parts(vision_config=vision), stated) == (64, 64)
    # A backbone may have been trained at another size than the model was.
    assert size_of(Parts(backbone_config=backbone), None) == (56, 42)
    assert size_of(Parts(backbone_config=backbone), stated) == (70, 84)
    assert size_of(Parts(backbone_config=backbone, image_size=98), stated) == (98, 98)
    assert size_of(Parts(vision_config=vision), None, input_size=[32, 48]) == (32, 48)
    with pytest.raises(GpusqError, match="is not a size"):  # timm's form, channels first
        size_of(Parts(vision_config=vision), None, input_size=[3, 32, 48])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preprocessor", "arguments", "what", "hint"),
    [
        ({"image_std": None}, {}, "it lacks image_std", "correct the preprocessor_config.json"),
        ({"image_mean": []}, {}, "a mean or std without a number", "correct the preprocessor_config.json"),
        ({"resample": 4}, {}, "resample 4: images are resized by PIL's 0, 1, 2, 3 alone", "correct the"),
        (None, {"input_size": [0, 3]}, "not an input: 3x0x3", "check --arch-arg input_size; or put its"),
        ({}, {"input_size": [0, 3]}, "not an input: 3x0x3", "check --arch-arg input_size; or correct the"),
    ],
)
def test_a_preprocessing_that_cannot_be_used_is_told_in_words(
    preprocessor: dict[str, Any] | None, arguments: dict[str, Any], what: str, hint: str
) -> None:
    given: dict[str, Any] | None = None
    if preprocessor is not None:
        merged = {**PREPROCESSOR, **preprocessor}
        given = {key: value for key, value in merged.items() if value is not None}
    with pytest.raises(GpusqError) as caught:
        size_of(Parts(image_size=32), given, **arguments)
    assert caught.value.what == f"its preprocessing isn't one of images to tensors: {what}"
    assert str(caught.value.hint).startswith(hint)
