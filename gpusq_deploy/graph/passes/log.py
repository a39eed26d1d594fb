"""What each pass changed, kept in order; on request with the graph after it in a folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from gpusq_deploy.artifacts import Value, json_from_value
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph.passes.base import AfterPass, Pass
from gpusq_deploy.graph.weightless import without_weights
from gpusq_deploy.text import counted

INDEX = "passes.json"


class PassRecord(Value, frozen=True):
    """One run of one pass.

    Attributes:
        name: The pass.
        changes: What it counted.
        before: Nodes by operator, before it.
        after: The same after it.
        file: The graph after it, without large weights; empty where none is written.
    """

    name: str
    changes: int
    before: Mapping[str, int]
    after: Mapping[str, int]
    file: str = ""

    def __str__(self) -> str:
        """`fold-shapes: 12 changes, 90 -> 66 nodes (Shape -12, Concat -12)`."""
        moved = {name: self.after.get(name, 0) - self.before.get(name, 0) for name in {**self.before, **self.after}}
        told = ", ".join(f"{name} {count:+d}" for name, count in moved.items() if count)
        sizes = f"{sum(self.before.values())} -> {sum(self.after.values())} nodes"
        return f"{self.name}: {counted(self.changes, 'change')}, {sizes}{f' ({told})' if told else ''}"


class _Index(Value, frozen=True):
    """The content of `passes.json`."""

    passes: tuple[PassRecord, ...]
    schema: str = "gpusq-passes/1"


class PassLog:
    """Hears passes in the order in which they run; with a folder it writes `NN-name.onnx` after each, and an index.

    The index is whole after every pass, so a pass that fails leaves the graph that it was given.
    """

    def __init__(self, folder: Path | None = None) -> None:
        """Make the folder.

        Raises:
            GpusqError: It can't be made, or holds something.
        """
        self.records: tuple[PassRecord, ...] = ()
        self._folder = folder
        if folder is not None:
            _make(folder)

    def after(self, model: ir.Model) -> AfterPass:
        """For `run_passes` on this graph."""
        before = _operators(model)

        def hear(step: Pass, model: ir.Model, changes: int) -> None:
            nonlocal before
            now = _operators(model)
            file = self._written(step, model)
            record = PassRecord(name=step.name, changes=changes, before=before, after=now, file=file)
            self.records, before = (*self.records, record), now
            if self._folder is not None:
                (self._folder / INDEX).write_bytes(json_from_value(_Index(passes=self.records)))

        return hear

    def _written(self, step: Pass, model: ir.Model) -> str:
        if self._folder is None:
            return ""
        file = f"{len(self.records) + 1:02d}-{step.name}.onnx"
        ir.save(without_weights(model), self._folder / file)
        return file


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        filled = any(folder.iterdir())
    except OSError as error:
        raise GpusqError(
            f"cannot write graphs here: {error.strerror}", place=str(folder), hint="name another folder"
        ) from error
    if filled:
        raise GpusqError("the folder for graphs isn't empty", place=str(folder), hint="name a new folder, or empty it")


def _operators(model: ir.Model) -> dict[str, int]:
    return dict(sorted(Counter(node.op_type for node in model.graph).items()))
