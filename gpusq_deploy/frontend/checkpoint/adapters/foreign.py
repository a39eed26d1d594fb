"""Forms of weights that their producers alone can turn into plain ones: each by its evidence, with its own conversion.

A form is told by names of tensors that no module of torch has. An architecture that does have them keeps them; see
`Reading.taken`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch

from gpusq_deploy.frontend.checkpoint.adapters.loralib import is_loralib
from gpusq_deploy.frontend.checkpoint.adapters.peft import is_peft
from gpusq_deploy.frontend.checkpoint.adapters.refusal import ForeignFormatError

_EIGHT_BITS = frozenset({torch.int8, torch.uint8, torch.int32, torch.float8_e4m3fn, torch.float8_e5m2})
_SCALES = ("_scale", "_scale_inv")
_TRANSFORMERS = "load the folder with transformers and that library: model.dequantize().save_pretrained(folder)"


class _Form(NamedTuple):
    """What tells a form, and what is said of it."""

    producer: str
    evidence: re.Pattern[str]
    what: str
    hint: str


def _names(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(?:.+\.)?(?:{pattern})")


# In this order: GPTQ's names hold AWQ's.
_FORMS = (
    _Form(
        "torch.ao.quantization",
        _names(r"_packed_params(?:\..+)?"),
        "converted by torch.ao.quantization.convert: INT8 weights packed for the CPU's kernels",
        "save the state dict from before torch.ao.quantization.convert",
    ),
    _Form(
        "bitsandbytes",
        _names(r"weight\.(?:quant_state\.bitsandbytes__\w+|absmax|quant_map|nested_\w+)|SCB|weight_format"),
        "quantised by bitsandbytes: codes of 4 or 8 bits",
        _TRANSFORMERS,
    ),
    _Form(
        "Hugging Face quanto",
        _names(r"weight\._(?:data|scale|shift)"),
        "frozen by quanto: codes and scales instead of weights",
        "save the weights dequantised, layer.weight.dequantize(), or from before quanto's freeze()",
    ),
    _Form(
        "GPTQ",
        _names(r"g_idx"),
        "quantised by GPTQ: codes of 4 bits or so, packed",
        "load it with GPTQModel or transformers and save it dequantised: model.dequantize().save_pretrained(folder)",
    ),
    _Form(
        "AWQ",
        _names(r"qweight|qzeros"),
        "quantised by AWQ or GPTQ: codes of 4 bits, packed",
        _TRANSFORMERS,
    ),
    _Form("HQQ", _names(r"W_q(?:\..+)?"), "quantised by HQQ: packed codes", "save W, which is layer.dequantize()"),
    _Form(
        "compressed-tensors",
        _names(r"weight_packed|weight_shape|weight_global_scale|bitmask|row_offsets"),
        "compressed by compressed-tensors (llm-compressor): packed codes or bit masks",
        "load it with compressed-tensors' ModelCompressor.decompress_model, and save the state dict",
    ),
    _Form(
        "torchao",
        _names(r"(?:_?weight[:_])_?(?:weight_)?qdata"),
        "quantised by torchao: codes and scales instead of weights",
        "save weight.dequantize() of each layer, or the weights from before quantize_()",
    ),
    _Form(
        "NNCF",
        _names(
            r"(?:__nncf_hooks|_nncf)\..*\.(?!(?:_num_bits|signed_tensor|enabled|scale|input_low|_?input_range)$)\w+"
        ),
        "compressed by NNCF: what its hooks hold changes the weights or the inputs",
        "call nncf.strip(model) and save its state_dict(), or the weights from before nncf.compress_weights()",
    ),
    _Form(
        "torch spectral_norm",
        _names(r"weight_u|parametrizations\.\w+\.\d+\._u"),
        "weights that torch's spectral_norm computes from others as the model runs",
        "call torch.nn.utils.remove_spectral_norm or parametrize.remove_parametrizations on each layer and save again",
    ),
    _Form(
        "PyTorch FSDP",
        _names(r"_?flat_param(?:_\d+)?"),
        "flattened by FSDP: one tensor for the weights of many layers",
        "save a full state dict: StateDictType.FULL_STATE_DICT, or get_model_state_dict(full_state_dict=True)",
    ),
    _Form(
        "torch.nn.utils.parametrize",
        _names(r"parametrizations\.\w+\.(?:original\d*|\d+\..+)"),
        "parametrised weights, of which the file holds the originals; torch.ao.pruning keeps its masks elsewhere",
        "save after sparsifier.squash_mask(), or parametrize.remove_parametrizations(layer, 'weight')",
    ),
)


def foreign_problem(names: Iterable[str], *, place: str) -> ForeignFormatError | None:
    """What the first form says that these names are evidence of; None where they are of none.

    Args:
        names: Names of a state dict.
        place: The file.
    """
    known = list(names)
    for form in _FORMS:
        first = next((name for name in known if form.evidence.fullmatch(name)), None)
        if first is not None:
            return _problem(form, f"{place}, {first}")
    return None


def foreign_names(names: Iterable[str]) -> Iterator[str]:
    """Names that are evidence of any form, or of an adapter, or scales."""
    for name in names:
        known = is_peft(name) or is_loralib(name) or name.endswith(_SCALES)
        if known or any(form.evidence.fullmatch(name) for form in _FORMS):
            yield name


def scaled_codes(state: Mapping[str, Any], *, place: str) -> ForeignFormatError | None:
    """Codes of 8 bits with a scale beside them: the weights are their product, and neither alone is a weight."""
    for name, tensor in state.items():
        scale = next((key for end in _SCALES if (key := f"{name}{end}") in state), None)
        if scale is not None and isinstance(tensor, torch.Tensor) and tensor.dtype in _EIGHT_BITS:
            return ForeignFormatError(
                f"codes of {str(tensor.dtype).removeprefix('torch.')} with scales beside them, as compressed-tensors "
                "(llm-compressor) and ModelOpt's export write them",
                place=f"{place}, {name}",
                hint=_TRANSFORMERS,
                producer="compressed-tensors or ModelOpt's export",
            )
    return None


def _problem(form: _Form, place: str) -> ForeignFormatError:
    return ForeignFormatError(form.what, place=place, hint=form.hint, producer=form.producer)
