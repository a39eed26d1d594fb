"""What a model says of some images, in words and drawn, so that a person sees that it works."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from PIL import Image

from gpusq_deploy.artifacts import ArchSpec, Preprocessing, Value, require_folder
from gpusq_deploy.benchmarks.accuracy.answers import class_name, require_finite
from gpusq_deploy.benchmarks.accuracy.drawing import Box, draw_boxes, draw_classes, draw_map, save_picture
from gpusq_deploy.benchmarks.accuracy.judges import choose_judge
from gpusq_deploy.benchmarks.accuracy.subject import Subject, find_subjects
from gpusq_deploy.benchmarks.accuracy.tasks_and_data import Classification, Detection, Segmentation, task_of
from gpusq_deploy.benchmarks.accuracy.values import TaskName
from gpusq_deploy.calibration import Sample, SessionModule, fit_image, load_image, turned_remark
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend import array_from_tensor
from gpusq_deploy.progress import Reporter

_TOP = 5
_SAID = ("scores", "class_labels", "boxes")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRequest:
    """What gpusq-run is asked for: `out` is a folder for drawn copies; boxes likelier than `threshold` are told."""

    model: Path
    images: tuple[Path, ...]
    arch: ArchSpec | None = None
    state_dict: str | None = None
    runtime: str = "auto"
    threshold: float = 0.5
    out: Path | None = None
    force: bool = False


class Found(Value):
    """A class: its probability, or its share of the pixels of a label map; `box` in the image's pixels, corners."""

    label: str
    share: float
    box: tuple[float, float, float, float] | None = None


class ShownImage(Value):
    """What was found in an image, the likeliest first; `drawn` is the copy that shows it."""

    image: str
    found: tuple[Found, ...]
    drawn: str | None = None


class RunAnswers(Value):
    """What gpusq-run found."""

    schema: Literal["gpusq.run/1"] = "gpusq.run/1"
    model: str
    runtime: str
    task: TaskName
    images: tuple[ShownImage, ...]


class _Model(NamedTuple):
    """A loaded model, its task, and the names of its classes."""

    subject: Subject
    module: torch.nn.Module
    task: Any
    names: tuple[str, ...]


def run_images(request: RunRequest, reporter: Reporter) -> RunAnswers:
    """Run a model on images, one at a time, and draw what it says where a folder is named.

    Raises:
        GpusqError: A bad model or image, a model of features, or a copy that exists or can't be written.
    """
    places = _places(request)
    (subject,) = find_subjects((request.model,), request.runtime, request.arch, request.state_dict)
    module = subject.open()
    chosen = choose_judge(subject, module, "auto", maps=True)
    if chosen.judge.task == "retrieval":
        raise GpusqError(
            "the model answers features, which say nothing to a person",
            place=subject.name,
            hint="gpusq-eval --task retrieval measures it; open_bundle(...).session().run(...) returns them",
        )
    names = tuple(subject.facts.names.get(label, str(label)) for label in range(chosen.classes))
    with torch.inference_mode():
        answer = module(torch.zeros(1, *subject.sample_shape, device=next(module.parameters()).device))
    model = _Model(subject, module, task_of(module, answer, maps=True), names)
    turned = turned_remark(request.images)
    if turned:
        reporter.say(turned)
    shown: list[ShownImage] = []
    for image, place in zip(request.images, places, strict=True):
        reporter.progress("running", len(shown), len(places))
        shown.append(_shown(model, image, place, request.threshold))
    if isinstance(module, SessionModule):
        module.close()
    return RunAnswers(model=subject.name, runtime=subject.runtime, task=chosen.judge.task, images=tuple(shown))


def _places(request: RunRequest) -> list[Path | None]:
    """Where each copy goes.

    Raises:
        GpusqError: Two would go to one place, or something lies there.
    """
    if request.out is None:
        return [None for _ in request.images]
    require_folder(request.out / "x" if request.out.is_dir() else request.out)
    places = [request.out / f"{image.stem}.png" for image in request.images]
    twice = [place for place, count in Counter(places).items() if count > 1]
    if twice:
        raise GpusqError("two images would be drawn to one file", place=str(twice[0]), hint="run them one by one")
    for place, image in zip(places, request.images, strict=True):
        if place.resolve() == image.resolve():
            raise GpusqError("the copy would replace the image", place=str(place), hint="name another --out")
        if place.exists() and not request.force:
            raise GpusqError("the copy exists", place=str(place), hint="name another --out, or replace it with --force")
    return list(places)


def _shown(model: _Model, image: Path, place: Path | None, threshold: float) -> ShownImage:
    with torch.inference_mode():
        if isinstance(model.task, Detection):
            found, picture = _boxes(model, model.task, image, threshold, draws=place is not None)
        elif isinstance(model.task, Segmentation):
            found, picture = _map(model, model.task, image, draws=place is not None)
        else:
            found, picture = _classes(model, image, draws=place is not None)
    if place is not None and picture is not None:
        save_picture(picture, place)
    return ShownImage(image=str(image), found=tuple(found), drawn=None if place is None else str(place))


def _classes(model: _Model, image: Path, *, draws: bool) -> tuple[list[Found], Image.Image | None]:
    answer = Classification().answer(model.module, _batch(load_image(image, _declared(model))))
    shares = require_finite(answer).float().softmax(dim=1)[0].cpu()
    order = cast("list[int]", torch.sort(shares, descending=True, stable=True).indices[:_TOP].tolist())
    found = [Found(label=class_name(label, model.names), share=float(shares[label])) for label in order]
    texts = [_text(each) for each in found]
    return found, draw_classes(_opened(image), texts) if draws else None


def _boxes(
    model: _Model, task: Detection, image: Path, threshold: float, *, draws: bool
) -> tuple[list[Found], Image.Image | None]:
    """The input holds the scaled image at its left and top; boxes are shares of the input."""
    declared = _declared(model)
    fitted = fit_image(image, declared)
    pixels = np.zeros(declared.sample_shape, np.float32)
    _, height, width = fitted.sample.shape
    pixels[:, :height, :width] = fitted.sample
    answer = task.answer(model.module, _batch(pixels))
    require_finite(answer.logits)
    said: Any = task.predictions(answer)[0]
    across, down = declared.width / width * fitted.original[1], declared.height / height * fitted.original[0]
    found: list[Found] = []
    boxes: list[Box] = []
    for score, label, (x, y, wide, high) in zip(*(said[name].tolist() for name in _SAID), strict=True):
        if score <= threshold:
            continue
        corners = ((x - wide / 2) * across, (y - high / 2) * down, (x + wide / 2) * across, (y + high / 2) * down)
        found.append(Found(label=class_name(label, model.names), share=score, box=corners))
        boxes.append(Box(corners, label, _text(found[-1])))
    return found, draw_boxes(_opened(image), boxes) if draws else None


def _map(model: _Model, task: Segmentation, image: Path, *, draws: bool) -> tuple[list[Found], Image.Image | None]:
    declared = _declared(model)
    sample = load_image(image, declared)
    (labels,) = task.predictions(require_finite(task.answer(model.module, _batch(sample))))
    drawn = array_from_tensor(labels)
    classes, counts = np.unique(drawn, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:_TOP]
    found = [
        Found(label=class_name(int(classes[place]), model.names), share=float(counts[place] / labels.numel()))
        for place in order
    ]
    if not draws:
        return found, None
    texts = [(int(classes[place]), _text(each)) for place, each in zip(order, found, strict=True)]
    return found, draw_map(_seen(sample, model), drawn, texts)


def _seen(sample: Sample, model: _Model) -> Image.Image:
    """The resized crop that the model sees, as a picture."""
    declared = _declared(model)
    std, mean = (np.asarray(values, np.float32)[:, None, None] for values in (declared.std, declared.mean))
    pixels = np.rint((sample * std + mean) * 255).clip(0, 255).astype(np.uint8)
    return Image.fromarray(np.moveaxis(pixels, 0, 2) if len(pixels) == 3 else pixels[0]).convert("RGB")


def _declared(model: _Model) -> Preprocessing:
    assert model.subject.preprocessing is not None, "find_subjects sees to it"
    return model.subject.preprocessing


def _batch(sample: Sample) -> torch.Tensor:
    return torch.from_numpy(sample[None])


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        converted: Image.Image = image.convert("RGB")
    return converted


def _text(found: Found) -> str:
    return f"{found.label} {found.share:.1%}"


def texts_of(shown: ShownImage) -> Sequence[str]:
    """What was found in an image, one line for each."""
    return [
        _text(each) + ("" if each.box is None else f" at {', '.join(f'{side:.0f}' for side in each.box)}")
        for each in shown.found
    ]
