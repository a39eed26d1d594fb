"""gpusq-compress of a detector and a segmentation model of the transformers library, on scenes of photographs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
import torch
from commands import Finished, run_main
from exact_sessions import exact_session
from foreign_loops import DETR, SEGFORMER, SIDE
from PIL import Image
from skimage import data as photographs

from gpusq_deploy.artifacts.arch import ArchSpec
from gpusq_deploy.cli.build import main as build
from gpusq_deploy.cli.compress import main as compress
from gpusq_deploy.frontend.checkpoint.load import load_checkpoint, save_checkpoint
from gpusq_deploy.frontend.checkpoint.preprocessing import preprocessing_of
from gpusq_deploy.frontend.checkpoint.transformers_models import module_from_transformers

pytestmark = pytest.mark.slow


def scene(rng: np.random.Generator) -> tuple[npt.NDArray[np.uint8], tuple[int, int, int, int], int]:
    """A piece of one photograph with a rectangle of another in it: pixels, its box, and which."""
    library: Any = photographs  # untyped
    whole = [library.astronaut(), library.coffee(), library.cat()]
    ground, inner = cast("npt.NDArray[np.uint8]", whole[0]), int(rng.integers(1, 3))
    top, left = (int(rng.integers(side - SIDE)) for side in ground.shape[:2])
    pixels = ground[top : top + SIDE, left : left + SIDE].copy()
    width, height = (int(side) for side in rng.integers(24, 48, size=2))
    x, y = int(rng.integers(SIDE - width)), int(rng.integers(SIDE - height))
    pixels[y : y + height, x : x + width] = whole[inner][100 : 100 + height, 100 : 100 + width]
    return pixels, (x, y, width, height), inner


def label_map(box: tuple[int, int, int, int], label: int) -> npt.NDArray[np.uint8]:
    x, y, width, height = box
    labels = np.zeros((SIDE, SIDE), np.uint8)
    labels[y : y + height, x : x + width] = label
    return labels


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 scenes: images, label maps, and boxes in COCO's form."""
    root, rng = tmp_path_factory.mktemp("scenes"), np.random.default_rng(0)
    images, boxes = list[dict[str, Any]](), list[dict[str, Any]]()
    for folder in ("images", "annotations"):
        (root / folder).mkdir()
    for index in range(24):
        pixels, (x, y, width, height), label = scene(rng)
        labels = label_map((x, y, width, height), label)
        Image.fromarray(pixels).save(root / "images" / f"{index:02d}.png")
        Image.fromarray(labels).save(root / "annotations" / f"{index:02d}.png")
        images.append({"id": index, "file_name": f"{index:02d}.png", "width": SIDE, "height": SIDE})
        boxes.append({"id": index, "image_id": index, "category_id": label, "bbox": [x, y, width, height]})
    categories = [{"id": 1, "name": "coffee"}, {"id": 2, "name": "cat"}]
    whole = {"images": images, "annotations": boxes, "categories": categories}
    (root / "boxes.json").write_text(json.dumps(whole))
    return root


def dense(folder: Path, name: str, arguments: dict[str, Any]) -> Path:
    spec = ArchSpec(source="transformers", name=name, arguments=arguments)
    torch.manual_seed(0)
    module = module_from_transformers(spec).eval()
    save_checkpoint(folder / "dense.pt", module, arch=spec, preprocessing=preprocessing_of(spec, module))
    return folder / "dense.pt"


def run(model: Path, out: Path, *options: object) -> tuple[Finished, dict[str, Any]]:
    done = run_main(compress, model, "--out", out, "--batch-size", "8", "--json", *options)
    assert done.code == 0, done.err
    return done, json.loads(done.out)


def zeros_of_four(path: Path, layers: list[str]) -> bool:
    state = load_checkpoint(path).module.state_dict()
    groups = [state[f"{layer}.weight"].reshape(-1, 4) for layer in layers]
    return all(bool(((group != 0).sum(dim=1) <= 2).all()) for group in groups)


def test_a_segformer_is_trained_on_label_maps_and_in_int8(scenes: Path, tmp_path: Path) -> None:
    model = dense(tmp_path, "SegformerForSemanticSegmentation", SEGFORMER)
    options = ("--data", scenes, "--stage", "prune,qat", "--epochs", "15,1", "--lr", "3e-3", "--loss", "1,0,0")
    done, found = run(model, tmp_path / "out.pt", *options)
    scores = found["held_out"]
    assert scores["measure"] == "mIoU"
    assert scores["recovered"] > scores["dense"] + 0.05, "by its labels a model that has learnt nothing learns"
    assert scores["trained"] > scores["dense"]
    assert "held-out mIoU" in done.err
    assert zeros_of_four(tmp_path / "out.pt", found["pruned"])
    finished = run_main(
        build, tmp_path / "out.pt", "--int8", "--sparse", "--fp32", "--target", "none", "--out", tmp_path / "b"
    )
    assert finished.code == 0, finished.err
    session = exact_session(tmp_path / "b" / "model.onnx")
    (answer,) = session.run(None, {session.get_inputs()[0].name: np.zeros((1, 3, SIDE, SIDE), np.float32)})
    assert np.asarray(answer).shape == (1, 3, SIDE // 4, SIDE // 4)


def test_a_detr_is_trained_on_boxes_by_its_own_loss(scenes: Path, tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    model = dense(tmp_path, "DetrForObjectDetection", {**DETR, "num_queries": 6})
    options = ("--data", scenes / "images", "--annotations", scenes / "boxes.json", "--lr", "1e-3")
    done, found = run(model, tmp_path / "out.pt", *options, "--epochs", "2")
    assert found["held_out"]["measure"] == "mAP"
    losses = [float(line.split("loss ")[1].split(",")[0]) for line in done.err.splitlines() if "loss " in line]
    assert losses[1] < losses[0]
    assert zeros_of_four(tmp_path / "out.pt", found["pruned"])
    _, pruned = run(model, tmp_path / "pruned.pt", *options, "--epochs", "0")
    assert pruned["held_out"]["measure"] == "mAP"
    _, unlabelled = run(model, tmp_path / "flat.pt", "--data", scenes / "images", "--epochs", "0")
    assert unlabelled["held_out"]["measure"] == "agreement"


def test_data_of_another_task_is_refused(scenes: Path, tmp_path: Path) -> None:
    model = dense(tmp_path, "SegformerForSemanticSegmentation", SEGFORMER)
    for options, said in (
        (("--annotations", scenes / "boxes.json"), "the model answers no boxes"),
        (("--mixup", "0.5"), "augmentation and mixing are for classes"),
    ):
        done = run_main(compress, model, "--data", scenes, "--out", tmp_path / "out.pt", *options)
        assert done.code == 5
        assert said in done.err
