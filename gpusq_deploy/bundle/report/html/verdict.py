"""The verdict: is the engine INT8, sparse, accurate and fast; what isn't known, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gpusq_deploy.artifacts import BuiltEngine, Verification
from gpusq_deploy.bundle.files import Bundle
from gpusq_deploy.bundle.receipt import CODED
from gpusq_deploy.bundle.report.cost_text import Outlook, cost_outlook, cost_verdict
from gpusq_deploy.bundle.report.headline import accuracy_text, no_engine_text
from gpusq_deploy.bundle.report.html.values import Card, Standing
from gpusq_deploy.bundle.report.sentences import layer_counts_text, limits_text
from gpusq_deploy.bundle.report.sparse_chain import LayerExplanation, breaks
from gpusq_deploy.bundle.report.warnings import NOISE, decibels_text, receipt_doubts, task_text
from gpusq_deploy.text import counted, listed, some

Explained = Sequence[tuple[BuiltEngine, Sequence[LayerExplanation]]]

_UNMEASURED = "not measured"
_JUDGED = "gpusq-build --min-sqnr DB or --min-agreement SHARE refuses a build that is worse"
_SPARSE = "gpusq-compress trains a model to 2:4; then gpusq-build --sparse"
_OUTLOOKS: dict[Outlook, Standing] = {
    "predicted to pay": "open",
    "may not pay": "bad",
    "unclear": "open",
    "unknown": "open",
}


def verdict_cards(bundle: Bundle, latency: str = "") -> tuple[Card, ...]:
    """The four questions.

    Args:
        bundle: What was built.
        latency: What was measured of an engine, in a few words; empty where nothing was.
    """
    return (_precision(bundle), _sparse(bundle), _accuracy(bundle), _speed(bundle, latency))


def verdict(found: Sequence[Card]) -> tuple[Standing, str]:
    """All cards in a few words: what is wrong, what isn't proven, what is."""
    said = {standing: [card for card in found if card.standing == standing] for standing in ("bad", "open", "good")}
    parts = {
        "bad": "Look at this first: ",
        "open": "Not proven yet: " if said["bad"] else "Nothing speaks against it. Not proven yet: ",
        "good": "Proven: ",
    }
    sentences = [
        f"{parts[standing]}{', '.join(f'{card.title} ({card.word})' for card in cards)}."
        for standing, cards in said.items()
        if cards
    ]
    worst: Standing = "bad" if said["bad"] else "open" if said["open"] else "good"
    return worst, " ".join(sentences) or "Nothing was asked for that could be proven."


def tasks(bundle: Bundle, found: Sequence[Card], explained: Explained) -> tuple[tuple[str, str], ...]:
    """What to look at, the gravest first: what it is, and what to do. What several say is said once."""
    return tuple(dict.fromkeys(_tasks(bundle, found, explained)))


def _tasks(bundle: Bundle, found: Sequence[Card], explained: Explained) -> Iterator[tuple[str, str]]:
    hint = "another recipe, or another limit (gpusq-build --help)"
    yield from ((f"Refused: {missed}", hint) for missed in bundle.receipt.shortfalls)
    if bundle.manifest.synthetic_calibration:
        yield f"Ranges: {NOISE}", "gpusq-build --calib IMAGES"
    yield from ((f"Accuracy: {doubt}", "") for doubt in receipt_doubts(bundle.receipt))
    for engine in bundle.receipt.engines:
        wrong = [layer for layer in engine.layers if layer.precision != layer.asked]
        yield from ((f"Precision, {engine.target}, {layer.layer}: {layer.reason}", "") for layer in wrong)
    for entry in bundle.receipt.skipped:
        yield f"No engine for {entry.target}: {entry.reason}", entry.command
    for engine, chains in explained:
        for stop in breaks(chains):
            if stop.mend:
                where = f"{counted(len(stop.layers), 'layer')} ({some(stop.layers)})"
                yield f"2:4 on {engine.target}: '{stop.question}' is {stop.answer} for {where}", stop.mend
    yield from ((f"{card.title}: {card.word}", card.todo) for card in found if card.standing == "open" and card.todo)


def _precision(bundle: Bundle) -> Card:
    asked = [layer for layer in bundle.plan.layers if layer.precision in CODED]
    title = listed(sorted({layer.precision.upper() for layer in asked}) or ["INT8"])
    if not asked:
        return Card(title, "none", "not asked", layer_counts_text(bundle), "gpusq-build --int8 --calib IMAGES")
    if not bundle.receipt.engines:
        return Card(title, "open", "no engine", layer_counts_text(bundle), no_engine_text(bundle))
    names = {layer.layer for layer in asked}
    kept = [_kept(engine, names) for engine in bundle.receipt.engines]
    said = "; ".join(
        f"{engine.target}: {len(got)} of {len(asked)} layers as asked, {_of_work(bundle, got)}"
        for engine, got in zip(bundle.receipt.engines, kept, strict=True)
    )
    least = min(len(got) for got in kept)
    if least == len(asked):
        return Card(title, "good", "yes", said)
    lost = sorted({name for got in kept for name in names - got})
    return Card(title, "bad", "partly" if least else "no", f"{said}; not: {some(lost)}")


def _kept(engine: BuiltEngine, names: set[str]) -> set[str]:
    return {layer.layer for layer in engine.layers if layer.layer in names and layer.precision == layer.asked}


def _of_work(bundle: Bundle, layers: set[str]) -> str:
    total = sum(layer.macs for layer in bundle.plan.layers)
    if not total:
        return f"of {counted(len(bundle.plan.layers), 'weighted layer')}"
    share = sum(layer.macs for layer in bundle.plan.layers if layer.layer in layers) / total
    return f"{share:.1%} of the weighted layers' FLOPs"


def _sparse(bundle: Bundle) -> Card:
    title = "2:4 sparse"
    held = sum(layer.sparse for layer in bundle.plan.layers)
    if not bundle.plan.sparse_asked:
        return Card(title, "none", "not asked", f"0 of {counted(len(bundle.plan.layers), 'layer')} planned", _SPARSE)
    weights = f"{held} of {counted(len(bundle.plan.layers), 'layer')} with 2:4 weights"
    if not bundle.receipt.engines:
        return Card(title, "open", "no engine", weights, no_engine_text(bundle))
    if not held:
        return Card(title, "bad", "no", f"asked for, but {weights}", _SPARSE)
    answers = [
        layer.sparse_executed for engine in bundle.receipt.engines for layer in engine.layers if layer.sparse_asked
    ]
    counts = {answer: answers.count(answer) for answer in ("yes", "no", "unknown") if answer in answers}
    said = f"{weights}; sparse kernel: {', '.join(f'{answer} {count}' for answer, count in counts.items())}"
    if "no" in counts:
        return Card(title, "bad", "partly" if "yes" in counts else "no", said)
    return Card(title, *(("good", "yes") if counts.keys() == {"yes"} else ("open", "not known")), said)


def _accuracy(bundle: Bundle) -> Card:
    title, found, task = "Accuracy", bundle.receipt.verification, bundle.receipt.accuracy
    said = accuracy_text(bundle) if task is None else f"{task_text(task)}; {accuracy_text(bundle)}"
    if bundle.receipt.shortfalls:
        return Card(title, "bad", "refused", f"{'; '.join(bundle.receipt.shortfalls)}; {said}")
    word = _figure(found) if task is None else f"{task.measure} {task.built:.2%}"
    if bundle.manifest.synthetic_calibration:
        return Card(title, "bad", "random data", NOISE)
    doubts = receipt_doubts(bundle.receipt)
    if doubts:
        return Card(title, "bad", "doubtful", f"{said}; {'; '.join(doubts)}")
    if word == _UNMEASURED:
        return Card(title, "open", word, said, "gpusq-build --calib IMAGES")
    limits = limits_text(bundle)
    if limits:
        return Card(title, "good", word, f"{limits} reached: {said}")
    return Card(title, "open", word, f"{said}; no limit was set", _JUDGED)


def _figure(found: Verification | None) -> str:
    if found is None or found.synthetic or found.constant:
        return _UNMEASURED
    if found.sqnr_db is not None:
        return decibels_text(found.sqnr_db, found.images)
    return "compared" if found.top1_agreement is None else f"{found.top1_agreement:.1%} equal"


def _speed(bundle: Bundle, latency: str) -> Card:
    cost = bundle.receipt.cost
    bench = "gpusq-bench BUNDLE --json runs.json; gpusq-inspect BUNDLE --html report.html --runs runs.json"
    said = "" if cost is None else cost_verdict(cost, bundle.plan.recipe)
    if latency:
        return Card("Speed", "good", "measured", f"{latency}; prediction: {said}" if said else latency)
    if cost is None:
        return Card("Speed", "open", "not measured", "nothing was timed, and nothing predicted", bench)
    outlook = cost_outlook(cost)
    return Card("Speed", _OUTLOOKS[outlook], outlook, said, bench)
