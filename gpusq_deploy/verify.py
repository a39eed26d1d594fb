"""Compare the Q/DQ graph with the float graph, both run by ONNX Runtime on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gpusq_deploy.artifacts.receipt import Verification
from gpusq_deploy.calibration.sources import Batches, DataSource, Selection, filled
from gpusq_deploy.engines.ort import open_onnx
from gpusq_deploy.engines.session import Session
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.numerics.error import cosine, sqnr_db, top1_agreement

_BATCH = 8
_HELD_OUT_SHARE = 10
_HELD_OUT_MOST = 32
# JSON has no infinity; equal outputs are reported as this many decibels, noise on silence as minus as many.
_EQUAL_DB = 300.0

Array = npt.NDArray[Any]


def split_source(source: DataSource) -> tuple[DataSource, DataSource, bool]:
    """Samples to calibrate on, and samples to verify on.

    Every tenth sample is kept apart, 32 at most, spread over the whole; with fewer than ten samples the two are the
    same, and the flag is False.
    """
    apart = min(len(source) // _HELD_OUT_SHARE, _HELD_OUT_MOST)
    if apart == 0 or source.synthetic:
        return source, source, False
    chosen = {index * len(source) // apart for index in range(apart)}
    rest = [index for index in range(len(source)) if index not in chosen]
    return Selection(source=source, indices=rest), Selection(source=source, indices=sorted(chosen)), True


def verify(float_model: Path, built_model: Path, source: DataSource, *, held_out: bool) -> Verification:
    """Run both models on every sample and compare the first output; two axes are taken for [N, classes].

    Args:
        float_model: The float32 graph.
        built_model: The graph that the engines are built from.
        source: Samples to compare on.
        held_out: Whether calibration has not seen them.

    Raises:
        GpusqError: One of the two answers with NaN or infinity.
    """
    reference, got = _answers(float_model, source), _answers(built_model, source)
    if not np.isfinite(reference).all():
        raise GpusqError(
            "the float graph computes NaN or infinity",
            place=source.name,
            hint="check the weights and the preprocessing",
        )
    if not np.isfinite(got).all():
        raise GpusqError(
            "the built graph computes NaN or infinity where the float graph doesn't",
            place=built_model.name,
            hint="an activation outgrows the remainder's type: build with --bf16 or --fp32",
        )
    kind = "synthetic" if source.synthetic else "kept apart from calibration" if held_out else "also used to calibrate"
    return Verification(
        images=len(reference),
        held_out=held_out,
        sqnr_db=max(-_EQUAL_DB, min(sqnr_db(reference, got), _EQUAL_DB)),
        cosine=cosine(reference, got),
        top1_agreement=top1_agreement(reference, got) if reference.ndim == 2 else None,
        note=f"{len(reference)} samples of {source.name}, {kind}; ONNX Runtime on the CPU, its rewrites switched off",
    )


def require_same(reference: Array, got: Array, *, place: str) -> float:
    """Largest difference of an export from torch, relative to the largest reference value.

    Raises:
        GpusqError: More than 1e-3, or not finite: the export is wrong.
    """
    if reference.shape != got.shape:
        raise GpusqError(
            f"the exported graph answers {list(got.shape)}, torch {list(reference.shape)}",
            place=place,
            hint="try another --opset or a fixed --batch",
        )
    difference = float(np.max(np.abs(reference - got)) / (np.max(np.abs(reference)) or 1.0))
    if not difference <= 1e-3:
        raise GpusqError(
            f"the exported graph computes something else than torch: relative difference {difference:.3g}",
            place=place,
            hint="this model can't be exported faithfully with this opset; try another --opset or a fixed --batch",
        )
    return difference


def _answers(model: Path, source: DataSource) -> Array:
    session = open_onnx(model, optimize=False)
    try:
        return np.concatenate([_first(session, batch) for batch in Batches(source=source, size=_batch_size(session))])
    finally:
        session.close()


def _batch_size(session: Session) -> int:
    size = session.inputs[0].shape[0]
    return size if size > 0 else _BATCH


def _first(session: Session, batch: npt.NDArray[np.float32]) -> Array:
    fixed = session.inputs[0].shape[0]
    feed = filled(batch, fixed if fixed > 0 else None)
    return session.run({session.inputs[0].name: feed})[session.outputs[0].name][: len(batch)]
