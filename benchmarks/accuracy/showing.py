"""What a model says of some images, in words and drawn, so that a person sees that it works."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from PIL import Image

from gpusq_deploy.artifacts import ArchSpec, Preprocessing
from gpusq_deploy.benchmarks.accuracy.answers import class_name, require_finite
from gpusq_deploy.benchmarks.accuracy.drawing import draw_classes, draw_map, opened_picture, save_picture
from gpusq_deploy.benchmarks.accuracy.instances import Instances, shown_instances
from gpusq_deploy.benchmarks.accuracy.judges import choose_judge
from gpusq_deploy.benchmarks.accuracy.shown import Found, RunAnswers, ShownImage, mask_of, places_of, text_of
from gpusq_deploy.benchmarks.accuracy.subject import Subject, find_subjects
from gpusq_deploy.benchmarks.accuracy.tasks_and_data import Classification, Detection, Segmentation, task_of
from gpusq_deploy.benchmarks.accuracy.window import UNSEEN, cropped_window, fitted_window, label_map, masks_in_image
from gpusq_deploy.calibration import Sample, SessionModule, fit_image, load_image, turned_remark
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.progress import Reporter

_TOP = 5
_SAID = ("scores", "class_labels", "boxes", "queries")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRequest:
    """What gpusq-run is asked for: `out` is a folder for drawn copies; boxes likelier than `threshold` are told.

    `masks`: masks are told too, not only drawn.
    """

    model: Path
    images: tuple[Path, ...]
    arch: ArchSpec | None = None
    state_dict: str | None = None
    runtime: str = "auto"
    threshold: float = 0.5
    masks: bool = False
    out: Path | None = None
    force: bool = False


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
    places = places_of(request.images, request.out, force=request.force)
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
        shown.append(_shown(model, image, place, request))
    if isinstance(module, SessionModule):
        module.close()
    return RunAnswers(model=subject.name, runtime=subject.runtime, task=chosen.judge.task, images=tuple(shown))


def _shown(model: _Model, image: Path, place: Path | None, request: RunRequest) -> ShownImage:
    with torch.inference_mode():
        if isinstance(model.task, Detection):
            found = _instances(model, model.task, image, request.threshold)
            return shown_instances(image, found, model.names, place, masks=request.masks)
        if isinstance(model.task, Segmentation):
            return _map(model, model.task, image, place, masks=request.masks)
        return _classes(model, image, place)


def _classes(model: _Model, image: Path, place: Path | None) -> ShownImage:
    answer = Classification().answer(model.module, _batch(load_image(image, _declared(model))))
    shares = require_finite(answer).float().softmax(dim=1)[0].cpu()
    order = cast("list[int]", torch.sort(shares, descending=True, stable=True).indices[:_TOP].tolist())
    found = tuple(Found(label=class_name(label, model.names), share=float(shares[label])) for label in order)
    if place is not None:
        save_picture(draw_classes(opened_picture(image), [text_of(each) for each in found]), place)
    return ShownImage(image=str(image), found=found, drawn=None if place is None else str(place))


def _instances(model: _Model, task: Detection, image: Path, threshold: float) -> Instances:
    """The input holds the scaled image at its left and top; boxes are shares of the input."""
    declared = _declared(model)
    fitted = fit_image(image, declared)
    pixels = np.zeros(declared.sample_shape, np.float32)
    _, height, width = fitted.sample.shape
    pixels[:, :height, :width] = fitted.sample
    answer = task.answer(model.module, _batch(pixels))
    require_finite(answer.logits)
    said: Any = task.predictions(answer)[0]
    window = fitted_window(fitted, declared)
    across, down = declared.width / window.scale[1], declared.height / window.scale[0]
    told = [row for row in zip(*(said[name].tolist() for name in _SAID), strict=True) if row[0] > threshold]
    return Instances(
        boxes=[
            ((x - wide / 2) * across, (y - high / 2) * down, (x + wide / 2) * across, (y + high / 2) * down)
            for _, _, (x, y, wide, high), _ in told
        ],
        labels=[label for _, label, _, _ in told],
        scores=[score for score, *_ in told],
        masks=None
        if answer.masks is None
        else masks_in_image(require_finite(answer.masks[0])[[query for *_, query in told]], window),
    )


def _map(model: _Model, task: Segmentation, image: Path, place: Path | None, *, masks: bool) -> ShownImage:
    """Of the image's own pixels, of which a crop leaves some out."""
    declared = _declared(model)
    logits = require_finite(task.logits(model.module, _batch(load_image(image, declared))))
    with Image.open(image) as opened:
        labels = label_map(logits, cropped_window(opened.size, declared))
    classes, counts = np.unique(labels[labels != UNSEEN], return_counts=True)
    order = np.argsort(-counts, kind="stable")
    found = tuple(
        Found(
            label=class_name(int(classes[index]), model.names),
            share=float(counts[index] / counts.sum()),
            mask=mask_of(labels == classes[index]) if masks else None,
        )
        for index in order
    )
    if place is not None:
        legend = zip(classes[order][:_TOP], found, strict=False)
        save_picture(
            draw_map(opened_picture(image), labels, [(int(label), text_of(each)) for label, each in legend]), place
        )
    return ShownImage(image=str(image), found=found, drawn=None if place is None else str(place))


def _declared(model: _Model) -> Preprocessing:
    assert model.subject.preprocessing is not None, "find_subjects sees to it"
    return model.subject.preprocessing


def _batch(sample: Sample) -> torch.Tensor:
    return torch.from_numpy(sample[None])
