"""What is asked for, and what was found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gpusq_deploy.artifacts import ArchSpec, Value

TaskName = Literal["classification", "detection", "segmentation", "retrieval"]
TaskRequest = Literal["auto", "classification", "detection", "segmentation", "retrieval"]


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalRequest:
    """What gpusq-eval is asked for.

    `subjects` are bundles, checkpoints and ONNX files; the others are compared with the first. `arch` is of those that
    don't describe themselves. `limit` takes so many images, spread evenly. `resume` is the file of predictions.
    `max_drop` is in points, hundredths of the main measure.
    """

    subjects: tuple[Path, ...]
    data: str
    arch: ArchSpec | None = None
    state_dict: str | None = None
    annotations: Path | None = None
    reduce_labels: bool = False
    task: TaskRequest = "auto"
    runtime: str = "auto"
    batch: int = 32
    limit: int | None = None
    resume: Path | None = None
    draws: int = 2000
    seed: int = 0
    max_drop: float | None = None


class Score(Value):
    """One measure of one model, 0…1; and its difference from the first model's with the interval of that.

    `low` and `high` are the 2.5th and the 97.5th percentile of the differences in resampled images; all three are None
    of the first model.
    """

    measure: str
    value: float
    difference: float | None = None
    low: float | None = None
    high: float | None = None


class SubjectScores(Value):
    """One model: what it is, who ran it, and its scores; `changed` images have another answer than the first's."""

    name: str
    kind: Literal["bundle", "checkpoint", "ONNX model"]
    runtime: str
    digest: str
    scores: tuple[Score, ...]
    changed: int | None = None


class ChangedImage(Value):
    """An image whose answer isn't the same of all models: its label, and the answers in the models' order."""

    index: int
    image: str
    label: str
    answers: tuple[str, ...]


class Evaluation(Value):
    """What gpusq-eval found.

    `images` is how many all models were scored on; `draws` how often these were resampled. `verdict` is whether no
    model's main measure is more than `max_drop` points below the first's, where that was asked: by the intervals.
    """

    schema: Literal["gpusq.evaluation/1"] = "gpusq.evaluation/1"
    task: TaskName
    data: str
    images: int
    skipped: tuple[str, ...]
    draws: int
    seed: int
    subjects: tuple[SubjectScores, ...]
    changed: tuple[ChangedImage, ...]
    notes: tuple[str, ...] = ()
    max_drop: float | None = None
    verdict: Literal["holds", "dropped", "inconclusive"] | None = None

    @property
    def exit_code(self) -> int:
        """Of the command, as gpusq-compare's: 0, or 1 where a model dropped, or 3 where that can't be told."""
        return {"dropped": 1, "inconclusive": 3}.get(self.verdict or "", 0)
