"""Calibration data for the heads: what the parts in front of them make of images."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from gpusq_deploy.artifacts import written_whole
from gpusq_deploy.calibration import Batches, DataSource
from gpusq_deploy.contrib.detectors.library import torchvision_module
from gpusq_deploy.contrib.detectors.parts import Part
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend import array_from_tensor

BOX, MASK = "box.npy", "mask.npy"


def record_pooled(part: Part, source: DataSource, folder: Path, *, each: int = 64) -> dict[str, int]:
    """Run the detector in torch and write what RoIAlign pools: `box.npy` and `mask.npy`, for `--calib` of the heads.

    Args:
        part: Any of the three, for each holds the whole detector.
        source: Images, preprocessed as `dense` declares; see `open_source`.
        folder: Where the arrays go, float32 [N, channels, side, side].
        each: At most so many regions of one image and head, evenly spread over those that were found.

    Returns:
        Regions in each file.

    Raises:
        GpusqError: Images that can't be read, or in which no region was found.
        OSError: The disk refused.
    """
    seen: dict[str, list[npt.NDArray[np.float32]]] = {BOX: [], MASK: []}
    heads = {BOX: part.roi_heads.box_head, MASK: part.roi_heads.mask_head}
    with ExitStack() as stack:
        for name, head in heads.items():
            stack.enter_context(_heard(head, seen[name], each))
        for batch in Batches(source=source, size=1):
            _detect(part, torch.from_numpy(batch))
    folder.mkdir(parents=True, exist_ok=True)
    return {name: _written(folder / name, found, source) for name, found in seen.items()}


@contextmanager
def _heard(head: torch.nn.Module, seen: list[npt.NDArray[np.float32]], each: int) -> Generator[None]:
    def hear(_module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        (pooled,) = inputs
        count = min(each, len(pooled))
        seen.append(array_from_tensor(pooled[[place * len(pooled) // count for place in range(count)]]))

    handle = head.register_forward_pre_hook(hear)
    try:
        yield
    finally:
        handle.remove()


def _detect(part: Part, images: torch.Tensor) -> None:
    """As torchvision's detectors, behind their transform."""
    listed: Any = torchvision_module("torchvision.models.detection.image_list")
    size = (int(images.shape[2]), int(images.shape[3]))
    with torch.no_grad():
        maps = part.backbone(images)
        proposals, _ = part.rpn(listed.ImageList(images, [size]), maps)
        part.roi_heads(maps, proposals, [size])


def _written(path: Path, found: list[npt.NDArray[np.float32]], source: DataSource) -> int:
    count = sum(map(len, found))
    if not count:
        raise GpusqError(
            f"nothing to write to {path.name}: the detector finds no region in these images",
            place=source.name,
            hint="give images with what the detector was trained to find, or lower its box_score_thresh",
        )
    with written_whole(path) as temporary, temporary.open("wb") as stream:
        np.save(stream, np.concatenate(found))
    return count
