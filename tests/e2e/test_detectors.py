"""A Mask R-CNN in parts is torchvision's Mask R-CNN, and each part is compiled as any model is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
import tiny_detector
import torch
from PIL import Image
from tiny_detector import ARGUMENTS, BATCHES, MOST, PARTS, SIZE

from gpusq_deploy.artifacts.manifest import BatchRange
from gpusq_deploy.artifacts.recipe import Recipe, Rule
from gpusq_deploy.bundle.files import read_bundle
from gpusq_deploy.bundle.receipt import built_layers
from gpusq_deploy.calibration.data import ArrayFile, open_source
from gpusq_deploy.calibration.observe import collect_ranges
from gpusq_deploy.cli.build import main as build
from gpusq_deploy.contrib.detectors.between import write_between
from gpusq_deploy.contrib.detectors.mask_rcnn import Detections, MaskRcnn
from gpusq_deploy.contrib.detectors.record import record_pooled
from gpusq_deploy.engines.builder import build_engine
from gpusq_deploy.engines.configure import BuildSettings
from gpusq_deploy.engines.layer_classes import totals
from gpusq_deploy.engines.ort import open_onnx
from gpusq_deploy.engines.session import Session
from gpusq_deploy.engines.targets import find_target
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend.checkpoint.load import load_checkpoint
from gpusq_deploy.frontend.checkpoint.tensors import array_from_tensor
from gpusq_deploy.frontend.export.onnx_export import example_input
from gpusq_deploy.graph.attention import find_attentions
from gpusq_deploy.graph.files import save_model
from gpusq_deploy.graph.layers import weighted_layers
from gpusq_deploy.graph.passes.base import run_passes
from gpusq_deploy.graph.passes.cast_to_float_type import CastToFloatType
from gpusq_deploy.graph.passes.pipelines import CANONICAL
from gpusq_deploy.graph.passes.quantize import Quantize
from gpusq_deploy.quantize.planning import PlanRequest, layers_to_quantize, make_plan
from gpusq_deploy.sparsity.graph_check import graph_sparsity

from commands import run_main  # isort: skip

pytestmark = pytest.mark.slow
LINEAR = Recipe(
    schema="gpusq.recipe/1", name="linear", description="", rules=(Rule(kind="linear", reason="they take most time"),)
)
# The heads take any number of regions; tests of a fixed batch have their own.
RANGES = {
    "dense": BatchRange(minimum=1, optimum=1, maximum=1),
    "box": BatchRange(minimum=1, optimum=60, maximum=60),
    "mask": BatchRange(minimum=1, optimum=MOST, maximum=MOST),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three parts as float graphs, and what lies between them."""
    where = tmp_path_factory.mktemp("detector")
    for name in PARTS:
        save_model(run_passes(tiny_detector.export(name, batch=RANGES[name]), CANONICAL), where / f"{name}.onnx")
    write_between(tiny_detector.part("dense"), where / "between")
    return where


@pytest.fixture(scope="module")
def whole(folder: Path) -> Iterator[MaskRcnn]:
    dense, box, mask = (open_onnx(folder / f"{name}.onnx") for name in PARTS)
    detector = MaskRcnn(dense=dense, box=box, mask=mask, between=folder / "between")
    yield detector
    detector.close()


def photo(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Float32 [3, h, w], 0…1: rectangles of colours, and grain, without which regions would have equal scores."""
    generator = torch.Generator().manual_seed(seed)
    rough = torch.rand(1, 3, 8, 10, generator=generator)
    plain = torch.nn.functional.interpolate(rough, (height, width), mode="nearest")[0]
    return 0.7 * plain + 0.3 * torch.rand(3, height, width, generator=generator)


def normalised(image: torch.Tensor) -> npt.NDArray[np.float32]:
    """As the detector's own transform does."""
    return array_from_tensor(tiny_detector.detector().transform.normalize(image))


def require_same(found: Detections, wanted: dict[str, torch.Tensor]) -> None:
    assert found.labels.tolist() == wanted["labels"].tolist()
    np.testing.assert_allclose(found.scores, array_from_tensor(wanted["scores"]), atol=1e-4)
    np.testing.assert_allclose(found.boxes, array_from_tensor(wanted["boxes"]), atol=1e-2)
    assert found.masks.shape == tuple(wanted["masks"].shape)
    # A box that is rounded to the other pixel moves its mask by one: some pixels of some masks may differ.
    assert np.mean(np.abs(found.masks - wanted["masks"].numpy()) > 1e-2) < 1e-3


def test_the_whole_finds_what_torchvision_finds(whole: MaskRcnn) -> None:
    """One image fills the detector's size, the others don't and are padded."""
    images = [photo(*SIZE), photo(128, 140, seed=1), photo(100, 160, seed=2)]
    batched, _ = tiny_detector.detector().transform(images)
    assert [tuple(size) for size in batched.image_sizes] == [tuple(image.shape[1:]) for image in images]
    with torch.no_grad():
        answers: Any = tiny_detector.detector()(images)
    for image, wanted in zip(images, answers, strict=True):
        assert len(wanted["labels"]) >= 5
        assert len(set(wanted["labels"].tolist())) > 1
        require_same(whole.detect(normalised(image)), wanted)


def test_boxes_and_masks_are_given_in_the_size_of_the_photo(whole: MaskRcnn) -> None:
    image = photo(64, 80)
    with torch.no_grad():
        (wanted,) = tiny_detector.detector()([image])
    listed, _ = tiny_detector.detector().transform([image])
    assert tuple(listed.image_sizes[0]) == SIZE
    found = whole.detect(array_from_tensor(listed.tensors[0]), original=(64, 80))
    assert found.masks.shape[2:] == (64, 80)
    require_same(found, wanted)


class Fixed:
    """A session whose batch is fixed, as an engine's may be; it keeps what it is asked."""

    def __init__(self, inner: Session, batch: int) -> None:
        self.runtime, self.runtime_version, self.device = inner.runtime, inner.runtime_version, inner.device
        self.inner, self.heard = inner, list[npt.NDArray[Any]]()
        self.outputs = inner.outputs
        (taken,) = inner.inputs
        self.inputs = (type(taken)(name=taken.name, shape=(batch, *taken.shape[1:]), dtype=taken.dtype),)

    def run(self, feeds: Any) -> Any:
        (feed,) = feeds.values()
        assert feed.shape == self.inputs[0].shape[:1] + feed.shape[1:]
        self.heard.append(feed)
        return self.inner.run(feeds)

    def timer(self, feeds: Any) -> Callable[[], float]:
        return self.inner.timer(feeds)

    def close(self) -> None:
        self.inner.close()


def test_a_fixed_batch_of_regions_is_filled_and_run_as_often_as_it_takes(whole: MaskRcnn, folder: Path) -> None:
    dense, box, mask = (open_onnx(folder / f"{name}.onnx") for name in PARTS)
    fixed = Fixed(box, 25)
    pieces = MaskRcnn(dense=dense, box=fixed, mask=Fixed(mask, 3), between=folder / "between")
    image = normalised(photo(*SIZE))
    wanted, found = whole.detect(image), pieces.detect(image)
    assert len(fixed.heard) == 3  # 60 proposals
    assert found.labels.tolist() == wanted.labels.tolist()
    np.testing.assert_allclose(found.boxes, wanted.boxes, atol=1e-3)
    np.testing.assert_allclose(found.masks, wanted.masks, atol=1e-3)


def test_nothing_found_is_an_answer(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = tiny_detector.detector()
    monkeypatch.setattr(detector.roi_heads, "score_thresh", 1.0)
    write_between(tiny_detector.part("dense"), tmp_path)
    dense, box, mask = (open_onnx(folder / f"{name}.onnx") for name in PARTS)
    found = MaskRcnn(dense=dense, box=box, mask=mask, between=tmp_path).detect(normalised(photo(*SIZE)))
    assert found.boxes.shape == (0, 4)
    assert found.masks.shape == (0, 1, *SIZE)
    monkeypatch.setattr(detector.rpn, "score_thresh", 1.1)
    write_between(tiny_detector.part("dense"), tmp_path)
    found = MaskRcnn(dense=dense, box=box, mask=mask, between=tmp_path).detect(normalised(photo(*SIZE)))
    assert found.labels.shape == found.scores.shape == (0,)


@pytest.mark.parametrize("shape", [(3, 160, 160), (3, 128, 161), (1, 128, 160), (3, 0, 5), (1, 3, 128, 160)])
def test_an_image_that_does_not_fit_is_refused(whole: MaskRcnn, shape: tuple[int, ...]) -> None:
    with pytest.raises(GpusqError, match="and the detector is for 128x160") as caught:
        whole.detect(np.zeros(shape, np.float32))
    assert "scaled down" in str(caught.value.hint)


def test_parts_of_another_detector_are_refused(folder: Path, tmp_path: Path) -> None:
    dense, box, mask = (open_onnx(folder / f"{name}.onnx") for name in PARTS)
    write_between(tiny_detector.PARTS["dense"](tiny_detector.detector(), (96, 160)), tmp_path)
    with pytest.raises(GpusqError, match=r"objectness_0 is \[1, 3, 32, 40\], not \[1, 3, 24, 40\]"):
        MaskRcnn(dense=dense, box=box, mask=mask, between=tmp_path)
    between = folder / "between"
    with pytest.raises(GpusqError, match="it has 2 outputs, not 15"):
        MaskRcnn(dense=box, box=box, mask=mask, between=between)
    with pytest.raises(GpusqError, match=r"the mask part takes \[-1, 32, 7, 7\] and has 2 outputs"):
        MaskRcnn(dense=dense, box=box, mask=box, between=between)
    with pytest.raises(GpusqError, match="no such model file"):
        MaskRcnn(dense=dense, box=box, mask=mask, between=tmp_path / "nowhere")


@pytest.mark.parametrize(("name", "attentions"), [("dense", 4), ("box", 0), ("mask", 0)])
def test_a_part_is_built_in_int8(name: str, attentions: int, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx has no wheel for this platform", exc_type=ImportError)
    batch = BatchRange(minimum=BATCHES[name], optimum=BATCHES[name], maximum=BATCHES[name])
    checkpoint = tiny_detector.checkpoint(name)
    model: ir.Model = run_passes(tiny_detector.export(name, batch=batch), CANONICAL)
    assert len(find_attentions(model)) == attentions
    layers = weighted_layers(model)
    noise = ArrayFile(name="noise", values=array_from_tensor(example_input(checkpoint, batch.optimum)))
    table = collect_ranges(model, layers_to_quantize(layers, LINEAR), noise, open_model=open_onnx)
    report = graph_sparsity(model, source="", recipe=LINEAR)
    asked = PlanRequest(recipe=LINEAR, quantize=name != "mask", sparse=False, float_type="fp16")
    plan = make_plan(layers, asked, table=table, sparsity=report)
    path = tmp_path / "model.onnx"
    save_model(run_passes(model, [Quantize(plan), CastToFloatType("fp16")]), path)
    engine = build_engine(path, find_target("a100"), BuildSettings(batch=batch)).layers
    linear = {layer.node: layer.macs for layer in plan.layers if layer.kind == "linear"}
    int8 = sum(linear.get(layer.node, 0) for layer in built_layers(plan, engine) if layer.precision == "int8")
    assert int8 >= 0.95 * sum(linear.values())
    assert bool(linear) == (name != "mask")
    known: Any = checkpoint.module
    assert {layer.layer.partition("/")[0] for layer in plan.layers} <= {title for title, _ in known.named_modules()}
    assert totals(engine).attention_fused == attentions


def arguments(part: str) -> list[str]:
    given = {"height": SIZE[0], "width": SIZE[1], **ARGUMENTS}
    spelled = (word for name, value in given.items() for word in ("--arch-arg", f"{name}={value}"))
    return ["--arch", f"gpusq_deploy.contrib.detectors.parts:{part}", *spelled]


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`detector.pt`, photographs, and what the earlier parts make of them."""
    where = tmp_path_factory.mktemp("features")
    (where / "photos").mkdir()
    for seed in range(4):
        pixels = array_from_tensor((255 * photo(*SIZE, seed=seed)).byte().permute(1, 2, 0))
        Image.fromarray(pixels).save(where / "photos" / f"{seed}.png")
    part = tiny_detector.part("dense")
    source = open_source(str(where / "photos"), tiny_detector.checkpoint("dense").preprocessing)
    assert record_pooled(part, source, where, each=16) == {"box.npy": 64, "mask.npy": 64}
    tiny_detector.save(where / "detector.pt")
    return where


def test_what_is_recorded_is_what_lies_between(features: Path, folder: Path) -> None:
    """The same features reach the mask head in torch and in ONNX Runtime."""
    dense, box, mask = (open_onnx(folder / f"{name}.onnx") for name in PARTS)
    listening = Fixed(mask, MOST)
    whole = MaskRcnn(dense=dense, box=box, mask=listening, between=folder / "between")
    source = open_source(str(features / "photos"), tiny_detector.checkpoint("dense").preprocessing)
    whole.detect(source.sample(0))
    spread = [place * MOST // 16 for place in range(16)]
    np.testing.assert_allclose(listening.heard[0][spread], np.load(features / "mask.npy")[:16], atol=1e-3)


def test_a_head_is_built_from_the_whole_detectors_checkpoint_and_recorded_features(features: Path) -> None:
    out = features / "mask.gpusq"
    given = ["--int8", "--calib", features / "mask.npy", "--batch", f"1:{MOST}:{MOST}", "--target", "a100"]
    done = run_main(build, features / "detector.pt", *arguments("mask"), *given, "--out", out)
    assert done.code == 0, done.err
    bundle = read_bundle(out)
    assert bundle.manifest.preprocessing.channels == 32
    verified = bundle.receipt.verification
    assert verified is not None
    assert verified.sqnr_db is not None
    assert verified.sqnr_db > 50
    kept = {layer.layer: layer.precision_reason for layer in bundle.plan.layers if layer.precision != "int8"}
    assert len(kept) == 5
    assert all("convolutions" in reason for reason in kept.values())
    assert any(
        "mask_predictor.conv5_mask stays FP16 and dense: its ConvTranspose" in note for note in bundle.plan.notes
    )


def test_a_head_takes_no_images_and_no_features_of_another(features: Path) -> None:
    for calib, what in (("photos", "no image has 32 channels"), ("box.npy", "the model takes float32 [N, 32, 14, 14]")):
        given = ["--int8", "--calib", features / calib, "--out", features / "refused.gpusq"]
        done = run_main(build, features / "detector.pt", *arguments("mask"), *given)
        assert done.code == 5
        assert what in done.err
    assert not (features / "refused.gpusq").exists()


def test_images_without_a_region_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_detector.detector().roi_heads, "score_thresh", 1.0)
    noise = ArrayFile(name="noise", values=np.zeros((1, 3, *SIZE), np.float32))
    with pytest.raises(GpusqError, match=r"nothing to write to mask\.npy: the detector finds no region"):
        record_pooled(tiny_detector.part("box"), noise, tmp_path)


def test_another_detectors_weights_are_refused(features: Path) -> None:
    wrong = tiny_detector.spec("box", num_classes=7)
    with pytest.raises(GpusqError, match="cls_score"):
        load_checkpoint(features / "detector.pt", arch=wrong)
