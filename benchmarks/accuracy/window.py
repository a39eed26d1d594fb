"""Where a model's input lies in an image, and what its maps say of the image's own pixels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from gpusq_deploy.artifacts import Preprocessing
from gpusq_deploy.calibration import Fitted, frame_of
from gpusq_deploy.frontend import array_from_tensor

_MOST_VALUES = 1 << 24  # float32 of one band of rows: 64 MiB
UNSEEN = -1


class Window(NamedTuple):
    """Height and width of an image and of the input; input pixels per pixel of the image; the input's corner in it.

    All in the order of rows and columns; the corner in the input's pixels, from the image's upper left.
    """

    image: tuple[int, int]
    input: tuple[int, int]
    scale: tuple[float, float]
    corner: tuple[int, int]


def cropped_window(size: tuple[int, int], declared: Preprocessing) -> Window:
    """Of an image of a width and height that `load_image` resizes and crops."""
    frame = frame_of(size, declared)
    scale = (frame.size[1] / size[1], frame.size[0] / size[0])
    sides = (declared.height, declared.width)
    return Window((size[1], size[0]), sides, scale, (frame.crop[1], frame.crop[0]))


def fitted_window(fitted: Fitted, declared: Preprocessing) -> Window:
    """Of an image that `fit_image` scaled, at the upper left of the input."""
    height, width = fitted.original
    scale = (fitted.sample.shape[1] / height, fitted.sample.shape[2] / width)
    return Window(fitted.original, (declared.height, declared.width), scale, (0, 0))


def label_map(logits: torch.Tensor, window: Window) -> npt.NDArray[np.int16]:
    """The likeliest class of each pixel of the image, int16 [height, width]; `UNSEEN` where the input doesn't reach.

    Logits [1, classes, h, w] are interpolated bilinearly between the centres of pixels, the border's beyond: where the
    input is the whole image that is transformers' `post_process_semantic_segmentation`.
    """
    bands = [band.argmax(dim=0).to(torch.int16).cpu() for band in _bands(logits, window)]
    labels: npt.NDArray[np.int16] = array_from_tensor(torch.cat(bands))
    for axis, places in enumerate(_places(window)):
        outside = (places < 0) | (places > window.input[axis])
        labels[(slice(None),) * axis + (array_from_tensor(outside),)] = UNSEEN
    return labels


def masks_in_image(logits: torch.Tensor, window: Window) -> npt.NDArray[np.bool_]:
    """Pixels of the image that belong to each of some objects, booleans [objects, height, width].

    Logits [objects, h, w] are interpolated as for a label map, and count above 0, a probability of 0.5; objects may
    overlap. So does transformers' RF-DETR with `return_binary_maps`.
    """
    height, width = window.image
    if not len(logits):
        return np.zeros((0, height, width), np.bool_)
    bands = [(band > 0).cpu() for band in _bands(logits[None], window)]
    found: npt.NDArray[np.bool_] = array_from_tensor(torch.cat(bands, dim=1))
    return found


def _bands(values: torch.Tensor, window: Window) -> Iterator[torch.Tensor]:
    """Values [1, channels, h, w] at the pixels of a few rows of the image, [channels, rows, width], from the top."""
    down, across = (
        (2 * places / side - 1).to(values.device) for places, side in zip(_places(window), window.input, strict=True)
    )
    most = max(1, _MOST_VALUES // (values.shape[1] * window.image[1]))
    for rows in torch.split(down, most):
        grid = torch.stack(torch.meshgrid(rows, across, indexing="ij")[::-1], dim=-1)[None]
        yield functional.grid_sample(values.float(), grid, padding_mode="border", align_corners=False)[0]


def _places(window: Window) -> Iterator[torch.Tensor]:
    """Where the centres of the image's rows, then columns, lie in the input, in its pixels."""
    for side, scale, corner in zip(window.image, window.scale, window.corner, strict=True):
        yield (torch.arange(side) + 0.5) * scale - corner
