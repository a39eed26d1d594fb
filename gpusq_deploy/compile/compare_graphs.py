"""Run the float graph and the built graph side by side and keep what their answers, and tensors inside, differ by.

Both answer one batch at a time, and of each batch only sums are kept: memory doesn't grow with the samples.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from gpusq_deploy.calibration import VALUES_SUFFIX, Batches, DataSource, filled, instrumented
from gpusq_deploy.engines import Session, open_onnx
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph import (
    DriftSite,
    Moved,
    SampleAxes,
    map_model,
    sample_axes,
    scratch_model,
    static_batch,
    value_name,
)
from gpusq_deploy.numerics import (
    ErrorSums,
    Spread,
    equal_share,
    error_sums,
    is_floating,
    joined,
    spread_of,
    sqnr_db,
    top1_agreement,
)

_BATCH = 4
# A tenth of an output's amplitude.
_STEADY_DB = 20.0
# Of the float graph's answers, before the built graph is asked.
_KEPT_BYTES = 256 << 20

Array = npt.NDArray[Any]
_Figure = TypeVar("_Figure")


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """A float graph and the graph that was built from it; tensors inside that have one name mean the same.

    `moved` are the exceptions, by name: what smoothing did to them, which is undone before they are compared; None
    where that isn't known channel by channel, and they aren't compared.
    """

    reference: Path
    built: Path
    moved: Mapping[str, Moved | None] = field(default_factory=dict[str, "Moved | None"])


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """What is left of two graphs' answers. Of floats errors are summed, of integers the equal ones are counted.

    Attributes:
        images: Samples that both answered.
        output: Sums over the first output; None where it is of integers.
        others: Sums over each further output of floats, by its name in the float graph.
        agreement: Share of samples whose largest logit is the same class, where the first output is [N, classes]; of
            integers, the share that is equal; else None.
        agreements: Share of equal integers in each further output of them, by name.
        sites: Sums over each tensor that was looked at.
        first: The first batch, filled if it must be, and the built graph's answer to it, for another look.
        whole: Outputs without an axis of samples, by name: each batch's answer counts as one.
        constant: Whether the float graph gives every sample the same first output; `constant_others` of the others.
    """

    images: int
    output: ErrorSums | None
    others: Mapping[str, ErrorSums]
    agreement: float | None
    agreements: Mapping[str, float]
    sites: Mapping[DriftSite, ErrorSums]
    first: tuple[npt.NDArray[np.float32], Array]
    whole: tuple[str, ...] = ()
    constant: bool = False
    constant_others: tuple[str, ...] = ()


def compare(
    pair: Pair,
    source: DataSource,
    sites: Sequence[DriftSite] = (),
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
    tensors, done = [site.tensor for site in sites], 0

    def ran(batch: Fed) -> None:
        nonlocal done
        done += batch.samples
        progress(done, 2 * len(source))

    with _tapped(pair.reference, tensors) as reference, _tapped(pair.built, tensors) as built:
        seen = Seen(axes=sample_axes(map_model(reference).graph))
        fixed = _fixed_batch(reference, built)
        batches = (Fed(filled(each, fixed), len(each)) for each in Batches(source=source, size=fixed or _BATCH))
        while answered := _answered(reference, batches, ran, seen):
            with _opened(built) as session:
                for batch, expected in answered:
                    # In the same order; that a graph's own output has the same name isn't promised.
                    got = dict(zip(expected, _run(session, batch.feed).values(), strict=True))
                    ran(batch)
                    _require_comparable(expected, got, pair, source)
                    seen.add(batch, expected, _moved_back(got, pair.moved))
    return seen.result(sites)


def in_both(pair: Pair, sites: Sequence[DriftSite]) -> tuple[DriftSite, ...]:
    """The sites whose tensor both graphs have, meaning the same or moved in a known way: a rewrite may do without."""
    names = [{value_name(value) for value in _values(map_model(path))} for path in (pair.reference, pair.built)]
    lost = {name for name, moved in pair.moved.items() if moved is None}
    return tuple(site for site in sites if site.tensor not in lost and all(site.tensor in known for known in names))


def fused_answer(built: Path, batch: npt.NDArray[np.float32]) -> Array:
    """The first output with ONNX Runtime's own rewrites switched on, as a user's session has them.

    Raises:
        GpusqError: ONNX Runtime can't run what it made of the graph.
    """
    with closing(open_onnx(built, frugal=True)) as session:
        return _run(session, batch)[session.outputs[0].name]


def of_rounding(reference: Path, batch: npt.NDArray[np.float32]) -> frozenset[str]:
    """Outputs of floats that rounding errors alone make, such as the mean of normalised values, 0 but for these.

    The batch is run again with every value changed in its last digits, by 2 ** -22 of it: outputs that this changes by
    a tenth of themselves or more say nothing of the model, and no other arithmetic could come near them.
    """
    signs = np.random.default_rng(0).choice(np.array([-1, 1], np.float32), batch.shape)
    with _opened(reference) as session:
        plain, moved = (_run(session, feed) for feed in (batch, batch * (1 + signs * np.float32(2.0**-22))))
    floats = [name for name, values in plain.items() if is_floating(values)]
    return frozenset(name for name in floats if sqnr_db(plain[name], moved[name]) < _STEADY_DB)


class Fed(NamedTuple):
    """What is run at once; of a batch that was filled, the samples behind the first `samples` are repetitions."""

    feed: npt.NDArray[np.float32]
    samples: int


@dataclass(kw_only=True, slots=True)
class Seen:
    """What is kept of two models' answers to each batch, by output in the order of the graph.

    `spreads` are of outputs that aren't taps.
    """

    axes: SampleAxes
    sums: dict[str, list[ErrorSums]] = field(default_factory=dict[str, list[ErrorSums]])
    equal: dict[str, list[tuple[float, int]]] = field(default_factory=dict[str, list[tuple[float, int]]])
    spreads: dict[str, Spread] = field(default_factory=dict[str, Spread])
    top1: list[float] = field(default_factory=list[float])
    images: int = 0
    first: tuple[npt.NDArray[np.float32], Array] | None = None

    def add(self, batch: Fed, expected: Mapping[str, Array], got: Mapping[str, Array]) -> None:
        """Compare the answers to a batch; the first output is the one that is judged."""
        name = next(iter(expected))
        if self.first is None:
            self.first = (batch.feed, got[name])
        self.images += batch.samples
        ones, others = (self.axes.by_sample(answers, batch.samples) for answers in (expected, got))
        for each, one in ones.items():
            if is_floating(one):
                self.sums.setdefault(each, []).append(error_sums(one, others[each]))
            else:
                self.equal.setdefault(each, []).append((equal_share(one, others[each]), one.size))
            if not each.endswith(VALUES_SUFFIX) and self.axes.known[each] is not None:
                self.spreads[each] = spread_of(one, self.spreads.get(each))
        if name in self.sums and ones[name].ndim == 2 and expected[name].ndim == 2:
            self.top1.append(top1_agreement(ones[name], others[name]) * batch.samples)

    def result(self, sites: Sequence[DriftSite] = ()) -> Compared:
        """All batches as one."""
        assert self.first is not None, "a source without a readable sample is refused by its batches"
        own = self._outputs(sites)
        sums = {name: joined(parts) for name, parts in self.sums.items()}
        shares = {name: _mean(parts) for name, parts in self.equal.items()}
        constant = [name for name in own if name in self.spreads and self.spreads[name].constant]
        return Compared(
            images=self.images,
            output=sums.get(own[0]),
            others=_those(sums, own[1:]),
            agreement=sum(self.top1) / self.images if self.top1 else shares.get(own[0]),
            agreements=_those(shares, own[1:]),
            sites={site: sums[f"{site.tensor}{VALUES_SUFFIX}"] for site in sites},
            first=self.first,
            whole=tuple(name for name in own if self.axes.known[name] is None),
            constant=own[0] in constant,
            constant_others=tuple(name for name in constant if name != own[0]),
        )

    def _outputs(self, sites: Sequence[DriftSite]) -> list[str]:
        """The graphs' own outputs, without those that tap a site."""
        taps = {f"{site.tensor}{VALUES_SUFFIX}" for site in sites}
        return [name for name in self.axes.known if name not in taps]


def _those(values: Mapping[str, _Figure], names: Sequence[str]) -> dict[str, _Figure]:
    return {name: values[name] for name in names if name in values}


def _mean(parts: Sequence[tuple[float, int]]) -> float:
    """The share of all parts together, each with its number of elements."""
    total = sum(count for _, count in parts)
    return sum(share * count for share, count in parts) / total if total else 1.0


def _answered(
    reference: Path, batches: Iterator[Fed], ran: Callable[[Fed], None], seen: Seen
) -> list[tuple[Fed, dict[str, Array]]]:
    """The float graph's answers to the next batches, as many as may be kept: the two graphs are never open at once."""
    found: list[tuple[Fed, dict[str, Array]]] = []
    kept, first = 0, next(batches, None)
    if first is None:
        return found
    with _opened(reference) as session:
        for batch in itertools.chain([first], batches):
            answers = _run(session, batch.feed)
            found.append((batch, answers))
            ran(batch)
            if seen.axes.open:
                # Shapes leave it open: the same samples, turned by one.
                rolled = _run(session, np.roll(batch.feed, -1, axis=0))
                seen.axes = seen.axes.found(answers, rolled, len(batch.feed))
            kept += sum(value.nbytes for value in answers.values())
            if kept > _KEPT_BYTES:
                break
    return found


def _moved_back(got: Mapping[str, Array], moved: Mapping[str, Moved | None]) -> dict[str, Array]:
    def back(name: str, value: Array) -> Array:
        how = moved.get(name.removesuffix(VALUES_SUFFIX)) if name.endswith(VALUES_SUFFIX) else None
        return value if how is None else how.undone(value)

    return {name: back(name, value) for name, value in got.items()}


@contextmanager
def _tapped(path: Path, tensors: Sequence[str]) -> Generator[Path, None, None]:
    """A graph that returns the given tensors too. Its weights are copied from file to file, and never read whole."""
    if not tensors:
        yield path
        return
    with scratch_model(instrumented(map_model(path), tuple(dict.fromkeys(tensors)), whole=tensors)) as changed:
        yield changed


def _opened(path: Path) -> closing[Session]:
    return closing(open_onnx(path, optimize=False, frugal=True))


def _fixed_batch(*graphs: Path) -> int | None:
    return max((static_batch(map_model(path).graph) or 0 for path in graphs), default=0) or None


def _run(session: Session, feed: npt.NDArray[np.float32]) -> dict[str, Array]:
    return session.run({session.inputs[0].name: feed})


def _require_comparable(
    expected: Mapping[str, Array], got: Mapping[str, Array], pair: Pair, source: DataSource
) -> None:
    """Of what the graphs answer; a tensor inside may be infinite where a later one isn't."""
    for name, other in got.items():
        if expected[name].shape != other.shape:
            raise GpusqError(
                f"{name} is {list(expected[name].shape)} of the float graph and {list(other.shape)} of the built one",
                place=pair.built.name,
                hint="outputs whose size depends on the input's values can't be compared: leave them out of the model",
            )
        if name.endswith(VALUES_SUFFIX):
            continue
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
                hint="build with --bf16 or --fp32: an activation overflows the float type",
            )


def _values(model: ir.Model) -> Iterator[ir.Value]:
    for node in model.graph:
        yield from node.outputs
