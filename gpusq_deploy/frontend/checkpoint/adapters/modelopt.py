"""Ranges of NVIDIA ModelOpt and of pytorch-quantization, from which ModelOpt grew.

Both keep a range beside the weight of the layer that it belongs to:

    LAYER.input_quantizer._amax    LAYER.weight_quantizer._amax      ModelOpt
    LAYER._input_quantizer._amax   LAYER._weight_quantizer._amax     pytorch-quantization
    LAYER._input_quantizer.clip.clip_value_min, …clip_value_max      pytorch-quantization, learned

1. An input's range must be one number: TensorRT quantises activations per tensor.
2. A weight's range narrower than the weights clips them, as it did in training: the weights are clamped to it. A wider
   one is told and not used: scales of weights are computed from the weights, which gives a finer grid.
3. Disabled quantisers (ModelOpt says so in `modelopt_state`) and those of anything but a layer's input and weight are
   left out, and told.
4. SmoothQuant and AWQ multiply a layer's input by a factor per channel (`_pre_quant_scale`), without which the weights
   are wrong: such a file is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch

from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend.checkpoint.adapters.reading import Reading
from gpusq_deploy.text import some

_KEY = re.compile(
    r"(?P<layer>.+)\.(?P<private>_?)(?P<role>\w+)_quantizer\.(?P<field>_\w+|clip\.clip_value_(?:min|max))"
)
_CLIP_FIELDS = ("clip.clip_value_min", "clip.clip_value_max")
# A thousandth is far below half an INT8 step, 1/254: rounding of a stored range, not clipping.
_SLACK = 1e-3


@dataclass(frozen=True, kw_only=True, slots=True)
class _Entry:
    key: str
    layer: str
    role: str
    field: str
    producer: str
    value: torch.Tensor


def read_quantizers(reading: Reading, content: Mapping[str, Any], *, place: str) -> Reading:
    """Take the quantisers' entries out of the state dict; see the module's rules.

    Args:
        reading: What was read so far.
        content: The whole file; ModelOpt's own saves say there which quantisers were disabled.
        place: The file.

    Raises:
        GpusqError: A range that isn't finite or not one number, that fits no weight, or a factor before the input.
    """
    entries = list(_entries(reading.state))
    if not entries:
        return reading
    _require_no_factors(entries, place)
    disabled = _disabled(content)
    active = [entry for entry in entries if entry.key.rpartition("_quantizer.")[0] + "_quantizer" not in disabled]
    taken = {entry.key for entry in entries}
    state = {name: tensor for name, tensor in reading.state.items() if name not in taken}
    ranges, origins = _input_ranges(active, place)
    remarks = [*_clip_weights(state, active, place), *_left_out(entries, active)]
    return replace(
        reading,
        state=state,
        ranges={**reading.ranges, **ranges},
        origins={**reading.origins, **origins},
        remarks=(*reading.remarks, *remarks),
    )


def _entries(state: Mapping[str, torch.Tensor]) -> Iterator[_Entry]:
    for key, value in state.items():
        found = _KEY.fullmatch(key)
        if found is not None:
            yield _Entry(
                key=key,
                layer=found["layer"],
                role=found["role"],
                field=found["field"],
                producer="pytorch-quantization" if found["private"] else "ModelOpt",
                value=value,
            )


def _require_no_factors(entries: list[_Entry], place: str) -> None:
    for entry in entries:
        if entry.field == "_pre_quant_scale":
            raise GpusqError(
                "SmoothQuant or AWQ: the layer's input is multiplied by a factor per channel, its weights are divided",
                place=f"{place}, {entry.key}",
                hint="save the weights from before quantisation and give --calib, or quantise with INT8_DEFAULT_CFG",
            )


def _disabled(content: Mapping[str, Any]) -> frozenset[str]:
    """Quantisers that ModelOpt's state names as disabled, by the last of its modes that says anything."""
    modes = _mapping(content.get("modelopt_state")).get("modelopt_state_dict")
    off: dict[str, bool] = {}
    for mode in cast("list[object]", modes) if isinstance(modes, list) else ():
        # A mode is its name and what it keeps.
        kept = cast("tuple[object, ...]", mode)[-1:] if isinstance(mode, tuple) else ()
        for value in kept:
            states = _mapping(_mapping(_mapping(value).get("metadata")).get("quantizer_state"))
            off.update({name: _mapping(state).get("_disabled") is True for name, state in states.items()})
    return frozenset(name for name, disabled in off.items() if disabled)


def _mapping(value: object) -> dict[str, Any]:
    """The value as a dictionary, an empty one where it is anything else."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _input_ranges(entries: list[_Entry], place: str) -> tuple[dict[str, float], dict[str, str]]:
    ranges: dict[str, float] = {}
    origins: dict[str, str] = {}
    for entry in entries:
        if entry.role != "input" or entry.field not in ("_amax", *_CLIP_FIELDS):
            continue
        if entry.value.numel() != 1:
            raise GpusqError(
                f"the input's range has {entry.value.numel()} values: TensorRT quantises activations per tensor",
                place=f"{place}, {entry.key}",
                hint="quantise inputs per tensor (axis None)",
            )
        amax = float(_finite(entry, place).abs())
        learned = entry.field in _CLIP_FIELDS
        # A learned range is what the quantiser used; the buffer beside it is where learning started.
        if learned or "learned" not in origins.get(entry.layer, ""):
            before = ranges.get(entry.layer, 0.0) if learned and "learned" in origins.get(entry.layer, "") else 0.0
            ranges[entry.layer] = max(amax, before)
            how = "learned input range" if learned else "input_quantizer._amax"
            origins[entry.layer] = f"{entry.producer}, {how}"
    return ranges, origins


def _clip_weights(state: dict[str, torch.Tensor], entries: list[_Entry], place: str) -> Iterator[str]:
    clipped: list[str] = []
    wider: list[str] = []
    values = 0
    for entry in entries:
        if entry.role != "weight" or entry.field not in ("_amax", *_CLIP_FIELDS):
            continue
        name = f"{entry.layer}.weight"
        weight = state.get(name)
        if weight is None or not weight.is_floating_point():
            raise GpusqError("the range fits no weight", place=f"{place}, {entry.key}", hint=f"it should be {name}")
        limit = _per_channel(entry, weight, place)
        outside = weight.abs() > limit * (1 + _SLACK)
        if bool(outside.any()):
            state[name] = torch.minimum(torch.maximum(weight, -limit), limit)
            clipped.append(entry.layer)
            values += int(outside.sum())
        largest = weight.abs().flatten(1).amax(1) if limit.numel() > 1 else weight.abs().amax()
        if bool((limit.flatten() > largest * (1 + _SLACK)).any()):
            wider.append(entry.layer)
    if clipped:
        yield f"{values} weights are clipped to their recorded ranges, as in training: {some(clipped)}"
    if wider:
        yield f"the recorded ranges of weights are wider than the weights, whose own are used: {some(wider)}"


def _per_channel(entry: _Entry, weight: torch.Tensor, place: str) -> torch.Tensor:
    """The range as [N, 1, …], or [1] for the whole weight, in the weight's type."""
    limit = _finite(entry, place).abs().to(weight.dtype).flatten()
    if limit.numel() not in (1, weight.shape[0]):
        raise GpusqError(
            f"the range has {limit.numel()} values, the weight {weight.shape[0]} output channels",
            place=f"{place}, {entry.key}",
            hint="quantise weights per output channel (axis 0) or per tensor",
        )
    shaped = limit.reshape(-1, *([1] * (weight.ndim - 1))) if limit.numel() > 1 else limit
    if bool(((shaped == 0) & (weight != 0)).any()):
        raise GpusqError(
            "the range is 0, and the weights are not", place=f"{place}, {entry.key}", hint="calibrate the quantiser"
        )
    return shaped


def _finite(entry: _Entry, place: str) -> torch.Tensor:
    value = entry.value.detach().float()
    bad = not bool(torch.isfinite(value).all()) or (entry.field == "_amax" and bool((value < 0).any()))
    if bad or not value.numel():
        raise GpusqError(
            "a recorded range is empty, negative or not finite",
            place=f"{place}, {entry.key}",
            hint="calibrate the quantiser again: its calibrator saw no data",
        )
    return value


def _left_out(entries: list[_Entry], active: list[_Entry]) -> Iterator[str]:
    off = [entry.key for entry in entries if entry not in active]
    used = ("_amax", *_CLIP_FIELDS)
    others = [entry.key for entry in active if entry.role not in ("input", "weight") or entry.field not in used]
    if off:
        yield f"not used, since the quantiser is disabled: {some(off)}"
    if others:
        yield f"not used, since only inputs and weights of layers are quantised: {some(others)}"
