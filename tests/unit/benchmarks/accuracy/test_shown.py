"""What gpusq-run tells in words, and masks in COCO's encoding."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from coco_masks import decoded

from gpusq_deploy.artifacts import builtins_from_value
from gpusq_deploy.benchmarks.accuracy.shown import Found, ShownImage, mask_of, texts_of
from gpusq_deploy.errors import GpusqError


def test_five_classes_of_a_label_map_are_told_and_the_rest_summed_up() -> None:
    found = tuple(
        Found(label=f"c{index}", share=share) for index, share in enumerate((0.4, 0.3, 0.1, 0.08, 0.07, 0.05))
    )
    assert texts_of(ShownImage(image="a.png", found=found)) == [
        *("c0 40.0%", "c1 30.0%", "c2 10.0%", "c3 8.0%", "c4 7.0%"),
        "others (1) 5.0%",
    ]
    assert len(texts_of(ShownImage(image="a.png", found=found[:5]))) == 5


def test_all_boxes_are_told() -> None:
    found = tuple(Found(label="cat", share=0.9, box=(1.0, 2.4, 3.6, 4.0)) for _ in range(7))
    assert texts_of(ShownImage(image="a.png", found=found)) == ["cat 90.0% at 1, 2, 4, 4"] * 7


@pytest.mark.parametrize("size", [(3, 5), (7, 2), (1, 1)])
def test_a_mask_comes_back_from_its_encoding(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).random(size) > 0.5
    for each in (pixels, np.zeros(size, np.bool_), np.ones(size, np.bool_)):
        mask = builtins_from_value(mask_of(each))
        assert tuple(mask["size"]) == size
        np.testing.assert_array_equal(decoded(mask), each)


def test_without_pycocotools_masks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools.mask", None)
    with pytest.raises(GpusqError, match="pycocotools") as caught:
        mask_of(np.ones((2, 2), np.bool_))
    assert caught.value.hint == "pip install pycocotools"
