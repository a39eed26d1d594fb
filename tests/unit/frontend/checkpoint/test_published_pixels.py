"""What a model is fed, against the transforms of timm, torchvision and transformers themselves."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from odd_photographs import SIZES, of_odd_modes, photograph
from PIL import Image

from gpusq_deploy.artifacts.arch import ArchSpec, CropMode, Preprocessing
from gpusq_deploy.calibration.image_data import load_image, sample_from_image
from gpusq_deploy.frontend.checkpoint.architecture import arch_from_text, skeleton_from_arch
from gpusq_deploy.frontend.checkpoint.preprocessing import preprocessing_of
from gpusq_deploy.frontend.checkpoint.tensors import array_from_tensor
from gpusq_deploy.frontend.checkpoint.transformers_resizing import COMPARED

Array = npt.NDArray[Any]
Transform = Callable[[Image.Image], Array]

# Normalising in another order of float32 operations.
ROUNDING = 2e-6
# ≤ 1/255 in the mean where a library resizes tensors instead of Pillow's images.
STEP = 1 / 255
# 1.0.24 rounds the sides of inputs that aren't square otherwise; no version between was compared.
TIMM_COMPARED = (1, 0, 31)
TIMM = (
    "vit_tiny_patch16_224",
    "deit_tiny_patch16_224",
    "swin_tiny_patch4_window7_224",
    "beit_base_patch16_224",
    "vit_small_patch14_dinov2",
    "convnext_atto.d2_in1k",
    "convnext_small.fb_in22k_ft_in1k_384",
    "vit_base_patch16_224_miil.in21k_ft_in1k",
    "vit_base_patch16_sapiens2.fb",
    "dm_nfnet_f0.dm_in1k",
    "deepseek_vit_412m.deepseek_v4_flash_vision_exp",
)
TORCHVISION = ("vit_b_16", "vit_l_16", "vit_b_32", "swin_t", "swin_b", "swin_v2_t", "maxvit_t", "convnext_tiny")
# Their processors resize floats, after the division by 255, so nothing is rounded to 8 bits.
FLOATS = {"DepthProImageProcessor", "DINOv3ViTImageProcessor"}


def require_pixels(got: Array, want: Array, wanted: Preprocessing, name: str) -> None:
    """The same bytes where Pillow resized, and the same floats but for rounding."""
    assert got.shape == want.shape, name
    std, mean = (np.asarray(values)[:, None, None] for values in (wanted.std, wanted.mean))
    np.testing.assert_allclose(got * std, want * std, rtol=0, atol=ROUNDING, err_msg=name)
    ours, theirs = (np.rint((each * std + mean) * 255) for each in (got, want))
    np.testing.assert_array_equal(ours, theirs, err_msg=name)


def of_timm(name: str, arguments: Mapping[str, Any]) -> tuple[Preprocessing, Transform]:
    timm_data: Any = importlib.import_module("timm.data")
    spec = arch_from_text(f"timm:{name}", [f"{key}={value}" for key, value in arguments.items()])
    module = skeleton_from_arch(spec)
    wanted = preprocessing_of(spec, module)
    given = {"input_size": wanted.sample_shape} if arguments else {}
    transform = timm_data.create_transform(**timm_data.resolve_data_config(given, model=module))
    return wanted, lambda image: array_from_tensor(transform(image))


def of_torchvision(name: str, weights: str = "DEFAULT", **arguments: Any) -> tuple[Preprocessing, Transform]:
    models: Any = importlib.import_module("torchvision.models")
    spec = ArchSpec(source="torchvision", name=name, arguments=arguments)
    transform = models.get_model_weights(name)[weights].transforms()
    return preprocessing_of(spec, skeleton_from_arch(spec)), lambda image: array_from_tensor(transform(image))


def of_transformers(stated: dict[str, Any], name: str) -> tuple[Preprocessing, Transform]:
    """By the class called `name`; the model is no more than a config of the processor's size."""
    transformers: Any = importlib.import_module("transformers")
    processor = getattr(transformers, name)(
        **{key: value for key, value in stated.items() if key != "image_processor_type"}
    )
    module: Any = torch.nn.Module()
    module.config = SimpleNamespace(model_type="vit")
    wanted = preprocessing_of(
        ArchSpec(source="transformers", name="ViTModel"), module, {**processor.to_dict(), **stated}
    )

    def transform(image: Image.Image) -> Array:
        return np.asarray(processor(image, return_tensors="np")["pixel_values"][0])

    return wanted, transform


def require_same(wanted: Preprocessing, transform: Transform, sizes: tuple[tuple[int, int], ...] = SIZES) -> None:
    for size in sizes:
        image = photograph(*size)
        require_pixels(sample_from_image(image, wanted), transform(image), wanted, f"{size}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        *((name, {}) for name in TIMM),
        ("vit_tiny_patch16_224", {"img_size": "[192,336]"}),
        ("vit_tiny_patch16_224", {"img_size": "[160,96]"}),
    ],
)
def test_timm(name: str, arguments: Mapping[str, Any]) -> None:
    require_same(*of_timm(name, arguments))


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize(
    ("fraction", "size"), [(1.0, (64, 64)), (0.875, (64, 64)), (0.9, (48, 80)), (0.95, (81, 33)), (0.7, (29, 31))]
)
def test_every_crop_mode_of_timm(mode: CropMode, fraction: float, size: tuple[int, int]) -> None:
    timm_data: Any = importlib.import_module("timm.data")
    before = tuple(map(int, importlib.metadata.version("timm").split(".")[:3])) < TIMM_COMPARED
    if before and mode == "center" and size[0] != size[1]:
        pytest.skip("this timm rounds the sides of inputs that aren't square otherwise, by a pixel")
    wanted = Preprocessing(
        channels=3,
        height=size[0],
        width=size[1],
        mean=(0.4, 0.5, 0.6),
        std=(0.2, 0.3, 0.25),
        crop_fraction=fraction,
        crop_mode=mode,
        origin="test",
    )
    plain = {"mean": wanted.mean, "std": wanted.std, "interpolation": wanted.interpolation}
    transform = timm_data.create_transform(input_size=(3, *size), crop_pct=fraction, crop_mode=mode, **plain)
    require_same(wanted, lambda image: array_from_tensor(transform(image)))


@pytest.mark.slow
@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name: str) -> None:
    require_same(*of_torchvision(name))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "weights", "size"),
    [("vit_b_16", "IMAGENET1K_SWAG_E2E_V1", 384), ("vit_h_14", "IMAGENET1K_SWAG_LINEAR_V1", 224)],
)
def test_a_size_of_other_weights_of_torchvision_has_their_transforms(name: str, weights: str, size: int) -> None:
    wanted, transform = of_torchvision(name, weights, image_size=size)
    assert weights in wanted.origin
    require_same(wanted, transform)


PUBLISHED: dict[str, dict[str, Any]] = {
    "dinov2": {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 256}, "crop_size": 224},
    "convnext-224": {
        "image_processor_type": "ConvNextImageProcessor",
        "size": {"shortest_edge": 224},
        "crop_pct": 0.875,
    },
    "convnext-odd": {
        "image_processor_type": "ConvNextImageProcessor",
        "size": {"shortest_edge": 288},
        "crop_pct": 0.95,
    },
    "convnext-384": {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 384}, "crop_pct": 1.0},
    "beit": {"image_processor_type": "BeitImageProcessor", "size": 256, "crop_size": 224, "do_center_crop": True},
    "deit-old": {"image_processor_type": "DeiTImageProcessor", "size": 438, "crop_size": 384, "resample": 3},
    "clip-336": {"image_processor_type": "CLIPImageProcessor", "size": 336, "crop_size": 336},
    "clip-odd": {"image_processor_type": "CLIPImageProcessor", "size": 255, "crop_size": 224},
    "levit": {"image_processor_type": "LevitImageProcessor", "size": 192, "crop_size": 192},
    "not-square": {"image_processor_type": "SegformerImageProcessor", "size": {"height": 160, "width": 288}},
    "poolformer": {
        "image_processor_type": "PoolFormerImageProcessor",
        "size": {"height": 224, "width": 224},
        "crop_pct": 0.95,
    },
    "plain": {"image_processor_type": "ViTImageProcessor", "do_normalize": False, "resample": 0},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*sorted(COMPARED), *PUBLISHED])
def test_transformers(name: str) -> None:
    """To the byte with Pillow, ≤ 1/255 in the mean with tensors, whichever of the two the installed version has."""
    transformers: Any = importlib.import_module("transformers")
    stated = PUBLISHED.get(name, {"image_processor_type": name})
    kind = stated["image_processor_type"]
    if not hasattr(transformers, kind):
        pytest.skip(f"transformers {transformers.__version__} has no {kind}")
    backends = [f"{kind}{suffix}" for suffix in ("", "Pil", "Fast") if f"{kind}{suffix}" in dir(transformers)]
    for backend in backends:
        wanted, transform = of_transformers(stated, backend)
        sizes = SIZES if wanted.height < 500 else SIZES[::3]
        if kind not in FLOATS and by_pillow(getattr(transformers, backend)):
            require_same(wanted, transform, sizes)
            continue
        for size in sizes:
            image = photograph(*size)
            got, want = sample_from_image(image, wanted), transform(image)
            assert got.shape == want.shape
            assert np.abs((got - want) * np.asarray(wanted.std)[:, None, None]).mean() <= STEP, (backend, size)


def by_pillow(kind: Any) -> bool:
    return not any("Torchvision" in each.__name__ or "Fast" in each.__name__ for each in kind.__mro__)


def test_photographs_of_odd_modes(tmp_path: Path) -> None:
    """EXIF's orientation, opacity and 16 bits: see docs/checkpoints.md."""
    given = (
        of_timm("vit_tiny_patch16_224", {}),
        of_torchvision("swin_t"),
        of_transformers({"image_processor_type": "CLIPImageProcessor"}, "CLIPImageProcessorPil"),
    )
    for name, (path, loaded) in of_odd_modes(tmp_path).items():
        for wanted, transform in given:
            require_pixels(load_image(path, wanted), transform(loaded), wanted, f"{wanted.origin}, {name}")
