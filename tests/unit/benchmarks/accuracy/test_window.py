"""Label maps and masks in an image's own pixels, against torch's interpolation of the part that the input shows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from gpusq_deploy.artifacts import Preprocessing
from gpusq_deploy.benchmarks.accuracy import window as windows
from gpusq_deploy.benchmarks.accuracy.window import UNSEEN, cropped_window, fitted_window, label_map, masks_in_image
from gpusq_deploy.calibration import fit_image
from gpusq_deploy.frontend import array_from_tensor


def declared(height: int, width: int, **more: Any) -> Preprocessing:
    return Preprocessing(channels=3, height=height, width=width, mean=(0.5,) * 3, std=(0.5,) * 3, origin="", **more)


def logits(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", [(97, 61), (33, 120), (64, 64), (501, 3)])
def test_a_map_of_the_whole_image_is_torch_s_interpolation(size: tuple[int, int]) -> None:
    values = logits(1, 4, 16, 20)
    found = label_map(values, cropped_window(size, declared(64, 80, crop_mode="squash")))
    wanted = functional.interpolate(values, size=size[::-1], mode="bilinear", align_corners=False)[0]
    best = wanted.topk(2, dim=0).values
    clear = array_from_tensor(best[0] - best[1] > 1e-4)
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(found[clear], array_from_tensor(wanted.argmax(dim=0))[clear])


def test_bands_of_rows_make_the_same_map(monkeypatch: pytest.MonkeyPatch) -> None:
    values, window = logits(1, 4, 16, 20), cropped_window((97, 61), declared(64, 80, crop_mode="squash"))
    whole, masks = label_map(values, window), masks_in_image(values[0], window)
    monkeypatch.setattr(windows, "_MOST_VALUES", 1000)
    np.testing.assert_array_equal(label_map(values, window), whole)
    np.testing.assert_array_equal(masks_in_image(values[0], window), masks)


@pytest.mark.parametrize("size", [(120, 80), (80, 120)])
def test_what_the_centre_crop_leaves_out_has_no_class(size: tuple[int, int]) -> None:
    """Twice the input's size, so that each input pixel is two of the image, and the crop begins at a whole one."""
    values = logits(1, 4, 40, 40)
    found = label_map(values, cropped_window(size, declared(40, 40)))
    seen = functional.interpolate(values, size=(80, 80), mode="bilinear", align_corners=False)[0].argmax(dim=0)
    wanted = np.full(size[::-1], UNSEEN)
    left, top = ((side - 80) // 2 for side in size)
    wanted[top : top + 80, left : left + 80] = array_from_tensor(seen)
    np.testing.assert_array_equal(found, wanted)


def test_the_border_around_a_whole_image_has_no_part_in_it() -> None:
    """A wide image in the middle of a square input: its map is that of the rows that it fills."""
    values = logits(1, 4, 40, 40)
    found = label_map(values, cropped_window((80, 40), declared(40, 40, crop_mode="border")))
    whole = functional.interpolate(values, size=(80, 80), mode="bilinear", align_corners=False)[0].argmax(dim=0)
    np.testing.assert_array_equal(found, array_from_tensor(whole[20:60]))


def test_masks_are_those_of_the_scaled_image_at_the_input_s_upper_left() -> None:
    image = Image.new("RGB", (80, 40))
    form = declared(40, 40)
    window = fitted_window(fit_image(image, form), form)
    values = logits(3, 10, 10)
    whole = functional.interpolate(values[None], size=(80, 80), mode="bilinear", align_corners=False)[0]
    np.testing.assert_array_equal(masks_in_image(values, window), array_from_tensor(whole[:, :40] > 0))
    assert masks_in_image(values[:0], window).shape == (0, 40, 80)
