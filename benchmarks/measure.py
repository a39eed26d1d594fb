"""Take the samples: fresh sessions, alternating order, warm-up, and no number before the outputs are sane.

The session times each inference itself (wall clock on a CPU, CUDA events on a GPU); this module decides only what
runs when. Order ABBA: with batches 1, 8, 32 the repeats run 1 8 32 | 32 8 1 | 1 8 32 | …, so that a machine which
slowly warms up or is slowly loaded burdens every batch size alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusq_deploy.artifacts import BatchRange, MeasureSettings, Series
from gpusq_deploy.engines import Session, TensorSpec
from gpusq_deploy.errors import GpusqError

Feeds = Mapping[str, NDArray[Any]]
SessionFactory = Callable[[], Session]
FeedMaker = Callable[[Sequence[TensorSpec], int], Feeds]
Progress = Callable[[str, int, int], None]
"""Called with a label, series done and series in all."""

DYNAMIC = -1
_FLOATING = ("float32", "float16", "float64")


def measure(
    session_factory: SessionFactory,
    batches: Sequence[int],
    settings: MeasureSettings,
    progress: Progress | None = None,
    *,
    feeds: FeedMaker | None = None,
    allowed: BatchRange | None = None,
) -> tuple[Series, ...]:
    """Measure every batch size in every repeat.

    Args:
        session_factory: Opens a new session; called once per repeat, and the session is closed after it.
        batches: Batch sizes, in the order of the even repeats.
        settings: Counts, and the seed of made-up inputs.
        progress: Told before each series and at the end.
        feeds: Makes the inputs of one batch size; standard-normal ones from the seed by default.
        allowed: The batch sizes that the model was built for, where somebody knows.

    Returns:
        One series per repeat and batch size, in the order of measurement.

    Raises:
        GpusqError: A batch size that the model can't take, inputs that can't be made up, an output that isn't
            finite, or the runtime failed.
    """
    make = feeds if feeds is not None else _normal_maker(settings.seed)
    tell = progress if progress is not None else _silence
    total = settings.repeats * len(batches)
    taken: list[Series] = []
    for repeat in range(settings.repeats):
        with closing(session_factory()) as session:
            check_batches(session.inputs, batches, allowed)
            for batch in batch_order(batches, repeat):
                tell("measuring", len(taken), total)
                taken.append(_series(session, make(session.inputs, batch), settings, batch=batch, repeat=repeat))
    tell("measuring", total, total)
    return tuple(taken)


def batch_order(batches: Sequence[int], repeat: int) -> tuple[int, ...]:
    """Batches as given in even repeats, backwards in odd ones."""
    return tuple(batches) if repeat % 2 == 0 else tuple(reversed(batches))


def normal_feeds(specs: Sequence[TensorSpec], batch: int, seed: int) -> dict[str, NDArray[Any]]:
    """Standard-normal inputs: a function of seed, batch size and the input's place, not of the order of measurement.

    Args:
        specs: The model's inputs; only the first dimension may be dynamic.
        batch: Fills a dynamic first dimension.
        seed: Not negative.

    Raises:
        GpusqError: An input isn't floating, or another dimension is dynamic.
    """
    return {spec.name: _normal(spec, batch, np.random.default_rng([seed, batch, i])) for i, spec in enumerate(specs)}


def check_batches(specs: Sequence[TensorSpec], batches: Sequence[int], allowed: BatchRange | None) -> None:
    """Refuse batch sizes that the model can't take.

    Raises:
        GpusqError: At least one can't be taken; the error names the allowed range.
    """
    for batch in batches:
        if allowed is not None and not allowed.minimum <= batch <= allowed.maximum:
            raise _unfit(batch, _spoken(allowed))
        for spec in specs:
            if spec.shape and spec.shape[0] not in (DYNAMIC, batch):
                raise _unfit(batch, f"{spec.shape[0]} only, by its input {spec.name!r}")


def _spoken(allowed: BatchRange) -> str:
    return f"{allowed.minimum} only" if allowed.static else f"{allowed.minimum} to {allowed.maximum}"


def _unfit(batch: int, takes: str) -> GpusqError:
    return GpusqError(
        f"the model can't take batch {batch}; allowed: {takes}",
        place="--batch",
        hint="measure an allowed batch, or build with another --batch MIN:OPT:MAX",
    )


def _series(session: Session, feeds: Feeds, settings: MeasureSettings, *, batch: int, repeat: int) -> Series:
    # A kernel that meets NaN or overflows may take another path and another time, so sanity comes first.
    check_finite(session.run(feeds), batch)
    take = session.timer(feeds)
    for _ in range(settings.warmup):
        take()
    samples = tuple(take() for _ in range(settings.iterations))
    return Series(batch=batch, repeat=repeat, warmup=settings.warmup, samples_ms=samples)


def check_finite(outputs: Mapping[str, NDArray[Any]], batch: int) -> None:
    """Refuse outputs that no latency is worth taking of.

    Raises:
        GpusqError: A floating output holds NaN or an infinity.
    """
    for name, values in outputs.items():
        if values.dtype.kind in "biu":
            continue
        # ml_dtypes' types don't all know isfinite: widen first.
        broken = int(np.count_nonzero(~np.isfinite(values.astype(np.float32, copy=False))))
        if broken:
            raise GpusqError(
                f"{broken} of {values.size} values of output {name!r} are not finite at batch {batch}",
                place=f"output {name!r}",
                hint="a latency of wrong numbers means nothing; check the model with gpusq-validate, "
                "or build it with --bf16 or --fp32 if FP16 overflows",
            )


def _silence(_label: str, _done: int, _total: int) -> None:
    """Nobody asked for progress."""


def _normal_maker(seed: int) -> FeedMaker:
    return lambda specs, batch: normal_feeds(specs, batch, seed)


def _normal(spec: TensorSpec, batch: int, rng: np.random.Generator) -> NDArray[Any]:
    if spec.dtype not in _FLOATING:
        raise GpusqError(
            f"can't make up values of type {spec.dtype}: only {', '.join(_FLOATING)} can be standard-normal",
            place=f"input {spec.name!r}",
        )
    if DYNAMIC in spec.shape[1:]:
        raise GpusqError(
            f"the input is dynamic beyond its batch: {list(spec.shape)}",
            place=f"input {spec.name!r}",
            hint="export the model with a fixed image size",
        )
    shape = tuple(batch if size == DYNAMIC else size for size in spec.shape)
    values: NDArray[Any] = rng.standard_normal(shape, dtype=np.float32).astype(spec.dtype)
    return values
