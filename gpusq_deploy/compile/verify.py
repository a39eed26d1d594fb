"""Compare the Q/DQ graph with the float graph, both run by ONNX Runtime on the CPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from gpusq_deploy.artifacts import (
    EQUAL_DB,
    Agreement,
    Drift,
    QuantPlan,
    Reference,
    Verification,
)
from gpusq_deploy.bundle import compared_text, verification_warnings
from gpusq_deploy.calibration import (
    CalibrationInputs,
    DataSource,
    Selection,
)
from gpusq_deploy.compile.compare_graphs import Compared, Pair, compare, fused_answer, in_both, of_rounding
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph import DriftSite, block_sites, layer_sites, map_model, value_name
from gpusq_deploy.numerics import ErrorSums, equal_share, is_floating, sqnr_db
from gpusq_deploy.progress import Reporter
from gpusq_deploy.text import counted

_BLOCKS_LOOKED_INTO = 2
_LAYER_SAMPLES = 4
# Rounding errors that two graphs make are no more alike than this.
_FAR_DB = 20.0


Array = npt.NDArray[Any]


def verify(
    pair: Pair,
    source: DataSource,
    *,
    held_out: bool,
    reference: Reference = "float",
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Verification:
    """Run both models on every sample; compare their outputs, and what leaves the blocks inside.

    Two axes of the first output are taken for [N, classes]; integers and booleans agree or don't. The blocks that add
    most noise are looked into: their layers are compared on the first few samples.

    Args:
        pair: The float32 graph, and the one that the engines are built from.
        source: Samples to compare on.
        held_out: Whether calibration has not seen them.
        reference: What the float graph is, for the record.
        progress: Hears how many of the runs are done.

    Raises:
        GpusqError: One of the two answers with NaN or infinity.
    """
    model = map_model(pair.reference)
    blocks = block_sites(model)
    common = in_both(pair, blocks)
    seen = compare(pair, source, common, progress)
    first = value_name(model.graph.outputs[0])
    rounding = _of_rounding(pair, seen, first)
    fused, why_not = (None, "") if first in rounding else _fused(pair.built, seen)
    notes = [_note(seen, source, held_out=held_out), _whole(seen), why_not, _rewritten(blocks, common)]
    figures = figures_of(None if first in rounding else seen.output, whole=first in seen.whole)
    found = Verification(
        images=seen.images,
        held_out=held_out,
        sqnr_db=figures.sqnr_db,
        median_sqnr_db=figures.median_sqnr_db,
        lowest_sqnr_db=figures.lowest_sqnr_db,
        highest_sqnr_db=figures.highest_sqnr_db,
        cosine=figures.cosine,
        top1_agreement=None if first in rounding else seen.agreement,
        fused_sqnr_db=fused,
        fused_images=0 if fused is None else min(seen.images, len(seen.first[0])),
        blocks=_drifts(seen),
        others=tuple(_drift("", name, sums) for name, sums in seen.others.items() if name not in rounding),
        agreements=tuple(Agreement(tensor=name, share=share) for name, share in seen.agreements.items()),
        whole=seen.whole,
        constant=seen.constant,
        constant_others=seen.constant_others,
        rounding=rounding,
        synthetic=source.synthetic,
        reference=reference,
        note="; ".join(filter(None, notes)),
    )
    return _with_layers(found, pair, model, source)


class Figures(NamedTuple):
    """What is said of one output; all None of integers, the samples' own also of an output as a whole."""

    sqnr_db: float | None = None
    cosine: float | None = None
    median_sqnr_db: float | None = None
    lowest_sqnr_db: float | None = None
    highest_sqnr_db: float | None = None


def figures_of(sums: ErrorSums | None, *, whole: bool) -> Figures:
    """The figures of an output of floats, in decibels that JSON can hold; none of another, whose sums are None."""
    if sums is None:
        return Figures()
    pooled = Figures(bounded_db(sums.sqnr_db()), sums.cosine())
    if whole:
        return pooled
    lowest, highest = (bounded_db(decibels) for decibels in sums.extremes_db())
    median = bounded_db(sums.median_sqnr_db())
    return pooled._replace(median_sqnr_db=median, lowest_sqnr_db=lowest, highest_sqnr_db=highest)


def _with_layers(found: Verification, pair: Pair, model: ir.Model, source: DataSource) -> Verification:
    worst = [block.module for block in found.noisiest(_BLOCKS_LOOKED_INTO)]
    wanted = [site for site in layer_sites(model, worst) if site.module not in worst]
    sites = in_both(pair, wanted)
    found = msgspec.structs.replace(found, note="; ".join(filter(None, [found.note, _rewritten(wanted, sites)])))
    if not sites:
        return found
    few = Selection(source=source, indices=list(range(min(len(source), _LAYER_SAMPLES))))
    seen = compare(pair, few, sites)
    return msgspec.structs.replace(found, layers=_drifts(seen), layer_images=seen.images)


def _of_rounding(pair: Pair, seen: Compared, first: str) -> tuple[str, ...]:
    """Outputs that disagree as there is nothing to agree on, see `of_rounding`; looked for where one is far off."""
    sums = {first: seen.output, **seen.others}
    far = [name for name, found in sums.items() if found is not None and found.sqnr_db() < _FAR_DB]
    known = {*seen.constant_others, *([first] if seen.constant else [])}
    if not set(far) - known:
        return ()
    found = of_rounding(pair.reference, seen.first[0])
    return tuple(name for name in far if name in found and name not in known)


def _drifts(seen: Compared) -> tuple[Drift, ...]:
    return tuple(_drift(site.module, site.tensor, sums) for site, sums in seen.sites.items())


def _drift(module: str, tensor: str, sums: ErrorSums) -> Drift:
    return Drift(
        module=module,
        tensor=tensor,
        sqnr_db=bounded_db(sums.sqnr_db()),
        median_sqnr_db=bounded_db(sums.median_sqnr_db()),
        cosine=sums.cosine() if math.isfinite(sums.cosine()) else 0.0,
    )


def _fused(built_model: Path, seen: Compared) -> tuple[float | None, str]:
    """SQNR of the built graph with ONNX Runtime's rewrites on against itself without them; or why there is none."""
    batch, plain = seen.first
    try:
        fused = fused_answer(built_model, batch)
    except GpusqError as error:
        return None, f"with its optimisations on it can't run the graph: {error.what}"
    if not is_floating(plain):
        share = equal_share(plain, fused)
        return (
            (EQUAL_DB, "") if share == 1 else (None, f"with its optimisations on, {share:.1%} of the values are equal")
        )
    if not np.isfinite(fused).all():
        return None, "with its optimisations on it computes NaN or infinity"
    return bounded_db(sqnr_db(plain, fused)), ""


def bounded_db(decibels: float) -> float:
    """A figure that JSON can hold: infinity, or what isn't a number, is 300 dB of its sign, or minus 300."""
    return -EQUAL_DB if math.isnan(decibels) else max(-EQUAL_DB, min(decibels, EQUAL_DB))


def samples_text(count: int, source: DataSource, *, held_out: bool) -> str:
    """Which samples a comparison was made on, for its note."""
    kind = "synthetic" if source.synthetic else "held out of calibration" if held_out else "also used to calibrate"
    return f"{counted(count, 'sample')} of {source.name}, {kind}"


def _note(seen: Compared, source: DataSource, *, held_out: bool) -> str:
    said = samples_text(seen.images, source, held_out=held_out)
    return f"{said}; ONNX Runtime on the CPU, its optimisations off"


def _whole(seen: Compared) -> str:
    names = ", ".join(seen.whole)
    return f"compared as a whole, for no axis is of samples: {names}" if names else ""


def _rewritten(blocks: Sequence[DriftSite], common: Sequence[DriftSite]) -> str:
    missing = ", ".join(site.module for site in blocks if site not in common)
    return f"not compared, because the built graph has no such tensor: {missing}" if missing else ""


def verify_built(
    pair: Pair, data: CalibrationInputs, plan: QuantPlan, reporter: Reporter, *, reference: Reference
) -> Verification | None:
    """Compare the built graph with the float graph; None, and said so, where the CPU can't run it."""
    if plan.float_type == "bf16":
        reporter.say("not compared with the float model: ONNX Runtime's CPU provider has no BF16 kernels")
        return None
    result = verify(
        pair,
        data.verify,
        held_out=data.held_out,
        reference=reference,
        progress=lambda done, total: reporter.progress("verifying", done, total),
    )
    calibrated = any(layer.activation is not None for layer in plan.layers)
    reporter.say(f"compared: {compared_text(result, calibrated=calibrated)}")
    for doubt in verification_warnings(result):
        reporter.say(f"warning: {doubt}")
    return result
