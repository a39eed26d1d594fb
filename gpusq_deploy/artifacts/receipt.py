"""The receipt: what was built, read back from the engine builder, beside what was asked."""

from __future__ import annotations

from typing import Literal

import msgspec

from gpusq_deploy.artifacts.base import Value
from gpusq_deploy.artifacts.manifest import EngineOptions
from gpusq_deploy.artifacts.plan import Precision
from gpusq_deploy.artifacts.sparsity import PruneMethod

YesNoUnknown = Literal["yes", "no", "unknown"]
Payoff = Literal["yes", "no", "no difference", "unknown"]
# The graph that a built one is compared with: the model as it was given, or what `--prune` left of it.
Reference = Literal["float", "pruned float"]
# JSON has no infinity: equal outputs are recorded as this many decibels, noise on silence as minus as many.
EQUAL_DB = 300.0


class EngineTensor(Value):
    """A tensor as the engine sees it. A dynamic dimension is -1; `dtype` is the builder's own word."""

    name: str
    shape: tuple[int, ...]
    dtype: str


class EngineLayer(Value):
    """One layer of the engine after fusion, usually one kernel."""

    name: str
    kind: str
    inputs: tuple[EngineTensor, ...]
    constants: tuple[EngineTensor, ...]
    outputs: tuple[EngineTensor, ...]
    tactic: str
    onnx_nodes: tuple[str, ...]


class Carrier(Value):
    """One engine layer that carries a product.

    Attributes:
        name: The builder's name of it, which lists what a generated kernel fuses.
        kind: The builder's word for what it is.
        inputs: Element types of its inputs, as the builder names them; outputs: of its outputs.
        fused: Other ONNX nodes that it computes, by name.
        tactic: The kernel; empty or a stub where it is chosen when the engine is loaded.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    fused: tuple[str, ...]
    tactic: str


class BuiltLayer(Value):
    """One layer of the model: asked and built. `precision` is None where no engine layer could be found for it.

    What is None or empty after `reason` is so in receipts that are older than these fields.

    Attributes:
        shape: Of its weight as a product, [N, K] with K contracted; of a convolution K has the kernel's positions too.
        flops: Of one sample, two per multiply-accumulate, as if dense; None also where it isn't known.
        eligible: Whether the target has sparse kernels for it, as known when it was built, and `eligible_reason` why.
        carriers: The engine layers behind `engine_layers`: element types, what they fuse, and their kernels' names.
    """

    layer: str
    node: str
    asked: Precision
    precision: Precision | None
    engine_layers: tuple[str, ...]
    sparse_asked: bool
    sparse_weights_valid: bool
    sparse_executed: YesNoUnknown
    reason: str
    shape: tuple[int, int] | None = None
    flops: int | None = None
    eligible: YesNoUnknown | None = None
    eligible_reason: str = ""
    carriers: tuple[Carrier, ...] = ()


class EngineTotals(Value):
    """Counts over one engine. Kernels are engine layers less stream synchronisation (`signal`, `wait`)."""

    kernels: int
    gemms: dict[str, int]
    attention_fused: int


class BuiltEngine(Value):
    """One engine: for which GPUs, by which builder, from which evidence (`source`), and what it holds.

    `options` is what its builder was asked; None in receipts that are older than the field: what the manifest says.
    """

    target: str
    backend: str
    backend_version: str
    source: str
    gpus: str
    compute_capability: str
    engine_file: str = msgspec.field(name="plan_file")
    engine_bytes: int = msgspec.field(name="plan_bytes")
    engine_digest: str = msgspec.field(name="plan_digest")
    build_seconds: float
    executed: bool
    totals: EngineTotals
    layers: tuple[BuiltLayer, ...]
    engine_layers: tuple[EngineLayer, ...]
    notes: tuple[str, ...] = ()
    options: EngineOptions | None = None


class SkippedTarget(Value):
    """A target that got no engine here: why, and the command that makes it on the device."""

    target: str
    reason: str
    command: str


class GraphCost(Value):
    """What the kernels of one graph move and multiply at one batch size; the equations are in engines/cost.py.

    Attributes:
        batch: The batch size.
        kernels: Engine layers less stream synchronisation.
        bytes_moved: Inputs, constants and outputs of every kernel, each once.
        flops: Of products, two per multiply-accumulate, by the type that they multiply in.
    """

    batch: int
    kernels: int
    bytes_moved: int
    flops: dict[str, int]


class KernelWork(Value):
    """What one kernel does in the engine that is built for the optimal batch alone: what its time depends on.

    Attributes:
        name: The builder's, without its numbers.
        onnx_nodes: Which it computes, by name.
        role: A matrix product, fused attention, or neither.
        precision: What it multiplies in; empty where it multiplies nothing.
        m, n, k, count: Of `count` products [M, K] by [K, N]; see engines/prediction/work.py.
        flops: Two per multiply-accumulate, as if dense.
        weight_bytes: Constants that it multiplies with.
        moved_bytes: Everything else that it reads and writes, each once.
    """

    name: str
    onnx_nodes: tuple[str, ...]
    role: Literal["gemm", "attention", "other"]
    precision: str
    m: int
    n: int
    k: int
    count: int
    flops: int
    weight_bytes: int
    moved_bytes: int


class LayerShare(Value):
    """What one layer of the model costs in one engine; the equations are in engines/layer_cost.py.

    `microseconds` is a lower bound from the target's peak rates; None where those aren't known.
    """

    kernels: int
    bytes_moved: int
    flops: dict[str, int]
    microseconds: float | None


class LayerCost(Value):
    """One INT8 layer beside itself without INT8, and whether that is predicted to pay."""

    layer: str
    built: LayerShare
    unquantised: LayerShare
    pays: Payoff


class PredictedTimes(Value):
    """Milliseconds of both graphs on one device, predicted as docs/predict.md says, at the batch of their costs.

    `low` and `high` are what eight of ten published measurements of built over unquantised lay between, over their
    prediction; `error` is the median of |predicted / measured - 1| of them, in percent.
    """

    device: str
    built: float
    unquantised: float
    low: float
    high: float
    error: float

    @property
    def ratio(self) -> float:
        """Built over unquantised: below 1 where quantising is predicted to pay."""
        return self.built / self.unquantised


class CostEstimate(Value):
    """The quantised graph beside the same model without Q/DQ: a prediction from two layer lists, not a measurement.

    `built` and `unquantised` are None where nothing was compared; `note` says what was, or why not. `what` names the
    precisions that the graph is quantised to. `layers` has every INT8 layer that was found on both sides. `times` is
    None where the target has no device to predict for, and in older receipts.
    """

    target: str | None
    built: GraphCost | None
    unquantised: GraphCost | None
    note: str
    what: str = "INT8"
    layers: tuple[LayerCost, ...] = ()
    times: PredictedTimes | None = None

    @property
    def worse(self) -> bool:
        """True where the quantised graph has more kernels and moves more bytes."""
        if self.built is None or self.unquantised is None:
            return False
        more = self.built.kernels > self.unquantised.kernels
        return more and self.built.bytes_moved > self.unquantised.bytes_moved


class Drift(Value):
    """How far the tensor that leaves a module is from the float graph's; figures as in `Verification`."""

    module: str
    tensor: str
    sqnr_db: float
    median_sqnr_db: float
    cosine: float


class Agreement(Value):
    """How an output of integers or booleans agrees: the share of its values that are equal, 0…1."""

    tensor: str
    share: float


class Verification(Value):
    """The Q/DQ graph against the float graph, both run by ONNX Runtime on the CPU.

    Attributes:
        sqnr_db: 10·log10(Σ ref² / Σ (ref - got)²) over every element of the first output, all samples as one; None
            where it is of integers or booleans, or of rounding errors.
        cosine: Of the same elements, as one vector; None as above.
        top1_agreement: Share of samples whose largest logit is the same class, of a first output [N, classes]; of
            integers, the share of equal values; else None.
        median_sqnr_db: Median over the samples of each one's own: one or two samples can decide the figure above.
        fused_sqnr_db: The built graph with ONNX Runtime's rewrites on against itself with them off, on `fused_images`
            samples; None where that wasn't measured.
        blocks: What leaves each block, in the graph's order.
        layers: What leaves each layer of the blocks that add most noise, on the first `layer_images` samples.
        others: The outputs of floats after the first, such as a detector's boxes, by the name of the tensor.
        constant: The float graph gives every sample the same first output: equal or not, the figures prove nothing.
        constant_others: The same of the other outputs, by name.
        synthetic: The samples are random numbers, of which nothing follows for real ones.
        reference: Which float graph it was; what pruning cost before is in `PruningLoss`.
        agreements: The outputs of integers or booleans after the first.
        whole: Outputs in which no axis is of samples, by name: they are compared as a whole.
        lowest_sqnr_db, highest_sqnr_db: The least and the most of the samples' own; None where that isn't known.
        rounding: Outputs whose values in the float graph are rounding errors alone, by name: they have no figures.
    """

    images: int
    held_out: bool
    sqnr_db: float | None
    cosine: float | None
    top1_agreement: float | None
    note: str
    median_sqnr_db: float | None = None
    fused_sqnr_db: float | None = None
    fused_images: int = 0
    blocks: tuple[Drift, ...] = ()
    layers: tuple[Drift, ...] = ()
    layer_images: int = 0
    others: tuple[Drift, ...] = ()
    constant: bool = False
    constant_others: tuple[str, ...] = ()
    synthetic: bool = False
    reference: Reference = "float"
    agreements: tuple[Agreement, ...] = ()
    whole: tuple[str, ...] = ()
    lowest_sqnr_db: float | None = None
    highest_sqnr_db: float | None = None
    rounding: tuple[str, ...] = ()

    def noisiest(self, count: int) -> tuple[Drift, ...]:
        """The blocks behind which noise over signal has grown most since the block before; the worst first.

        Noise over signal is 10^(-SQNR/10); a block that adds none is left out.
        """
        noise = [10 ** (-block.sqnr_db / 10) for block in self.blocks]
        grown = [after - before for before, after in zip([0.0, *noise][:-1], noise, strict=True)]
        ordered = sorted(zip(grown, self.blocks, strict=True), key=lambda pair: -pair[0])
        return tuple(block for growth, block in ordered[:count] if growth > 0)


class PruningLoss(Value):
    """The pruned float model against the dense one that it was made from, both run by torch; as in `Verification`.

    `method` is how it was pruned, None where an older version wrote the receipt.
    """

    images: int
    held_out: bool
    sqnr_db: float | None
    median_sqnr_db: float | None
    cosine: float | None
    top1_agreement: float | None
    constant: bool
    synthetic: bool
    note: str
    lowest_sqnr_db: float | None = None
    highest_sqnr_db: float | None = None
    method: PruneMethod | None = None


class ExpectedOutput(Value):
    """One output of the built graph beside the producer's: `sqnr_db` of floats, else the share of equal values."""

    tensor: str
    sqnr_db: float | None
    equal: float | None = None


class ProducerComparison(Value):
    """The built graph, run by ONNX Runtime on the CPU, against the quantised model as its producer ran it.

    Attributes:
        source: Who answered: a file of its outputs, or its quantisers as the checkpoint records them, run in torch.
        images: On how many samples.
        outputs: In the graph's order.
        top1_agreement: Share of samples whose largest logit is the same class, of a first output [N, classes].
    """

    source: str
    images: int
    outputs: tuple[ExpectedOutput, ...]
    top1_agreement: float | None = None


class TaskAccuracy(Value):
    """The main measure of the task on labelled data: of the model as it was given, in torch, and of the built graph.

    Attributes:
        data: What was evaluated on.
        measure: Its name, such as `top-1`; measures are 0…1.
        images: How many.
        given: Of the checkpoint.
        built: Of the built graph, run by ONNX Runtime.
        low: The 2.5th percentile of `built - given` in resampled images.
        high: The 97.5th.
        max_drop: How many points, hundredths of the measure, it was allowed to lose; None: nobody asked.
    """

    data: str
    measure: str
    images: int
    given: float
    built: float
    low: float
    high: float
    max_drop: float | None = None

    @property
    def drop(self) -> float:
        """Points that were lost, without the rounding errors of the difference; below 0 where it gained."""
        return round(100 * (self.given - self.built), 9)


class Receipt(Value):
    """Everything that can be proven about a bundle's engines.

    `shortfalls` say what was asked of the verification and not reached: such a bundle is evidence and has no engines.
    `cost` is None where nothing is INT8, `pruning` where the build didn't prune. `producer` is empty where nobody is
    known to have quantised the checkpoint. `accuracy` is None where no labelled data was given. `works` is empty in
    older receipts, where the batch is static, and where no engine was built ahead of time.
    """

    schema: Literal["gpusq.receipt/1"] = "gpusq.receipt/1"
    model_digest: str
    verification: Verification | None
    engines: tuple[BuiltEngine, ...]
    skipped: tuple[SkippedTarget, ...] = ()
    shortfalls: tuple[str, ...] = ()
    cost: CostEstimate | None = None
    pruning: PruningLoss | None = None
    producer: tuple[ProducerComparison, ...] = ()
    accuracy: TaskAccuracy | None = None
    works: tuple[KernelWork, ...] = ()
