"""What other tools' quantisers keep beside float weights. The weights are read; the rest is left out and told.

    LAYER.weight_fake_quant.…, LAYER.activation_post_process.…, activation_post_process_0.…     torch's QAT, eager or FX
    LAYER.weight_quant.tensor_quant.…, LAYER.input_quant.fused_activation_quant_proxy.…         Brevitas
    LAYER.input_scale, LAYER.output_scale                                                       quanto, before freeze()
    __nncf_hooks.post_hooks.LAYER/linear/0__0.0.scale, …._num_bits, …                           NNCF
    LAYER.weight_scale, LAYER.weight_zero_point, LAYER.input_scale                              compressed-tensors

torch's observers stand behind modules, ours before layers: which belongs to which only the program shows. Brevitas
keeps a scale without the number of bits that it is for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch

from gpusq_deploy.frontend.checkpoint.adapters.reading import Reading
from gpusq_deploy.text import counted, some


class _Kind(NamedTuple):
    producer: str
    names: re.Pattern[str]
    why: str


_KINDS = (
    _Kind(
        "torch.ao.quantization",
        re.compile(r"(?:.*\.)?(?:\w*fake_quant\w*|activation_post_process(?:_\d+)?)\..+"),
        "they are of modules' outputs; which layer reads them only a program shows (torch.export.save after PT2E)",
    ),
    _Kind(
        "Brevitas",
        re.compile(r"(?:.*\.)?(?:input|output|weight|bias|act)_quant\..*(?:_impl|_quant|_proxy|scaling|zero_point).*"),
        "they don't say of how many bits they are",
    ),
    _Kind(
        "NNCF",
        re.compile(r"(?:.*\.)?(?:__nncf_hooks|_nncf)\..+"),
        "they are of operators' outputs, and which layer reads them the file doesn't say",
    ),
)
_SCALES = re.compile(r"(?P<layer>.+)\.(?:input|output|weight)_(?:scale|zero_point|global_scale|g_idx)")


def read_quantizer_states(reading: Reading) -> Reading:
    """Leave out what quantisers keep, and tell it."""
    for producer, names, why in _KINDS:
        found = [name for name in reading.state if names.fullmatch(name)]
        reading = _without(reading, found, producer, why)
    scales = list(_scales(reading.state))
    quanto = any(name.endswith(".output_scale") for name in scales)
    producer, lacking = (
        ("Hugging Face quanto", "the file doesn't say whether they are of INT8 or of FP8 codes")
        if quanto
        else ("compressed-tensors", "of how many bits they are only the quantization_config in config.json says")
    )
    return _without(reading, scales, producer, f"{lacking}; the weights are float, and ranges come from --calib")


def _scales(state: Mapping[str, torch.Tensor]) -> Iterator[str]:
    """Scales beside float weights."""
    for name in state:
        match = _SCALES.fullmatch(name)
        weight = state.get(f"{match['layer']}.weight") if match else None
        if weight is not None and weight.is_floating_point():
            yield name


def _without(reading: Reading, names: list[str], producer: str, why: str) -> Reading:
    if not names:
        return reading
    said = f"{producer}: not used, {counted(len(names), 'tensor')} of its quantisers ({some(names)}): {why}"
    return reading.without(set(names), producer, said)
