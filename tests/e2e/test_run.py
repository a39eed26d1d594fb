"""gpusq-run against loops without this package: classes, boxes in the image's pixels, label maps; and pictures."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from coco_masks import decoded
from commands import run_main
from foreign_loops import (
    DETR,
    DETR_SEGMENTATION,
    FILTERS,
    SEGFORMER,
    UPERNET,
    library,
    normalised,
    pieces,
    results_of,
    squeezed,
    transformers_model,
)
from PIL import Image

from gpusq_deploy import open_bundle
from gpusq_deploy.cli.build import main as build
from gpusq_deploy.cli.run import main as run

pytestmark = pytest.mark.slow
transformers: Any = importlib.import_module("transformers")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photos")
    for index, piece in enumerate(pieces(3, 5)):
        Image.fromarray(piece).resize((3 * piece.shape[1], 3 * piece.shape[0])).save(folder / f"{index}.png")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Whole ones, of odd sizes: wide, high, and smaller than the models' inputs."""
    folder = tmp_path_factory.mktemp("whole")
    for name, box in (("cat", (0, 0, 451, 300)), ("coffee", (31, 0, 240, 399)), ("rocket", (300, 100, 357, 149))):
        Image.fromarray(getattr(library, name)()).crop(box).save(folder / f"{name}.png")
    return sorted(folder.iterdir())


def pixels(path: str) -> npt.NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image)


def answers(*arguments: object) -> dict[str, Any]:
    done = run_main(run, *arguments, "--json")
    assert done.code == 0, done.err
    return dict(done.json())


def test_boxes_lie_where_the_loop_has_them(images: list[Path], tmp_path: Path) -> None:
    path, module, declared = transformers_model(tmp_path / "detr.pt", "DetrForObjectDetection", DETR)
    told = answers(path, *images, "--threshold", "0.3", "--out", tmp_path / "drawn")
    assert (told["task"], len(told["images"])) == ("detection", 3)
    assert sum(len(shown["found"]) for shown in told["images"]) > 3
    for image, shown in zip(images, told["images"], strict=True):
        whole = Image.open(image).convert("RGB")
        wanted = [each for each in results_of(module, whole, declared) if each["score"] > 0.3]
        assert [each["share"] for each in shown["found"]] == pytest.approx([each["score"] for each in wanted])
        for ours, theirs in zip(shown["found"], wanted, strict=True):
            x, y, wide, high = theirs["bbox"]
            assert ours["box"] == pytest.approx([x, y, x + wide, y + high], abs=1e-2)
        assert pixels(shown["drawn"]).shape == (whole.height, whole.width, 3)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("SegformerForSemanticSegmentation", SEGFORMER), ("UperNetForSemanticSegmentation", UPERNET)],
)
def test_a_label_map_is_what_transformers_makes_of_the_whole_photograph(
    name: str, arguments: dict[str, Any], photographs: list[Path], tmp_path: Path
) -> None:
    path, module, declared = transformers_model(tmp_path / "seg.pt", name, arguments)
    told = answers(path, *photographs, "--out", tmp_path / "drawn")
    post_process: Any = transformers.SegformerImageProcessor().post_process_semantic_segmentation
    for file, shown in zip(photographs, told["images"], strict=True):
        whole = Image.open(file).convert("RGB")
        with torch.no_grad():
            logits: Any = module(normalised(squeezed(whole, FILTERS[declared.interpolation]), declared)[None])
        (wanted,) = post_process(SimpleNamespace(logits=logits), target_sizes=[(whole.height, whole.width)])
        labels = np.full(wanted.shape, -1)
        for found in shown["found"]:
            labels[decoded(found["mask"])] = int(found["label"].removeprefix("LABEL_"))
            assert found["share"] == pytest.approx(decoded(found["mask"]).mean())
        # Rounding decides where two classes are equally likely.
        assert (labels != wanted.numpy()).mean() < 1e-4
        assert sum(found["share"] for found in shown["found"]) == pytest.approx(1)
        assert pixels(shown["drawn"]).shape == (whole.height, whole.width, 3)
    assert sum(len(shown["found"]) for shown in told["images"]) > len(photographs)


def test_masks_of_queries_are_what_transformers_makes_of_them(photographs: list[Path], tmp_path: Path) -> None:
    """A square photograph fills the input, as transformers' function takes for granted.

    It is RF-DETR's, which answers masks that overlap, fed with the sigmoid's inverse of DETR's probabilities.
    """
    path, module, declared = transformers_model(tmp_path / "detr.pt", "DetrForSegmentation", DETR_SEGMENTATION)
    square = tmp_path / "square.png"
    Image.open(photographs[0]).convert("RGB").resize((199, 199)).save(square)
    (shown,) = answers(path, square, "--threshold", "0.3", "--out", tmp_path / "drawn")["images"]
    with torch.no_grad():
        logits, _, masks, *_ = module(
            normalised(squeezed(Image.open(square), FILTERS[declared.interpolation]), declared)[None]
        )
    answer = SimpleNamespace(logits=logits.softmax(dim=-1)[..., :-1].logit(), pred_masks=masks)
    processor: Any = transformers.RfDetrImageProcessor()
    (wanted,) = processor.post_process_instance_segmentation(
        answer, threshold=0.3, target_sizes=[(199, 199)], return_binary_maps=True
    )
    assert len(shown["found"]) == len(wanted["segments_info"]) > 3
    for found, segment, mask in zip(shown["found"], wanted["segments_info"], wanted["segmentation"], strict=True):
        assert found["share"] == pytest.approx(segment["score"], abs=1e-5)
        assert found["label"] == f"LABEL_{segment['label_id']}"
        assert (decoded(found["mask"]) != mask.numpy()).mean() < 1e-3
    assert np.any([decoded(found["mask"]).any() for found in shown["found"]])
    plain = run_main(run, path, square, "--threshold", "0.3").out
    assert "counts" not in plain
    assert len(plain.splitlines()) == 1 + len(shown["found"])


def test_a_bundle_prints_the_likeliest_classes(images: list[Path], dense: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    built = run_main(build, dense, "--fp32", "--target", "none", "--out", bundle)
    assert built.code == 0, built.err
    done = run_main(run, bundle, *images)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert [lines[place] for place in (0, 6, 12)] == [f"{image}:" for image in images]
    told = answers(bundle, images[0])
    with open_bundle(bundle).session() as session:
        (logits,) = session.run(images[0]).values()
    shares = torch.from_numpy(logits).softmax(dim=1)[0]
    best = shares.argsort(descending=True)[:5]
    assert [each["label"] for each in told["images"][0]["found"]] == [str(int(label)) for label in best]
    assert [each["share"] for each in told["images"][0]["found"]] == pytest.approx(
        [float(shares[label]) for label in best]
    )
    assert told["images"][0]["drawn"] is None
    assert told["runtime"] == "onnxruntime"


def test_a_turned_photograph_is_run_as_its_pixels_lie_and_that_is_said(
    images: list[Path], dense: Path, tmp_path: Path
) -> None:
    turned, exif = tmp_path / "turned.jpg", Image.Exif()
    exif[0x0112] = 6
    with Image.open(images[0]) as image:
        image.save(turned, exif=exif, quality=95)
        image.save(tmp_path / "straight.jpg", quality=95)
    done = run_main(run, dense, turned, "--json")
    assert "1 of 1 image has an EXIF orientation, which isn't applied" in done.err
    straight = run_main(run, dense, tmp_path / "straight.jpg", "--json")
    assert "EXIF" not in straight.err
    assert done.json()["images"][0]["found"] == straight.json()["images"][0]["found"]


def test_nothing_is_replaced_unasked(images: list[Path], dense: Path, tmp_path: Path) -> None:
    out = tmp_path / "drawn"
    assert run_main(run, dense, images[0], "--out", out).code == 0
    before = (out / "0.png").read_bytes()
    again = run_main(run, dense, images[0], "--out", out)
    assert again.code == 5
    assert "the copy exists" in again.err
    assert (out / "0.png").read_bytes() == before
    assert run_main(run, dense, images[0], "--out", out, "--force").code == 0
    itself = run_main(run, dense, images[0], "--out", images[0].parent, "--force")
    assert itself.code == 5
    assert "the copy would replace the image" in itself.err


def test_what_can_not_be_run_is_told(images: list[Path], dense: Path, tmp_path: Path) -> None:
    notes = tmp_path / "notes.png"
    notes.write_text("mine")
    for arguments, words in (
        ((dense, tmp_path / "none.png"), "no such file"),
        ((dense, notes), "not a readable image"),
        ((dense, images[0], "--out", tmp_path / "no" / "such"), "the folder to write into does not exist"),
    ):
        done = run_main(run, *arguments)
        assert done.code == 5, done.err
        assert words in done.err
        assert "Traceback" not in done.err
