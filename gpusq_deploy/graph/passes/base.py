"""What a pass is, and the only way in which passes are run.

Not onnx_ir's InPlacePass and PassManager: those say modified or not, and wrap what a pass raises in a PassError.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import ClassVar, Protocol, TypeAlias

import onnx_ir as ir

from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph.provenance import mark_new_nodes
from gpusq_deploy.graph.spec import check_graph
from gpusq_deploy.progress import Reporter


class Pass(Protocol):
    """A rewrite. Implementations are frozen dataclasses whose `repr` reproduces them."""

    name: ClassVar[str]

    def run(self, model: ir.Model) -> int:
        """Rewrite in place; the number of changes, 0 where there was nothing left to do."""
        ...


# Called after a pass with it, the graph and its number of changes.
AfterPass: TypeAlias = Callable[[Pass, ir.Model, int], None]


def run_passes(model: ir.Model, passes: Sequence[Pass], *, after: AfterPass | None = None) -> ir.Model:
    """Run passes in order on a copy of `model`, and check the graph's invariants after each.

    Args:
        model: Left as it is.
        passes: In order.
        after: Called after each pass.

    Raises:
        GpusqError: A pass declined, with its reason.
        AssertionError: A pass broke an invariant: our bug. The message names it and those that ran before.
    """
    copy = model.clone()
    done: list[str] = []
    for step in passes:
        before = list(copy.graph)
        changes = step.run(copy)
        mark_new_nodes(copy.graph, before, step.name)
        done.append(step.name)
        try:
            check_graph(copy)
        except GpusqError as error:
            raise AssertionError(f"pass {step!r} broke the graph (ran: {', '.join(done)}): {error}") from error
        if after is not None:
            after(step, copy, changes)
    return copy


def heard(label: str, passes: Sequence[Pass], reporter: Reporter, *others: AfterPass) -> AfterPass:
    """For `run_passes`: reports each pass of several as progress; `others` are called first."""
    done = itertools.count(1)

    def after(step: Pass, model: ir.Model, changes: int) -> None:
        for other in others:
            other(step, model, changes)
        reporter.progress(label, next(done), len(passes))

    return after
