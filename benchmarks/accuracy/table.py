"""An evaluation as rows of words."""

from __future__ import annotations

from gpusq_deploy.benchmarks.accuracy.values import Evaluation, Score
from gpusq_deploy.text import counted


def heading_of(evaluation: Evaluation) -> str:
    """`classification of 50 images of DATA`."""
    skipped = f" ({counted(len(evaluation.skipped), 'image')} can't be read)" if evaluation.skipped else ""
    return f"{evaluation.task} of {counted(evaluation.images, 'image')} of {evaluation.data}{skipped}"


def rows_of(evaluation: Evaluation) -> tuple[list[str], list[list[str]]]:
    """Headings and rows: a model, its runtime, its measures in percent, and differences in points.

    Of one model alone there are no differences.
    """
    measures = [score.measure for score in evaluation.subjects[0].scores]
    headings = ["model", "runtime", *measures]
    if len(evaluation.subjects) > 1:
        headings += [f"{measures[0]}: difference [95 %]", "changed"]
    rows = [
        [
            subject.name,
            subject.runtime,
            *(f"{score.value:.2%}" for score in subject.scores),
            *((_difference(subject.scores[0]), _count(subject.changed)) if len(evaluation.subjects) > 1 else ()),
        ]
        for subject in evaluation.subjects
    ]
    return headings, rows


def _difference(score: Score) -> str:
    if score.difference is None or score.low is None or score.high is None:
        return ""
    return f"{100 * score.difference:+.2f} [{100 * score.low:+.2f}, {100 * score.high:+.2f}]"


def _count(changed: int | None) -> str:
    return "" if changed is None else str(changed)
