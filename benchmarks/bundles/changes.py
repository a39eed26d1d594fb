"""What changed from one bundle to another but for single kernels, and whether that is worse. Pure.

worse    a layer is no longer INT8, FP8 or INT4, or no longer 2:4; an engine has more kernels or fewer fused
         attentions, or lost a layer's sparse kernel; SQNR is lower by more than 1 dB, agreement by more than 1 %
better   the opposite
other    everything else: GEMM counts (merged ones are fewer), digests, sizes, options, preprocessing, accuracy; what
         only one of the two has
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from textwrap import shorten
from typing import Literal, get_args

from gpusq_deploy.artifacts import BuiltEngine, LayerDecision, Value, Verification, builtins_from_value
from gpusq_deploy.benchmarks.bundles.matched import Matched
from gpusq_deploy.bundle import CODED, Bundle
from gpusq_deploy.text import by_reason, counted, some

Judgement = Literal["worse", "better", "other"]

# What verifications of one model on other samples differ by.
_SQNR_DB = 1.0
# A share of the samples; their spread over a hundred of them is as large.
_AGREEMENT = 0.01
_WIDTH = 70


class Change(Value):
    """One difference; of several layers where they share it. `engine` is empty where it is the whole bundle's."""

    judgement: Judgement
    engine: str
    what: str
    base: str
    head: str
    layers: tuple[str, ...] = ()

    @property
    def where(self) -> str:
        """How many layers, and the first of them."""
        return f"{counted(len(self.layers), 'layer')} ({some(self.layers)})" if self.layers else ""

    def text(self) -> str:
        """One line."""
        layers = f" in {self.where}" if self.layers else ""
        engine = f"engine {self.engine}: " if self.engine else ""
        return f"{self.judgement:<6}  {engine}{self.what} {self.shown(self.base)} -> {self.shown(self.head)}{layers}"

    @staticmethod
    def shown(value: str) -> str:
        """A digest by its first digits, and of what is long the beginning."""
        return value[:19] if value.startswith("sha256:") else shorten(value, _WIDTH, placeholder="...")


def changes(both: Matched) -> tuple[Change, ...]:
    """Every difference but those of single kernels, the worse ones first."""
    return tuple(sorted(_changes(both), key=severity))


def severity(change: Change) -> int:
    """The worse, the smaller."""
    return get_args(Judgement).index(change.judgement)


def _changes(both: Matched) -> Iterator[Change]:
    base, head = both.base, both.head
    coded = [{name: layer.precision for name, layer in side.items()} for side in planned(both)]
    # A layer that only one side has is said once.
    known = coded[0].keys() & coded[1].keys()
    sparse = [
        {name: "2:4" if layer.sparse else "dense" for name, layer in side.items() if name in known}
        for side in planned(both)
    ]
    yield from _by_layer("", "asked", coded[0], coded[1], good=set(CODED))
    yield from _by_layer("", "asked", sparse[0], sparse[1], good={"2:4"})
    yield from _sqnr(base, head)
    yield from _agreement(base, head)
    yield from _accuracy(base, head)
    for ours, theirs in both.engines:
        yield from _of_engine(both, ours, theirs)
    yield from _names(both)
    facts = [_facts(bundle) for bundle in (base, head)]
    for what in dict.fromkeys((*facts[0], *facts[1])):
        before, after = (fact.get(what, "none") for fact in facts)
        if before != after:
            yield Change(judgement="other", engine="", what=what, base=before, head=after)


def _facts(bundle: Bundle) -> dict[str, str]:
    """What may differ without being better or worse."""
    manifest = bundle.manifest
    options = {**builtins_from_value(manifest.options), **builtins_from_value(manifest.engine)}
    builders = {f"builder for {one.target}": f"{one.backend} {one.backend_version}" for one in bundle.receipt.engines}
    return {
        "model.onnx": bundle.receipt.model_digest,
        "architecture": str(manifest.source.arch),
        "checkpoint": manifest.source.digest,
        "targets": ", ".join(sorted(engine.target for engine in bundle.receipt.engines)) or "none",
        "size": f"{sum(file.size for file in manifest.files) / 1e6:.2f} MB",
        "recipe": bundle.plan.recipe,
        "remainder": bundle.plan.float_type,
        "batch": str(manifest.batch),
        **{f"preprocessing {name}": str(value) for name, value in builtins_from_value(manifest.preprocessing).items()},
        **{f"option {name}": str(value) for name, value in sorted(options.items())},
        **builders,
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


def proof_of(bundle: Bundle) -> Verification | None:
    """The verification, where it says something: not of outputs that never change, nor of made-up inputs."""
    found = bundle.receipt.verification
    return None if found is None or found.constant or found.synthetic else found


def _agreement(base: Bundle, head: Bundle) -> Iterator[Change]:
    known = [None if one is None else one.top1_agreement for one in (proof_of(base), proof_of(head))]
    if known[0] is not None and known[1] is not None and known[0] != known[1]:
        lost = known[1] - known[0]
        judgement = _judged(lost) if abs(lost) > _AGREEMENT else "other"
        said = [f"{share:.1%}" for share in (known[0], known[1])]
        yield Change(judgement=judgement, engine="", what="agreement", base=said[0], head=said[1])


def _sqnr(base: Bundle, head: Bundle) -> Iterator[Change]:
    known = [None if one is None else one.sqnr_db for one in (proof_of(base), proof_of(head))]
    said = ["unknown" if one is None else f"{one:.1f} dB" for one in known]
    if known[0] is None or known[1] is None:
        if said[0] != said[1]:
            yield Change(judgement="other", engine="", what="SQNR", base=said[0], head=said[1])
    elif known[0] != known[1]:
        gain = known[1] - known[0]
        judgement = _judged(gain) if abs(gain) > _SQNR_DB else "other"
        yield Change(judgement=judgement, engine="", what="SQNR", base=said[0], head=said[1])


def planned(both: Matched) -> tuple[dict[str, LayerDecision], dict[str, LayerDecision]]:
    """What is asked of each layer in base and in head, by base's names."""
    ours = {layer.layer: layer for layer in both.base.plan.layers}
    return ours, {both.as_base(layer.layer): layer for layer in both.head.plan.layers}


def _accuracy(base: Bundle, head: Bundle) -> Iterator[Change]:
    found = [bundle.receipt.accuracy for bundle in (base, head)]
    said = ["unknown" if one is None else f"{one.measure} {one.built:.4f} on {one.data}" for one in found]
    if said[0] != said[1]:
        yield Change(judgement="other", engine="", what="accuracy", base=said[0], head=said[1])


def _names(both: Matched) -> Iterator[Change]:
    other = {ours: theirs for theirs, ours in both.layers.items() if ours != theirs}
    if other:
        first = next(iter(other))
        yield Change(judgement="other", engine="", what="name of", base=first, head=other[first], layers=tuple(other))


def _of_engine(both: Matched, base: BuiltEngine, head: BuiltEngine) -> Iterator[Change]:
    sides = ({layer.layer: layer for layer in base.layers}, {both.as_base(layer.layer): layer for layer in head.layers})
    built = [{name: layer.precision or "not found" for name, layer in side.items()} for side in sides]
    known = sides[0].keys() & sides[1].keys()
    ran = [{name: layer.sparse_executed for name, layer in side.items() if name in known} for side in sides]
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
