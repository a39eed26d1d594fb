"""Step 2: whole models in every precision, latency and kernels; their graphs come with the kit, see `graphs`."""

from __future__ import annotations

import contextlib
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


def items(ground: Ground) -> tuple[str, ...]:
    """Every model and precision that the kit holds, what tells most first."""
    return tuple(variant.name for variant in variants_of(ground.kit)) or (_NONE,)


def run(item: str, ground: Ground) -> Iterator[Finding]:
    """Its batches, by every way that works."""
    finding, ways = Finding(step="models", name=item), ground.ways
    reason = ("the kit was made without models" if item == _NONE else "") or no_gpu() or ways.why_not
    if reason:
        yield refused(finding, reason)
        return
    variant = next(variant for variant in variants_of(ground.kit) if variant.name == item)
    for way in ways.ways:
        yield from _by_one_way(variant, way, ground)


def _by_one_way(variant: Variant, way: Way, ground: Ground) -> Iterator[Finding]:
    finding = Finding(step="models", name=variant.name, facts={"way": way.name})
    plan, record = plan_and_record(ground.work, variant.file, way)
    if ground.wait_for(record) is None:
        yield refused(finding, f"{TIME_IS_UP}; its plan wasn't ready")
        return
    prepared = read_value(record, Prepared)
    finding = with_facts(finding, build_seconds=prepared.seconds)
    if prepared.why_not:
        yield refused(finding, prepared.why_not)
        return
    # Opened once for all batch sizes, for a plan is compiled while it is loaded.
    with contextlib.closing(Engine(plan, way)) as engine:
        for batch in BATCHES:
            one = with_facts(
                finding,
                batch=batch,
                predicted_us=variant.predicted_us.get(str(batch)),
                kernels_listed=variant.kernels.get(str(batch)),
            )
            if ground.late:
                yield refused(one, TIME_IS_UP)
                continue
            try:
                yield engine.checked(*repeated(reference_of(ground.work, variant.file), batch), one)
            # One batch size that fails doesn't take the others with it, unless the device is gone.
            except Exception as error:
                reason = why(error)
                if is_sticky(reason):
                    raise
                yield refused(one, f"failed: {reason}")
