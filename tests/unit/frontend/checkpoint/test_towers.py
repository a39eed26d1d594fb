"""Models of images and text as they are published: their vision towers are built, the whole says how."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from gpusq_deploy.bundle.validation import validate
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend.checkpoint.architecture import arch_from_text
from gpusq_deploy.frontend.checkpoint.load import load_checkpoint

WIDTH = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
IMAGES = {**WIDTH, "image_size": 32, "patch_size": 8}
SETTINGS = {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"height": 32, "width": 32},
    "do_center_crop": False,
    "image_mean": [0.1, 0.2, 0.3],
    "image_std": [0.5] * 3,
}


def published(folder: Path, name: str, *, within: bool = False, **config: Any) -> Any:
    """A folder with the whole model; `within`: the image processor's settings are in those of the processor."""
    transformers: Any = importlib.import_module("transformers")
    kind = getattr(transformers, name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        text = {"text_config": {**WIDTH, "vocab_size": 99}, "vision_config": IMAGES}
        model = kind(kind.config_class(**{**text, **config})).eval()
    model.save_pretrained(folder)
    file, content = "preprocessor_config.json", json.dumps(SETTINGS)
    if within:
        file, content = "processor_config.json", json.dumps({"image_processor": SETTINGS})
    (folder / file).write_text(content)
    return model


def tower_of(model: Any, images: torch.Tensor) -> Any:
    found = getattr(model, "clip", model)
    vision = found.vision_model if hasattr(found, "vision_model") else found.model.vision_tower
    return vision(images)


LLAVA = {
    "vision_config": {"model_type": "clip_vision_model", **IMAGES},
    "text_config": {"model_type": "llama", "vocab_size": 99, **WIDTH},
}
CLIPSEG = {"extract_layers": [0], "reduce_dim": 16, "decoder_num_attention_heads": 2, "decoder_intermediate_size": 32}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("whole", "tower", "config"),
    [
        ("CLIPModel", "CLIPVisionModel", {}),
        ("SiglipModel", "SiglipVisionModel", {}),
        ("BlipModel", "BlipVisionModel", {}),
        ("AltCLIPModel", "AltCLIPVisionModel", {}),
        ("ChineseCLIPModel", "ChineseCLIPVisionModel", {}),
        ("CLIPSegForImageSegmentation", "CLIPSegVisionModel", CLIPSEG),
        ("LlavaForConditionalGeneration", "CLIPVisionModel", LLAVA),
    ],
)
@pytest.mark.filterwarnings("ignore")  # the library's, of tiny configs
def test_the_vision_tower_of_a_published_folder_is_built(
    tmp_path: Path, whole: str, tower: str, config: dict[str, Any]
) -> None:
    model = published(tmp_path, whole, within=whole == "SiglipModel", **config)
    checkpoint = load_checkpoint(tmp_path, arch=arch_from_text(f"transformers:{tower}"))
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, (hidden, pooled) = tower_of(model, images), checkpoint.module(images)
    torch.testing.assert_close(hidden, expected.last_hidden_state, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pooled, expected.pooler_output, rtol=1e-4, atol=1e-5)
    assert (checkpoint.preprocessing.mean, checkpoint.preprocessing.height) == ((0.1, 0.2, 0.3), 32)
    assert any("left out" in remark and "that the architecture lacks" in remark for remark in checkpoint.remarks)
    with pytest.raises(GpusqError, match=f"{whole} takes more than an image: its forward needs input_ids") as caught:
        load_checkpoint(tmp_path)
    assert f"build its vision tower: --arch transformers:{tower}" in str(caught.value.hint).replace(
        "CLIPVisionModelWithProjection or transformers:", ""
    )
    # Weights can be looked at all the same.
    assert validate(tmp_path).kind == "checkpoint"


@pytest.mark.slow
def test_the_projection_to_image_embeddings_is_taken_where_the_class_has_it(tmp_path: Path) -> None:
    model = published(tmp_path, "CLIPModel", projection_dim=16, vision_config={**IMAGES, "projection_dim": 16})
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    checkpoint = load_checkpoint(tmp_path, arch=arch_from_text("transformers:CLIPVisionModelWithProjection"))
    with torch.no_grad():
        expected = model.visual_projection(model.vision_model(images).pooler_output)
        torch.testing.assert_close(checkpoint.module(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_deeper_tower_than_the_config_says_is_refused(tmp_path: Path) -> None:
    published(tmp_path, "SiglipModel", vision_config={**IMAGES, "num_hidden_layers": 2})
    config = json.loads((tmp_path / "config.json").read_text())
    config["vision_config"]["num_hidden_layers"] = 1
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(GpusqError, match=r"16 not in the architecture: encoder.layers.1"):
        load_checkpoint(tmp_path, arch=arch_from_text("transformers:SiglipVisionModel"))


@pytest.mark.slow
def test_a_tower_that_needs_more_than_an_image_is_refused(tmp_path: Path) -> None:
    vision = {**WIDTH, "num_patches": 16, "patch_size": 8}
    published(tmp_path, "Siglip2Model", vision_config=vision)
    for arch in (None, arch_from_text("transformers:Siglip2VisionModel")):
        with pytest.raises(GpusqError, match=r"takes more than an image: its forward needs .*pixel_values") as caught:
            load_checkpoint(tmp_path, arch=arch)
        assert "wrap it in a factory whose forward takes the image" in str(caught.value.hint)
