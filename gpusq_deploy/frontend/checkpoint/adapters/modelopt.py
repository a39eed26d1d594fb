"""Quantisers of NVIDIA ModelOpt and of pytorch-quantization, from which ModelOpt grew.

Both keep a range beside the weight of the layer that it belongs to:

    LAYER.input_quantizer._amax    LAYER.weight_quantizer._amax      ModelOpt
    LAYER._input_quantizer._amax   LAYER._weight_quantizer._amax     pytorch-quantization
    LAYER._input_quantizer.clip.clip_value_min, …clip_value_max      pytorch-quantization, learned

1. An input's range must be one number: TensorRT quantises activations per tensor. Of an affine quantiser it is the
   larger end, |_bias_value| + amax; of an unsigned one its end. Both are told: the grid is coarser, unless
   `with_offsets` moves the offset out.
2. A weight's range is its grid, [N] along the output channels or one number; which axis it has is in its shape. Along
   another axis TensorRT can't have it: the layer stays float. With `_block_sizes` it is one number for each block of
   the last axis, of which the last may be shorter.
3. A layer whose input has no quantiser, or a disabled one, stays float; with a quantised weight that weight is rounded
   to its grid, as its producer ran it. ModelOpt says in `modelopt_state` what is disabled, and INT8, FP8 or INT4.
4. A range that can't be, such as NaN, is kept as a problem: it matters where the layer is to be quantised.
5. SmoothQuant and AWQ multiply a layer's input by a factor per channel (`_pre_quant_scale`), which is kept.
6. Ranges of modules without a weight, and quantisers of anything but inputs and weights, are left out, and told.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch

from gpusq_deploy.artifacts import QuantizedPrecision
from gpusq_deploy.frontend.checkpoint.adapters.quantizer_record import (
    LARGEST_CODE,
    InputQuantizer,
    QuantizerRecord,
    RangeProblem,
    WeightGrid,
    symmetric_quantizer,
    weight_grid,
)
from gpusq_deploy.frontend.checkpoint.adapters.reading import Reading
from gpusq_deploy.frontend.checkpoint.mappings import mapping_of
from gpusq_deploy.frontend.checkpoint.wrappers import plain_name
from gpusq_deploy.text import by_reason, counted, some

_KEY = re.compile(
    r"(?P<layer>.+)\.(?P<private>_?)(?P<role>\w+)_quantizer\.(?P<field>_\w+|clip\.clip_value_(?:min|max))"
)
_NAME = re.compile(r"(?P<layer>.+)\._?(?P<role>\w+)_quantizer")
_CLIP_FIELDS = ("clip.clip_value_min", "clip.clip_value_max")
_USED = {"input": ("_amax", "_bias_value", "_pre_quant_scale", *_CLIP_FIELDS), "weight": ("_amax", *_CLIP_FIELDS)}
_AGAIN = "calibrate the quantiser again: its calibrator saw no data; or calibrate here with --recalibrate --calib"
# A thousandth is far below half an INT8 step, 1/254: rounding of a stored range, not clipping.
_SLACK = 1e-3
# Of the reason of layers whose weights alone are quantised.
_INT4 = ", to INT4"
# By `_num_bits`; of floats those of the exponent and of the mantissa.
_KINDS = {"8": "int8", "4": "int4", "(4, 3)": "fp8"}


@dataclass(kw_only=True, slots=True)
class _Quantizer:
    """One quantiser: its tensors by field, and what ModelOpt's state says of it."""

    key: str
    fields: dict[str, torch.Tensor] = field(default_factory=dict[str, torch.Tensor])
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def ranged(self) -> bool:
        return any(name in self.fields for name in ("_amax", *_CLIP_FIELDS))

    @property
    def disabled(self) -> bool:
        return self.settings.get("_disabled") is True

    @property
    def kind(self) -> str:
        """`int8` where nothing else is said."""
        bits = str(self.settings.get("_num_bits", "8"))
        return _KINDS.get(bits, f"{bits} bits")

    @property
    def codes(self) -> QuantizedPrecision | None:
        """The kind, if it is one that we know the numbers of."""
        return next((known for known in LARGEST_CODE if known == self.kind), None)

    @property
    def blocks(self) -> Mapping[Any, Any]:
        """By axis, how many values share a scale; and `type`."""
        return mapping_of(self.settings.get("_block_sizes"))


_OFF = _Quantizer(key="")


@dataclass(kw_only=True, slots=True)
class _Found:
    """What the layers come to; the lists of layers are for remarks."""

    producer: str
    state: dict[str, torch.Tensor]
    ranges: dict[str, float] = field(default_factory=dict[str, float])
    origins: dict[str, str] = field(default_factory=dict[str, str])
    floats: dict[str, str] = field(default_factory=dict[str, str])
    problems: dict[str, RangeProblem] = field(default_factory=dict[str, RangeProblem])
    types: dict[str, str] = field(default_factory=dict[str, str])
    grids: dict[str, WeightGrid] = field(default_factory=dict[str, WeightGrid])
    per_tensor: list[str] = field(default_factory=list[str])
    inputs: dict[str, InputQuantizer] = field(default_factory=dict[str, InputQuantizer])
    factors: dict[str, torch.Tensor] = field(default_factory=dict[str, torch.Tensor])
    weightless: list[str] = field(default_factory=list[str])
    coarser: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    clipped: dict[str, int] = field(default_factory=dict[str, int])
    wider: list[str] = field(default_factory=list[str])
    rounded: list[str] = field(default_factory=list[str])
    unrounded: list[str] = field(default_factory=list[str])
    untyped: bool = False


def read_quantizers(reading: Reading, content: Mapping[str, Any], *, place: str) -> Reading:
    """Take the quantisers' entries out of the state dict; see the module's rules.

    Args:
        reading: What was read so far.
        content: The whole file; ModelOpt's own saves say there what each quantiser is.
        place: The file.
    """
    keys = {key: match for key in reading.state if (match := _KEY.fullmatch(key)) is not None}
    settings = _settings(content)
    if not keys and not settings:
        return reading
    private = any(match["private"] for match in keys.values())
    found = _Found(
        producer="pytorch-quantization" if private else "ModelOpt",
        state={name: tensor for name, tensor in reading.state.items() if name not in keys},
        untyped=not settings,
    )
    layers, unused = _quantizers(reading.state, keys, settings)
    for layer, roles in layers.items():
        _look_at_layer(found, layer, roles.get("input", _OFF), roles.get("weight", _OFF), place)
    return replace(
        reading,
        state=found.state,
        ranges={**reading.ranges, **found.ranges},
        origins={**reading.origins, **found.origins},
        remarks=(*reading.remarks, *_remarks(found, unused)),
        quantizers=QuantizerRecord(
            producer=found.producer,
            floats=found.floats,
            problems=found.problems,
            types=found.types,
            grids=found.grids,
            inputs=found.inputs,
            factors=found.factors,
        ),
    )


def _quantizers(
    state: Mapping[str, torch.Tensor], keys: Mapping[str, re.Match[str]], settings: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, dict[str, _Quantizer]], list[str]]:
    """Quantisers by layer and role, and the entries that nothing is made of."""
    layers: dict[str, dict[str, _Quantizer]] = {}
    unused: list[str] = []
    plain: dict[str, str] = {plain_name(name): name.removesuffix(".weight") for name in state if _is_weight(name)}
    for name, told in settings.items():
        match = _NAME.fullmatch(name)
        layer = plain.get(plain_name(f"{match['layer']}.weight")) if match is not None else None
        if match is not None and layer is not None and match["role"] in _USED:
            layers.setdefault(layer, {})[match["role"]] = _Quantizer(key=name, settings=told)
    for key, match in keys.items():
        if match["field"] not in _USED.get(match["role"], ()):
            unused.append(key)
            continue
        roles = layers.setdefault(match["layer"], {})
        roles.setdefault(match["role"], _Quantizer(key=key)).fields[match["field"]] = state[key]
        roles[match["role"]].key = key
    return layers, unused


def _is_weight(name: str) -> bool:
    return name.endswith(".weight")


def _settings(content: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """What ModelOpt's state says of each quantiser, by the last of its modes that says anything."""
    modes = mapping_of(content.get("modelopt_state")).get("modelopt_state_dict")
    told: dict[str, Mapping[str, Any]] = {}
    for mode in cast("list[object]", modes) if isinstance(modes, list) else ():
        # A mode is its name and what it keeps.
        kept = cast("tuple[object, ...]", mode)[-1:] if isinstance(mode, tuple) else ()
        for value in kept:
            states = mapping_of(mapping_of(mapping_of(value).get("metadata")).get("quantizer_state"))
            told.update({name: mapping_of(state) for name, state in states.items()})
    return told


def _look_at_layer(found: _Found, layer: str, given: _Quantizer, weight: _Quantizer, place: str) -> None:
    stored = found.state.get(f"{layer}.weight")
    if stored is None or stored.ndim < 2 or not stored.is_floating_point():
        if given.ranged or weight.ranged:
            _look_at_other(found, layer, given)
        return
    problem = _factor(found, layer, given, stored, place) or _weight_grid(found, layer, weight, stored, place)
    reason = _why_float(given, weight)
    if reason:
        found.floats.setdefault(layer, reason)
        if weight.ranged and not weight.disabled and "alone" in reason:
            _round_weight(found, layer, stored)
        return
    problem = problem or _input_range(found, layer, given, place)
    if problem is not None:
        found.problems[layer] = problem
        found.ranges.pop(layer, None)
    if kinds := {given.kind, weight.kind} - {"int8"}:
        found.types[layer] = " and ".join(sorted(kinds))


def _look_at_other(found: _Found, layer: str, given: _Quantizer) -> None:
    """A module that multiplies by no weight: its quantiser is no part of the build."""
    found.weightless.append(layer)
    amax = given.fields.get("_amax")
    if not given.disabled and given.codes is not None and amax is not None and amax.numel() == 1:
        found.inputs[layer] = symmetric_quantizer(float(amax), given.codes)


def _why_float(given: _Quantizer, weight: _Quantizer) -> str:
    """Why the layer ran in floating point; empty where its input and its weight were quantised."""
    if given.ranged and not given.disabled:
        return "its weight's quantiser is disabled" if weight.disabled else ""
    if given.settings.get("_dynamic") is True and not given.disabled:
        return "its input is quantised dynamically, with a range for each tensor that comes"
    if given.settings and not given.disabled:
        return "its input's quantiser was never run: it has no range"
    if weight.ranged and not weight.disabled:
        kind = f", to {weight.kind.upper()}" if weight.settings else ""
        return f"its weights alone are quantised{kind}; its input isn't"
    return "its quantisers are disabled"


def _input_range(found: _Found, layer: str, given: _Quantizer, place: str) -> RangeProblem | None:
    ends = [given.fields[name] for name in _CLIP_FIELDS if name in given.fields]
    # A learned range is what the quantiser used; the buffer beside it is where learning started.
    values = ends or [given.fields["_amax"]]
    for value in values:
        if value.numel() != 1:
            what = f"the input's range has {value.numel()} values: TensorRT quantises activations per tensor"
            return RangeProblem(what, f"{place}, {given.key}", "quantise inputs per tensor (axis None)")
        if damage := _damage(value, signed=bool(ends)):
            return RangeProblem(damage, f"{place}, {given.key}", _AGAIN)
    amax = max(float(value.detach().float().abs()) for value in values)
    bias = given.fields.get("_bias_value")
    if bias is not None:
        if damage := _damage(bias, signed=True):
            return RangeProblem(damage, f"{place}, {given.key}", _AGAIN)
        found.inputs[layer] = InputQuantizer(amax / 127, offset=bias.detach().float())
        amax += float(bias.detach().float().abs().max())
        found.coarser.append(("about _bias_value", layer))
    if given.settings.get("_unsigned") is True:
        found.inputs[layer] = InputQuantizer(amax / 255, 0, 255)
        found.coarser.append(("unsigned", layer))
    found.ranges[layer] = amax
    found.origins[layer] = f"{found.producer}, {'learned input range' if ends else 'input_quantizer._amax'}"
    return None


def _damage(value: torch.Tensor, *, signed: bool) -> str:
    """What is wrong with recorded numbers; empty where nothing is."""
    numbers = value.detach().float()
    bad = not numbers.numel() or not bool(torch.isfinite(numbers).all()) or (not signed and bool((numbers < 0).any()))
    return "a recorded range is empty, negative or not finite" if bad else ""


def _factor(found: _Found, layer: str, given: _Quantizer, stored: torch.Tensor, place: str) -> RangeProblem | None:
    factor = given.fields.get("_pre_quant_scale")
    if factor is None or given.settings.get("_enable_pre_quant_scale") is False:
        return None
    hint = "save the weights from before quantisation and give --calib, or quantise with INT8_DEFAULT_CFG"
    numbers = factor.detach().float().flatten()
    if stored.ndim != 2 or numbers.numel() not in (1, stored.shape[1]):
        what = f"a factor of {list(factor.shape)} before an input of {stored.shape[1]} channels"
        return RangeProblem(what, f"{place}, {given.key}", hint)
    if not bool(torch.isfinite(numbers).all()) or bool((numbers <= 0).any()):
        return RangeProblem("a factor before the input isn't positive and finite", f"{place}, {given.key}", hint)
    found.factors[layer] = numbers.expand(stored.shape[1]).clone()
    return None


def _weight_grid(
    found: _Found, layer: str, weight: _Quantizer, stored: torch.Tensor, place: str
) -> RangeProblem | None:
    """The grid along the output channels or in blocks of inputs; a layer with another one stays float."""
    kind = weight.codes
    if not weight.ranged or weight.disabled or kind is None:
        return None
    amax = _weight_amax(weight)
    if isinstance(amax, str):
        return RangeProblem(amax, f"{place}, {weight.key}", _AGAIN)
    if weight.blocks:
        grid = _blocks(amax, stored, weight.blocks, kind)
    else:
        axis = _axis(amax, stored, weight)
        if axis is None:
            what = f"the range has {amax.numel()} values, the weight {stored.shape[0]} output channels"
            hint = "quantise weights per output channel (axis 0) or per tensor"
            return RangeProblem(what, f"{place}, {weight.key}", hint)
        if axis > 0:
            reason = f"its weight's range runs along axis {axis}; TensorRT has one scale per output channel"
            found.floats[layer] = reason
        grid = _channels(amax, stored, kind) if axis == 0 else None
    if grid is not None:
        grid = grid._replace(narrow=weight.settings.get("_narrow_range") is True)
    if grid is None or _keep_grid(found, layer, grid, stored, one=amax.numel() == 1):
        return None
    return RangeProblem("the range is 0, and the weights are not", f"{place}, {weight.key}", _AGAIN)


def _weight_amax(weight: _Quantizer) -> torch.Tensor | str:
    """The weight's range as it is recorded, or what is wrong with it."""
    ends = [weight.fields[name] for name in _CLIP_FIELDS if name in weight.fields]
    values = ends or [weight.fields["_amax"]]
    if damage := next(filter(None, (_damage(value, signed=bool(ends)) for value in values)), ""):
        return damage
    return functools.reduce(torch.maximum, [value.detach().float().abs() for value in values])


def _channels(amax: torch.Tensor, stored: torch.Tensor, kind: QuantizedPrecision) -> WeightGrid:
    """A grid along the output channels; INT4's are stored in blocks, of which each is a whole channel."""
    if kind != "int4":
        return weight_grid(amax.flatten(), stored, kind)
    return weight_grid(amax.reshape(-1, 1).expand(len(stored), 1), stored, kind, stored[0].numel())


def _blocks(
    amax: torch.Tensor, stored: torch.Tensor, sizes: Mapping[Any, Any], kind: QuantizedPrecision
) -> WeightGrid | None:
    """A grid in blocks along the weight's last axis; None where the blocks are of another form.

    Where the last block of a row is shorter, blocks of the sizes' common divisor say the same.
    """
    axes = [axis for axis in sizes if isinstance(axis, int) and sizes[axis] is not None]
    size = sizes[axes[0]] if len(axes) == 1 and axes[0] in (-1, stored.ndim - 1) else None
    length = stored.shape[-1]
    if not isinstance(size, int) or size < 1 or sizes.get("type", "static") != "static" or "scale_bits" in sizes:
        return None
    rows, count = stored.numel() // length, -(-length // size)
    if amax.numel() != rows * count:
        return None
    block = math.gcd(size, length) if length > size else length
    spread = amax.reshape(rows, count).repeat_interleave(size, 1)[:, :length:block]
    return weight_grid(spread.reshape(len(stored), -1), stored, kind, block)


def _keep_grid(found: _Found, layer: str, grid: WeightGrid, stored: torch.Tensor, *, one: bool) -> bool:
    """Keep a grid; False where it has no room for weights that are there. `one`: of one number."""
    rows, amax = stored.detach().float().flatten(1).abs(), grid.spread()
    if bool(((amax == 0) & (rows != 0)).any()):
        return False
    found.grids[layer] = grid
    if one:
        found.per_tensor.append(layer)
    if outside := int((rows > amax * (1 + _SLACK)).sum()):
        found.clipped[layer] = outside
    largest = rows.amax() if one else rows.reshape(*grid.amax.shape, -1).amax(-1)
    if bool((grid.amax > largest * (1 + _SLACK)).any()):
        found.wider.append(layer)
    return True


def _axis(amax: torch.Tensor, stored: torch.Tensor, weight: _Quantizer) -> int | None:
    """Along which of the weight's axes the range runs: its shape tells, else the settings; None: along no one of them.

    One number is along axis 0.
    """
    count = amax.numel()
    if count == 1:
        return 0
    if amax.ndim == stored.ndim:
        long = [index for index, size in enumerate(amax.shape) if size != 1]
        return long[0] if len(long) == 1 and amax.shape[long[0]] == stored.shape[long[0]] else None
    told = weight.settings.get("_axis")
    fits = [index for index, size in enumerate(stored.shape) if size == count]
    return told if isinstance(told, int) and told in fits else fits[0] if fits else None


def _round_weight(found: _Found, layer: str, stored: torch.Tensor) -> None:
    """The weight as its producer ran it: on its grid, in floating point."""
    if f"{layer.rpartition('.')[0]}.in_proj_weight" in found.state:
        # A nn.MultiheadAttention multiplies by its out_proj's weight without calling it: no quantiser ever ran.
        return
    grid = found.grids.get(layer)
    if grid is None:
        found.unrounded.append(layer)
        return
    rounded = grid.quantized(stored)
    found.state[f"{layer}.weight"] = rounded
    found.grids[layer] = weight_grid(grid.amax, rounded, grid.kind, grid.block)._replace(narrow=grid.narrow)
    found.rounded.append(layer)


def _remarks(found: _Found, unused: list[str]) -> Iterator[str]:
    if found.weightless:
        count = counted(len(found.weightless), "module")
        yield f"not used: {found.producer}'s ranges of {count} without weights to multiply by: {some(found.weightless)}"
    for reason, layers in by_reason([*found.floats.items()]).items():
        yield f"stays float{', but with --int4,' if _INT4 in reason else ''} since {reason}: {some(layers)}"
    for kind, layers in by_reason([*found.types.items()]).items():
        built = f"--{kind} builds them" if kind in {"fp8", "int4"} else "no precision of ours is that"
        yield f"quantised to {kind.upper()}, not to INT8 ({built}): {some(layers)}"
    for reason, layers in by_reason([(layer, reason) for reason, layer in found.coarser]).items():
        yield f"inputs are quantised {reason}, and TensorRT's grids are symmetric: {some(layers)}"
    if found.factors:
        count = counted(len(found.factors), "layer")
        names = some([*found.factors])
        yield f"SmoothQuant or AWQ: the inputs of {count} are multiplied by a factor per channel: {names}"
    yield from _weight_remarks(found)
    if unused:
        yield f"not used, since only inputs and weights of layers are quantised: {some(unused)}"


def _weight_remarks(found: _Found) -> Iterator[str]:
    if found.clipped:
        total, layers = sum(found.clipped.values()), some([*found.clipped])
        yield f"{total} weights lie outside their recorded ranges and saturate there, as in training: {layers}"
    if found.wider:
        yield f"the recorded ranges of weights are wider than the weights; their grid is kept: {some(found.wider)}"
    if found.untyped and len(found.per_tensor) == len(found.grids) > 1:
        yield "ranges of weights are per tensor and the file doesn't say of which type: taken for INT8's, not FP8's"
    if found.unrounded:
        layers = some(found.unrounded)
        yield f"weights that alone are quantised, in a way that isn't known here, are not rounded: {layers}"
    if found.rounded:
        yield f"weights that alone are quantised are rounded to their grid, as they ran: {some(found.rounded)}"
