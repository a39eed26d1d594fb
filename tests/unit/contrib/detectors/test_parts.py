"""Parts of a detector: what they hold, what they take, and which detectors have none."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_detector
import torch
from tiny_detector import SIZE, spec
from torch import nn

from gpusq_deploy.artifacts.arch import ArchArgument, ArchSpec
from gpusq_deploy.contrib.detectors.parts import pyramid_of
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend.checkpoint.architecture import module_from_arch
from gpusq_deploy.frontend.checkpoint.load import load_checkpoint, stored_weights


@pytest.mark.slow
def test_all_parts_load_one_checkpoint_of_the_whole_detector(tmp_path: Path) -> None:
    path = tiny_detector.save(tmp_path / "detector.pt")
    image = torch.randn(1, 3, *SIZE)
    maps = list(tiny_detector.detector().backbone(image).values())
    objectness, deltas = tiny_detector.detector().rpn.head(maps)
    dense = load_checkpoint(path, arch=spec("dense"))
    assert (dense.preprocessing.channels, dense.preprocessing.height, dense.preprocessing.width) == (3, *SIZE)
    for ours, theirs in zip(dense.module(image), (*maps, *objectness, *deltas), strict=True):
        torch.testing.assert_close(ours, theirs)

    heads = tiny_detector.detector().roi_heads
    for part, side, head, predictor in (
        ("box", 7, "box_head", "box_predictor"),
        ("mask", 14, "mask_head", "mask_predictor"),
    ):
        checkpoint = load_checkpoint(path, arch=spec(part))
        assert (checkpoint.preprocessing.channels, checkpoint.preprocessing.height) == (32, side)
        pooled = torch.randn(3, 32, side, side)
        wanted = getattr(heads, predictor)(getattr(heads, head)(pooled))
        torch.testing.assert_close(checkpoint.module(pooled), wanted)
    stored = stored_weights(path, arch=spec("mask"))
    assert next(stored.skeleton.parameters()).is_meta


class OneMap(nn.Module):
    """A backbone without a pyramid."""

    out_channels = 8

    def __init__(self, names: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.names = names
        self.conv = nn.Conv2d(3, 8, 16, 16)

    def forward(self, images: torch.Tensor) -> Any:
        return {name: self.conv(images) for name in self.names} if self.names else self.conv(images)


def on(backbone: nn.Module, kind: str = "MaskRCNN", **arguments: Any) -> nn.Module:
    detection: Any = pytest.importorskip("torchvision.models.detection")
    anchors = detection.rpn.AnchorGenerator(sizes=((32,),) * 2, aspect_ratios=((1.0,),) * 2)
    module: nn.Module = getattr(detection, kind)(backbone, num_classes=2, rpn_anchor_generator=anchors, **arguments)
    return module


@pytest.mark.parametrize(
    ("detector", "size", "what"),
    [
        (lambda: on(OneMap()), (64, 64), "its backbone answers one map, not a feature pyramid"),
        (lambda: on(OneMap(("0",))), (64, 64), "its backbone answers one map, not a feature pyramid"),
        (lambda: on(OneMap(("0", "1"))), (64, 64), "it pools from 2, 3, but its backbone answers 0, 1"),
        (lambda: on(OneMap(("0", "1", "2", "3"))), (64, 64), "it has anchors for 2 maps, and 4 maps"),
        (lambda: on(OneMap(), "FasterRCNN"), (64, 64), "the detector is a FasterRCNN, not a MaskRCNN"),
        (OneMap, (64, 64), "the detector is a OneMap, not a MaskRCNN"),
        (tiny_detector.detector, (100, 160), "images of 100x160 pixels don't fit: both sides must be multiples of 32"),
        (tiny_detector.detector, (0, 160), "images of 0x160 pixels don't fit: both sides must be multiples of 32"),
    ],
)
def test_other_detectors_and_sizes_are_refused(detector: Any, size: tuple[int, int], what: str) -> None:
    with pytest.raises(GpusqError) as caught:
        pyramid_of(detector(), size)
    assert caught.value.what == what
    assert caught.value.place


@pytest.mark.slow
def test_a_detector_of_torchvision_is_made_without_a_download_and_another_is_refused() -> None:
    def of(name: str) -> ArchSpec:
        arguments: dict[str, ArchArgument] = {"height": 64, "width": 96, "detector": f"torchvision:{name}"}
        return ArchSpec(source="factory", name="gpusq_deploy.contrib.detectors.parts:box", arguments=arguments)

    found: Any = module_from_arch(of("maskrcnn_resnet50_fpn"))
    assert list(found.pyramid.maps) == ["0", "1", "2", "3", "pool"]
    assert found.gpusq_preprocessing["channels"] == 256
    with pytest.raises(GpusqError, match="the detector is a SqueezeNet, not a MaskRCNN"):
        module_from_arch(of("squeezenet1_0"))


def test_an_argument_that_the_detector_lacks_is_named() -> None:
    with pytest.raises(GpusqError, match="MaskRCNN has no argument 'box_score_tresh'") as caught:
        module_from_arch(spec("dense", box_score_tresh=0.1))
    assert "box_score_thresh" in str(caught.value.hint)
    with pytest.raises(GpusqError, match="height"):
        module_from_arch(ArchSpec(source="factory", name="gpusq_deploy.contrib.detectors.parts:dense"))


def test_without_torchvision_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.models.swin_transformer", None)
    with pytest.raises(GpusqError, match="cannot import torchvision") as caught:
        module_from_arch(spec("dense"))
    assert caught.value.hint == "pip install torchvision"
