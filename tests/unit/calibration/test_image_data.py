"""Images against torchvision's own transforms, on real photographs, and damaged files."""

from __future__ import annotations

import functools
import importlib
import math
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import photographs
import pytest
import torch
from PIL import Image

from gpusq_deploy.artifacts.arch import Interpolation, Preprocessing
from gpusq_deploy.calibration.image_data import Sample, fit_image, load_image
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend.checkpoint.tensors import array_from_tensor

transforms: Any = importlib.import_module("torchvision.transforms")  # it ships no types

Array = npt.NDArray[Any]

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MODES = {
    "nearest": transforms.InterpolationMode.NEAREST,
    "bilinear": transforms.InterpolationMode.BILINEAR,
    "bicubic": transforms.InterpolationMode.BICUBIC,
    "lanczos": transforms.InterpolationMode.LANCZOS,
}
# Both resize with Pillow, and normalise in float32: what is left is the rounding of one division.
TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photographs.write_photographs(tmp_path_factory.mktemp("photos"), ("astronaut", "coffee"), crops=1)


@pytest.fixture(scope="module")
def sizes(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """One photograph as it is, wide, tall, and smaller than the model's input."""
    folder = tmp_path_factory.mktemp("sizes")
    image = Image.open(next(iter(sorted(photos.iterdir()))))
    boxes = {"square": (300, 300), "wide": (331, 173), "tall": (97, 260), "small": (21, 17)}
    for name, size in boxes.items():
        image.crop((0, 0, *size)).save(folder / f"{name}.png")
    return tuple(sorted(folder.iterdir()))


def preprocessing(**changes: Any) -> Preprocessing:
    fields: dict[str, Any] = {
        "channels": 3,
        "height": 32,
        "width": 32,
        "mean": MEAN,
        "std": STD,
        "interpolation": "bicubic",
        "origin": "test",
        **changes,
    }
    if fields["channels"] == 1:
        fields["mean"], fields["std"] = (0.5,), (0.25,)
    return Preprocessing(**fields)


def by_torchvision(path: Path, wanted: Preprocessing) -> Sample:
    """timm's evaluation transform for square inputs, written with torchvision."""
    steps = transforms.Compose(
        [
            transforms.Resize(math.floor(wanted.height / wanted.crop_fraction), MODES[wanted.interpolation]),
            transforms.CenterCrop((wanted.height, wanted.width)),
            transforms.ToTensor(),
            transforms.Normalize(wanted.mean, wanted.std),
        ]
    )
    with Image.open(path) as image:
        answer: torch.Tensor = steps(image.convert("L" if wanted.channels == 1 else "RGB"))
    return array_from_tensor(answer)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("interpolation", sorted(MODES))
@pytest.mark.parametrize("fraction", [1.0, 0.95, 0.9, 0.875, 0.7])
def test_a_sample_is_what_torchvision_makes_of_the_photograph(
    sizes: tuple[Path, ...], channels: int, interpolation: Interpolation, fraction: float
) -> None:
    wanted = preprocessing(channels=channels, interpolation=interpolation, crop_fraction=fraction)
    for path in sizes:
        ours = load_image(path, wanted)
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, by_torchvision(path, wanted), rtol=0, atol=TOLERANCE, err_msg=path.name)


@pytest.mark.parametrize("side", [33, 37, 224])
def test_odd_margins_are_cropped_as_torchvision_crops_them(sizes: tuple[Path, ...], side: int) -> None:
    wanted = preprocessing(height=side, width=side, crop_fraction=0.9)
    for path in sizes:
        np.testing.assert_allclose(load_image(path, wanted), by_torchvision(path, wanted), rtol=0, atol=TOLERANCE)


def test_the_fraction_of_a_torchvision_model_gives_its_resize_back(sizes: tuple[Path, ...]) -> None:
    """224 / (224 / 232) is 231.99… in floating point, and 232 is meant."""
    wanted = preprocessing(height=224, width=224, crop_fraction=224 / 232, interpolation="bilinear")
    steps = transforms.Compose([transforms.Resize(232), transforms.CenterCrop(224), transforms.ToTensor()])
    plain = preprocessing(
        height=224, width=224, crop_fraction=224 / 232, interpolation="bilinear", mean=(0.0,) * 3, std=(1.0,) * 3
    )
    assert wanted.crop_fraction == plain.crop_fraction
    with Image.open(sizes[0]) as image:
        expected: torch.Tensor = steps(image.convert("RGB"))
    np.testing.assert_allclose(load_image(sizes[0], plain), array_from_tensor(expected), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(("height", "width"), [(16, 48), (48, 16), (1, 7)])
def test_a_photograph_covers_an_input_that_is_not_square(sizes: tuple[Path, ...], height: int, width: int) -> None:
    for path in sizes:
        sample = load_image(path, preprocessing(height=height, width=width, crop_fraction=0.9))
        assert sample.shape == (3, height, width)
        darkest = (0 - np.array(MEAN)) / np.array(STD)
        # A crop beyond the image would be black through and through.
        assert not (np.abs(sample - darkest[:, None, None]).max(axis=0) < 1e-6).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_images_of_every_mode_are_read(tmp_path: Path, sizes: tuple[Path, ...], mode: str) -> None:
    path = tmp_path / "image.tif"
    with Image.open(sizes[0]) as image:
        image.convert(mode).save(path)
    for channels in (1, 3):
        sample = load_image(path, preprocessing(channels=channels))
        assert sample.shape == (channels, 32, 32)
        assert np.isfinite(sample).all()


def grey_png_of_16_bits(values: Array) -> bytes:
    """Written after the PNG specification, big end first, without Pillow."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    packed = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def grey_tiff(values: Array, bits: int) -> bytes:
    """One strip after the TIFF specification, without Pillow; two values of 12 bits lie in three bytes."""
    height, width = values.shape
    if bits == 12:
        pairs = values.reshape(-1, 2).astype(int)
        packed = np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], axis=1)
        data = packed.astype(np.uint8).tobytes()
    else:
        data = values.astype("<u2").tobytes()
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, 1), (273, 8), (277, 1), (278, height)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in [*tags, (279, len(data))])
    folder = struct.pack("<H", len(tags) + 1) + entries + struct.pack("<I", 0)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + folder


def grey_pgm(values: Array, white: int) -> bytes:
    return f"P5 {values.shape[1]} {values.shape[0]} {white}\n".encode() + values.astype(">u2").tobytes()


@pytest.mark.parametrize(
    ("suffix", "white", "encode"),
    [
        ("png", 65535, grey_png_of_16_bits),
        ("tif", 65535, functools.partial(grey_tiff, bits=16)),
        ("tif", 4095, functools.partial(grey_tiff, bits=12)),
        ("ppm", 65535, functools.partial(grey_pgm, white=65535)),
        ("ppm", 4095, functools.partial(grey_pgm, white=4095)),
    ],
    ids=["png", "tiff", "tiff of 12 bits", "pgm", "pgm of 12 bits"],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_grey_of_more_than_8_bits_is_scaled_not_cut_off(
    tmp_path: Path, suffix: str, white: int, encode: Callable[[Array], bytes], channels: int
) -> None:
    values = np.random.default_rng(9).integers(0, white + 1, (32, 32))
    values[0, :3] = (0, white, white // 2)
    path = tmp_path / f"deep.{suffix}"
    path.write_bytes(encode(values))
    wanted = preprocessing(channels=channels)
    got = load_image(path, wanted) * np.asarray(wanted.std)[:, None, None] + np.asarray(wanted.mean)[:, None, None]
    # The resize has nothing to do, so half a step of 8 bits is all that may be lost.
    np.testing.assert_allclose(got, np.broadcast_to(values / white, got.shape), rtol=0, atol=0.5 / 255 + 1e-5)


@pytest.mark.parametrize(
    ("content", "suffix", "told"),
    [
        (np.int32, "tif", "32-bit integers"),
        (np.float32, "tif", "floats"),
        (b"Pf 2 2 -1.0\n" + bytes(16), "ppm", "floats"),
    ],
    ids=["tiff of integers", "tiff of floats", "pfm"],
)
def test_pixels_without_a_white_are_refused_with_the_reason(
    tmp_path: Path, content: Any, suffix: str, told: str
) -> None:
    path = tmp_path / f"image.{suffix}"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        pixels: Array = np.ones((8, 8), content)
        Image.fromarray(pixels).save(path)
    with pytest.raises(GpusqError, match=f"pixels are {told}") as caught:
        load_image(path, preprocessing())
    assert caught.value.place == str(path)
    assert "arrays" in str(caught.value.hint)


def of_mode(mode: str, values: Array) -> tuple[Image.Image, Array]:
    """An image of the mode from random bytes [32, 32, 4], and the red, green and blue that it means, from 0 to 1."""
    if mode == "LA":
        return Image.fromarray(values[..., :2], "LA"), np.repeat(values[..., :1], 3, axis=2) / 255
    if mode == "RGBA":
        return Image.fromarray(values), values[..., :3] / 255
    if mode == "CMYK":
        inks = values / 255
        return Image.fromarray(values, "CMYK"), (1 - inks[..., :3]) * (1 - inks[..., 3:])
    palette = values[:8].reshape(256, 4)[:, :3]
    image = Image.fromarray(values[..., 0], "P")
    image.putpalette(palette.tobytes())
    return image, palette[values[..., 0]] / 255


@pytest.mark.parametrize(
    ("mode", "suffix", "options"),
    [
        ("LA", "png", {}),
        ("RGBA", "png", {}),
        ("P", "png", {}),
        ("P", "png", {"transparency": 7}),
        ("P", "png", {"transparency": bytes(range(256))}),
        ("CMYK", "tif", {}),
    ],
    ids=["grey and alpha", "alpha", "palette", "one transparent colour", "transparent colours", "inks"],
)
def test_colours_of_other_modes_are_those_that_the_format_means(
    tmp_path: Path, mode: str, suffix: str, options: dict[str, Any]
) -> None:
    image, expected = of_mode(mode, np.random.default_rng(10).integers(0, 256, (32, 32, 4), np.uint8))
    path = tmp_path / f"image.{suffix}"
    image.save(path, **options)
    got: Array = load_image(path, preprocessing(mean=(0.0,) * 3, std=(1.0,) * 3))
    # One step for the products of inks, which Pillow rounds.
    np.testing.assert_allclose(np.moveaxis(got, 0, 2), expected, rtol=0, atol=1.01 / 255 if mode == "CMYK" else 1e-6)
    grey = load_image(path, preprocessing(channels=1)) * 0.25 + 0.5
    # ITU-R 601, which Pillow rounds to 8 bits, of colours that it rounded.
    luma = expected @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(grey[0], luma, rtol=0, atol=2.01 / 255)


def encoded(folder: Path, suffix: str) -> bytes:
    pixels = np.random.default_rng(6).integers(0, 256, (20, 30, 3), np.uint8)
    path = folder / f"good.{suffix}"
    Image.fromarray(pixels).save(path)
    return path.read_bytes()


@pytest.mark.filterwarnings("ignore")  # Pillow warns about the damage too
@pytest.mark.parametrize("suffix", ["bmp", "gif", "jpg", "png", "ppm", "tif", "webp"])
def test_a_damaged_image_is_refused_by_name_or_read(tmp_path: Path, suffix: str) -> None:
    dice, data = random.Random(7), encoded(tmp_path, suffix)
    path = tmp_path / f"damaged.{suffix}"
    refusals: list[GpusqError] = []
    for _ in range(150):
        damaged = bytearray(data)
        for _ in range(dice.randrange(1, 5)):
            damaged[dice.randrange(dice.choice((40, len(data))))] = dice.randrange(256)
        path.write_bytes(damaged[: dice.choice((len(data), dice.randrange(len(data))))])
        try:
            load_image(path, preprocessing())
        except GpusqError as error:
            refusals.append(error)
    assert refusals
    assert all(error.place == str(path) and error.hint for error in refusals)


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"])
def test_what_is_no_image_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(content)
    with pytest.raises(GpusqError, match="not a readable image"):
        load_image(path, preprocessing())


def test_an_image_is_fitted_as_a_whole_or_squashed() -> None:
    """RT-DETR's processor resizes both sides: nothing is left of the input to fill."""
    image = Image.fromarray(np.random.default_rng(3).integers(0, 256, (20, 40, 3), np.uint8))
    plain = {"interpolation": "bilinear", "mean": (0.0,) * 3, "std": (1.0,) * 3}
    for mode, size in (("center", (32, 16)), ("squash", (32, 32))):
        fitted = fit_image(image, preprocessing(crop_mode=mode, crop_fraction=0.9, **plain))
        want: Array = np.asarray(image.resize(size, Image.Resampling.BILINEAR), np.float32) / 255
        got: Array = np.moveaxis(fitted.sample, 0, 2)
        np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE)
        assert fitted.original == (20, 40)
