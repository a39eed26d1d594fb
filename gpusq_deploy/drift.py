"""Run the float graph and the built graph side by side and keep what their answers, and tensors inside, differ by.

Both answer one batch at a time, and of each batch only sums are kept: memory doesn't grow with the samples.
"""

from __future__ import annotations

import tempfile
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from gpusq_deploy.calibration.instrument import VALUES_SUFFIX, instrumented
from gpusq_deploy.calibration.sources import Batches, DataSource, filled
from gpusq_deploy.engines.ort import open_onnx
from gpusq_deploy.engines.session import Session
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph.blocks import Site
from gpusq_deploy.graph.mapped import map_model
from gpusq_deploy.graph.values import value_name
from gpusq_deploy.numerics.error import ErrorSums, error_sums, joined, top1_agreement

_BATCH = 4

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """A float graph and the graph that was built from it; names of tensors that both have mean the same."""

    reference: Path
    built: Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """What is left of two graphs' answers.

    Attributes:
        images: Samples that both answered.
        output: Sums over the first output.
        agreement: Share of samples whose largest logit is the same class; None unless that output is [N, classes].
        sites: Sums over each tensor that was looked at.
        first: The first batch and the built graph's answer to it, for another look.
    """

    images: int
    output: ErrorSums
    agreement: float | None
    sites: Mapping[Site, ErrorSums]
    first: tuple[npt.NDArray[np.float32], Array]


def compare(pair: Pair, source: DataSource, sites: Sequence[Site] = ()) -> Compared:
    """Compare the first output, and the given tensors, on every sample.

    Raises:
        GpusqError: One of the two computes NaN or infinity, or no sample can be read.
    """
    seen = _Seen()
    with ExitStack() as stack:
        reference, built = (
            stack.enter_context(_tapped(path, [site.tensor for site in sites])) for path in (pair.reference, pair.built)
        )
        for batch in Batches(source=source, size=_batch_size(reference, built)):
            expected, got = _run(reference, batch), _run(built, batch)
            _require_finite(expected, got, pair, source)
            seen.add(batch, expected, got)
    return seen.result(sites)


def in_both(pair: Pair, sites: Sequence[Site]) -> tuple[Site, ...]:
    """The sites whose tensor both graphs have: a rewrite may do without one."""
    names = [{value_name(value) for value in _values(map_model(path))} for path in (pair.reference, pair.built)]
    return tuple(site for site in sites if all(site.tensor in known for known in names))


def fused_answer(built: Path, batch: npt.NDArray[np.float32]) -> Array:
    """The first output with ONNX Runtime's own rewrites switched on, as a user's session has them.

    Raises:
        GpusqError: ONNX Runtime can't run what it made of the graph.
    """
    session = open_onnx(built)
    try:
        return _run(session, batch)[session.outputs[0].name]
    finally:
        session.close()


@dataclass(kw_only=True, slots=True)
class _Seen:
    """Sums of each batch; `outputs` by output name in the order of the graph."""

    outputs: dict[str, list[ErrorSums]] = field(default_factory=dict[str, list[ErrorSums]])
    agreement: list[float] = field(default_factory=list[float])
    first: tuple[npt.NDArray[np.float32], Array] | None = None

    def add(self, batch: npt.NDArray[np.float32], expected: Mapping[str, Array], got: Mapping[str, Array]) -> None:
        # The two give their outputs in the same order; that a graph's own output has the same name isn't promised.
        for name, one, other in zip(expected, expected.values(), got.values(), strict=True):
            self.outputs.setdefault(name, []).append(error_sums(one, other))
        one, other = next(iter(expected.values())), next(iter(got.values()))
        if one.ndim == 2:
            self.agreement.append(top1_agreement(one, other) * len(one))
        if self.first is None:
            self.first = (batch, other)

    def result(self, sites: Sequence[Site]) -> Compared:
        assert self.first is not None, "a source without a readable sample is refused by its batches"
        output = joined(next(iter(self.outputs.values())))
        images = len(output.signal)
        return Compared(
            images=images,
            output=output,
            agreement=sum(self.agreement) / images if self.agreement else None,
            sites={site: joined(self.outputs[f"{site.tensor}{VALUES_SUFFIX}"]) for site in sites},
            first=self.first,
        )


@contextmanager
def _tapped(path: Path, tensors: Sequence[str]) -> Generator[Session, None, None]:
    """A session without ONNX Runtime's rewrites whose graph returns the given tensors too.

    Its weights are copied from file to file and mapped from there: neither graph is ever read whole.
    """
    if not tensors:
        with _opened(path) as session:
            yield session
        return
    with tempfile.TemporaryDirectory() as folder:
        changed = Path(folder) / "tapped.onnx"
        tapped = instrumented(map_model(path), tuple(dict.fromkeys(tensors)), whole=tensors)
        ir.save(tapped, changed, external_data="tapped.data")
        del tapped
        with _opened(changed) as session:
            yield session


@contextmanager
def _opened(path: Path) -> Generator[Session, None, None]:
    session = open_onnx(path, optimize=False)
    try:
        yield session
    finally:
        session.close()


def _batch_size(*sessions: Session) -> int:
    static = [session.inputs[0].shape[0] for session in sessions if session.inputs[0].shape[0] > 0]
    return max(static, default=_BATCH)


def _run(session: Session, batch: npt.NDArray[np.float32]) -> dict[str, Array]:
    fixed = session.inputs[0].shape[0]
    feed = filled(batch, fixed if fixed > 0 else None)
    return {name: value[: len(batch)] for name, value in session.run({session.inputs[0].name: feed}).items()}


def _require_finite(expected: Mapping[str, Array], got: Mapping[str, Array], pair: Pair, source: DataSource) -> None:
    if not np.isfinite(next(iter(expected.values()))).all():
        raise GpusqError(
            "the float graph computes NaN or infinity",
            place=source.name,
            hint="check the weights and the preprocessing",
        )
    if not np.isfinite(next(iter(got.values()))).all():
        raise GpusqError(
            "the built graph computes NaN or infinity where the float graph doesn't",
            place=pair.built.name,
            hint="an activation outgrows the remainder's type: build with --bf16 or --fp32",
        )


def _values(model: ir.Model) -> Iterator[ir.Value]:
    for node in model.graph:
        yield from node.outputs
