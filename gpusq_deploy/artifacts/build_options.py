"""What gpusq-build was asked, as the manifest keeps it; and the same as 0.1 wrote it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import msgspec

from gpusq_deploy.artifacts.base import Value
from gpusq_deploy.artifacts.calibration import AMAX, Calibrator
from gpusq_deploy.artifacts.plan import FloatPrecision
from gpusq_deploy.artifacts.sparsity import PruneMethod

RewriteChoice = Literal["measured", "all"]

_NONE = "none"
_RECORDED = "recorded in the checkpoint"
_REST = "; of layers that it records none of, "
_INT8_OUTPUTS, _UNIT = "int8 where predicted to keep ", " dB"


class BuildOptionsRecord(Value):
    """The options of a build that have no place of their own in the manifest. None: not asked for.

    Attributes:
        int8: Layers were quantised, and the recipe makes some INT8; `fp8` and `int4` alike.
        sparse: Layers that the recipe expects to be 2:4 had to be.
        float_type: The type of all that isn't quantised.
        calib: The data that ranges were observed on.
        recorded_ranges: The checkpoint's own ranges were used; `calib` then is for layers that have none there.
        ranges: The file of ranges.
        recalibrate: Recorded ranges were set aside.
        allow_pickle: Code that the checkpoint names was run.
        calibrator: The one of rules that name none.
        pack: 2:4 INT8 weights are stored compressed too.
        prune: How layers were made 2:4 before.
        permute: Channels were put into another order for it.
        sparse_outputs: Sparse layers write INT8 where this is predicted to be kept of their signal, in dB.
        rewrites: Which graph rewrites for speed were applied.
        min_sqnr: What verification had to reach, in dB.
        min_agreement: What verification had to reach, as a share.
        eval_data: The labelled data that the task's measure was taken on.
        max_drop: How many points of it might be lost.
        targets: Names of the targets that engines were asked for.
    """

    int8: bool = False
    fp8: bool = False
    int4: bool = False
    sparse: bool = False
    float_type: FloatPrecision | None = msgspec.field(name="remainder", default=None)
    calib: str | None = None
    recorded_ranges: bool = False
    ranges: str | None = None
    recalibrate: bool = False
    allow_pickle: bool = False
    calibrator: Calibrator = AMAX
    pack: bool = False
    prune: PruneMethod | None = None
    permute: bool = False
    sparse_outputs: float | None = None
    rewrites: RewriteChoice | None = None
    min_sqnr: float | None = None
    min_agreement: float | None = None
    eval_data: str | None = None
    max_drop: float | None = None
    targets: tuple[str, ...] = ()


def build_options_from_0_1(old: Mapping[str, str]) -> dict[str, Any]:
    """The record's JSON form from the texts of 0.1: `true`, `none`, and sentences.

    Keys and words that 0.1 had not are handed on as they are: who decodes the record refuses them.

    Raises:
        ValueError: A text isn't what 0.1 wrote.
    """
    new: dict[str, Any] = {name: _FROM_0_1.get(name, _flag)(text) for name, text in old.items()}
    if old.get("calib", "").startswith(_RECORDED):
        new["recorded_ranges"] = True
    return new


def _flag(text: str) -> bool | str:
    return {"true": True, "false": False}.get(text, text)


def _word(text: str) -> str | None:
    return None if text == _NONE else text


def _number(text: str) -> float | None:
    return None if text == _NONE else float(text)


def _calib(text: str) -> str | None:
    if text.startswith(_RECORDED):
        return text.removeprefix(_RECORDED).removeprefix(_REST) or None
    return _word(text)


def _calibrator(text: str) -> Any:
    name, _, share = text.partition(" ")
    return {"name": name, "percentile": float(share) if share else None}


def _least_db(text: str) -> float | None:
    return None if text == "float" else float(text.removeprefix(_INT8_OUTPUTS).removesuffix(_UNIT))


def _listed(text: str) -> list[str]:
    return [] if text == _NONE else text.split(",")


_FROM_0_1: dict[str, Callable[[str], Any]] = {
    "remainder": str,
    "calib": _calib,
    "ranges": _word,
    "calibrator": _calibrator,
    "prune": _word,
    "sparse_outputs": _least_db,
    "rewrites": str,
    "min_sqnr": _number,
    "min_agreement": _number,
    "targets": _listed,
}
