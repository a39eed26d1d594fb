"""Each graph between the parts, beside the code of torchvision that it stands for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import tiny_detector
import torch
from tiny_detector import SIZE

from gpusq_deploy.contrib.detectors.between import DETECTIONS, MASKS, PROPOSALS, write_between
from gpusq_deploy.contrib.detectors.graphs import detections_graph, masks_graph, proposals_graph
from gpusq_deploy.contrib.detectors.settings import Settings, settings_of
from gpusq_deploy.engines.ort import open_onnx
from gpusq_deploy.frontend.checkpoint.tensors import array_from_tensor
from gpusq_deploy.graph.files import save_model

Arrays = Mapping[str, npt.NDArray[Any]]
INSIDE = (120, 150)  # of the image within its padding
DRAW = torch.Generator()


@pytest.fixture(autouse=True)
def seeded() -> None:
    DRAW.manual_seed(0)


@pytest.fixture(scope="module")
def settings() -> Settings:
    return settings_of(tiny_detector.part("mask"))


def run(model: Any, path: Path, feeds: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    save_model(model, path)
    onnx.checker.check_model(path, full_check=True)
    session = open_onnx(path)
    answers = session.run({spec.name: array_from_tensor(feeds[spec.name]) for spec in session.inputs})
    session.close()
    return {name: torch.from_numpy(answer) for name, answer in answers.items()}


def random_maps(settings: Settings) -> dict[str, torch.Tensor]:
    names = tiny_detector.part("mask").pyramid.maps
    return {
        name: torch.randn(1, settings.channels, *shape, generator=DRAW)
        for name, shape in zip(names, settings.maps, strict=True)
    }


def fed(maps: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {"size": torch.tensor(INSIDE).float(), **{f"map_{i}": found for i, found in enumerate(maps.values())}}


def boxes_inside(count: int) -> torch.Tensor:
    """Of all sizes, some at the borders, one of no size, one of all."""
    limit = torch.tensor([INSIDE[1], INSIDE[0]]).float()
    corners = torch.rand(count, 2, 2, generator=DRAW) ** 2 * limit
    boxes = torch.cat([corners.amin(1), corners.amax(1)], 1)
    boxes[0] = torch.tensor([3.0, 4.0, 3.0, 4.0])
    boxes[1] = torch.tensor([0.0, 0.0, *limit.tolist()])
    return boxes


@pytest.mark.parametrize(
    ("most", "after", "score"), [(100, 60, 0.0), (1000, 1000, 0.0), (100, 60, 0.99)], ids=["few", "many", "sure"]
)
def test_proposals_are_those_of_torchvision(
    settings: Settings, tmp_path: Path, most: int, after: int, score: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few and many: torchvision has two ways of suppression, by number. Sure: some maps propose nothing."""
    lists: Any = pytest.importorskip("torchvision.models.detection.image_list")
    detector = tiny_detector.detector()
    maps = random_maps(settings)
    counts = [len(a) // (h * w) for a, (h, w) in zip(settings.anchors, settings.maps, strict=True)]
    pairs = list(zip(counts, settings.maps, strict=True))
    objectness = [2 * torch.randn(1, count, *shape, generator=DRAW) for count, shape in pairs]
    deltas = [0.5 * torch.randn(1, 4 * count, *shape, generator=DRAW) for count, shape in pairs]
    monkeypatch.setattr(detector.rpn, "_pre_nms_top_n", {"testing": most})
    monkeypatch.setattr(detector.rpn, "_post_nms_top_n", {"testing": after})
    monkeypatch.setattr(detector.rpn, "score_thresh", score)

    def answer(_maps: object) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        return objectness, deltas

    monkeypatch.setattr(detector.rpn.head, "forward", answer)
    (wanted,), _ = detector.rpn(lists.ImageList(torch.empty(1, 3, *SIZE), [INSIDE]), maps)

    changed = replace(settings, proposals=replace(settings.proposals, before=most, after=after, score=score))
    feeds = fed(maps) | {f"objectness_{i}": o for i, o in enumerate(objectness)}
    feeds |= {f"deltas_{i}": d for i, d in enumerate(deltas)}
    found = run(proposals_graph(changed), tmp_path / "proposals.onnx", feeds)
    assert len(wanted) > 10
    torch.testing.assert_close(found["boxes"], wanted, rtol=1e-5, atol=1e-3)
    pooled = detector.roi_heads.box_roi_pool(maps, [wanted], [SIZE])
    torch.testing.assert_close(found["pooled"], pooled, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("count", "score"), [(50, 0.3), (400, 0.05), (50, 2.0)], ids=["few", "many", "none"])
def test_detections_are_those_of_torchvision(
    settings: Settings, tmp_path: Path, count: int, score: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads = tiny_detector.detector().roi_heads
    maps, proposals = random_maps(settings), boxes_inside(count)
    logits, deltas = 2 * torch.randn(count, 5, generator=DRAW), torch.randn(count, 20, generator=DRAW)
    monkeypatch.setattr(heads, "score_thresh", score)
    boxes, scores, labels = (found[0] for found in heads.postprocess_detections(logits, deltas, [proposals], [INSIDE]))

    changed = replace(settings, boxes=replace(settings.boxes, score=score))
    feeds = fed(maps) | {"logits": logits, "deltas": deltas, "proposals": proposals}
    found = run(detections_graph(changed), tmp_path / "detections.onnx", feeds)
    assert len(boxes) == (0 if score > 1 else settings.boxes.after)
    torch.testing.assert_close(found["boxes"], boxes, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(found["scores"], scores, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found["labels"], labels)
    pooled = heads.mask_roi_pool(maps, [boxes], [SIZE])
    torch.testing.assert_close(found["pooled"], pooled, rtol=1e-3, atol=1e-3)


def test_every_region_is_pooled_from_the_map_that_torchvision_takes(settings: Settings, tmp_path: Path) -> None:
    """One class, and deltas of nothing: what is detected is what was proposed, and pooled."""
    maps = random_maps(settings)
    everything = replace(settings.boxes, score=-1.0, overlap=1.0, side=-1.0, after=300)
    # Of small images, regions would take the finest maps alone.
    pool = replace(settings.mask_pool, canonical_size=30.0)
    boxes = boxes_inside(300)
    feeds = fed(maps) | {"proposals": boxes, "deltas": torch.zeros(300, 8)}
    feeds["logits"] = torch.stack([torch.zeros(300), torch.linspace(3, -3, 300)], 1)
    found = run(detections_graph(replace(settings, boxes=everything, mask_pool=pool)), tmp_path / "d.onnx", feeds)
    theirs: Any = pytest.importorskip("torchvision.ops").MultiScaleRoIAlign(list("0123"), 14, 2, canonical_scale=30)
    wanted = theirs(maps, [boxes], [SIZE])
    assert {int(level) for level in theirs.map_levels([boxes])} == {0, 1, 2, 3}
    torch.testing.assert_close(found["boxes"], boxes, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(found["pooled"], wanted, rtol=1e-3, atol=1e-3)


def test_a_pool_of_one_map_needs_no_levels(settings: Settings, tmp_path: Path) -> None:
    maps = random_maps(settings)
    one = replace(settings.mask_pool, maps=(1,), scales=(1 / 8,), sampling=0)
    boxes, logits = boxes_inside(30), torch.randn(30, 2, generator=DRAW)
    feeds = fed(maps) | {"proposals": boxes, "deltas": torch.zeros(30, 8), "logits": logits}
    found = run(detections_graph(replace(settings, mask_pool=one)), tmp_path / "detections.onnx", feeds)
    align: Any = pytest.importorskip("torchvision.ops").roi_align
    wanted = align(maps["1"], [found["boxes"]], 14, 1 / 8, -1)
    torch.testing.assert_close(found["pooled"], wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("size", [INSIDE, (37, 301)])
def test_masks_are_drawn_as_torchvision_draws_them(tmp_path: Path, size: tuple[int, int]) -> None:
    """At borders, and on boxes of less than a pixel."""
    paste: Any = pytest.importorskip("torchvision.models.detection.roi_heads").paste_masks_in_image
    count = 40
    scale = torch.tensor([size[1] / INSIDE[1], size[0] / INSIDE[0]] * 2)
    boxes, logits = boxes_inside(count) * scale, 3 * torch.randn(count, 5, 28, 28, generator=DRAW)
    labels = torch.randint(1, 5, (count,), generator=DRAW)
    chosen = logits.sigmoid()[torch.arange(count), labels][:, None]
    feeds = {"logits": logits, "labels": labels, "boxes": boxes, "size": torch.tensor(size)}
    found = run(masks_graph(), tmp_path / "masks.onnx", feeds)["masks"]
    wanted = paste(chosen, boxes, size)
    assert found.shape == (count, 1, *size)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_equal_detectors_give_equal_files(tmp_path: Path) -> None:
    for name in "ab":
        write_between(tiny_detector.part("box"), tmp_path / name)
    for name in (PROPOSALS, DETECTIONS, MASKS):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert len(list((tmp_path / "a").iterdir())) == 3


def test_anchors_are_those_of_torchvision(settings: Settings) -> None:
    lists: Any = pytest.importorskip("torchvision.models.detection.image_list")
    generator = tiny_detector.detector().rpn.anchor_generator
    maps = list(random_maps(settings).values())
    (wanted,) = generator(lists.ImageList(torch.empty(1, 3, *SIZE), [SIZE]), maps)
    np.testing.assert_array_equal(np.concatenate(settings.anchors), wanted.numpy())
    assert [len(found) for found in settings.anchors] == [3 * h * w for h, w in settings.maps]
