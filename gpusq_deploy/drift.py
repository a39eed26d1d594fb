"""Run the float graph and the built graph side by side and keep what their answers, and tensors inside, differ by.

Both answer one batch at a time, and of each batch only sums are kept: memory doesn't grow with the samples.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from gpusq_deploy.graph.files import scratch_model
from gpusq_deploy.graph.mapped import map_model
from gpusq_deploy.graph.values import static_batch, value_name
from gpusq_deploy.numerics.error import ErrorSums, Spread, error_sums, joined, spread_of, top1_agreement

_BATCH = 4
# Of the float graph's answers, before the built graph is asked.
_KEPT_BYTES = 256 << 20

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
        others: Sums over each further output of floats, by its name in the float graph.
        agreement: Share of samples whose largest logit is the same class; None unless that output is [N, classes].
        sites: Sums over each tensor that was looked at.
        first: The first batch and the built graph's answer to it, for another look.
        constant: Whether the float graph gives every sample the same first output; `constant_others` of the others.
    """

    images: int
    output: ErrorSums
    others: Mapping[str, ErrorSums]
    agreement: float | None
    sites: Mapping[Site, ErrorSums]
    first: tuple[npt.NDArray[np.float32], Array]
    constant: bool = False
    constant_others: tuple[str, ...] = ()


def compare(
    pair: Pair,
    source: DataSource,
    sites: Sequence[Site] = (),
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Compared:
    """Compare the outputs, and the given tensors, on every sample.

    Args:
        pair: The two graphs.
        source: Samples.
        sites: Tensors inside that both have.
        progress: Hears how many of the runs are done: two for each sample, fewer where samples can't be read.

    Raises:
        GpusqError: One of the two computes NaN or infinity, or no sample can be read.
    """
    seen, tensors, done = _Seen(), [site.tensor for site in sites], 0

    def ran(batch: npt.NDArray[np.float32]) -> None:
        nonlocal done
        done += len(batch)
        progress(done, 2 * len(source))

    with _tapped(pair.reference, tensors) as reference, _tapped(pair.built, tensors) as built:
        batches = iter(Batches(source=source, size=_batch_size(reference, built)))
        while answered := _answered(reference, batches, ran):
            with _opened(built) as session:
                for batch, expected in answered:
                    got = _run(session, batch)
                    ran(batch)
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
    session = open_onnx(built, frugal=True)
    try:
        return _run(session, batch)[session.outputs[0].name]
    finally:
        session.close()


@dataclass(kw_only=True, slots=True)
class _Seen:
    """Sums of each batch; `outputs` by output name in the order of the graph, `spreads` of those that aren't taps."""

    outputs: dict[str, list[ErrorSums]] = field(default_factory=dict[str, list[ErrorSums]])
    spreads: dict[str, Spread] = field(default_factory=dict[str, Spread])
    agreement: list[float] = field(default_factory=list[float])
    first: tuple[npt.NDArray[np.float32], Array] | None = None

    def add(self, batch: npt.NDArray[np.float32], expected: Mapping[str, Array], got: Mapping[str, Array]) -> None:
        # The two give their outputs in the same order; that a graph's own output has the same name isn't promised.
        for name, one, other in zip(expected, expected.values(), got.values(), strict=True):
            if not self.outputs or name in self.outputs or _is_compared(one):
                self.outputs.setdefault(name, []).append(error_sums(one, other))
                if not name.endswith(VALUES_SUFFIX):
                    self.spreads[name] = spread_of(one, self.spreads.get(name))
        one, other = next(iter(expected.values())), next(iter(got.values()))
        if one.ndim == 2:
            self.agreement.append(top1_agreement(one, other) * len(one))
        if self.first is None:
            self.first = (batch, other)

    def result(self, sites: Sequence[Site]) -> Compared:
        assert self.first is not None, "a source without a readable sample is refused by its batches"
        output = joined(next(iter(self.outputs.values())))
        images = len(output.signal)
        first, *others = self.spreads
        taps = {f"{site.tensor}{VALUES_SUFFIX}" for site in sites}
        return Compared(
            images=images,
            output=output,
            others={name: joined(sums) for name, sums in [*self.outputs.items()][1:] if name not in taps},
            agreement=sum(self.agreement) / images if self.agreement else None,
            sites={site: joined(self.outputs[f"{site.tensor}{VALUES_SUFFIX}"]) for site in sites},
            first=self.first,
            constant=self.spreads[first].constant,
            constant_others=tuple(name for name in others if self.spreads[name].constant),
        )


def _answered(
    reference: Path, batches: Iterator[npt.NDArray[np.float32]], ran: Callable[[npt.NDArray[np.float32]], None]
) -> list[tuple[npt.NDArray[np.float32], dict[str, Array]]]:
    """The float graph's answers to the next batches, as many as may be kept: the two graphs are never open at once."""
    found: list[tuple[npt.NDArray[np.float32], dict[str, Array]]] = []
    kept, first = 0, next(batches, None)
    if first is None:
        return found
    with _opened(reference) as session:
        for batch in itertools.chain([first], batches):
            found.append((batch, _run(session, batch)))
            ran(batch)
            kept += sum(value.nbytes for value in found[-1][1].values())
            if kept > _KEPT_BYTES:
                break
    return found


@contextmanager
def _tapped(path: Path, tensors: Sequence[str]) -> Generator[Path, None, None]:
    """A graph that returns the given tensors too. Its weights are copied from file to file, and never read whole."""
    if not tensors:
        yield path
        return
    with scratch_model(instrumented(map_model(path), tuple(dict.fromkeys(tensors)), whole=tensors)) as changed:
        yield changed


@contextmanager
def _opened(path: Path) -> Generator[Session, None, None]:
    session = open_onnx(path, optimize=False, frugal=True)
    try:
        yield session
    finally:
        session.close()


def _batch_size(*graphs: Path) -> int:
    return max((static_batch(map_model(path).graph) or 0 for path in graphs), default=0) or _BATCH


def _run(session: Session, batch: npt.NDArray[np.float32]) -> dict[str, Array]:
    fixed = session.inputs[0].shape[0]
    feed = filled(batch, fixed if fixed > 0 else None)
    answers = session.run({session.inputs[0].name: feed})
    return {name: value[: len(batch)] if value.ndim else value for name, value in answers.items()}


def _is_compared(output: Array) -> bool:
    """Whether it is of samples: floats, with an axis for them."""
    return output.ndim > 0 and bool(np.issubdtype(output.dtype, np.floating))


def _require_finite(expected: Mapping[str, Array], got: Mapping[str, Array], pair: Pair, source: DataSource) -> None:
    """Of what the graphs answer; a tensor inside may be infinite where a later one isn't."""
    own = {name: other for name, other in zip(expected, got.values(), strict=True) if not name.endswith(VALUES_SUFFIX)}
    first = next(iter(own))
    if expected[first].ndim == 0:
        raise GpusqError(
            f"the first output, {first}, is one number, not one of each sample",
            place=pair.reference.name,
            hint="let the model answer with tensors whose first axis is the batch",
        )
    for name, other in own.items():
        if not np.isfinite(expected[name]).all():
            raise GpusqError(
                f"the float graph computes NaN or infinity in {name}",
                place=source.name,
                hint="check the weights and the preprocessing",
            )
        if not np.isfinite(other).all():
            raise GpusqError(
                f"the built graph computes NaN or infinity in {name}, where the float graph doesn't",
                place=pair.built.name,
                hint="an activation outgrows the remainder's type: build with --bf16 or --fp32",
            )


def _values(model: ir.Model) -> Iterator[ir.Value]:
    for node in model.graph:
        yield from node.outputs
