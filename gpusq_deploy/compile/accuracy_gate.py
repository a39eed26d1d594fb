"""What a build asks of its verification, and what is kept where it isn't reached."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import onnx_ir as ir

from gpusq_deploy.artifacts import ProducerComparison, TaskAccuracy, Verification
from gpusq_deploy.bundle import constant_text, keep_beside, read_bundle, require_place
from gpusq_deploy.calibration import RANDOM
from gpusq_deploy.compile.request import BuildRequest
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.text import counted

_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE})


def failed_place(out: Path) -> Path:
    """Where the evidence of a refused build goes: beside the bundle that it would have made."""
    return out.with_name(f"{out.name}.failed")


def require_checkable(request: BuildRequest, model: ir.Model) -> None:
    """Refuse, before calibration, a demand that can't be checked, or whose evidence would have no place.

    Raises:
        GpusqError: Top-1 agreement of a model without classes, SQNR of one without floats, or something else stands
            where the evidence goes.
    """
    if not _asked(request) and (request.evaluation is None or request.evaluation.max_drop is None):
        return
    output = model.graph.outputs[0]
    classes = output.dtype not in _FLOATS or (output.shape is not None and len(output.shape) == 2)
    if request.min_agreement is not None and not classes:
        raise GpusqError(
            f"the first output is {output.shape}, not [N, classes]: there is no top-1 to agree on",
            place="--min-agreement",
            hint="use --min-sqnr",
        )
    if request.min_sqnr is not None and not any(value.dtype in _FLOATS for value in model.graph.outputs):
        raise GpusqError(
            "every output is of integers or booleans, which agree or don't: they have no SQNR",
            place="--min-sqnr",
            hint="use --min-agreement: the share of the first output's values that must be equal",
        )
    failed = failed_place(request.out)
    require_place(failed, force=True)
    if failed.exists() and not read_bundle(failed).receipt.shortfalls:
        raise GpusqError(
            "the evidence of a refused build would go here, but this bundle isn't one",
            place=str(failed),
            hint="move it, or choose another --out",
        )


def shortfalls(verification: Verification | None, request: BuildRequest) -> tuple[str, ...]:
    """What was asked and not reached, one sentence each; `--min-sqnr` is asked of every output of floats.

    A limit is missed too where the first output is constant: nothing can be measured on it. A further one that is
    constant is only told, see `doubts`.
    """
    if verification is None or (request.expect_outputs is not None and request.calib in {None, RANDOM}):
        return ()  # with a producer's outputs limits can be asked of those alone
    asked = _asked(request)
    if asked and verification.constant:
        return (f"{constant_text(verification)}; {asked} can't be judged on that",)
    missed: list[str] = []
    if request.min_sqnr is not None:
        missed.extend(_below_sqnr(verification, request.min_sqnr))
    if request.min_agreement is not None:
        missed.extend(_below_agreement(verification, request.min_agreement))
    return tuple(missed)


def task_shortfalls(found: TaskAccuracy | None) -> tuple[str, ...]:
    """A drop of the task's measure above what was allowed: the drop itself, as measured, whatever its interval."""
    if found is None or found.max_drop is None or found.drop <= found.max_drop:
        return ()
    return (
        f"{found.measure} is {found.drop:.6g} points below the given model's, {found.given:.6g}, on "
        f"{counted(found.images, 'image')}: more than --max-drop {found.max_drop:g}",
    )


def producer_shortfalls(found: Sequence[ProducerComparison], request: BuildRequest) -> tuple[str, ...]:
    """What was asked of the producer's own outputs and not reached; those that torch computed here are told alone."""
    if request.expect_outputs is None:
        return ()
    given = [each for each in found if each.source == request.expect_outputs.name]
    if not given and _asked(request):
        return (f"the built graph wasn't compared with --expect-outputs: {_asked(request)} can't be judged",)
    return tuple(missed for each in given for missed in _below_producer(each, request))


def _below_producer(found: ProducerComparison, request: BuildRequest) -> Iterator[str]:
    least, share = request.min_sqnr, request.min_agreement
    for output in found.outputs:
        if least is not None and output.sqnr_db is not None and output.sqnr_db < least:
            yield f"SQNR {output.sqnr_db:.6g} dB of {output.tensor} to {found.source} is below --min-sqnr {least:g}"
    if least is not None and all(output.sqnr_db is None for output in found.outputs):
        yield f"no output of {found.source} has an SQNR: --min-sqnr can't be judged"
    agreement = found.top1_agreement if found.top1_agreement is not None else found.outputs[0].equal
    if share is not None and agreement is None:
        yield f"the first output of {found.source} has no top-1: --min-agreement can't be judged"
    if share is not None and agreement is not None and agreement < share:
        yield f"agreement {agreement:.6g} with {found.source} is below --min-agreement {share:g}"


def _below_sqnr(verification: Verification, least: float) -> Iterator[str]:
    told = [other for other in verification.others if other.tensor not in verification.constant_others]
    outputs = (("", verification.sqnr_db), *((f" of {other.tensor}", other.sqnr_db) for other in told))
    for which, decibels in outputs:
        if decibels is not None and decibels < least:
            yield f"SQNR{which} {decibels:.6g} dB is below --min-sqnr {least:g}"
    if all(decibels is None for _, decibels in outputs):
        yield "no output has an SQNR: --min-sqnr can't be judged"


def _below_agreement(verification: Verification, least: float) -> Iterator[str]:
    agreement = verification.top1_agreement
    if agreement is None:
        yield "the first output has no top-1 per sample: --min-agreement can't be judged"
    elif agreement < least:
        what = "top-1 agreement {}" if verification.sqnr_db is not None else "the share of equal values, {},"
        yield f"{what.format(f'{agreement:.6g}')} is below --min-agreement {least:g}"


def _asked(request: BuildRequest) -> str:
    """The limits that were given, by their options."""
    limits = {"--min-sqnr": request.min_sqnr, "--min-agreement": request.min_agreement}
    return " and ".join(option for option, limit in limits.items() if limit is not None)


def refuse(folder: Path, request: BuildRequest, missed: tuple[str, ...]) -> NoReturn:
    """Keep the folder that was to become the bundle as evidence, and stop the build.

    Raises:
        GpusqError: Always; it says where the evidence is.
    """
    kept = failed_place(request.out)
    keep_beside(folder, kept)
    raise GpusqError(
        "; ".join(missed),
        place=str(request.model),
        hint=f"{shlex.join(['gpusq-inspect', str(kept)])} shows what was measured, and where the error comes from",
    )
