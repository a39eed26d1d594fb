"""What changed from one bundle to another, without timing: read from their manifests, engines and receipts. Pure.

worse    a layer is no longer INT8, FP8 or INT4, or no longer 2:4; an engine has more kernels or fewer fused
         attentions, or lost a layer's sparse kernel; SQNR is lower by more than 1 dB, agreement by more than 1 %
better   the opposite
other    everything else: GEMM counts (merged ones are fewer), digests, sizes, options, preprocessing; what only one
         of the two has
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

from gpusq_deploy.artifacts import BuiltEngine, Value, builtins_from_value
from gpusq_deploy.bundle import CODED, Bundle
from gpusq_deploy.text import by_reason, counted, some

Judgement = Literal["worse", "better", "other"]
BundleVerdict = Literal["same", "changed", "worse", "not comparable"]

_EXIT_CODES: dict[BundleVerdict, int] = {"same": 0, "changed": 0, "worse": 1, "not comparable": 4}
# What verifications of one model on other samples differ by.
_SQNR_DB = 1.0
# A share of the samples; their spread over a hundred of them is as large.
_AGREEMENT = 0.01


class Change(Value):
    """One difference; of several layers where they share it. `engine` is empty where it is the whole bundle's."""

    judgement: Judgement
    engine: str
    what: str
    base: str
    head: str
    layers: tuple[str, ...] = ()

    def text(self) -> str:
        """One line."""
        layers = f" in {counted(len(self.layers), 'layer')} ({some(self.layers)})" if self.layers else ""
        engine = f"engine {self.engine}: " if self.engine else ""
        return f"{self.judgement:<6}  {engine}{self.what} {_short(self.base)} -> {_short(self.head)}{layers}"


def _short(value: str) -> str:
    """A digest by its first digits."""
    return value[:19] if value.startswith("sha256:") else value


class BundleComparison(Value):
    """All differences, the worse ones first; `reasons` says why bundles aren't comparable, `changes` is then empty."""

    schema: Literal["gpusq.bundle-comparison/1"] = "gpusq.bundle-comparison/1"
    verdict: BundleVerdict
    reasons: tuple[str, ...]
    changes: tuple[Change, ...]

    @property
    def exit_code(self) -> int:
        """0 same or changed, 1 worse, 4 not comparable."""
        return _EXIT_CODES[self.verdict]

    def text(self) -> str:
        """One line for each change or reason, and the verdict as the last."""
        return "\n".join([*self.reasons, *(change.text() for change in self.changes), self.verdict])


def compare_bundles(base: Bundle, head: Bundle) -> BundleComparison:
    """What changed from `base` to `head`."""
    reasons = tuple(_obstacles(base, head))
    if reasons:
        return BundleComparison(verdict="not comparable", reasons=reasons, changes=())
    order: tuple[Judgement, ...] = ("worse", "better", "other")
    changes = tuple(sorted(_changes(base, head), key=lambda change: order.index(change.judgement)))
    worse = any(change.judgement == "worse" for change in changes)
    return BundleComparison(verdict="worse" if worse else "changed" if changes else "same", reasons=(), changes=changes)


def _obstacles(base: Bundle, head: Bundle) -> Iterator[str]:
    models = [bundle.manifest.source.arch for bundle in (base, head)]
    if models[0] != models[1]:
        yield f"architecture: {models[0]} in base, {models[1]} in head"
    targets = [sorted(engine.target for engine in bundle.receipt.engines) for bundle in (base, head)]
    if all(targets) and not set(targets[0]) & set(targets[1]):
        yield f"no shared target: {', '.join(targets[0])} in base, {', '.join(targets[1])} in head"


def _changes(base: Bundle, head: Bundle) -> Iterator[Change]:
    coded = [{layer.layer: layer.precision for layer in bundle.plan.layers} for bundle in (base, head)]
    sparse = [
        {layer.layer: "2:4" if layer.sparse else "dense" for layer in bundle.plan.layers} for bundle in (base, head)
    ]
    yield from _by_layer("", "asked", coded[0], coded[1], good=set(CODED))
    yield from _by_layer("", "asked", sparse[0], sparse[1], good={"2:4"})
    yield from _sqnr(base, head)
    yield from _agreement(base, head)
    engines = [{engine.target: engine for engine in bundle.receipt.engines} for bundle in (base, head)]
    for target in sorted(engines[0].keys() & engines[1].keys()):
        yield from _of_engine(engines[0][target], engines[1][target])
    facts = [_facts(bundle) for bundle in (base, head)]
    for what in dict.fromkeys((*facts[0], *facts[1])):
        before, after = (fact.get(what, "none") for fact in facts)
        if before != after:
            yield Change(judgement="other", engine="", what=what, base=before, head=after)


def _facts(bundle: Bundle) -> dict[str, str]:
    """What may differ without being better or worse."""
    manifest = bundle.manifest
    options = {**builtins_from_value(manifest.options), **builtins_from_value(manifest.engine)}
    return {
        "model.onnx": bundle.receipt.model_digest,
        "checkpoint": manifest.source.digest,
        "targets": ", ".join(sorted(engine.target for engine in bundle.receipt.engines)) or "none",
        "size": f"{sum(file.size for file in manifest.files) / 1e6:.2f} MB",
        "recipe": bundle.plan.recipe,
        "remainder": bundle.plan.float_type,
        "batch": str(manifest.batch),
        **{f"preprocessing {name}": str(value) for name, value in builtins_from_value(manifest.preprocessing).items()},
        **{f"option {name}": str(value) for name, value in sorted(options.items())},
        **{f"version of {name}": version for name, version in sorted(manifest.versions.items())},
    }


def _by_layer(
    engine: str, what: str, base: Mapping[str, str], head: Mapping[str, str], *, good: set[str]
) -> Iterator[Change]:
    """Layers that became something else, those with the same change together; `good` is what is lost or won."""
    moved = [
        (layer, f"{base.get(layer, 'absent')}>{head.get(layer, 'absent')}")
        for layer in dict.fromkeys((*base, *head))
        if base.get(layer) != head.get(layer)
    ]
    for change, layers in by_reason(moved).items():
        before, _, after = change.partition(">")
        judgement = _judged(int(after in good) - int(before in good)) if "absent" not in {before, after} else "other"
        yield Change(judgement=judgement, engine=engine, what=what, base=before, head=after, layers=tuple(layers))


def _agreement(base: Bundle, head: Bundle) -> Iterator[Change]:
    found = [bundle.receipt.verification for bundle in (base, head)]
    known = [None if one is None or one.constant or one.synthetic else one.top1_agreement for one in found]
    if known[0] is not None and known[1] is not None and known[0] != known[1]:
        lost = known[1] - known[0]
        judgement = _judged(lost) if abs(lost) > _AGREEMENT else "other"
        said = [f"{share:.1%}" for share in (known[0], known[1])]
        yield Change(judgement=judgement, engine="", what="agreement", base=said[0], head=said[1])


def _sqnr(base: Bundle, head: Bundle) -> Iterator[Change]:
    found = [bundle.receipt.verification for bundle in (base, head)]
    known = [None if one is None or one.constant or one.synthetic else one.sqnr_db for one in found]
    said = ["unknown" if one is None else f"{one:.1f} dB" for one in known]
    if known[0] is None or known[1] is None:
        if said[0] != said[1]:
            yield Change(judgement="other", engine="", what="SQNR", base=said[0], head=said[1])
    elif known[0] != known[1]:
        gain = known[1] - known[0]
        judgement = _judged(gain) if abs(gain) > _SQNR_DB else "other"
        yield Change(judgement=judgement, engine="", what="SQNR", base=said[0], head=said[1])


def _of_engine(base: BuiltEngine, head: BuiltEngine) -> Iterator[Change]:
    built = [{layer.layer: layer.precision or "not found" for layer in one.layers} for one in (base, head)]
    ran = [{layer.layer: layer.sparse_executed for layer in one.layers} for one in (base, head)]
    yield from _by_layer(base.target, "built", built[0], built[1], good=set(CODED))
    yield from _by_layer(base.target, "sparse kernel", ran[0], ran[1], good={"yes"})
    gemms = sorted({*base.totals.gemms, *head.totals.gemms})
    counts = [
        ("kernels", base.totals.kernels, head.totals.kernels, -1),
        ("fused attentions", base.totals.attention_fused, head.totals.attention_fused, 1),
        # Fewer may be merged ones: which layers lost their precision is judged by layer.
        *((f"{name} GEMMs", base.totals.gemms.get(name, 0), head.totals.gemms.get(name, 0), 0) for name in gemms),
        ("bytes of the engine", base.engine_bytes, head.engine_bytes, 0),
    ]
    for what, before, after, sign in counts:
        if before != after:
            judgement = _judged(sign * (after - before))
            yield Change(judgement=judgement, engine=base.target, what=what, base=str(before), head=str(after))


def _judged(gain: float) -> Judgement:
    return "better" if gain > 0 else "worse" if gain < 0 else "other"
