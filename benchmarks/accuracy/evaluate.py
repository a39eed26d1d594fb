"""The order of an evaluation: models, data, predictions, measures, differences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from gpusq_deploy.benchmarks.accuracy.bootstrap import Interval, paired_intervals
from gpusq_deploy.benchmarks.accuracy.class_names import by_name
from gpusq_deploy.benchmarks.accuracy.judge import Judge, Judged
from gpusq_deploy.benchmarks.accuracy.judges import Chosen, choose_judge
from gpusq_deploy.benchmarks.accuracy.page import write_page
from gpusq_deploy.benchmarks.accuracy.predict import Loaded, Samples, predict
from gpusq_deploy.benchmarks.accuracy.sharing import evaluating_ranks, gathered
from gpusq_deploy.benchmarks.accuracy.store import Store, data_digest, file_digest, opened_store
from gpusq_deploy.benchmarks.accuracy.subject import Subject, find_subjects, subject_key
from gpusq_deploy.benchmarks.accuracy.tasks_and_data import (
    DataRequest,
    Entry,
    Labels,
    OpenedData,
    SplitOptions,
    exchanged,
    has_maps,
    open_data,
    other_order,
    reader_of,
)
from gpusq_deploy.benchmarks.accuracy.values import ChangedImage, EvalRequest, Evaluation, Score, SubjectScores
from gpusq_deploy.bundle import require_page
from gpusq_deploy.calibration import Ranks, SessionModule, require_few_skipped, spread_indices
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.progress import SILENT, Reporter

_UNNAMED = "LABEL_"  # what transformers calls a class that nobody named


class _Data(NamedTuple):
    """What was opened, for the labels of the first model; and the names of the classes."""

    request: DataRequest
    opened: OpenedData
    labels: Labels
    names: tuple[str, ...]


class _Results(NamedTuple):
    """What every model made of the images that all could read."""

    judge: Judge
    judged: tuple[Judged, ...]
    indices: tuple[int, ...]
    skipped: tuple[str, ...]


def evaluate_subjects(request: EvalRequest, html: Path | None, reporter: Reporter) -> Evaluation:
    """Measure models on the same images, and how sure their differences are.

    Under torchrun each process runs its share of the batches, and all return the same; the first speaks and writes.

    Args:
        request: What is asked for.
        html: A page to write, too.
        reporter: Who hears how it goes.

    Raises:
        GpusqError: A bad model, bad or unlabelled data, models of other tasks, or a file that can't be written.
    """
    ranks = evaluating_ranks(request.resume)
    reporter = reporter if ranks.first else SILENT
    if html is not None:
        require_page(html)
    subjects = find_subjects(request.subjects, request.runtime, request.arch, request.state_dict)
    _require_distinct(subjects)
    with opened_store(request.resume, _digest(request)) as store:
        data, results = _run(request, subjects, store, ranks, reporter)
    evaluation = _evaluation(request, subjects, data, results, reporter)
    if html is not None and ranks.first:
        write_page(html, evaluation, data.opened.entries)
    return evaluation


def _run(
    request: EvalRequest, subjects: Sequence[Subject], store: Store, ranks: Ranks, reporter: Reporter
) -> tuple[_Data, _Results]:
    """The data is opened for the labels of the first model; one model is loaded at a time."""
    opened: tuple[_Data, Samples] | None = None
    records: list[dict[int, Any]] = []
    judges: list[Judge] = []
    for subject in subjects:
        module = subject.open()
        chosen = choose_judge(subject, module, request.task, maps=has_maps(Path(request.data)))
        opened = opened or _opened(request, subject, chosen, ranks)
        _require_same(subject, chosen, judges, opened[0])
        judges.append(chosen.judge)
        records.append(predict(_loaded(subject, module, chosen, opened[0]), opened[1], store, reporter))
        if isinstance(module, SessionModule):
            module.close()
    assert opened is not None, "there is a subject"
    data, samples = opened
    every = gathered(ranks, records, samples.skipped, [judge.record for judge in judges])
    require_few_skipped(list(samples.skipped.values()), samples.entries)
    return data, _results(judges, every, samples)


def _loaded(subject: Subject, module: torch.nn.Module, chosen: Chosen, data: _Data) -> Loaded:
    assert subject.preprocessing is not None, "find_subjects sees to it"
    return Loaded(
        subject=subject,
        module=module,
        judge=chosen.judge,
        reader=reader_of(data.request, subject.preprocessing, chosen.judge.measure, data.labels),
        classes=chosen.classes,
    )


def _results(judges: Sequence[Judge], records: Sequence[dict[int, Any]], samples: Samples) -> _Results:
    """Of the images that every model could read."""
    common = [index for index in samples.indices if all(index in each for each in records)]
    if not common:
        raise GpusqError("no image could be read", place=samples.entries.name)
    judged = tuple(judge.judged([each[index] for index in common]) for judge, each in zip(judges, records, strict=True))
    return _Results(judges[0], judged, tuple(common), tuple(why for _, why in sorted(samples.skipped.items())))


def _opened(request: EvalRequest, first: Subject, chosen: Chosen, ranks: Ranks) -> tuple[_Data, Samples]:
    asked = DataRequest(
        data=request.data,
        split=SplitOptions(held_out=0.5, seed=0),
        annotations=request.annotations,
        reduce_labels=request.reduce_labels,
    )
    labels = Labels(chosen.classes, first.facts.names)
    opened = open_data(asked, chosen.judge.measure, labels)
    if chosen.judge.task == "classification":
        opened = by_name(opened, first.facts.names)
    if not opened.entries.labelled:
        hints = {
            "mAP": "give COCO's file of their boxes as --annotations",
            "mIoU": "put the images into images/ and label maps of the same names into annotations/",
            "accuracy": "give one sub-folder per class, in the order of the model's classes",
        }
        raise GpusqError("the data has no labels to measure by", place=request.data, hint=hints[chosen.judge.measure])
    count = len(opened.entries)
    indices = spread_indices(count, request.limit or count)
    samples = Samples(entries=opened.entries, indices=indices, batch=request.batch, ranks=ranks)
    return _Data(asked, opened, labels, _names(first, chosen, opened)), samples


def _names(first: Subject, chosen: Chosen, opened: OpenedData) -> tuple[str, ...]:
    """The model's own, or the data's; empty where nobody named the classes."""
    told = first.facts.names
    if not told or chosen.judge.task == "retrieval" or all(name.startswith(_UNNAMED) for name in told.values()):
        return opened.classes
    return tuple(told.get(label, str(label)) for label in range(chosen.classes))


def _evaluation(
    request: EvalRequest, subjects: Sequence[Subject], data: _Data, results: _Results, reporter: Reporter
) -> Evaluation:
    judge, (first, *others) = results.judge, results.judged
    draws = min([request.draws, *(each.draws or request.draws for each in results.judged)]) if others else 0
    statistics = [each.statistic for each in results.judged]
    intervals = paired_intervals(
        statistics,
        len(results.indices),
        draws=draws,
        seed=request.seed,
        heard=lambda done: reporter.progress("resampling", done, draws),
    )
    changed = [_changed(judge, first, other) for other in others]
    places = sorted({place for found in changed for place in found})
    scored = (
        _scores(subjects[0], judge, first),
        *(
            _scores(subject, judge, mine, first, interval, len(found))
            for subject, mine, interval, found in zip(subjects[1:], others, intervals, changed, strict=True)
        ),
    )
    return Evaluation(
        task=judge.task,
        data=data.opened.entries.name,
        images=len(results.indices),
        skipped=results.skipped,
        draws=draws,
        seed=request.seed,
        subjects=scored,
        changed=tuple(_changed_image(place, data, results) for place in places),
        notes=tuple(_notes(request, draws, data, results)),
        max_drop=request.max_drop,
        verdict=None if request.max_drop is None else verdict_of(scored, request.max_drop),
    )


def verdict_of(subjects: Sequence[SubjectScores], max_drop: float) -> Literal["holds", "dropped", "inconclusive"]:
    """Whether all others are at most `max_drop` points below the first.

    A model has dropped where its whole interval lies below, and holds where none of it does.
    """
    intervals = [subject.scores[0] for subject in subjects[1:]]
    least = -max_drop / 100
    if any(each.high is not None and each.high < least for each in intervals):
        return "dropped"
    return "inconclusive" if any(each.low is not None and each.low < least for each in intervals) else "holds"


def _scores(
    subject: Subject,
    judge: Judge,
    judged: Judged,
    first: Judged | None = None,
    intervals: Sequence[Interval] = (),
    changed: int | None = None,
) -> SubjectScores:
    scores = [Score(measure=name, value=value) for name, value in zip(judge.measures, judged.values, strict=True)]
    if first is not None:
        scores = [
            Score(measure=mine.measure, value=mine.value, difference=mine.value - base, low=each.low, high=each.high)
            for mine, base, each in zip(scores, first.values, intervals, strict=True)
        ]
    return SubjectScores(
        name=subject.name,
        kind=subject.kind,
        runtime=subject.runtime,
        digest=subject.digest,
        scores=tuple(scores),
        changed=changed,
    )


def _changed(judge: Judge, first: Judged, other: Judged) -> list[int]:
    pairs = zip(first.answers, other.answers, strict=True)
    return [place for place, (ours, theirs) in enumerate(pairs) if judge.changed(ours, theirs)]


def _changed_image(place: int, data: _Data, results: _Results) -> ChangedImage:
    index = results.indices[place]
    return ChangedImage(
        index=index,
        image=_image_name(data.opened.entries.entry(index), index, data.request.data),
        label=results.judge.text(results.judged[0].labels[place], data.names),
        answers=tuple(results.judge.text(each.answers[place], data.names) for each in results.judged),
    )


def _image_name(entry: Entry, index: int, data: str) -> str:
    if not isinstance(entry.image, Path):
        return f"entry {index}"
    folder = Path(data)
    return str(entry.image.relative_to(folder) if entry.image.is_relative_to(folder) else entry.image)


def _notes(request: EvalRequest, draws: int, data: _Data, results: _Results) -> Iterator[str]:
    if 0 < draws < request.draws:
        yield f"the intervals rest on {draws} draws instead of {request.draws}: so many boxes take long to sum up"
    if results.judge.task != "classification":
        return
    first = results.judged[0]
    order = other_order(first.answers, first.labels)
    if order:
        wrong, right = exchanged(order)
        yield (
            "the data's classes seem to be in another order than the model's: of class "
            f"{results.judge.text(wrong, data.names)} ({wrong}) it mostly predicts {right}"
        )


def _digest(request: EvalRequest) -> str:
    if request.resume is None:
        return ""
    told = (file_digest(request.annotations), str(request.reduce_labels))
    return data_digest(request.data, request.resume, *told)


def _require_same(subject: Subject, chosen: Chosen, judges: Sequence[Judge], data: _Data) -> None:
    if judges and chosen.judge.task != judges[0].task:
        raise GpusqError(
            f"it is a model of {chosen.judge.task}, the first of {judges[0].task}",
            place=subject.name,
            hint="models are compared in one measure: name those of one task",
        )
    if chosen.classes != data.labels.count:
        raise GpusqError(
            f"it has {chosen.classes} classes, the first model {data.labels.count}",
            place=subject.name,
            hint="models are compared on the same classes",
        )


def _require_distinct(subjects: Sequence[Subject]) -> None:
    keys = [subject_key(subject) for subject in subjects]
    for place, key in enumerate(keys):
        if key in keys[:place]:
            raise GpusqError(
                f"it is the same model on the same runtime as {subjects[keys.index(key)].name}",
                place=subjects[place].name,
                hint="name each once",
            )
