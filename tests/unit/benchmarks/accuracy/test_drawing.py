"""Boxes and label maps on pictures: where the pixels change, and to what."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gpusq_deploy.benchmarks.accuracy.drawing import (
    Box,
    color_of,
    draw_boxes,
    draw_classes,
    draw_map,
    draw_masks,
    save_picture,
)
from gpusq_deploy.errors import GpusqError

WHITE = Image.new("RGB", (200, 100), "white")


def test_a_box_is_drawn_at_its_corners() -> None:
    drawn = np.asarray(draw_boxes(WHITE, [Box((120.0, 20.0, 180.0, 80.0), 3, "")]))
    assert drawn[50, 120].tolist() == drawn[80, 150].tolist() == list(color_of(3))
    assert (drawn[30:75, 130:175] == 255).all()
    assert (drawn[:, :115] == 255).all()
    assert (np.asarray(WHITE) == 255).all()


def test_the_first_box_is_on_top() -> None:
    corners = (120.0, 20.0, 180.0, 80.0)
    drawn = np.asarray(draw_boxes(WHITE, [Box(corners, 1, ""), Box(corners, 2, "")]))
    assert drawn[50, 120].tolist() == list(color_of(1))


def test_a_box_beyond_the_picture_does_no_harm() -> None:
    draw_boxes(WHITE, [Box((-50.0, -50.0, 500.0, 500.0), 0, "a"), Box((300.0, 300.0, 400.0, 400.0), 0, "b")])


def test_a_map_has_its_classes_colours_over_the_picture() -> None:
    labels = np.zeros((100, 200), np.int16)
    labels[:, 100:] = 1
    drawn = np.asarray(draw_map(WHITE, labels, [])).astype(int)
    for column, label in ((50, 0), (150, 1)):
        wanted = [(255 + channel) / 2 for channel in color_of(label)]
        assert np.abs(drawn[50, column] - wanted).max() <= 1
    assert color_of(0) != color_of(1)


def test_below_0_the_picture_stays() -> None:
    labels = np.zeros((100, 200), np.int16)
    labels[:50] = -1
    drawn = np.asarray(draw_map(WHITE, labels, []))
    assert (drawn[:50] == 255).all()
    assert (drawn[50:] != 255).any(axis=2).all()
    assert (np.asarray(draw_map(WHITE, np.full((100, 200), -1, np.int16), [])) == 255).all()


def test_each_mask_has_a_colour_and_the_first_is_on_top() -> None:
    masks = np.zeros((2, 100, 200), np.bool_)
    masks[0, :, :100] = masks[1, :, 50:150] = True
    drawn = np.asarray(draw_masks(WHITE, masks)).astype(int)
    for column, label in ((20, 0), (70, 0), (120, 1)):
        wanted = [(255 + channel) / 2 for channel in color_of(label)]
        assert np.abs(drawn[50, column] - wanted).max() <= 1
    assert (drawn[:, 150:] == 255).all()
    assert (np.asarray(draw_masks(WHITE, masks[:0])) == 255).all()


@pytest.mark.parametrize("label", range(12))
def test_text_differs_from_what_is_behind_it(label: int) -> None:
    """Contrast as WCAG 2 has it, with the linear light of sRGB; of large text it wants 3."""
    drawn = np.asarray(draw_boxes(WHITE, [Box((20.0, 20.0, 180.0, 80.0), label, "HHHH")]))
    written = np.concatenate([drawn[22:30, 22:40].reshape(-1, 3), [color_of(label)]]) / 255
    linear = np.where(written <= 0.04045, written / 12.92, ((written + 0.055) / 1.055) ** 2.4)
    *text, behind = linear @ [0.2126, 0.7152, 0.0722] + 0.05
    assert max(max(each, behind) / min(each, behind) for each in text) > 3


def test_classes_are_written_in_lines() -> None:
    one, two = (np.asarray(draw_classes(WHITE, ["cat"] * count)) for count in (1, 2))
    rows = [np.flatnonzero((drawn != 255).any(axis=(1, 2))).max() for drawn in (one, two)]
    assert 0 < rows[0] < rows[1] < 100


def test_a_picture_that_can_not_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(GpusqError, match="cannot write the picture"):
        save_picture(WHITE, tmp_path / "file" / "a.png")
    assert (tmp_path / "file").read_text() == "mine"
