"""A Mask R-CNN by one call, into one folder, and run from it on image files."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_detector
import torch
from coco_masks import decoded
from commands import run_main
from PIL import Image
from tiny_detector import ARGUMENTS, SIZE

import gpusq_deploy
from gpusq_deploy.cli.detector import main
from gpusq_deploy.cli.run import main as run
from gpusq_deploy.frontend import array_from_tensor

pytestmark = pytest.mark.slow
skimage_data: Any = importlib.import_module("skimage.data")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`detector.pt`, four photographs, one of another shape, and `whole`, in float32."""
    where = tmp_path_factory.mktemp("detector")
    (where / "photos").mkdir()
    generator = torch.Generator().manual_seed(0)
    for index, (height, width) in enumerate([SIZE, SIZE, SIZE, (64, 80)]):
        rough = torch.rand(1, 3, 8, 10, generator=generator)
        plain = torch.nn.functional.interpolate(rough, (height, width), mode="nearest")[0]
        pixels = 255 * (0.7 * plain + 0.3 * torch.rand(3, height, width, generator=generator))
        Image.fromarray(array_from_tensor(pixels.byte().permute(1, 2, 0))).save(where / "photos" / f"{index}.png")
    tiny_detector.save(where / "detector.pt")
    made = gpusq_deploy.build_detector(
        where / "detector.pt",
        out=where / "whole",
        data=where / "photos",
        height=SIZE[0],
        width=SIZE[1],
        arguments=ARGUMENTS,
        targets=(),
    )
    assert [str(bundle.manifest.batch) for bundle in made.values()] == ["1:1:1", "1:60:60", "1:20:20"]
    return where


@pytest.fixture(scope="module")
def detector(folder: Path) -> Iterator[gpusq_deploy.Detector]:
    with gpusq_deploy.open_detector(folder / "whole") as opened:
        yield opened


def of_torchvision(file: Path) -> dict[str, torch.Tensor]:
    pixels = np.array(Image.open(file).convert("RGB"), dtype=np.float32) / 255
    whole: Any = tiny_detector.detector()
    with torch.no_grad():
        (found,) = whole([torch.from_numpy(pixels).permute(2, 0, 1)])
    return dict(found)


def test_a_photograph_of_its_size_gets_what_torchvision_finds(folder: Path, detector: gpusq_deploy.Detector) -> None:
    """The parts compute in FP16: the surest detections are the same ones, within a pixel."""
    assert detector.size == SIZE
    file = folder / "photos" / "0.png"
    (found,), wanted = detector.run([file]), of_torchvision(file)
    assert len(wanted["labels"]) >= 5
    near = [
        np.abs(found.boxes - array_from_tensor(box)).max(axis=1).min() < 1.0
        for box in wanted["boxes"][: len(wanted["boxes"]) // 2]
    ]
    assert np.mean(near) >= 0.9
    assert found.masks.shape[1:] == (1, *SIZE)


def test_a_smaller_photograph_is_scaled_up_and_answered_in_its_own_pixels(
    folder: Path, detector: gpusq_deploy.Detector
) -> None:
    file = folder / "photos" / "3.png"
    (found,) = detector.run(file)
    (same,) = detector.run(Image.open(file))
    np.testing.assert_array_equal(found.boxes, same.boxes)
    assert found.masks.shape[1:] == (1, 64, 80)
    assert found.boxes[:, [0, 2]].max() <= 80
    assert found.boxes[:, [1, 3]].max() <= 64
    best = of_torchvision(file)["boxes"][0]
    assert np.abs(found.boxes - array_from_tensor(best)).max(axis=1).min() < 1.0


def test_gpusq_run_tells_and_draws_masks_on_a_photograph_of_an_odd_size(
    folder: Path, detector: gpusq_deploy.Detector, tmp_path: Path
) -> None:
    """A pixel is of what was found from 0.5 on; that masks lie as torchvision pastes them, test_graphs.py says."""
    photograph = tmp_path / "cat.png"
    Image.fromarray(skimage_data.cat()).crop((3, 7, 400, 250)).save(photograph)
    done = run_main(run, folder / "whole", photograph, "--threshold", "0.9", "--out", tmp_path / "drawn", "--json")
    assert done.code == 0, done.err
    answers = done.json()
    assert (answers["task"], answers["runtime"]) == ("detection", "onnxruntime")
    (shown,) = answers["images"]
    (wanted,) = detector.run(photograph)
    likely = int((wanted.scores > 0.9).sum())
    assert len(shown["found"]) == likely > 3
    assert likely < len(wanted.scores)
    for index, found in enumerate(shown["found"]):
        assert found["label"] == str(wanted.labels[index])
        assert found["share"] == pytest.approx(float(wanted.scores[index]))
        assert found["box"] == pytest.approx(wanted.boxes[index].tolist())
        np.testing.assert_array_equal(decoded(found["mask"]), wanted.masks[index, 0] >= 0.5)
    assert any(decoded(found["mask"]).any() for found in shown["found"])
    with Image.open(shown["drawn"]) as drawn:
        assert drawn.size == (397, 243)
    refused = run_main(run, folder / "whole", photograph, "--arch", "torchvision:maskrcnn_resnet50_fpn")
    assert refused.code == 5
    assert "leave out --arch" in refused.err
    plain = run_main(run, folder / "whole", photograph, "--threshold", "0.9")
    assert plain.code == 0, plain.err
    assert len(plain.out.splitlines()) == 1 + likely


def test_an_output_that_exists_is_left_alone(folder: Path) -> None:
    asked: Any = {"data": folder / "photos", "height": SIZE[0], "width": SIZE[1]}
    with pytest.raises(gpusq_deploy.GpusqError, match="the output exists already"):
        gpusq_deploy.build_detector(folder / "detector.pt", out=folder / "photos", **asked)
    with pytest.raises(gpusq_deploy.GpusqError, match=r"state dict|doesn't fit|shape|weights"):
        gpusq_deploy.build_detector(folder / "detector.pt", out=folder / "none", **asked)
    assert sorted(path.name for path in folder.iterdir()) == ["detector.pt", "photos", "whole"]


def test_the_command_builds_one_that_can_be_opened(folder: Path, tmp_path: Path) -> None:
    words = [word for key, value in ARGUMENTS.items() for word in ("--arch-arg", f"{key}={value}")]
    words += ["--calib", str(folder / "photos"), "--height", str(SIZE[0]), "--width", str(SIZE[1]), "--target", "none"]
    out = tmp_path / "whole"
    done = run_main(main, folder / "detector.pt", *words, "--int8", "--out", out, "--json")
    assert done.code == 0, done.err
    parts = done.json()["parts"]
    assert list(parts) == ["dense", "box", "mask"]
    assert parts["box"]["int8_layers"] > 0
    with gpusq_deploy.open_detector(out) as opened:
        assert len(opened.run(folder / "photos" / "0.png")[0].labels)
