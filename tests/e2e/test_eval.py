"""gpusq-eval against evaluations that are written with other libraries alone, to the last image; and bad input."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
import timm
import torch
from commands import Finished, run_main
from foreign_loops import (
    DETR,
    FILTERS,
    SEGFORMER,
    SIDE,
    normalised,
    pieces,
    results_of,
    scenes,
    squeezed,
    transformers_model,
)
from PIL import Image

import gpusq_deploy
from gpusq_deploy.artifacts.arch import ArchSpec
from gpusq_deploy.cli.build import main as build
from gpusq_deploy.cli.eval import main as evaluate
from gpusq_deploy.frontend.checkpoint.load import save_checkpoint
from gpusq_deploy.frontend.checkpoint.preprocessing import preprocessing_of
from gpusq_deploy.frontend.checkpoint.tensors import array_from_tensor
from gpusq_deploy.progress import SILENT, Reporter

pytestmark = pytest.mark.slow
NAME = "vit_tiny_patch16_224"
ARGUMENTS: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 1}
CLASSES = ("astronaut", "cat", "coffee", "rocket", "wood", "wool", "xray", "yarn")
metrics: Any = pytest.importorskip("sklearn.metrics")
neighbors: Any = pytest.importorskip("sklearn.neighbors")
run_timm: Any = timm


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of 64 images; which image is of which class means nothing."""
    root = tmp_path_factory.mktemp("classes")
    for index, pixels in enumerate(pieces(64, 0)):
        place = root / CLASSES[index % 5 if index < 60 else 5 + index % 3]
        place.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(place / f"{index:02d}.png")
    return root


def vit(classes: int) -> Any:
    torch.manual_seed(0)
    module = run_timm.create_model(NAME, num_classes=classes, **ARGUMENTS).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.1)
    return module


def saved(path: Path, module: Any, classes: int) -> Path:
    spec = ArchSpec(source="timm", name=NAME, arguments={**ARGUMENTS, "num_classes": classes})
    save_checkpoint(path, module, arch=spec, preprocessing=preprocessing_of(spec, module))
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("model") / "vit.pt", vit(len(CLASSES)), len(CLASSES))


@pytest.fixture(scope="module")
def bundle(model: Path, folder: Path) -> Path:
    out = model.parent / "bundle"
    done = run_main(build, model, "--int8", "--calib", folder, "--target", "none", "--batch", "1:4:5", "--out", out)
    assert done.code == 0, done.err
    return out


def transform_by_timm(module: Any) -> Any:
    """The library's own; its config knows the pretrained size alone."""
    config = run_timm.data.resolve_model_data_config(module)
    return run_timm.data.create_transform(**{**config, "input_size": (3, 32, 32)}, is_training=False)


def by_timm(folder: Path, module: Any) -> tuple[list[str], torch.Tensor, torch.Tensor]:
    """Names, answers and labels of all images, by timm's own transform and a loop."""
    transform = transform_by_timm(module)
    files = sorted(folder.rglob("*.png"))
    classes = sorted(path.name for path in folder.iterdir())
    with torch.no_grad():
        answers = torch.cat([module(transform(Image.open(file).convert("RGB"))[None]) for file in files])
    labels = torch.tensor([classes.index(file.parent.name) for file in files])
    return [str(file.relative_to(folder)) for file in files], answers, labels


def found_by(*arguments: object) -> dict[str, Any]:
    done = run_main(evaluate, *arguments, "--json")
    assert done.code == 0, done.err
    return dict(done.json())


def scores(found: dict[str, Any], place: int = 0) -> dict[str, float]:
    return {score["measure"]: score["value"] for score in found["subjects"][place]["scores"]}


def predictions(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line)["prediction"] for line in file.read_text("utf-8").splitlines()[1:]]


def test_every_prediction_of_a_vit_is_timms(model: Path, folder: Path, tmp_path: Path) -> None:
    found = found_by(model, "--data", folder, "--resume", tmp_path / "p.jsonl", "--batch", "7")
    _, logits, labels = by_timm(folder, vit(len(CLASSES)))
    made = predictions(tmp_path / "p.jsonl")
    assert [each["classes"] for each in made] == logits.topk(5).indices.tolist()
    assert [each["target"] for each in made] == labels.tolist()
    assert len({each["classes"][0] for each in made}) > 2
    right = logits.topk(5).indices == labels[:, None]
    assert scores(found) == {
        "top-1": pytest.approx(float(right[:, 0].float().mean())),
        "top-5": pytest.approx(float(right.any(dim=1).float().mean())),
    }
    assert (found["task"], found["images"], found["changed"]) == ("classification", 64, [])


def test_a_bundle_and_its_onnx_file_are_what_onnxruntime_answers(
    model: Path, bundle: Path, folder: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.onnx"
    copy.write_bytes((bundle / "model.onnx").read_bytes())
    found = found_by(model, bundle, copy, "--data", folder, "--html", tmp_path / "page.html")
    module = vit(len(CLASSES))
    names, logits, labels = by_timm(folder, module)
    transform = transform_by_timm(module)
    session = onnxruntime.InferenceSession(str(copy), providers=["CPUExecutionProvider"])
    taken = session.get_inputs()[0].name
    inputs = [transform(Image.open(folder / name).convert("RGB"))[None].numpy() for name in names]
    theirs: list[int] = [int(np.asarray(session.run(None, {taken: each})[0]).argmax()) for each in inputs]
    ours, wanted = (cast("list[int]", each.tolist()) for each in (logits.argmax(dim=1), labels))
    changed = [index for index in range(len(names)) if ours[index] != theirs[index]]
    assert changed
    told = found["changed"]
    assert [each["image"] for each in told] == [names[index] for index in changed]
    for each, index in zip(told, changed, strict=True):
        answers = [CLASSES[label] for label in (ours[index], theirs[index], theirs[index])]
        assert (each["label"], each["answers"]) == (CLASSES[wanted[index]], answers)
    assert [subject["changed"] for subject in found["subjects"]] == [None, len(changed), len(changed)]
    right, before = (sum(map(int.__eq__, each, wanted)) / len(wanted) for each in (theirs, ours))
    difference = right - before
    for place in (1, 2):
        (first, _) = found["subjects"][place]["scores"]
        assert first["value"] == pytest.approx(right)
        assert first["difference"] == pytest.approx(difference)
        assert first["low"] <= difference <= first["high"]
    page = (tmp_path / "page.html").read_text("utf-8")
    assert page.count("<img") == len(changed)
    assert all(f"<td>{names[index]}</td>" in page for index in changed)


def test_the_table(model: Path, bundle: Path, folder: Path) -> None:
    done = run_main(evaluate, model, bundle, "--data", folder, "--limit", "10")
    assert done.code == 0, done.err
    assert f"classification of 10 images of {folder}" in done.out
    assert "top-1: difference [95 %]" in done.out
    assert "onnxruntime" in done.out


def test_a_drop_has_a_verdict(model: Path, folder: Path, tmp_path: Path) -> None:
    """A random model is compared with one that knows all: its drop is proven; and the other way round there is none."""
    names, logits, labels = by_timm(folder, vit(len(CLASSES)))
    assert float((logits.argmax(dim=1) == labels).float().mean()) < 0.5
    for name, right in zip(names, cast("list[int]", logits.argmax(dim=1).tolist()), strict=True):
        place = tmp_path / "right" / CLASSES[right]
        place.mkdir(parents=True, exist_ok=True)
        (place / Path(name).name).write_bytes((folder / name).read_bytes())
    for name in CLASSES:
        (tmp_path / "right" / name).mkdir(exist_ok=True)
    other = vit(len(CLASSES))
    with torch.no_grad():
        other.head.weight.copy_(other.head.weight.flip(0))
    worse = saved(tmp_path / "worse.pt", other, len(CLASSES))
    asked = ("--data", tmp_path / "right", "--max-drop")
    dropped = run_main(evaluate, model, worse, *asked, "5")
    assert dropped.code == 1
    assert f"at most 5 points below {model}: dropped" in dropped.out
    assert run_main(evaluate, worse, model, *asked, "5").code == 0
    assert run_main(evaluate, model, *asked, "5").code == 2


def test_features_are_compared_as_sklearn_does(folder: Path, tmp_path: Path) -> None:
    module = vit(0)
    found = found_by(saved(tmp_path / "features.pt", module, 0), "--data", folder)
    assert found["task"] == "retrieval"
    _, vectors, labels = by_timm(folder, module)
    right = list[bool]()
    for index in range(len(labels)):
        others = torch.arange(len(labels)) != index
        neighbours: Any = neighbors.KNeighborsClassifier(20, metric="cosine").fit(
            vectors[others].numpy(), labels[others].numpy()
        )
        right.append(bool(neighbours.predict(vectors[index : index + 1].numpy())[0] == int(labels[index])))
    assert scores(found)["kNN accuracy"] == pytest.approx(np.mean(right))


def test_progress_names_the_model_and_the_images(model: Path, bundle: Path, folder: Path) -> None:
    heard = list[tuple[str, int, int]]()

    def progress(label: str, done: int, total: int) -> None:
        heard.append((label, done, total))

    reporter = Reporter(say=SILENT.say, progress=progress)
    found = gpusq_deploy.evaluate([model, bundle], data=folder, batch_size=30, reporter=reporter)
    assert heard[:4] == [(f"evaluating {model}", done, 64) for done in (0, 30, 60, 64)]
    assert heard[8] == ("resampling", 0, 2000)
    assert found.draws == 2000


def test_a_stopped_evaluation_goes_on(
    model: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = found_by(model, "--data", folder)
    file, real = tmp_path / "p.jsonl", Image.open
    opened = list[str]()

    def dies(path: Any, *rest: Any) -> Any:
        opened.append(str(path))
        if len(opened) > 20:
            raise KeyboardInterrupt
        return real(path, *rest)

    monkeypatch.setattr(Image, "open", dies)
    done = run_main(evaluate, model, "--data", folder, "--resume", file, "--batch", "8")
    assert done.code == 130
    assert len(predictions(file)) == 16
    monkeypatch.setattr(Image, "open", real)
    again = run_main(evaluate, model, "--data", folder, "--resume", file, "--batch", "8", "--json")
    assert "16 of 64 predictions are known" in again.err
    assert again.json() == whole
    assert len(predictions(file)) == 64


def test_label_maps_are_scored_as_sklearn_does(tmp_path: Path) -> None:
    root = tmp_path / "ade"
    wanted = scenes(root)
    path, module, declared = transformers_model(tmp_path / "seg.pt", "SegformerForSemanticSegmentation", SEGFORMER)
    predicted = list[npt.NDArray[np.int64]]()
    for file in sorted((root / "images").iterdir()):
        fitted = squeezed(Image.open(file).convert("RGB"), FILTERS[declared.interpolation])
        with torch.no_grad():
            logits: Any = module(normalised(fitted, declared)[None])
        whole = torch.nn.functional.interpolate(logits, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
        predicted.append(array_from_tensor(whole.argmax(dim=1)[0]))
    found = found_by(path, "--data", root, "--reduce-labels", "--batch", "5")
    counts = wanted > 0
    ours, theirs = np.stack(predicted)[counts], wanted[counts].astype(np.int64) - 1
    assert len(np.unique(ours)) == 3
    assert found["task"] == "segmentation"
    assert scores(found) == {
        "mIoU": pytest.approx(metrics.jaccard_score(theirs, ours, labels=range(3), average="macro")),
        "pixel accuracy": pytest.approx((ours == theirs).mean()),
    }


def test_boxes_are_scored_as_pycocotools_does_from_files(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    root = tmp_path / "coco"
    scenes(root)
    path, module, declared = transformers_model(tmp_path / "detr.pt", "DetrForObjectDetection", DETR)
    results, images = list[dict[str, Any]](), list[dict[str, Any]]()
    for index, file in enumerate(sorted((root / "images").iterdir())):
        image = Image.open(file).convert("RGB")
        found = results_of(module, image, declared)
        results += [{"image_id": index, **each} for each in found]
        images.append({"id": index, "file_name": file.name, "width": image.width, "height": image.height})
    annotations = tmp_path / "boxes.json"
    annotations.write_text(json.dumps(truth_near(results, images)))
    (tmp_path / "results.json").write_text(json.dumps(results))
    judge = by_pycocotools(annotations, tmp_path / "results.json")
    evaluated = found_by(path, "--data", root / "images", "--annotations", annotations)
    assert evaluated["task"] == "detection"
    assert 0.01 < judge[0] < 0.9
    assert list(scores(evaluated).values()) == pytest.approx(judge, abs=1e-6)


def truth_near(results: list[dict[str, Any]], images: list[dict[str, Any]]) -> dict[str, Any]:
    """Annotations near every seventh result, so that something is found; half of them of another class."""
    rng, boxes = np.random.default_rng(0), list[dict[str, Any]]()
    for each in results[::7]:
        box = (np.array(each["bbox"]) * rng.uniform(0.9, 1.1, size=4)).tolist()
        label = (each["category_id"] + len(boxes) % 2) % 3
        entry = {"image_id": each["image_id"], "category_id": label, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        boxes.append({"id": len(boxes) + 1, **entry})
    categories = [{"id": label, "name": f"thing {label}"} for label in range(3)]
    return {"images": images, "annotations": boxes, "categories": categories}


def by_pycocotools(annotations: Path, results: Path) -> list[float]:
    """mAP, and that at IoU 0.5."""
    coco: Any = pytest.importorskip("pycocotools.coco")
    evaluation: Any = pytest.importorskip("pycocotools.cocoeval")
    with contextlib.redirect_stdout(io.StringIO()):
        truth: Any = coco.COCO(str(annotations))
        judge: Any = evaluation.COCOeval(truth, truth.loadRes(str(results)), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return [float(value) for value in judge.stats[:2]]


def refused(done: Finished, *words: str) -> None:
    assert done.code == 5, done.err
    assert "Traceback" not in done.err
    assert done.out == ""
    for word in words:
        assert word in done.err


def test_data_that_can_not_be_measured_by_is_refused(model: Path, folder: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(run_main(evaluate, model, "--data", empty), "no images in the folder")
    refused(run_main(evaluate, model, "--data", tmp_path / "none"), "no such folder")
    flat = folder / "cat"
    refused(
        run_main(evaluate, model, "--data", flat), "the data has no labels to measure by", "one sub-folder per class"
    )
    few = saved(tmp_path / "few.pt", vit(4), 4)
    refused(run_main(evaluate, few, "--data", folder), "the data has 8 classes, the model has only 4")
    boxes = ("--annotations", tmp_path / "boxes.json")
    refused(run_main(evaluate, model, "--data", folder, *boxes), "the model answers no boxes")
    refused(run_main(evaluate, model, "--data", folder, "--task", "detection"), "detection needs logits [N, queries")


def test_a_label_beyond_the_models_is_refused(model: Path, tmp_path: Path) -> None:
    import tarfile

    content = io.BytesIO()
    Image.fromarray(pieces(1, 0)[0]).save(content, "PNG")
    with tarfile.open(tmp_path / "shard.tar", "w") as shard:
        for name, data in (("0.png", content.getvalue()), ("0.cls", b"8")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            shard.addfile(member, io.BytesIO(data))
    refused(
        run_main(evaluate, model, "--data", tmp_path / "shard.tar"), "label 8 is none of the model's, 0 to 7", "entry 0"
    )


def test_models_that_do_not_go_together_are_refused(model: Path, bundle: Path, folder: Path, tmp_path: Path) -> None:
    few = saved(tmp_path / "more.pt", vit(9), 9)
    refused(run_main(evaluate, model, few, "--data", folder), "it has 9 classes, the first model 8", "more.pt")
    headless = saved(tmp_path / "headless.pt", vit(0), 0)
    refused(run_main(evaluate, model, headless, "--data", folder), "it is a model of retrieval")
    refused(run_main(evaluate, model, model, "--data", folder), "it is the same model")
    alone = tmp_path / "alone.onnx"
    alone.write_bytes((bundle / "model.onnx").read_bytes())
    refused(run_main(evaluate, alone, "--data", folder), "an ONNX file doesn't say how an image becomes its input")
    arch = ("--arch", f"timm:{NAME}", "--arch-arg", "img_size=48", "--arch-arg", "patch_size=8")
    refused(
        run_main(evaluate, alone, "--data", folder, *arch),
        "its input is [3, 32, 32]",
        "preprocessing makes [3, 48, 48]",
    )


def test_files_that_lie_there_are_left_alone(model: Path, folder: Path, tmp_path: Path) -> None:
    notes = tmp_path / "notes.html"
    notes.write_text("mine")
    for option in ("--html", "--resume"):
        refused(run_main(evaluate, model, "--data", folder, option, notes), "it was left alone", "notes.html")
    assert notes.read_text() == "mine"


def test_several_processes_find_what_one_does(model: Path, bundle: Path, folder: Path, tmp_path: Path) -> None:
    """To the last bit, an image that only one of them reads included; one of them speaks."""
    shutil.copytree(folder, tmp_path / "data")
    (tmp_path / "data" / "cat" / "01.png").write_bytes(b"damaged")
    words = [str(word) for word in (model, bundle, "--data", tmp_path / "data", "--batch", "5", "--json")]
    alone = found_by(*words[:-1])
    launch = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "gpusq_deploy", "eval")
    page = tmp_path / "page.html"
    done = subprocess.run(
        [*launch, *words, "--html", str(page)], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == alone
    assert len(alone["skipped"]) == 1
    assert done.stderr.count(f"wrote {page}") == 1
    assert page.stat().st_size


def test_processes_share_no_file_of_predictions(
    model: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    kept = tmp_path / "kept.jsonl"
    refused(run_main(evaluate, model, "--data", folder, "--resume", kept), "2 processes can't append to one file")
    assert not kept.exists()


def test_a_damaged_image_is_left_out_of_all_models(model: Path, bundle: Path, folder: Path, tmp_path: Path) -> None:
    for file in folder.rglob("*.png"):
        (tmp_path / "c" / file.parent.name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "c" / file.parent.name / file.name).write_bytes(file.read_bytes())
    (tmp_path / "c" / "cat" / "01.png").write_bytes(b"damaged")
    found = found_by(model, bundle, "--data", tmp_path / "c")
    assert found["images"] == 63
    assert len(found["skipped"]) == 1
    assert "01.png" in found["skipped"][0]
