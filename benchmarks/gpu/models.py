"""Step 2: whole models in every precision, latency and kernels; their graphs come with the kit, see `graphs`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from gpusq_deploy.artifacts.base import read_value
from gpusq_deploy.benchmarks.gpu.graphs import Variant, variants_of
from gpusq_deploy.benchmarks.gpu.prepare import Prepared, plan_and_record, reference_of
from gpusq_deploy.benchmarks.gpu.references import repeated
from gpusq_deploy.benchmarks.gpu.runs import (
    TIME_IS_UP,
    Engine,
    Ground,
    is_sticky,
    no_gpu,
    refused,
    why,
    with_facts,
)
from gpusq_deploy.benchmarks.gpu.values import Finding, Way

BATCHES = (8, 128, 1, 32)
_NONE = "models"
# Seconds for a plan: behind one that takes longer, others are ready.
_MOST_WAITING = 40.0


def items(ground: Ground) -> tuple[str, ...]:
    """Every model and precision that the kit holds, what tells most first."""
    kit = variants_of(ground.kit)
    return (*(variant.name for variant in kit.variants), *kit.left_out) or (_NONE,)


def run(item: str, ground: Ground) -> Iterator[Finding]:
    """Its batches, by every way that works."""
    finding, ways = Finding(step="models", name=item), ground.ways
    kit = variants_of(ground.kit)
    lacking = "the kit was made without models" if item == _NONE else kit.left_out.get(item, "")
    reason = lacking or no_gpu() or ways.why_not
    if reason:
        yield refused(finding, reason)
        return
    variants = kit.variants
    index = [variant.name for variant in variants].index(item)
    # Twice its share of what is left, so that one model that is slow to load doesn't take all of it.
    share = 2 * (ground.deadline - time.monotonic()) / (len(variants) - index)
    for way in ways.ways:
        yield from _by_one_way(variants[index], way, ground, share)


def _by_one_way(variant: Variant, way: Way, ground: Ground, share: float) -> Iterator[Finding]:
    finding = Finding(step="models", name=variant.name, facts={"way": way.name})
    plan, record = plan_and_record(ground.work, variant.file, way)
    patient = min(ground.deadline, time.monotonic() + _MOST_WAITING)
    if ground._replace(deadline=patient).wait_for(record) is None:
        yield refused(finding, "its plan wasn't ready in time")
        return
    prepared = read_value(record, Prepared)
    finding = with_facts(finding, build_seconds=prepared.seconds)
    if prepared.why_not:
        yield refused(finding, prepared.why_not)
        return
    begun = time.monotonic()
    # Opened once for all batch sizes, for a plan is compiled while it is loaded.
    with contextlib.closing(Engine(plan, way)) as engine:
        for batch in BATCHES:
            one = with_facts(
                finding,
                batch=batch,
                predicted_us=variant.predicted_us.get(str(batch)),
                kernels_listed=variant.kernels.get(str(batch)),
            )
            if ground.late or (batch != BATCHES[0] and time.monotonic() > begun + share):
                yield refused(one, TIME_IS_UP if ground.late else "its share of the time was up")
                continue
            try:
                yield engine.checked(*repeated(reference_of(ground.work, variant.file), batch), one)
            # One batch size that fails doesn't take the others with it, unless the device is gone.
            except Exception as error:
                reason = why(error)
                if is_sticky(reason):
                    raise
                yield refused(one, f"failed: {reason}")
