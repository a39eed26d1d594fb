"""Every image through one model, in batches; what is known already isn't run again."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from gpusq_deploy.benchmarks.accuracy.judge import Judge
from gpusq_deploy.benchmarks.accuracy.store import Store
from gpusq_deploy.benchmarks.accuracy.subject import Subject, subject_key
from gpusq_deploy.benchmarks.accuracy.tasks_and_data import Entries, Read, Reader
from gpusq_deploy.calibration import Ranks, require_few_skipped
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.progress import Reporter


@dataclass(frozen=True, kw_only=True, slots=True)
class Samples:
    """The images of an evaluation: `indices` of the entries; `skipped` grows by those that can't be read.

    Rank r of w runs every w-th batch, the same batches as one process has.
    """

    entries: Entries
    indices: Sequence[int]
    batch: int
    ranks: Ranks = field(default_factory=Ranks)
    skipped: dict[int, str] = field(default_factory=dict[int, str])


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    """A model that is ready to run: its judge, how it reads an entry, and so many classes it has."""

    subject: Subject
    module: torch.nn.Module
    judge: Judge
    reader: Reader
    classes: int


def predict(loaded: Loaded, samples: Samples, store: Store, reporter: Reporter) -> dict[int, Any]:
    """The record of each image of this process's share that can be read, by index.

    Raises:
        GpusqError: Too many images can't be read, a label is none of the model's, or the model fails.
    """
    key = subject_key(loaded.subject)
    known = store.of(key, loaded.judge.record)
    records = {index: known[index] for index in samples.indices if index in known}
    missing = [index for index in samples.indices if index not in records]
    if records:
        reporter.say(f"{loaded.subject.name}: {len(records)} of {len(samples.indices)} predictions are known")
    label = f"evaluating {loaded.subject.name}"
    for start in range(0, len(missing), samples.batch)[samples.ranks.rank :: samples.ranks.world]:
        reporter.progress(label, start, len(missing))
        reads = _read(loaded, samples, missing[start : start + samples.batch])
        if reads:
            found = _judged(loaded, list(reads.values()))
            made = dict(zip(reads, found, strict=True))
            store.add(key, made)
            records.update(made)
    reporter.progress(label, len(missing), len(missing))
    return records


def _judged(loaded: Loaded, reads: Sequence[Read]) -> list[Any]:
    images = torch.from_numpy(np.stack([read.pixels for read in reads]))
    try:
        with torch.inference_mode():
            return loaded.judge.records(loaded.module, images, [read.target for read in reads])
    except GpusqError as error:
        raise GpusqError(error.what, place=loaded.subject.name, hint=error.hint) from error


def _read(loaded: Loaded, samples: Samples, indices: Sequence[int]) -> dict[int, Read]:
    found: dict[int, Read] = {}
    for index in indices:
        try:
            read = loaded.reader.read(samples.entries.entry(index))
        except GpusqError as error:
            samples.skipped.setdefault(index, f"{error.place or f'entry {index}'}: {error.what}")
            require_few_skipped(list(samples.skipped.values()), samples.entries)
            continue
        _require_label(read.target, loaded.classes, f"{samples.entries.name}, entry {index}")
        found[index] = read
    return found


def _require_label(target: Any, classes: int, place: str) -> None:
    """Of a class; boxes and maps are checked where they are read."""
    if isinstance(target, (int, np.integer)) and not 0 <= target < classes:
        known = f"the model's, 0 to {classes - 1}" if classes < sys.maxsize else "a class"
        raise GpusqError(f"label {target} is none of {known}", place=place, hint="number the classes as the model does")
