"""Images that are long, large, small, of several frames, or of a format that takes much memory."""

from __future__ import annotations

import importlib
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from gpusq_deploy.artifacts.arch import Interpolation, Preprocessing
from gpusq_deploy.calibration import image_data, image_decoding
from gpusq_deploy.calibration.data import at_most, open_source, remarks
from gpusq_deploy.calibration.image_data import Sample, load_image
from gpusq_deploy.errors import GpusqError

FILTERS: tuple[Interpolation, ...] = ("nearest", "bilinear", "bicubic", "lanczos")
STEP = 1 / 255


def plain(**changes: Any) -> Preprocessing:
    """Samples are pixels from 0 to 1."""
    channels = changes.get("channels", 3)
    fields: dict[str, Any] = {"channels": channels, "height": 32, "width": 32, "origin": "test", **changes}
    return Preprocessing(mean=(0.0,) * channels, std=(1.0,) * channels, **fields)


def smooth(width: int, height: int) -> Image.Image:
    """Waves and noise: what a camera sees, more than what dice throw."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    waves = [127 + 90 * np.sin(x / a + y / b) for a, b in ((17, 23), (29, 11), (41, 37))]
    noise = np.random.default_rng(3).normal(0, 8, (height, width, 3))
    pixels: npt.NDArray[np.uint8] = np.clip(np.stack(waves, axis=2) + noise, 0, 255).astype(np.uint8)
    return Image.fromarray(pixels)


def by_pillow(image: Image.Image, wanted: Preprocessing) -> Sample:
    """Resize all of it, then crop, with torchvision."""
    transforms: Any = importlib.import_module("torchvision.transforms.functional")
    mode: Any = getattr(transforms.InterpolationMode, wanted.interpolation.upper())
    resized = transforms.resize(image, math.floor(wanted.height / wanted.crop_fraction + 1e-6), mode)
    cropped = transforms.center_crop(resized, [wanted.height, wanted.width])
    array: Sample = transforms.to_tensor(cropped).numpy()
    return array


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("fraction", [1.0, 0.875])
@pytest.mark.parametrize("size", [(900, 33), (31, 777), (641, 640), (40, 2000)], ids=str)
def test_a_crop_before_the_resize_shows_the_same_pixels(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    interpolation: Interpolation,
    fraction: float,
    size: tuple[int, int],
) -> None:
    monkeypatch.setattr(image_data, "_MOST_RESIZED", 0)
    image, wanted = smooth(*size), plain(interpolation=interpolation, crop_fraction=fraction)
    image.save(tmp_path / "long.png")
    got = load_image(tmp_path / "long.png", wanted)
    # A resize is two passes, and each rounds to 8 bits.
    difference = np.abs(got - by_pillow(image, wanted))
    assert difference.max() <= 2.001 * STEP
    assert difference.mean() <= STEP / 4


@pytest.mark.parametrize("interpolation", FILTERS[1:])
@pytest.mark.parametrize(
    ("suffix", "mode"),
    [("jpg", "RGB"), ("jpg", "CMYK"), ("jpg", "L"), ("png", "RGB"), ("png", "L"), ("png", "P"), ("png", "RGBA")],
)
def test_a_large_image_at_reduced_size_is_what_it_is_in_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interpolation: Interpolation, suffix: str, mode: str
) -> None:
    path = tmp_path / f"large.{suffix}"
    smooth(1100, 800).convert(mode).save(path, quality=95)
    for channels in (1, 3):
        wanted = plain(interpolation=interpolation, crop_fraction=0.9, channels=channels)
        full = load_image(path, wanted)
        with monkeypatch.context() as patched:
            patched.setattr(image_data, "WHOLE", 100)
            reduced = load_image(path, wanted)
        assert reduced.shape == full.shape
        # Averages of averages: a step or two, at edges a few more.
        assert np.abs(reduced - full).mean() < STEP
        assert np.abs(reduced - full).max() < 8 * STEP


def test_grey_of_16_bits_is_scaled_in_bands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values: npt.NDArray[np.uint16] = np.random.default_rng(1).integers(0, 65536, (70, 64)).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    wanted = plain(height=70, width=64)
    whole = load_image(tmp_path / "deep.png", wanted)
    monkeypatch.setattr(image_decoding, "_BAND", 130)
    np.testing.assert_array_equal(load_image(tmp_path / "deep.png", wanted), whole)
    np.testing.assert_allclose(whole[0], values / 65535, rtol=0, atol=0.501 * STEP)


@pytest.mark.parametrize("size", [(30000, 2), (2, 30000), (1, 201)], ids=str)
def test_a_strip_is_refused_with_its_size_and_the_limit(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size, (9, 99, 200)).save(tmp_path / "strip.png")
    with pytest.raises(GpusqError, match=f"{size[0]:,} x {size[1]:,} pixels.*the least is 1/200") as caught:
        load_image(tmp_path / "strip.png", plain())
    assert caught.value.place == str(tmp_path / "strip.png")


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (190, 1)], ids=str)
def test_tiny_images_are_read(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size, (0, 255, 51)).save(tmp_path / "tiny.png")
    got = load_image(tmp_path / "tiny.png", plain())
    np.testing.assert_allclose(got, np.broadcast_to([[[0.0]], [[1.0]], [[0.2]]], (3, 32, 32)), rtol=0, atol=1e-6)


def test_an_image_beyond_the_limit_of_memory_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_data, "WHOLE", 100)
    monkeypatch.setattr(image_decoding, "MOST_BYTES", 4 * 640 * 480)
    smooth(641, 480).save(tmp_path / "large.png")
    with pytest.raises(GpusqError, match=r"641 x 480 pixels and takes .* GiB to decode; the limit is") as caught:
        load_image(tmp_path / "large.png", plain())
    assert caught.value.place == str(tmp_path / "large.png")
    smooth(641, 480).save(tmp_path / "large.jpg")  # an eighth of its sides is decoded
    assert load_image(tmp_path / "large.jpg", plain()).shape == (3, 32, 32)
    smooth(641, 480).save(tmp_path / "large.jpg", progressive=True)  # of which libjpeg keeps all coefficients
    with pytest.raises(GpusqError, match="641 x 480"):
        load_image(tmp_path / "large.jpg", plain())


def test_pillows_own_limit_is_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    smooth(64, 64).save(tmp_path / "image.png")
    assert load_image(tmp_path / "image.png", plain()).shape == (3, 32, 32)
    (tmp_path / "none.png").touch()
    with pytest.raises(GpusqError):
        load_image(tmp_path / "none.png", plain())
    assert Image.MAX_IMAGE_PIXELS == 2000


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "the file is empty"),
        (b"<html>404</html>", "its format is unknown to Pillow"),
        (None, "truncated"),
    ],
)
def test_why_a_file_is_no_image_is_said(tmp_path: Path, content: bytes | None, why: str) -> None:
    path = tmp_path / "image.jpg"
    if content is None:
        smooth(300, 300).save(path)
        content = path.read_bytes()[:2000]
    path.write_bytes(content)
    with pytest.raises(GpusqError, match=f"not a readable image: .*{why}"):
        load_image(path, plain())


def test_a_file_without_permission_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def locked(_path: Path) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Image, "open", locked)
    with pytest.raises(GpusqError, match="cannot read the image: Permission denied"):
        load_image(tmp_path / "locked.png", plain())


@pytest.mark.parametrize("suffix", ["gif", "webp", "tif"])
def test_of_several_frames_the_first_is_read_and_that_is_said(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(tmp_path / f"b.{suffix}", save_all=True, append_images=frames[1:], **lossless(suffix))
    frames[1].save(tmp_path / f"a.{suffix}", **lossless(suffix))
    source = open_source(str(tmp_path), plain())
    np.testing.assert_allclose(source.sample(1)[:, 5, 5], [1, 0, 0], atol=0.02)
    assert remarks(source) == ("1 of 2 images has several frames or pages: the first is read",)
    assert remarks(at_most(source, 1)) == ()


def lossless(suffix: str) -> dict[str, Any]:
    return {"lossless": True} if suffix == "webp" else {}


def test_an_orientation_is_passed_over_as_torchvision_does_and_that_is_said(tmp_path: Path) -> None:
    image = smooth(60, 40)
    for name, orientation in (("turned.jpg", 6), ("straight.jpg", 1)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        image.save(tmp_path / name, exif=exif)
    source = open_source(str(tmp_path), plain())
    np.testing.assert_array_equal(source.sample(0), source.sample(1))
    (said,) = remarks(source)
    assert said.startswith("1 of 2 images has an EXIF orientation, which isn't applied")
    assert remarks(at_most(source, 1)) == ()


MEMORY = """
import resource, sys
from pathlib import Path
from gpusq_deploy.artifacts.arch import Preprocessing
from gpusq_deploy.calibration.image_data import load_image
size = Preprocessing(channels=3, height=224, width=224, mean=(0.0,) * 3, std=(1.0,) * 3, crop_fraction=0.9, origin="x")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    load_image(Path(path), size)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_large_and_long_images_take_bounded_memory(tmp_path: Path) -> None:
    Image.new("L", (14000, 13000), 40).save(tmp_path / "grey.png", compress_level=1)
    Image.new("RGB", (14000, 13000), (9, 99, 200)).save(tmp_path / "photo.jpg")
    Image.new("RGB", (30000, 160), (9, 99, 200)).save(tmp_path / "panorama.png")
    files = [str(path) for path in sorted(tmp_path.iterdir())]
    done = subprocess.run([sys.executable, "-c", MEMORY, *files], capture_output=True, text=True, check=True)
    # 182 MB are the grey pixels; as RGB they would be 728, and the panorama resized 248 pixels high 47 of pixels alone.
    assert int(done.stdout) < 450_000
    assert done.stderr == ""
