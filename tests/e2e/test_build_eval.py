"""gpusq-build --eval: the task's measure of the model as given and of the built one, as a condition of the build."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import run_main
from foreign_loops import DETR, pieces, results_of, scenes, transformers_model
from PIL import Image

import gpusq_deploy
from gpusq_deploy.bundle.files import damaged_files, read_bundle
from gpusq_deploy.calibration.image_data import load_image
from gpusq_deploy.cli.build import main as build
from gpusq_deploy.cli.inspect import main as inspect
from gpusq_deploy.frontend.checkpoint.load import load_checkpoint

pytestmark = pytest.mark.slow

CLASSES = 64


@pytest.fixture(scope="module")
def labelled(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs in the folder of the class that the float model says; classes without one get noise."""
    root = tmp_path_factory.mktemp("val")
    checkpoint = load_checkpoint(dense)
    for index, piece in enumerate(pieces(24, 7)):
        image = root / f"{index}.png"
        Image.fromarray(piece).save(image)
        with torch.no_grad():
            logits = checkpoint.module.eval()(torch.from_numpy(load_image(image, checkpoint.preprocessing)[None]))
        folder = root / f"{int(logits.argmax()):02d}"
        folder.mkdir(exist_ok=True)
        image.rename(folder / image.name)
    rng = np.random.default_rng(0)
    for label in range(CLASSES):
        folder = root / f"{label:02d}"
        if not folder.exists():
            folder.mkdir()
            Image.fromarray(rng.integers(0, 256, (32, 32, 3)).astype(np.uint8)).save(folder / "noise.png")
    return root


def figures(found: Any) -> tuple[Any, ...]:
    given, built = (subject.scores[0] for subject in found.subjects)
    return given.value, built.value, built.low, built.high, found.images


def test_the_receipt_has_what_gpusq_eval_finds(dense: Path, photos: Path, labelled: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.gpusq"
    options = ("--int8", "--calib", photos, "--target", "none", "--eval", labelled, "--max-drop", 60, "--out", out)
    done = run_main(build, dense, *options, "--json")
    assert done.code == 0, done.err
    accuracy = read_bundle(out).receipt.accuracy
    assert accuracy is not None
    wanted = figures(gpusq_deploy.evaluate([dense, out], data=labelled, runtime="onnxruntime"))
    assert (accuracy.given, accuracy.built, accuracy.low, accuracy.high, accuracy.images) == wanted
    assert accuracy.measure == "top-1"
    assert accuracy.max_drop == 60
    assert accuracy.given > 0.2
    assert done.json()["accuracy"]["built"] == accuracy.built
    assert f"top-1 {accuracy.built:.2%}, the given model {accuracy.given:.2%}: " in done.err
    assert "task: top-1 " in run_main(inspect, out).out


def test_a_drop_fails_the_build_and_is_kept_as_evidence(
    dense: Path, photos: Path, labelled: Path, tmp_path: Path
) -> None:
    """Pruned without training, the model answers otherwise: the given one is the reference, not what pruning left."""
    out = tmp_path / "m.gpusq"
    pruned = ("--int8", "--sparse", "--prune", "magnitude", "--calib", photos, "--target", "orin")
    done = run_main(build, dense, *pruned, "--eval", labelled, "--max-drop", 0.5, "--out", out)
    assert done.code == 5
    assert " points below the given model's, " in done.err
    assert "more than --max-drop 0.5" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["m.gpusq.failed"]
    evidence = read_bundle(tmp_path / "m.gpusq.failed")
    assert list(damaged_files(evidence.path, evidence.manifest)) == []
    assert evidence.receipt.engines == ()
    assert evidence.receipt.accuracy is not None
    assert evidence.receipt.accuracy.drop > 0.5
    assert evidence.manifest.options.max_drop == 0.5


def test_what_can_not_be_measured_is_refused_before_work(
    dense: Path, photos: Path, labelled: Path, tmp_path: Path
) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for options, code, words in (
        (("--eval", tmp_path / "none"), 5, "no such folder"),
        (("--eval", flat), 5, str(flat)),
        (("--max-drop", 1), 2, "need --eval"),
        (("--eval", labelled, "--bf16"), 2, "--bf16"),
        (("--eval", labelled, "--allow-pickle"), 2, "--allow-pickle"),
        (("--eval", labelled, "--max-drop", 101), 2, "--max-drop"),
    ):
        given = ("--int8", "--calib", photos, "--target", "none", "--out", tmp_path / "m.gpusq", *options)
        done = run_main(build, dense, *given)
        assert done.code == code, (options, done.err)
        assert words in done.err
        assert "calibrating" not in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["flat"]


def test_a_detector_is_measured_by_its_boxes(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    root = tmp_path / "coco"
    scenes(root)
    path, module, declared = transformers_model(tmp_path / "detr.pt", "DetrForObjectDetection", DETR)
    boxes, images = list[dict[str, Any]](), list[dict[str, Any]]()
    for index, file in enumerate(sorted((root / "images").iterdir())):
        image = Image.open(file).convert("RGB")
        images.append({"id": index, "file_name": file.name, "width": image.width, "height": image.height})
        for each in results_of(module, image, declared)[::5]:
            area = each["bbox"][2] * each["bbox"][3]
            truth = {"image_id": index, "category_id": each["category_id"], "bbox": each["bbox"], "area": area}
            boxes.append({"id": len(boxes) + 1, "iscrowd": 0, **truth})
    categories = [{"id": label, "name": f"thing {label}"} for label in range(3)]
    annotations = tmp_path / "boxes.json"
    annotations.write_text(json.dumps({"images": images, "annotations": boxes, "categories": categories}))
    out = tmp_path / "detr.gpusq"
    options = ("--fp32", "--target", "none", "--eval", root / "images", "--annotations", annotations)
    done = run_main(build, path, *options, "--max-drop", 5, "--out", out)
    assert done.code == 0, done.err
    accuracy = read_bundle(out).receipt.accuracy
    assert accuracy is not None
    assert accuracy.measure == "mAP"
    assert accuracy.given > 0.05
    assert accuracy.built == pytest.approx(accuracy.given, abs=0.02)
