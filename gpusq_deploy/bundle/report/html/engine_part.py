"""One engine of a bundle: its picture, the chain of every layer, where chains stop, and its kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gpusq_deploy.artifacts import BuiltEngine, BuiltLayer, EngineLayer, EngineTensor, LayerDecision
from gpusq_deploy.bundle.files import Bundle
from gpusq_deploy.bundle.report.headline import no_engine_text
from gpusq_deploy.bundle.report.html.network import network
from gpusq_deploy.bundle.report.html.values import EnginePart, KernelRow, LayerRow, Stop
from gpusq_deploy.bundle.report.kernel_times import KernelTimes, times_of_kernels
from gpusq_deploy.bundle.report.layer_rows import built_rows, planned_rows
from gpusq_deploy.bundle.report.sentences import engine_text
from gpusq_deploy.bundle.report.sparse_chain import BlockedLayers, LayerExplanation, breaks, of_flops, totals
from gpusq_deploy.engines import MeasuredKernels, classify
from gpusq_deploy.text import counted


def engine_part(
    bundle: Bundle, engine: BuiltEngine, chains: Sequence[LayerExplanation], measured: MeasuredKernels | None = None
) -> EnginePart:
    """What a page says of an engine.

    Args:
        bundle: It is in.
        engine: Itself.
        chains: Why each layer does or doesn't run sparse.
        measured: What a profiler saw of its kernels.
    """
    anchors = _anchors(bundle, f"engine-{bundle.receipt.engines.index(engine)}")
    explained = {chain.layer: chain for chain in chains}
    drifts = _drifts(bundle)
    launched = [layer for layer in engine.engine_layers if classify(layer).role != "sync"]
    times = times_of_kernels(bundle, engine, measured)
    kernels = tuple(_kernel_row(layer, engine, times) for layer in launched)
    return EnginePart(
        target=engine.target,
        title=f"Engine for {engine.target}",
        summary=engine_text(engine, bundle),
        facts=(("evidence", engine.source), ("file", engine.engine_file), ("digest", engine.engine_digest)),
        columns=network(bundle.plan, engine, bundle.receipt.verification, anchors),
        layers=tuple(
            _built_row(layer, explained.get(layer.layer), drifts)._replace(
                anchor=anchors[layer.layer],
                details=tuple(built_rows(bundle, engine, layer, explained.get(layer.layer))),
            )
            for layer in engine.layers
            if layer.layer in anchors
        ),
        totals=tuple(totals(chains)),
        stops=tuple(map(_stop, breaks(chains))),
        kernels=kernels,
        predicted=any(row.predicted is not None for row in kernels),
        measured=any(row.measured is not None for row in kernels),
        times=times.texts,
    )


def planned_part(bundle: Bundle) -> EnginePart:
    """The same of a bundle without an engine: what is planned, and nothing that an engine would have to tell."""
    anchors, drifts = _anchors(bundle, "plan"), _drifts(bundle)
    return EnginePart(
        target="",
        title="As planned",
        summary=no_engine_text(bundle),
        facts=(),
        columns=network(bundle.plan, None, bundle.receipt.verification, anchors),
        layers=tuple(_planned_row(layer, drifts)._replace(anchor=anchors[layer.layer]) for layer in bundle.plan.layers),
        totals=(),
        stops=(),
        kernels=(),
        predicted=False,
        measured=False,
    )


def _anchors(bundle: Bundle, prefix: str) -> dict[str, str]:
    """A layer may have any name: its row in the page is named by its place in the plan."""
    return {layer.layer: f"{prefix}-layer-{place}" for place, layer in enumerate(bundle.plan.layers)}


def _drifts(bundle: Bundle) -> dict[str, str]:
    found = bundle.receipt.verification
    drifts = () if found is None else (*found.blocks, *found.layers)
    return {drift.module: f"{drift.sqnr_db:.1f}" for drift in drifts}


def _built_row(layer: BuiltLayer, chain: LayerExplanation | None, drifts: Mapping[str, str]) -> LayerRow:
    share = None if chain is None else chain.flops_share
    return LayerRow(
        name=layer.layer,
        shape="" if layer.shape is None else f"{layer.shape[0]} x {layer.shape[1]}",
        flops="" if share is None else f"{share:.1%}",
        asked=layer.asked,
        built=layer.precision or "not found",
        as_asked=layer.precision == layer.asked,
        answers=() if chain is None else tuple(step.answer for step in chain.chain),
        decibels=drifts.get(layer.layer, ""),
        why=_why(layer, chain),
    )


def _planned_row(decision: LayerDecision, drifts: Mapping[str, str]) -> LayerRow:
    return LayerRow(
        name=decision.layer,
        shape=f"{decision.n} x {decision.k}",
        flops="",
        asked=decision.precision,
        built="",
        as_asked=True,
        answers=(),
        decibels=drifts.get(decision.layer, ""),
        why=decision.sparse_reason,
        details=tuple(planned_rows(decision)),
    )


def _why(layer: BuiltLayer, chain: LayerExplanation | None) -> str:
    """In short why a layer isn't what was asked, or doesn't run sparse; empty where it is and does."""
    if layer.precision != layer.asked:
        return layer.reason
    stop = None if chain is None else chain.stop
    return "" if stop is None else f"{stop.question}: {stop.evidence}"


def _stop(found: BlockedLayers) -> Stop:
    share = of_flops(found.flops_share)
    headline = f"'{found.question}' is {found.answer} for {counted(len(found.layers), 'layer')}{share}"
    return Stop(headline=headline, layers=found.layers, evidence=found.evidence, mend=found.mend)


def _kernel_row(kernel: EngineLayer, engine: BuiltEngine, times: KernelTimes) -> KernelRow:
    served = [layer.layer for layer in engine.layers if kernel.name in layer.engine_layers]
    return KernelRow(
        name=kernel.name,
        kind=kernel.kind,
        types=f"{_types(kernel.inputs)} → {_types(kernel.outputs)}",
        layers=", ".join(served),
        predicted=times.predicted.get(kernel.name),
        measured=times.measured.get(kernel.name),
    )


def _types(tensors: Sequence[EngineTensor]) -> str:
    return ", ".join(dict.fromkeys(tensor.dtype for tensor in tensors))
