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


def test_classes_are_written_in_lines() -> None:
    one, two = (np.asarray(draw_classes(WHITE, ["cat"] * count)) for count in (1, 2))
    rows = [np.flatnonzero((drawn != 255).any(axis=(1, 2))).max() for drawn in (one, two)]
    assert 0 < rows[0] < rows[1] < 100


def test_a_picture_that_can_not_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(GpusqError, match="cannot write the picture"):
        save_picture(WHITE, tmp_path / "file" / "a.png")
    assert (tmp_path / "file").read_text() == "mine"
