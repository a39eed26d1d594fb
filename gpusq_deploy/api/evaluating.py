"""How accurate models are, in their task's own measure, side by side."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gpusq_deploy.api.arguments import PathLike, path_of, spec_of
from gpusq_deploy.progress import SILENT, Reporter

if TYPE_CHECKING:
    from gpusq_deploy.artifacts import ArchArgument, ArchSpec
    from gpusq_deploy.benchmarks import Evaluation, TaskRequest


def evaluate(  # noqa: PLR0913 - one argument for each option of gpusq-eval
    subjects: PathLike | Sequence[PathLike],
    *,
    data: PathLike,
    annotations: PathLike | None = None,
    reduce_labels: bool = False,
    task: TaskRequest = "auto",
    arch: ArchSpec | str | None = None,
    arch_args: Mapping[str, ArchArgument] | Sequence[str] = (),
    state_dict: str | None = None,
    runtime: str = "auto",
    batch_size: int = 32,
    limit: int | None = None,
    resume: PathLike | None = None,
    html: PathLike | None = None,
    max_drop: float | None = None,
    seed: int = 0,
    reporter: Reporter | None = None,
) -> Evaluation:
    """Measure bundles, checkpoints and ONNX files on the same labelled images, as gpusq-eval does.

    Under torchrun the processes share the images, and each returns the whole result.

    Args:
        subjects: One or several; the others are compared with the first.
        data: Labelled images, as `compress` takes them: a folder with one sub-folder per class, or with `images/` and
            label maps in `annotations/`; a saved Hugging Face data set; WebDataset shards; or
            `"package.module:factory"`.
        annotations: COCO's file of the boxes in `data`'s images, for a detector.
        reduce_labels: In label maps 0 is no class and 1 is the first, as in ADE20K's files.
        task: `"classification"` (top-1, top-5), `"detection"` (COCO's mAP), `"segmentation"` (mIoU), `"retrieval"` (kNN
            accuracy, mAP and recall@1 of features); `"auto"`: what the answer is.
        arch: The architecture of checkpoints and ONNX files that don't describe themselves.
        arch_args: Arguments of the architecture, by name or as `"K=V"`.
        state_dict: Which of a checkpoint's state dicts, where it holds several.
        runtime: Who runs bundles and ONNX files: `"tensorrt"`, `"tensorrt-rtx"`, `"onnxruntime"`, or `"auto"`.
        batch_size: Images per inference.
        limit: Use so many images, spread evenly; None: all.
        resume: A file of predictions to go on from and to append to; None: none.
        html: A page to write, with the images whose answer changed.
        max_drop: Points that the main measure of the others may be below the first's; the result has a verdict then.
        seed: Of the bootstrap.
        reporter: Who hears how it goes; nobody.

    Returns:
        Every model's measures, 0…1; differences from the first with their 95 % intervals, by a paired bootstrap over
        the images; and the images whose answer isn't the same.

    Raises:
        GpusqError: A bad model, bad or unlabelled data, models of other tasks or classes, or a file can't be written.
    """
    from gpusq_deploy.benchmarks import EvalRequest, evaluate_subjects

    given = (subjects,) if isinstance(subjects, (str, os.PathLike)) else tuple(subjects)
    paths = tuple(Path(path) for path in given)
    _require_sense(len(paths), max_drop, batch_size, limit)
    request = EvalRequest(
        subjects=paths,
        data=os.fspath(data),
        arch=spec_of(paths[0], arch, arch_args),
        state_dict=state_dict,
        annotations=path_of(annotations),
        reduce_labels=reduce_labels,
        task=task,
        runtime=runtime,
        batch=batch_size,
        limit=limit,
        resume=path_of(resume),
        seed=seed,
        max_drop=max_drop,
    )
    return evaluate_subjects(request, path_of(html), reporter or SILENT)


def _require_sense(models: int, max_drop: float | None, *counts: int | None) -> None:
    """Refuse what can't be meant.

    Raises:
        RequestError: No model, a drop of one model alone, or less than one image.
    """
    from gpusq_deploy.compile import RequestError

    if not models:
        raise RequestError("there is no model to evaluate", place="subjects", hint="name at least one")
    if max_drop is not None and models < 2:
        raise RequestError("one model drops from nothing", place="max_drop", hint="name the reference before it")
    if any(count is not None and count < 1 for count in counts):
        raise RequestError("the batch size and the limit are 1 or more", place="batch_size, limit")
