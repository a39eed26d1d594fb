"""Budgets for what may change from one bundle to another, without timing: a gate for any CI.

    schema = "gpusq.expect-change/1"
    sqnr_drop = "<= 1"               # dB
    agreement_drop = "<= 1"          # points, hundredths of the samples
    accuracy_drop = "<= 0.5"         # points of the task's measure on labelled data
    size_growth = "<= 5"             # percent of all files
    preprocessing = "same"

    [engine."*"]                     # or a target's name
    kernels_more = "<= 0"
    attention_lost = "= 0"
    type_lost = "= 0"                # layers that are no longer INT8, FP8 or INT4
    sparse_lost = "= 0"              # layers whose sparse kernel or 2:4 weights are lost
    bytes_growth = "<= 5"            # percent of the bytes that kernels move
    engine_growth = "<= 10"          # percent of the engine file
    allow = ["head"]                 # shell patterns of layers that may lose type or sparsity

A figure that isn't known fails: it never passes.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec

from gpusq_deploy.artifacts import (
    EVERY_ENGINE,
    BuiltLayer,
    ChangeBudgets,
    Check,
    EngineBudgets,
    builtins_from_value,
    parts_of,
)
from gpusq_deploy.benchmarks.bundles.changes import proof_of
from gpusq_deploy.benchmarks.bundles.kernel_changes import KernelChange
from gpusq_deploy.benchmarks.bundles.matched import Matched
from gpusq_deploy.benchmarks.bundles.sides import EnginePair
from gpusq_deploy.bundle import CODED, Bundle, check_bound
from gpusq_deploy.engines import find_target
from gpusq_deploy.text import some

_WHOLE = "bundle"


def check_budgets(
    budgets: ChangeBudgets, both: Matched, engines: Sequence[EnginePair], kernels: Sequence[KernelChange]
) -> tuple[Check, ...]:
    """Hold a change against budgets, in the file's order.

    Args:
        budgets: What is allowed.
        both: What is compared.
        engines: The engines of each target that both have.
        kernels: Their kernels that differ.
    """
    return (*_whole_checks(budgets, both), *_all_engines(budgets, both, engines, kernels))


def _whole_checks(budgets: ChangeBudgets, both: Matched) -> Iterator[Check]:
    figures = {
        "sqnr_drop": _difference(_sqnr(both.base), _sqnr(both.head), 1),
        "agreement_drop": _difference(_agreement(both.base), _agreement(both.head), 100),
        "accuracy_drop": _accuracy_drop(both),
        "size_growth": _growth(*(sum(file.size for file in side.manifest.files) for side in (both.base, both.head))),
    }
    for name, bound in budgets.bounds.items():
        yield check_bound(_WHOLE, name, bound, figures[name])
    if budgets.preprocessing is not None:
        sides = [builtins_from_value(side.manifest.preprocessing) for side in (both.base, both.head)]
        moved = [name for name in sides[0] | sides[1] if sides[0].get(name) != sides[1].get(name)]
        got = f"{some(moved)} changed" if moved else "same"
        held = budgets.preprocessing == "any" or not moved
        yield Check(engine=_WHOLE, what="preprocessing", expected=budgets.preprocessing, got=got, held=held)


def _all_engines(
    budgets: ChangeBudgets, both: Matched, engines: Sequence[EnginePair], kernels: Sequence[KernelChange]
) -> Iterator[Check]:
    for name, wanted in budgets.engines.items():
        target = None if name == EVERY_ENGINE else find_target(name).name
        found = [pair for pair in engines if target in (None, pair.target)]
        if not found:
            got = "not in both bundles" if target else "no target has an engine in both bundles"
            yield Check(engine=name, what="engine", expected="built", got=got, held=False)
        for pair in found:
            own = [change for change in kernels if change.engine == pair.target]
            yield from _engine_checks(pair, wanted, both, own)


def _engine_checks(
    pair: EnginePair, wanted: EngineBudgets, both: Matched, kernels: Sequence[KernelChange]
) -> Iterator[Check]:
    base, head = pair.engines
    lost = {"type_lost": _types_lost(pair, both), "sparse_lost": _sparse_lost(pair, both)}
    figures: dict[str, float | None] = {
        "kernels_more": head.totals.kernels - base.totals.kernels,
        "attention_lost": base.totals.attention_fused - head.totals.attention_fused,
        "bytes_growth": _growth(*pair.bytes_moved),
        "engine_growth": _growth(base.engine_bytes, head.engine_bytes),
        "predicted_growth": _growth(*pair.predicted_us),
    }
    places = {"attention_lost": [change.place for change in kernels if change.attention_lost > 0]}
    for name, layers in lost.items():
        places[name] = [layer for layer in layers if not _matches(layer, wanted.allow)]
        figures[name] = len(places[name])
    for name, bound in wanted.bounds.items():
        check = check_bound(pair.target, name, bound, figures[name])
        named = places.get(name, [])
        yield check if check.held or not named else msgspec.structs.replace(check, got=f"{check.got} ({some(named)})")


def _types_lost(pair: EnginePair, both: Matched) -> list[str]:
    """Layers of base that are coded there and not in head, by base's names: one that head lacks counts.

    Projections that head has merged into one layer, or base had, are the same layers.
    """
    return _lost(pair, both, lambda layer: layer.precision in CODED)


def _sparse_lost(pair: EnginePair, both: Matched) -> list[str]:
    kernels = _lost(pair, both, lambda layer: layer.sparse_executed == "yes")
    weights = _lost(pair, both, lambda layer: layer.sparse_weights_valid)
    return list(dict.fromkeys((*kernels, *weights)))


def _lost(pair: EnginePair, both: Matched, has: Callable[[BuiltLayer], bool]) -> list[str]:
    base, head = pair.engines
    kept = {part for layer in head.layers if has(layer) for part in parts_of(both.as_base(layer.layer))}
    return [layer.layer for layer in base.layers if has(layer) and not kept.issuperset(parts_of(layer.layer))]


def _matches(layer: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(layer, pattern) for pattern in patterns)


def _sqnr(bundle: Bundle) -> float | None:
    found = proof_of(bundle)
    return None if found is None else found.sqnr_db


def _agreement(bundle: Bundle) -> float | None:
    found = proof_of(bundle)
    return None if found is None else found.top1_agreement


def _accuracy_drop(both: Matched) -> float | None:
    """In points; None where a side has none, or not the same measure on the same data."""
    base, head = both.base.receipt.accuracy, both.head.receipt.accuracy
    if base is None or head is None or (base.measure, base.data, base.images) != (head.measure, head.data, head.images):
        return None
    return _difference(base.built, head.built, 100)


def _difference(base: float | None, head: float | None, times: float) -> float | None:
    # Without the rounding errors of the difference.
    return None if base is None or head is None else round(times * (base - head), 9)


def _growth(base: float | None, head: float | None) -> float | None:
    """In percent of base."""
    return None if not base or head is None else round(100 * (head - base) / base, 9)
