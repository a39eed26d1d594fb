"""What the templates show: plain text and numbers, decided before any markup."""

from __future__ import annotations

from typing import Literal, NamedTuple

# How a finding stands: `good` and `bad` are known, `open` isn't, `none` wasn't asked.
Standing = Literal["good", "bad", "open", "none"]


class Card(NamedTuple):
    """One of the questions that a reader comes with: the answer in a word, what it rests on, and what to do."""

    title: str
    standing: Standing
    word: str
    text: str
    todo: str = ""


class Cell(NamedTuple):
    """One layer in the picture. Each `_class` names its colour; `decibels` is empty where nobody looked."""

    name: str
    anchor: str
    precision: str
    precision_class: str
    sparse: str
    sparse_class: str
    decibels: str
    decibels_class: str


class Column(NamedTuple):
    """One block in the picture, with what leaves it; a run of layers outside blocks has no name."""

    name: str
    decibels: str
    decibels_class: str
    mark: str
    cells: tuple[Cell, ...]


class LayerRow(NamedTuple):
    """One layer on one engine, or as planned: `built` and `answers` are empty then.

    `answers` are those of the chain's links; `why` says in short why it isn't what one wants; `details` say all.
    """

    name: str
    shape: str
    flops: str
    asked: str
    built: str
    as_asked: bool
    answers: tuple[str, ...]
    decibels: str
    why: str
    anchor: str = ""
    details: tuple[tuple[str, str], ...] = ()


class Stop(NamedTuple):
    """Layers whose chain stops at one link for one reason."""

    headline: str
    layers: tuple[str, ...]
    evidence: str
    mend: str


class KernelRow(NamedTuple):
    """One kernel of an engine; microseconds are None where nobody knows them, see `EnginePart.times`."""

    name: str
    kind: str
    types: str
    layers: str
    predicted: float | None = None
    measured: float | None = None


class EnginePart(NamedTuple):
    """One engine, or the plan where there is none: `target` is empty then. `times` says what its kernels take."""

    target: str
    title: str
    summary: str
    facts: tuple[tuple[str, str], ...]
    columns: tuple[Column, ...]
    layers: tuple[LayerRow, ...]
    totals: tuple[tuple[str, str], ...]
    stops: tuple[Stop, ...]
    kernels: tuple[KernelRow, ...]
    predicted: bool
    measured: bool
    times: tuple[str, ...] = ()


class DriftRow(NamedTuple):
    """The error behind one module. `share` is the bar's length: its SQNR beside the best of the table, 0...1."""

    module: str
    decibels: str
    median: str
    cosine: str
    share: float
    mark: str


class CostRow(NamedTuple):
    """One layer's predicted cost, with INT8 and without."""

    layer: str
    kernels: str
    megabytes: str
    microseconds: str
    pays: str


class FileRow(NamedTuple):
    """One file of the bundle. `share` is its part of all, 0...1."""

    path: str
    size: str
    share: float
    digest: str


class LatencyRow(NamedTuple):
    """One process at one batch size, in milliseconds per inference."""

    batch: int
    process: int
    samples: int
    lowest: str
    median: str
    highest: str


class LatencyPart(NamedTuple):
    """What gpusq-bench wrote to one file: the medians, the facts, captions with plots as SVG, and each process.

    `of_engine`: one of the bundle's engines ran, and not its model.onnx on a CPU, or another build.
    """

    title: str
    of_engine: bool
    facts: tuple[tuple[str, str], ...]
    plots: tuple[tuple[str, str], ...]
    rows: tuple[LatencyRow, ...]
    remarks: tuple[str, ...]
