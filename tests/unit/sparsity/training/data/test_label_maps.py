"""Label maps beside their images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gpusq_deploy.artifacts.arch import Preprocessing
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.sparsity.training.data.label_maps import MapReader, has_maps, open_maps

DECLARED = Preprocessing(
    channels=3, height=16, width=16, mean=(0.5,) * 3, std=(0.25,) * 3, crop_fraction=0.8, origin="test"
)


def written(folder: Path, *, mode: str = "L", labels: tuple[int, int] = (1, 3)) -> Path:
    """Images 60 wide and 40 high, black on the left third and white on the rest, and such maps."""
    for name in ("a", "deep/b"):
        for kind, values in (("images", (0, 255)), ("annotations", labels)):
            path = folder / kind / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.repeat(np.array([[values[0]] * 20 + [values[1]] * 40], np.uint8), 40, axis=0)
            image = Image.fromarray(pixels)
            if kind == "annotations" and mode == "P":
                image.putpalette([255 - level // 3 for level in range(768)])
            image.convert("RGB" if kind == "images" else mode).save(path)
    return folder


@pytest.mark.parametrize("mode", ["L", "P"])
def test_labels_lie_where_their_pixels_do(tmp_path: Path, mode: str) -> None:
    found = open_maps(written(tmp_path, mode=mode))
    assert has_maps(tmp_path)
    assert len(found) == 2
    pixels, labels = MapReader(DECLARED, 4).read(found.entry(1))
    white = torch.from_numpy(pixels[0] * 0.25 + 0.5 > 0.5)
    assert 0.6 < white.float().mean() < 0.9
    assert torch.equal(labels == 3, white)
    assert torch.equal(labels == 1, ~white)
    assert labels.dtype == torch.int64


def test_a_first_label_that_is_none_is_left_out(tmp_path: Path) -> None:
    found = open_maps(written(tmp_path, labels=(0, 4)))
    _, labels = MapReader(DECLARED, 4, reduced=True).read(found.entry(0))
    assert sorted(set(labels.flatten().tolist())) == [3, 255]
    with pytest.raises(GpusqError, match="label 4 is none of the model's, 0 to 3") as caught:
        MapReader(DECLARED, 4).read(found.entry(0))
    assert "--reduce-labels" in str(caught.value.hint)


def test_maps_that_are_missing_or_none_are_told(tmp_path: Path) -> None:
    assert not has_maps(tmp_path)
    found = open_maps(written(tmp_path))
    (tmp_path / "annotations" / "a.png").write_bytes(b"no image")
    with pytest.raises(GpusqError, match="not a readable label map"):
        MapReader(DECLARED, 4).read(found.entry(0))
    Image.new("RGB", (60, 40)).save(tmp_path / "annotations" / "a.png")
    with pytest.raises(GpusqError, match=r"one byte for each pixel, this has \[40, 60, 3\] uint8"):
        MapReader(DECLARED, 4).read(found.entry(0))
    (tmp_path / "annotations" / "a.png").unlink()
    with pytest.raises(GpusqError, match="1 of 2 images have no label map"):
        open_maps(tmp_path)
