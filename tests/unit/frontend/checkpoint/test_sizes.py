"""Images of another size than the one that the weights were trained at: what is built, said, and can be chosen."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend.checkpoint.architecture import arch_from_text
from gpusq_deploy.frontend.checkpoint.load import Checkpoint, load_checkpoint, stored_weights

WIDTH = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
STATED: dict[str, Any] = {
    "image_processor_type": "BitImageProcessor",
    "do_center_crop": True,
    "size": {"shortest_edge": 64},
    "crop_size": {"height": 56, "width": 56},
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
    "resample": 3,
}


def saved(folder: Path, name: str, stated: dict[str, Any], **config: Any) -> Any:
    """A folder as published, and the library's own model."""
    transformers: Any = importlib.import_module("transformers")
    kind = getattr(transformers, name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(kind.config_class(**{**WIDTH, **config})).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(stated))
    return model


def size_of(checkpoint: Checkpoint) -> tuple[int, int]:
    return checkpoint.preprocessing.height, checkpoint.preprocessing.width


def sizes_said(checkpoint: Checkpoint) -> list[str]:
    return [remark for remark in checkpoint.remarks if remark.startswith("built for")]


def pictures(*size: int) -> torch.Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "asked"), [("Dinov2Model", {}), ("ViTModel", {"interpolate_pos_encoding": True}), ("YolosModel", {})]
)
def test_what_the_published_preprocessor_gives_is_built(tmp_path: Path, name: str, asked: dict[str, bool]) -> None:
    """Of a model trained at 112: the library's own forward at each size is the reference."""
    size = [112, 112] if name == "YolosModel" else 112
    model = saved(tmp_path, name, STATED, image_size=size, patch_size=14)
    for arguments, side, said in (
        ([], 56, "built for 56 x 56, as preprocessor_config.json prepares images; position tables are resized from"),
        (["image_size=112"], 112, "built for 112 x 112, as asked; preprocessor_config.json prepares images of 56 x 56"),
        (
            ["image_size=84"],
            84,
            "built for 84 x 84, as asked; preprocessor_config.json prepares images of 56 x 56; pos",
        ),
        (["input_size=[28,70]"], (28, 70), "built for 28 x 70, as asked"),
    ):
        got = load_checkpoint(tmp_path, arch=arch_from_text(f"transformers:{name}", arguments) if arguments else None)
        height, width = (side, side) if isinstance(side, int) else side
        assert size_of(got) == (height, width)
        assert [remark[: len(said)] for remark in sizes_said(got)] == [said]
        images = pictures(height, width)
        with torch.no_grad():
            expected = model(images, **asked).last_hidden_state
            torch.testing.assert_close(got.module(images), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stated", "size"),
    [
        ({"size": 48, "do_center_crop": False}, 48),
        ({"size": {"shortest_edge": 48}, "do_center_crop": False}, 48),
        ({"size": {"height": 48, "width": 48}, "do_center_crop": False, "crop_size": None}, 48),
        ({"crop_size": 48}, 48),
        ({"size": {"shortest_edge": 48, "longest_edge": 90}, "do_center_crop": False}, 32),
        ({"size": {"height": 48, "width": 48}, "do_center_crop": False, "do_resize": False}, 32),
        ({"size": {"height": 32, "width": 32}, "do_center_crop": False}, 32),
        # Left to the class, which crops.
        ({"do_center_crop": None, "crop_size": {"height": 48, "width": 48}}, 48),
        ({"do_center_crop": None, "image_processor_type": None, "feature_extractor_type": "CLIPFeatureExtractor"}, 56),
    ],
)
def test_a_size_is_said_in_many_ways(tmp_path: Path, stated: dict[str, Any], size: int) -> None:
    given = {key: value for key, value in {**STATED, **stated}.items() if value is not None}
    saved(tmp_path, "ViTModel", given, image_size=32, patch_size=8)
    checkpoint = load_checkpoint(tmp_path)
    assert size_of(checkpoint) == (size, size)
    assert bool(sizes_said(checkpoint)) == (size != 32)
    stored = stored_weights(tmp_path).preprocessing
    assert stored is not None
    assert stored.height in (size, 32)


@pytest.mark.slow
def test_a_model_that_runs_at_one_size_is_built_for_it(tmp_path: Path) -> None:
    saved(tmp_path, "CLIPForImageClassification", STATED, vision_config={**WIDTH, "image_size": 32, "patch_size": 8})
    checkpoint = load_checkpoint(tmp_path)
    assert size_of(checkpoint) == (32, 32)
    assert sizes_said(checkpoint)[0].startswith("built for 32 x 32, the config's size, for the model doesn't run at")


@pytest.mark.slow
def test_an_image_size_that_corrects_the_config_is_the_configs(tmp_path: Path) -> None:
    """Weights of 48, a config of 32."""
    saved(tmp_path, "ViTModel", {**STATED, "crop_size": 48}, image_size=48, patch_size=8)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "image_size": 32}))
    checkpoint = load_checkpoint(tmp_path, arch=arch_from_text("transformers:ViTModel", ["image_size=48"]))
    assert (size_of(checkpoint), sizes_said(checkpoint)) == ((48, 48), [])


TIMM = ["depth=1", "embed_dim=32", "num_heads=2", "num_classes=3"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["vit_small_patch14_dinov2", "deit_tiny_distilled_patch16_224", "beit_base_patch16_224"]
)
def test_timm_resizes_its_tables_where_the_size_is_asked_for(tmp_path: Path, name: str) -> None:
    """As `create_model(pretrained=True, img_size=…)` does: for plain tables, `resample_abs_pos_embed`."""
    timm: Any = importlib.import_module("timm")
    layers: Any = importlib.import_module("timm.layers")
    arguments = {"depth": 1, "embed_dim": 32, "num_heads": 2, "num_classes": 3}
    model = timm.create_model(name, img_size=112, **arguments)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    path = tmp_path / "model.pt"
    torch.save({"state_dict": {f"model.{key}": value for key, value in model.state_dict().items()}}, path)
    spec = arch_from_text(f"timm:{name}", [*TIMM, "img_size=224"])
    got = load_checkpoint(path, arch=spec)
    assert size_of(got) == (224, 224)
    assert got.remarks[0].startswith("timm resized 1 position table from [")
    weights: Any = got.module.state_dict()
    if "pos_embed" in weights:
        tokens = model.num_prefix_tokens
        expected = layers.resample_abs_pos_embed(
            model.pos_embed, (224 // model.patch_embed.patch_size[0],) * 2, num_prefix_tokens=tokens
        )
        assert torch.equal(weights["pos_embed"], expected)
    for key, value in model.state_dict().items():
        assert value.shape != weights[key].shape or torch.equal(value, weights[key])
    assert stored_weights(path, arch=spec).state.keys() == weights.keys()
    # Nothing is resized that nobody asked for.
    with pytest.raises(GpusqError, match="of another shape") as caught:
        load_checkpoint(path, arch=arch_from_text(f"timm:{name}", TIMM))
    assert "pos_embed" not in weights or caught.value.hint == "--arch-arg img_size=112"


@pytest.mark.slow
def test_torchvision_resizes_its_table(tmp_path: Path) -> None:
    models: Any = importlib.import_module("torchvision.models.vision_transformer")
    model = models.vit_b_16(image_size=64, num_classes=3)
    torch.nn.init.normal_(model.encoder.pos_embedding)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    spec = arch_from_text("torchvision:vit_b_16", ["image_size=96", "num_classes=3"])
    got: Any = load_checkpoint(tmp_path / "model.pt", arch=spec).module.state_dict()
    expected = models.interpolate_embeddings(96, 16, dict(model.state_dict()))["encoder.pos_embedding"]
    assert torch.equal(got["encoder.pos_embedding"], expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stated", "said"),
    [
        ({}, None),
        ({"image_processor_type": "ViTFeatureExtractor", "size": 224, "do_center_crop": False}, None),
        (
            {"do_center_crop": False},
            "gives images of many sizes: their shorter side becomes 64, and none is cropped; here",
        ),
        ({"do_resize": False}, "gives images of many sizes: it resizes none; here each is resized to cover 56 x 56"),
        (
            {"size": {"shortest_edge": 64, "longest_edge": 90}, "do_center_crop": False},
            "gives images of many sizes: they keep their proportions: shortest_edge 64, longest_edge 90; here",
        ),
        ({"image_processor_type": "TheirImageProcessor"}, "whether TheirImageProcessor does more was not compared"),
    ],
)
def test_what_isnt_done_as_the_preprocessor_does_is_said(
    tmp_path: Path, stated: dict[str, Any], said: str | None
) -> None:
    saved(tmp_path, "ViTModel", {**STATED, **stated}, image_size=56, patch_size=8)
    remarks = " ".join(load_checkpoint(tmp_path).remarks)
    assert said in remarks if said else "many sizes" not in remarks and "not compared" not in remarks


@pytest.mark.parametrize(
    ("stated", "told"),
    [
        ({"size": {"shortest_edge": 64}, "crop_size": {"height": 56, "width": 48}}, "56 x 48 of 64 x 64"),
        ({"size": {"shortest_edge": 48}, "crop_size": 56}, "crop_size 56 is larger than size 48"),
    ],
)
@pytest.mark.slow
def test_a_crop_that_no_share_describes_is_refused(tmp_path: Path, stated: dict[str, Any], told: str) -> None:
    saved(tmp_path, "ViTModel", {**STATED, **stated}, image_size=56, patch_size=8)
    with pytest.raises(GpusqError, match=told) as caught:
        load_checkpoint(tmp_path)
    assert "preprocessor_config.json" in str(caught.value.hint)
