"""Read every sample once, leave out what is damaged, and split."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from gpusq_deploy.calibration import require_few_skipped
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.sparsity.training.data.entries import Augmenter, Entries, EntrySamples, Read, Reader
from gpusq_deploy.sparsity.training.samples import TrainingData

_KEEP_BELOW = 2 << 30  # bytes of float32 samples that are kept in memory
_PER_VALIDATION = 10  # of so many samples that aren't held out, one


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitOptions:
    """`held_out`: the share 0…1 that is kept out of training; at least one sample lands on either side.

    `seed` decides the split, together with the order of the entries. All samples are kept in memory where they need
    fewer than `keep_below` bytes.
    """

    held_out: float
    seed: int
    keep_below: int = _KEEP_BELOW


class _Whole(NamedTuple):
    readable: list[int]
    kept: list[Read] | None
    skipped: list[str]


def split_entries(
    entries: Entries,
    reader: Reader,
    options: SplitOptions,
    *,
    classes: tuple[str, ...] = (),
    labels: int | None = None,
    augmenter: Augmenter | None = None,
) -> TrainingData:
    """Samples to train on, to choose by, and to measure on.

    Args:
        entries: All of them.
        reader: Of those that nothing augments.
        options: See there.
        classes: Names of the classes, if any.
        labels: So many the model has, where a target is one of them.
        augmenter: Of the training samples.

    Raises:
        GpusqError: Too many entries can't be read, as in calibration, or fewer than two can; or a target is none of the
            model's labels.
    """
    whole = _read(entries, reader, options.keep_below, labels)
    held, left = _halves(len(whole.readable), options, entries)
    chosen = len(left) // _PER_VALIDATION
    order = [left[int(index)] for index in np.random.default_rng((options.seed, 1)).permutation(len(left))]
    trained = sorted(order[chosen:])
    plain = _selected(entries, reader, whole, trained)
    varied = None if augmenter is None else replace(plain, kept=None, augmenter=augmenter, seed=options.seed)
    return TrainingData(
        train=plain if varied is None else varied,
        plain=None if varied is None else plain,
        validation=_selected(entries, reader, whole, sorted(order[:chosen]) or trained),
        held_out=_selected(entries, reader, whole, held),
        classes=classes,
        skipped=tuple(whole.skipped),
    )


def _read(entries: Entries, reader: Reader, keep_below: int, labels: int | None) -> _Whole:
    """Every entry is read once, also where none is kept, so that a damaged one is found before training."""
    whole = _Whole([], [], [])
    kept = whole.kept
    for index in range(len(entries)):
        try:
            found = reader.read(entries.entry(index))
        except GpusqError as error:
            whole.skipped.append(f"{error.place}: {error.what}")
            require_few_skipped(whole.skipped, entries)
            continue
        if labels is not None and entries.labelled and not 0 <= found.target < labels:
            raise GpusqError(
                f"label {found.target} is none of the model's, 0 to {labels - 1}",
                place=f"{entries.name}, entry {index}",
            )
        if kept is not None and 4 * math.prod(found.pixels.shape) * len(entries) >= keep_below:
            kept = None
        whole.readable.append(index)
        if kept is not None:
            kept.append(found)
    return whole._replace(kept=kept)


def _halves(count: int, options: SplitOptions, entries: Entries) -> tuple[list[int], list[int]]:
    if count < 2:
        raise GpusqError(
            f"{count or 'none'} of {len(entries)} images can be read: training and holding out need two",
            place=entries.name,
        )
    held = min(max(1, round(options.held_out * count)), count - 1)
    order = [int(index) for index in np.random.default_rng(options.seed).permutation(count)]
    return sorted(order[:held]), sorted(order[held:])


def _selected(entries: Entries, reader: Reader, whole: _Whole, places: Sequence[int]) -> EntrySamples:
    kept = whole.kept
    return EntrySamples(
        entries=entries,
        indices=[whole.readable[place] for place in places],
        reader=reader,
        kept=None if kept is None else [kept[place] for place in places],
    )
