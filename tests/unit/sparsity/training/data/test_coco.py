"""COCO's annotation files, and where boxes end up in the model's input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image

from gpusq_deploy.artifacts.arch import CropMode, Preprocessing
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.sparsity.training.data.coco import BoxReader, open_coco

DECLARED = Preprocessing(
    channels=3, height=32, width=48, mean=(0.0,) * 3, std=(1.0,) * 3, interpolation="bilinear", origin="test"
)
NAMES = {0: "LABEL_0", 1: "cat", 2: "dog"}


def written(folder: Path, **changes: Any) -> Path:
    """Two images with one white box each on black."""
    whole: dict[str, Any] = {
        "images": [
            {"id": 7, "file_name": "wide.png", "width": 100, "height": 40},
            {"id": 9, "file_name": "tall.png", "width": 30, "height": 90},
        ],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 2, "bbox": [20, 10, 40, 20]},
            {"id": 2, "image_id": 9, "category_id": 1, "bbox": [3, 30, 15, 45], "iscrowd": 1, "area": 675.0},
            {"id": 3, "image_id": 9, "category_id": 1, "bbox": [3, 30, 0, 45]},
        ],
        "categories": [{"id": 1, "name": "first"}, {"id": 2, "name": "second"}],
    }
    for image in whole["images"]:
        pixels = np.zeros((image["height"], image["width"], 3), np.uint8)
        for box in whole["annotations"]:
            if box["image_id"] == image["id"]:
                left, top, width, height = box["bbox"]
                pixels[top : top + height, left : left + width] = 255
        Image.fromarray(pixels).save(folder / str(image["file_name"]))
    path = folder / "boxes.json"
    path.write_text(json.dumps({**whole, **changes}))
    return path


@pytest.mark.parametrize("mode", ["center", "squash"])
def test_boxes_lie_where_their_pixels_do(tmp_path: Path, mode: CropMode) -> None:
    found = open_coco(written(tmp_path), tmp_path, {}, 3)
    declared = msgspec.structs.replace(DECLARED, crop_mode=mode)
    for index, (label, crowd) in enumerate([(2, False), (1, True)]):
        pixels, target = BoxReader(declared).read(found.entry(index))
        assert pixels.shape == (3, 32, 48)
        rows, columns = np.nonzero(pixels[0] > 0.5)
        edges = [columns.min() / 48, rows.min() / 32, (columns.max() + 1) / 48, (rows.max() + 1) / 32]
        centre, sides = target["boxes"][0, :2], target["boxes"][0, 2:]
        # The sides of a scaled image are whole pixels, and its corners' too.
        corners = torch.cat([centre - sides / 2, centre + sides / 2])
        torch.testing.assert_close(corners, torch.tensor(edges).float(), atol=1.5 / 32, rtol=0)
        assert target["class_labels"].tolist() == [label]
        assert target["crowd"].tolist() == [crowd]


def test_categories_are_found_by_name(tmp_path: Path) -> None:
    categories = [{"id": 1, "name": "Dog"}, {"id": 2, "name": "cat"}]
    found = open_coco(written(tmp_path, categories=categories), tmp_path, NAMES, 3)
    assert [found.entry(index).target["class_labels"].tolist() for index in (0, 1)] == [[1], [2]]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "cow"}]}, "no label called 'cow'"),
        ({"categories": [{"id": 1, "name": "a"}, {"id": 3, "name": "b"}]}, r"category 3 \(b\) is none of the model's"),
        ({"images": []}, "no images in the file"),
        ({"images": {}}, "not COCO annotations: .*images"),
        ({"annotations": [{"image_id": 7, "category_id": 2, "bbox": [1, 2, 3]}]}, "not COCO annotations"),
    ],
)
def test_what_fits_no_model_is_told(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(GpusqError, match=said):
        open_coco(written(tmp_path, **changes), tmp_path, NAMES, 3)


def test_missing_and_exchanged_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(GpusqError, match="can't be read: No such file"):
        open_coco(tmp_path / "none.json", tmp_path, {}, 3)
    found = open_coco(written(tmp_path), tmp_path, {}, 3)
    (tmp_path / "wide.png").write_bytes((tmp_path / "tall.png").read_bytes())
    with pytest.raises(GpusqError, match="the image is 30 x 90, its annotation says 100 x 40"):
        BoxReader(DECLARED).read(found.entry(0))
