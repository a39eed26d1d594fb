"""A receipt as a CI assertion: what a file of expectations says, and whether a bundle's receipt holds it.

    schema = "gpusq.expect/1"
    sqnr_db = ">= 28"

    [engine.a100]                # "*" means every engine of the bundle
    kernels = "<= 125"
    attention_fused = "= 12"
    gemms = { int8 = ">= 48", fp32 = "= 0" }
    int8_flops = ">= 0.9"

    [[engine.a100.layer]]
    match = "blocks.*"           # a shell pattern on the layer's name
    precision = "int8"
    weights = "2:4"
    sparse = "yes"

What a receipt doesn't hold (an engine that wasn't built, a pattern that matches nothing) fails: it never passes.
"""

from __future__ import annotations

import fnmatch
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from gpusq_deploy.artifacts import (
    EVERY_ENGINE,
    BuiltEngine,
    BuiltLayer,
    ChangeBudgets,
    Check,
    EngineExpectation,
    Expectations,
    LayerExpectation,
    QuantPlan,
    Receipt,
    Verification,
    parse_bound,
    value_from_toml,
)
from gpusq_deploy.bundle.report.warnings import constant_text
from gpusq_deploy.engines import find_target
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.text import some

_GRAMMAR = "the grammar is in docs/receipts.md"
_BUDGETS = "the grammar is in docs/benchmarking.md"
_HOLDS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
    "=": operator.eq,
}


def load_expectations(path: Path) -> Expectations:
    """Read a file strictly: unknown keys and targets, and bounds that aren't bounds, are errors.

    Raises:
        GpusqError: It can't be read, or isn't a file of expectations; the path of the offending key is named.
    """
    text = _text_of(path, _GRAMMAR)
    found = value_from_toml(text, Expectations, place=str(path), what="a file of expectations", hint=_GRAMMAR)
    _require_targets(found.engines)
    return found


def load_budgets(path: Path) -> ChangeBudgets:
    """Read a file of budgets for a change as strictly.

    Raises:
        GpusqError: It can't be read, or isn't one; the path of the offending key is named.
    """
    text = _text_of(path, _BUDGETS)
    found = value_from_toml(text, ChangeBudgets, place=str(path), what="a file of budgets", hint=_BUDGETS)
    _require_targets(found.engines)
    return found


def _text_of(path: Path, hint: str) -> str:
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise GpusqError(f"cannot read the expectations: {error.strerror}", place=str(path), hint=hint) from error
    except UnicodeDecodeError as error:
        raise GpusqError(f"the expectations are not UTF-8 text: {error}", place=str(path), hint=hint) from error


def _require_targets(names: Iterable[str]) -> None:
    for name in names:
        if name != EVERY_ENGINE:
            find_target(name)


def check_receipt(expected: Expectations, receipt: Receipt, plan: QuantPlan) -> tuple[Check, ...]:
    """Hold a receipt against expectations, in the file's order.

    Args:
        expected: What must be.
        receipt: What is.
        plan: The same bundle's decisions; they know the layers' FLOPs.
    """
    checks: list[Check] = []
    if expected.sqnr_db is not None:
        checks.append(_sqnr_check(expected.sqnr_db, receipt.verification))
    for name, wanted in expected.engines.items():
        engines = _engines(name, receipt)
        if not engines:
            checks.append(Check(engine=name, what="engine", expected="built", got=_why_none(name, receipt), held=False))
        for engine in engines:
            checks.extend(_engine_checks(engine, wanted, plan))
    return tuple(checks)


def _sqnr_check(bound: str, found: Verification | None) -> Check:
    """A bound on the verification's SQNR doesn't hold where that is unknown, or was measured on a constant output."""
    if found is not None and found.constant:
        return Check(engine="model", what="sqnr_db", expected=bound, got=constant_text(found), held=False)
    return check_bound("model", "sqnr_db", bound, None if found is None else found.sqnr_db)


def _engines(name: str, receipt: Receipt) -> list[BuiltEngine]:
    wanted = None if name == EVERY_ENGINE else find_target(name).name
    return [engine for engine in receipt.engines if wanted in (None, engine.target)]


def _why_none(name: str, receipt: Receipt) -> str:
    targets = None if name == EVERY_ENGINE else find_target(name).name
    reasons = [entry.reason for entry in receipt.skipped if targets in (None, entry.target)]
    return f"not built ({reasons[0]})" if reasons else "not built: the bundle wasn't asked for it"


def _engine_checks(engine: BuiltEngine, wanted: EngineExpectation, plan: QuantPlan) -> Iterator[Check]:
    totals = engine.totals
    if wanted.kernels is not None:
        yield check_bound(engine.target, "kernels", wanted.kernels, totals.kernels)
    if wanted.attention_fused is not None:
        yield check_bound(engine.target, "attention_fused", wanted.attention_fused, totals.attention_fused)
    for precision, bound in wanted.gemms.items():
        yield check_bound(engine.target, f"gemms.{precision}", bound, totals.gemms.get(precision, 0))
    if wanted.int8_flops is not None:
        yield check_bound(engine.target, "int8_flops", wanted.int8_flops, _int8_share(engine, plan))
    for layer in wanted.layers:
        yield from _layer_checks(engine, layer)


def _int8_share(engine: BuiltEngine, plan: QuantPlan) -> float | None:
    macs = {decision.layer: decision.macs for decision in plan.layers}
    if not macs or not all(macs.values()):
        return None
    return sum(macs[layer.layer] for layer in engine.layers if layer.precision == "int8") / sum(macs.values())


def _layer_checks(engine: BuiltEngine, wanted: LayerExpectation) -> Iterator[Check]:
    found = [layer for layer in engine.layers if fnmatch.fnmatchcase(layer.layer, wanted.match)]
    questions: tuple[tuple[str, str | None, Callable[[BuiltLayer], str]], ...] = (
        ("precision", wanted.precision, lambda layer: layer.precision or "not found"),
        ("weights", wanted.weights, lambda layer: "2:4" if layer.sparse_weights_valid else "dense"),
        ("sparse", wanted.sparse, lambda layer: layer.sparse_executed),
    )
    for question, answer, read in questions:
        if answer is not None:
            got, held = _agreement(found, answer, read)
            what = f"{wanted.match}: {question}"
            yield Check(engine=engine.target, what=what, expected=answer, got=got, held=held)


def _agreement(layers: Sequence[BuiltLayer], answer: str, read: Callable[[BuiltLayer], str]) -> tuple[str, bool]:
    if not layers:
        return "no layer has such a name", False
    others = [f"{layer.layer} is {read(layer)}" for layer in layers if read(layer) != answer]
    if not others:
        return f"all {len(layers)} layers", True
    return f"{len(others)} of {len(layers)} are not: {some(others)}", False


def check_bound(engine: str, what: str, bound: str, got: float | None) -> Check:
    """Whether a figure is within a bound; what isn't known never is."""
    sign, limit = parse_bound(bound)
    if got is None:
        return Check(engine=engine, what=what, expected=bound, got="unknown", held=False)
    held = _HOLDS[sign](got, limit)
    return Check(engine=engine, what=what, expected=bound, got=f"{got:.6g}", held=held)


def failed(checks: Iterable[Check]) -> tuple[Check, ...]:
    """Those that don't hold."""
    return tuple(check for check in checks if not check.held)
